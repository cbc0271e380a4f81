"""Pairs of one's own in every form: each trains, each malformed one is one clear line before the first step."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from huggingface_hub import HfApi
from typer.testing import CliRunner

from clap_hf.cli import app
from clap_hf.data.batches import EpochDraws, PairRows
from clap_hf.data.own import read_pairs, read_table
from clap_hf.data.source import NoSuchSplit, StreamSource
from clap_hf.data.stream import CROP_ONLY
from clap_hf.training.run import train_recipe
from clips import FORMS, as_dataset, write_clips, write_csv, write_form, write_tar
from conftest import EXAMPLES
from training.kill_and_resume import short_recipe


def recipe_on(dataset, **settings):
    """Five steps of a tiny model."""
    recipe = short_recipe(dataset, None, streamed=True)
    changed = {
        "sources": [{"dataset": dataset, "weight": 3.0}],
        "validation": {},
        "held_out": 0.34,
        "lanes": None,
        "batch_size": 4,
    }
    changed |= {"chunk_size": None, "steps": 5, "steps_per_epoch": 5, "checkpoint_steps": None, "best_metric": "step"}
    return replace(recipe, **(changed | settings))


def lines(run):
    return [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()]


def test_nothing_here_decodes_by_torchcodec():
    assert importlib.util.find_spec("torchcodec") is None


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains(form, tmp_path):
    name, given = write_form(form, tmp_path)
    train_recipe(recipe_on(name), tmp_path / "run", num_workers=0, given=given)
    start, epoch = lines(tmp_path / "run")
    data = start["data"]
    assert (data["pairs"] + data["held_out"], data["skipped"], data["reasons"]) == (12, 0, {})
    assert 3 <= data["held_out"] <= 4
    assert (epoch["step"], epoch["held_out_clips"], epoch["skipped"]) == (5, data["held_out"], 0)


def test_a_repository_of_the_hub_trains(hub, tmp_path):
    name, _ = write_form("metadata.jsonl", tmp_path)
    api = HfApi()
    api.create_repo("acme/own-sounds", repo_type="dataset")
    api.upload_folder(repo_id="acme/own-sounds", repo_type="dataset", folder_path=name)
    train_recipe(recipe_on("acme/own-sounds"), tmp_path / "run", num_workers=0)
    assert lines(tmp_path / "run")[1]["step"] == 5
    with pytest.raises(ValueError, match="acme/not-there: no such folder here and no such dataset on the Hub"):
        read_pairs(StreamSource("acme/not-there"))


@pytest.mark.parametrize("form", ["metadata.csv", "tar txt", "save_to_disk", "parquet path", "Dataset path"])
def test_every_form_streams_simply(form, tmp_path):
    name, given = write_form(form, tmp_path)
    settings = {"streaming": "simple", "held_out": 0.0, "validation": {"dataset": name, "split": "train"}}
    train_recipe(recipe_on(name, **settings), tmp_path / "run", num_workers=0, given=given)
    assert lines(tmp_path / "run")[-1]["step"] == 5


def test_parquet_of_paths_is_streamed_exactly(tmp_path):
    name, _ = write_form("parquet path", tmp_path)
    held = {"held_out": 0.0, "validation": {"dataset": name, "split": "train"}}
    train_recipe(recipe_on(name, **held), tmp_path / "run", num_workers=0)
    assert lines(tmp_path / "run")[-1]["held_out_clips"] == 12


def test_labels_become_captions_by_the_template(tmp_path):
    rows = write_clips(tmp_path, pieces=2, recordings=2)
    pairs = read_pairs(StreamSource(str(tmp_path)))
    assert pairs.texts() == [[f"this is a sound of {label}"] for _, label in rows]
    named = StreamSource(str(tmp_path), template="{}, far away")
    assert read_pairs(named).texts()[0] == [f"{rows[0][1]}, far away"]
    write_csv(tmp_path / "metadata.csv", ("file_name", "label"), [(name, i // 2) for i, (name, _) in enumerate(rows)])
    numbers = read_pairs(StreamSource(str(tmp_path), label_names=["clap", "tweet"])).texts()
    assert numbers == [["this is a sound of clap"]] * 2 + [["this is a sound of tweet"]] * 2
    write_csv(
        tmp_path / "metadata.csv", ("file_name", "label"), [(name, f"a|b {i}") for i, (name, _) in enumerate(rows)]
    )
    assert read_pairs(StreamSource(str(tmp_path))).texts()[1] == ["this is a sound of a", "this is a sound of b 1"]


def test_class_labels_have_their_names(tmp_path):
    rows = write_clips(tmp_path, pieces=2, recordings=2)
    kind = datasets.ClassLabel(names=["clap", "tweet"])
    found = (
        as_dataset(tmp_path, rows).remove_columns("text").add_column("label", [0, 0, 1, 1]).cast_column("label", kind)
    )
    texts = read_pairs(StreamSource("x"), {"x": found}).texts()
    assert texts == [["this is a sound of clap"]] * 2 + [["this is a sound of tweet"]] * 2


def test_captions_of_one_file_are_one_row(tmp_path):
    rows = write_clips(tmp_path, pieces=1, recordings=3)
    captions = [(name, f"{label}, {i}") for name, label in rows for i in range(5)]
    write_csv(tmp_path / "metadata.csv", ("file_name", "caption"), captions)
    pairs = read_pairs(StreamSource(str(tmp_path)))
    assert len(pairs) == 3 and pairs.texts()[1] == [f"{rows[1][1]}, {i}" for i in range(5)]


def test_an_epoch_goes_over_all_captions_of_a_file(processor, tmp_path):
    rows = [(EXAMPLES / "dog.ogg", f"caption {i}") for i in range(5)] + [(EXAMPLES / "bird.wav", "a bird")]
    write_csv(tmp_path / "sounds.csv", ("path", "caption"), [(str(file), text) for file, text in rows])
    source = StreamSource(str(tmp_path / "sounds.csv"))
    for every, pairs in ((True, 6), (False, 2)):
        own = read_pairs(replace(source, every_text=every))
        dataset = PairRows([own], processor.feature_extractor, CROP_ONLY, seed=0)
        draws = EpochDraws(dataset.text_counts(), [1.0], seed=0)
        texts = [dataset[key][0].text for key in draws]
        assert len(texts) == len(draws) == pairs == len(set(texts)), texts
        assert len(EpochDraws(dataset.text_counts(), [2.0], seed=0)) == 2 * pairs


def test_splits_by_folder_file_and_column(tmp_path):
    for split, recordings in (("train", 3), ("valid", 2)):
        rows = write_clips(tmp_path / "folders" / split, pieces=1, recordings=recordings)
        write_csv(tmp_path / f"{split}.csv", ("path", "label"), [(f"folders/{split}/{name}", x) for name, x in rows])
    for where in ("folders", "."):
        sizes = [len(read_pairs(StreamSource(str(tmp_path / where), split=x))) for x in ("train", "validation")]
        assert sizes == [3, 2]
    with pytest.raises(NoSuchSplit, match=r"splits \['train', 'validation'\], expected 'test' among them"):
        read_pairs(StreamSource(str(tmp_path / "folders"), split="test"))
    both = [(f"folders/valid/{name}", label, "train" if i else "test") for i, (name, label) in enumerate(rows)]
    write_csv(tmp_path / "all.csv", ("path", "label", "split"), both)
    assert len(read_pairs(StreamSource(str(tmp_path / "all.csv"), split="test"))) == 1
    # Classes may be called as splits are.
    for label in ("train", "rain"):
        shutil.copytree(tmp_path / "folders" / "valid", tmp_path / "classes" / label)
        (tmp_path / "classes" / label / "metadata.csv").unlink()
    assert len(read_pairs(StreamSource(str(tmp_path / "classes")))) == 4


def test_holding_out_keeps_equal_sounds_together(tmp_path):
    rows = write_clips(tmp_path, pieces=6, recordings=4)
    for name, _ in rows[::3]:
        shutil.copy(tmp_path / name, tmp_path / f"again_{name}")
    rows += [(f"again_{name}", label) for name, label in rows[::3]]
    write_csv(tmp_path / "metadata.csv", ("file_name", "label", "take"), [(*r, i % 7) for i, r in enumerate(rows)])

    def sides(seed, **source):
        found = read_pairs(StreamSource(str(tmp_path), **source)).hold_out(0.3, seed)
        return [[pairs.name(i) for i in range(len(pairs))] for pairs in found]

    train, held = sides(0)
    assert sorted(train + held) == sorted(name for name, _ in rows)
    assert {name.removeprefix("again_") for name in held}.isdisjoint(name.removeprefix("again_") for name in train)
    label = dict(rows)
    assert {label[name] for name in held} == set(label.values())
    assert 0.15 < len(held) / len(rows) < 0.45
    assert sides(0) == [train, held] and sides(1)[1] != held
    take = {name: i % 7 for i, (name, _) in enumerate(rows)}
    train, held = sides(0, group="take")
    assert {take[name] for name in held}.isdisjoint(take[name] for name in train)


def test_unreadable_rows_are_left_out_with_their_reason(tmp_path, capsys):
    rows = write_clips(tmp_path, pieces=4, recordings=3, seconds=0.4)
    (tmp_path / rows[0][0]).write_bytes(b"no sound")
    (tmp_path / rows[5][0]).unlink()
    train_recipe(recipe_on(str(tmp_path)), tmp_path / "run", num_workers=0)
    data = lines(tmp_path / "run")[0]["data"]
    assert data["skipped"] == 2 and data["pairs"] + data["held_out"] == 10
    assert list(data["reasons"]) == [rows[0][0], rows[5][0]]
    printed = capsys.readouterr().out
    assert printed.startswith(f"1 process, batches of 4, 1 epochs of 5 steps; {data['pairs']} readable pairs, ")
    assert f"2 rows skipped.\nThe first skipped, {rows[0][0]}: " in printed


def _sounds(folder: Path) -> list[tuple[str, str]]:
    return write_clips(folder, pieces=2, recordings=2, seconds=0.3)


def _no_text_column(folder):
    write_csv(folder / "metadata.csv", ("file_name", "mood"), _sounds(folder))


def _no_path_column(folder):
    write_csv(folder / "metadata.csv", ("name", "text"), _sounds(folder))


def _files_gone(folder):
    for name, _ in _sounds(folder):
        (folder / name).unlink()


def _no_sound_in_them(folder):
    for name, _ in _sounds(folder):
        (folder / name).write_bytes(b"text")


def _empty_texts(folder):
    write_csv(folder / "metadata.csv", ("file_name", "text"), [(name, "") for name, _ in _sounds(folder)])


def _empty_table(folder):
    _sounds(folder)
    write_csv(folder / "metadata.csv", ("file_name", "text"), [])


def _latin_table(folder):
    _sounds(folder)
    (folder / "metadata.csv").write_bytes("file_name,text\na.wav,caf\u00e9\n".encode("latin-1"))


def _loose_commas(folder):
    _sounds(folder)
    (folder / "metadata.csv").write_text("file_name,text\napplause_0.wav,people, clapping\n")


def _bad_json(folder):
    _sounds(folder)
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "applause_0.wav", "text": "clapping"}\n{"file_name": \n')


def _loose_sounds(folder):
    _sounds(folder)
    (folder / "metadata.csv").unlink()


def _no_sounds(folder):
    (folder / "notes.md").write_text("nothing here")


def _numbers(folder):
    write_csv(
        folder / "metadata.csv", ("file_name", "label"), [(name, i) for i, (name, _) in enumerate(_sounds(folder))]
    )


def _no_tar(folder):
    (folder / "a.tar").write_bytes(b"no archive" * 200)


def _tar_without_texts(folder):
    rows = _sounds(folder)
    write_tar(folder / "a.tar", {name: (folder / name).read_bytes() for name, _ in rows})
    (folder / "metadata.csv").unlink()


def _tar_without_sounds(folder):
    write_tar(folder / "a.tar", {"a.txt": b"rain"})


def _paths_elsewhere(folder):
    rows = _sounds(folder)
    table = datasets.Dataset.from_dict({"audio": [f"/gone/{name}" for name, _ in rows], "text": ["rain"] * len(rows)})
    table.to_parquet(folder / "train.parquet")
    (folder / "metadata.csv").unlink()


def _no_parquet(folder):
    (folder / "train.parquet").write_bytes(b"PAR0")


def _saved_without_audio(folder):
    datasets.Dataset.from_dict({"text": ["rain"]}).save_to_disk(folder / "x")
    shutil.copytree(folder / "x", folder, dirs_exist_ok=True)


def _one_pair(folder):
    write_csv(folder / "metadata.csv", ("file_name", "text"), [(_sounds(folder)[0][0], "rain")])


MALFORMED = [
    (_no_text_column, "columns ['file_name', 'mood'], expected one of ['text', 'caption', 'captions', 'label'"),
    (_no_path_column, "columns ['name', 'text'], expected one of ['audio', 'file_name', 'path'"),
    (_files_gone, "none of 4 rows can be read; the first, applause_0.wav: no audio bytes, and"),
    (_no_sound_in_them, "none of 4 rows can be read; the first, applause_0.wav:"),
    (_empty_texts, "none of 4 rows can be read; the first, applause_0.wav: no text"),
    (_empty_table, "metadata.csv has no rows below its head"),
    (_latin_table, "metadata.csv is not UTF-8 text (byte 24)"),
    (_loose_commas, "metadata.csv, line 2: more values than the 2 columns of its head"),
    (_bad_json, "metadata.jsonl, line 2:"),
    (_loose_sounds, "applause_0.wav has no text:"),
    (_no_sounds, "holds no sounds"),
    (_numbers, "the label is 0, a number, of 0 label_names; name its class"),
    (_no_tar, "a.tar is no tar archive"),
    (_tar_without_texts, "has columns ['audio'], expected one of ['text'"),
    (_tar_without_sounds, "a.tar holds 1 samples without a sound"),
    (_paths_elsewhere, "none of 4 rows can be read; the first, /gone/applause_0.wav: no audio bytes, and"),
    (_no_parquet, "train.parquet: "),
    (_saved_without_audio, "has columns ['text'], expected one of ['audio'"),
    (_one_pair, "0 of 1 pairs can be held out"),
]


@pytest.mark.parametrize(("break_it", "message"), MALFORMED, ids=[function.__name__ for function, _ in MALFORMED])
def test_malformed_sets_are_one_line_before_the_first_step(break_it, message, tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    break_it(folder)
    result = CliRunner().invoke(app, ["finetune", str(folder), "--output-dir", str(tmp_path / "run")])
    [line] = result.stderr.strip().splitlines()[-1:]
    assert result.exit_code == 2 and line.startswith("Error: ") and message in line, result.output
    assert not (tmp_path / "run").exists()


def test_wrong_objects_and_places_are_named(tmp_path):
    with pytest.raises(ValueError, match="x is a list, expected a datasets.Dataset"):
        read_pairs(StreamSource("x"), {"x": ["a.wav"]})
    with pytest.raises(
        ValueError, match="nowhere at all: no such file or folder, expected a folder with metadata.csv"
    ):
        read_pairs(StreamSource("nowhere at all"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="a.txt ends in '.txt', expected"):
        read_pairs(StreamSource(str(tmp_path / "a.txt")))
    (tmp_path / "a.csv").write_text("path,text\nx.wav\n")
    with pytest.raises(ValueError, match="line 2: fewer values than the 2 columns"):
        read_table(tmp_path / "a.csv")


def test_sounds_of_the_same_rate_are_what_the_files_hold(tmp_path):
    """Bytes of an archive's member, of a parquet row and of a file are the same sound."""
    sound = np.sin(np.arange(8000) / 7).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sound, 8000, subtype="FLOAT")
    content = (tmp_path / "a.wav").read_bytes()
    write_tar(tmp_path / "a.tar", {"one/a.wav": content, "one/a.txt": b"a tone"})
    pairs = read_pairs(StreamSource(str(tmp_path / "a.tar")))
    assert pairs.source.stored_sound(pairs[0]) == content and pairs.texts() == [["a tone"]]
    write_csv(tmp_path / "a.csv", ("path", "text"), [("a.wav", "a tone")])
    table = read_pairs(StreamSource(str(tmp_path / "a.csv")))
    assert Path(table.source.stored_sound(table[0])).read_bytes() == content
