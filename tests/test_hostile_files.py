"""Every kind of file that the command line reads, replaced by what it should not be: one line each, and nothing runs.

`PLACES` names the files, each with the command that reads it; `BROKEN` what is put in their place. A case is a pair of
them: no traceback, no code that runs, no write outside of the command's own output, no wait for a pipe, and one line
that names the file.
"""

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import soundfile
import torch
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from clap_hf.cli import app
from clips import as_dataset, write_clips, write_tar
from conftest import EXAMPLES, sound
from test_hostile_models import Bomb
from training.kill_and_resume import short_recipe

DOG = str(EXAMPLES / "dog.ogg")
WAIT_S = 2.0


def as_content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def as_pickle(path: Path) -> None:
    """A pickle that makes a folder where it is read, as torch.save writes it."""
    torch.save(Bomb(path.parent / "ran"), path)


BROKEN: dict[str, Callable[[Path], object]] = {
    "empty": as_content(b""),
    "zeros": as_content(bytes(512)),
    "noise": as_content(bytes((7 * i * i + 13 * i) % 251 for i in range(600))),
    "prose": as_content(b"not what\nwas expected"),
    "no UTF-8": as_content(b'{"a": "\xff\xfe"}\n'),
    "nested": as_content(b"[" * 50_000),
    "a list": as_content(b"[1, 2]"),
    "a number": as_content(b"17"),
    "null": as_content(b"null"),
    "a huge number": as_content(b'{"a": 1' + b"0" * 5000 + b"}"),
    "a pickle": as_pickle,
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a loop": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("gone"),
}
NO_FILES = ("a folder", "a FIFO", "a loop", "a link to nothing")
FEW = ("empty", "noise", "a list", "a pickle", "a FIFO")  # of commands that load a model first
LABELS = ("zeros", "prose", "nested", "a list", "a number", "null", "a huge number")
# What is right there: any line is a label, a run without records is one, and a folder may have any name.
RIGHT = {("run", "empty"), ("earlier runs", "empty"), ("card", "a folder"), *(("labels", name) for name in LABELS)}


class Place(NamedTuple):
    """A file in `stock`, and the command that reads it, with names in `stock` in braces."""

    file: str
    command: str
    breakages: tuple[str, ...] = tuple(BROKEN)


CPU = "--device cpu"
EVALUATE = "evaluate {model} --suite own --data-dir {set} --output-dir {out} --no-plots --device cpu"
SOUNDS = "evaluate {model} --suite sounds --data-dir {set} --output-dir {out} --device cpu"
RECIPE = "train {recipes}/recipe.yaml --output-dir {out}"
EMBED = f"embed {DOG} --output {{out}} --model {{model}} {CPU}"
PUSH = "push {model} acme/x --dry-run"
PLACES = {
    "labels.csv": Place("sounds/labels.csv", "classify {sounds}"),
    "labels": Place("labels.txt", f"classify {DOG} --labels-file {{labels.txt}} --model {{model}} {CPU}"),
    "queries": Place("queries.jsonl", f"moments {EXAMPLES} --queries {{queries.jsonl}} --model {{model}}"),
    "descriptions": Place("descriptions.json", EVALUATE + " --descriptions {descriptions.json}"),
    "relabelled": Place("relabelled.json", SOUNDS + " --relabelled {relabelled.json}"),
    "own set": Place("set/mine.csv", EVALUATE),
    "own parquet": Place("parquet-set/test.parquet", EVALUATE.replace("{set}", "{parquet-set}")),
    "recipe": Place("recipes/recipe.yaml", RECIPE),
    "parent": Place("recipes/parent.yaml", RECIPE, FEW),
    "compared": Place("recipes/recipe.yaml", "compare {recipes}/recipe.yaml --output-dir {out}", FEW),
    "metadata.csv": Place("clips/metadata.csv", "finetune {clips} --output-dir {out}"),
    "metadata.jsonl": Place("jsonl/metadata.jsonl", "finetune {jsonl} --output-dir {out}"),
    "table": Place("table.tsv", "finetune {table.tsv} --output-dir {out}"),
    "tar": Place("tars/a.tar", "finetune {tars} --output-dir {out}"),
    "parquet": Place("parquet/train.parquet", "finetune {parquet} --output-dir {out}"),
    "saved state": Place("saved/state.json", "finetune {saved} --output-dir {out}"),
    "saved info": Place("saved/dataset_info.json", "finetune {saved} --output-dir {out}"),
    "saved data": Place("saved/data-00000-of-00001.arrow", "finetune {saved} --output-dir {out}"),
    "part, searched": Place("index/part.parquet", f"search {{index}} dog --model {{model}} {CPU}"),
    "part, upgraded": Place("index/part.parquet", f"upgrade {{index}} --model {{model}} {CPU}"),
    "part, compared": Place("index/part.parquet", "duplicates {index}"),
    "config": Place("model/config.json", "info {model}"),
    "front end": Place("model/processor_config.json", "info {model}"),
    "embedding front end": Place("model/processor_config.json", EMBED, FEW),
    "tokenizer": Place("model/tokenizer.json", EMBED, FEW),
    "tokenizer config": Place("model/tokenizer_config.json", EMBED, FEW),
    "weights": Place("model/model.safetensors", f"timeline {DOG} --model {{model}} {CPU}"),
    "calibration": Place("model/calibration.safetensors", f"classify {DOG} --model {{model}} {CPU}", FEW),
    "base": Place("model/model.safetensors", "finetune {clips} --output-dir {out} --model {model}", FEW),
    "base's config": Place("model/config.json", "finetune {clips} --output-dir {out} --model {model}", FEW),
    "generation": Place("captioner/generation_config.json", f"caption {DOG} --model {{captioner}} {CPU}", FEW),
    "captioner": Place("captioner/model.safetensors", f"caption {DOG} --model {{captioner}} {CPU}", FEW),
    "official": Place("official.pth", "convert 2023 --checkpoint {official.pth} --output {out}"),
    "card": Place("model/README.md", PUSH, FEW),
    "run": Place("model/run.jsonl", PUSH, FEW),
    "results": Place("model/results.json", PUSH, FEW),
    "corpus": Place("model/corpus.json", PUSH, FEW),
    "conversion": Place("model/conversion.json", PUSH, FEW),
    "earlier runs": Place("model/earlier.jsonl", PUSH, FEW),
    "average": Place("model/average.json", PUSH, FEW),
    "base facts": Place("model/base.json", PUSH, FEW),
    "pushed config": Place("model/config.json", PUSH),
    "sound": Place("tone.wav", f"classify {{tone.wav}} --format csv --model {{model}} {CPU}", FEW),
    "query": Place("tone.wav", f"search {{index}} --like {{tone.wav}} --model {{model}} {CPU}", FEW),
    "recording": Place("tone.wav", f"timeline {{tone.wav}} --model {{model}} {CPU}", FEW),
}


@pytest.fixture(autouse=True, scope="module")
def one_command():
    """The commands made once: typer's runner makes them anew for every call, a tenth of a second."""
    command = get_command(app)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.testing._get_command", lambda _: command)
        yield


@pytest.fixture(scope="module")
def stock(tmp_path_factory, checkpoint, captioner):
    """A whole file of every place."""
    root = tmp_path_factory.mktemp("stock")
    for name in ("sounds", "set", "recipes", "tars", "parquet", "parquet-set", "jsonl"):
        (root / name).mkdir()
    soundfile.write(root / "tone.wav", sound(0.5), 16_000)
    shutil.copy(root / "tone.wav", root / "sounds" / "a.wav")
    (root / "sounds" / "labels.csv").write_text("file,label\na.wav,dog\n")
    (root / "labels.txt").write_text("dog\nrain\n")
    (root / "queries.jsonl").write_text('{"qid": 1, "query": "a dog", "vid": "dog"}\n')
    (root / "descriptions.json").write_text('{"dog": ["a dog barks"]}')
    (root / "relabelled.json").write_text('{"clips": []}')
    for name in "ab":
        shutil.copy(root / "tone.wav", root / "set" / f"{name}.wav")
    (root / "set" / "mine.csv").write_text("path,label\na.wav,dog\nb.wav,cat\n")
    rows = write_clips(root / "clips", pieces=2, recordings=2, seconds=0.3)
    dataset = as_dataset(root / "clips", rows)
    dataset.to_parquet(root / "parquet" / "train.parquet")
    dataset.rename_column("text", "caption").to_parquet(root / "parquet-set" / "test.parquet")
    dataset.save_to_disk(root / "saved")
    shutil.copytree(root / "clips", root / "jsonl", dirs_exist_ok=True)
    (root / "jsonl" / "metadata.csv").unlink()
    (root / "jsonl" / "metadata.jsonl").write_text('{"file_name": "applause_0.wav", "text": "clapping"}\n')
    (root / "table.tsv").write_text("file\tcaption\nclips/applause_0.wav\tclapping\n")
    write_tar(root / "tars" / "a.tar", {"a.wav": (root / "tone.wav").read_bytes(), "a.txt": b"rain"})
    (root / "recipes" / "recipe.yaml").write_text("extends: parent.yaml\nname: x\n")
    shutil.copytree(checkpoint, root / "model")
    shutil.copytree(captioner, root / "captioner")
    (root / "official.pth").touch()
    done = CliRunner().invoke(
        app, ["embed", DOG, "--output", str(root / "index"), "--model", str(checkpoint), "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    next((root / "index").glob("*.parquet")).rename(root / "index" / "part.parquet")
    recipe = short_recipe(str(root / "parquet"), "text", streamed=True)
    (root / "recipes" / "parent.yaml").write_text(yaml.safe_dump({"stage": "contrastive", **recipe.to_dict()}))
    return root


@contextmanager
def released(fifo: Path):
    """End the wait of whatever opened a FIFO after some seconds; yields a list that is empty where nothing waited."""
    waited: list[Path] = []

    def write() -> None:
        with suppress(OSError):  # nobody has it open
            if fifo.is_fifo():
                os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
                waited.append(fifo)

    timer = RepeatingTimer(WAIT_S, write)
    timer.start()
    try:
        yield waited
    finally:
        timer.cancel()


class RepeatingTimer(threading.Timer):
    """Calls a function again and again."""

    def run(self) -> None:
        while not self.finished.wait(self.interval):
            self.function()


def names_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


CASES = [
    (place, breakage)
    for place, about in PLACES.items()
    for breakage in about.breakages
    if (place, breakage) not in RIGHT
]


@pytest.mark.parametrize(("place", "breakage"), CASES, ids=[", ".join(case) for case in CASES])
def test_what_is_broken_is_named_in_one_line(stock, tmp_path, place, breakage):
    about = PLACES[place]
    copied = about.file.split("/")[0]
    if (stock / copied).is_dir():
        shutil.copytree(stock / copied, tmp_path / copied, copy_function=os.link)
    file = tmp_path / about.file
    file.unlink(missing_ok=True)
    BROKEN[breakage](file)
    words = about.command.replace("{out}", str(tmp_path / "out"))
    for name in sorted((path.name for path in stock.iterdir()), key=len, reverse=True):
        words = words.replace(f"{{{name}}}", str((tmp_path if name == copied else stock) / name))
    before = names_of(tmp_path)
    with released(file) as waited:
        result = CliRunner().invoke(app, words.split(), env={"COLUMNS": "200"})
    assert not waited, "a FIFO was opened"
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit), result.output
    [line] = result.stderr.strip().splitlines()
    assert str(file) in line or (str(file.parent) in line and (file.name in line or breakage in NO_FILES)), line
    assert "Traceback" not in line and "--traceback" not in line and "weights_only" not in line
    assert {name for name in names_of(tmp_path) - before if not name.startswith("out")} == set()
