import csv
import errno
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
from huggingface_hub import constants
from PIL import Image
from transformers import pipeline
from typer.testing import CliRunner

import clap_hf
from clap_hf.cli import app
from clap_hf.cli.commands import EVERYDAY_LABELS
from clap_hf.embedding import TEMPLATES, ClapEncoder, class_vectors
from clap_hf.pretrained import load_checked
from conftest import EXAMPLES, make_model, sound


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three sounds and a file that is none."""
    folder = tmp_path_factory.mktemp("sounds")
    shutil.copy(EXAMPLES / "dog.ogg", folder)
    shutil.copy(EXAMPLES / "speech.wav", folder)
    (folder / "inner").mkdir()
    soundfile.write(folder / "inner" / "long [1].wav", sound(20.0, 8_000), 8_000)
    (folder / "broken.wav").write_text("not a sound")
    return folder


@pytest.fixture
def run(checkpoint, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments, code=0):
        result = CliRunner().invoke(app, [*map(str, arguments), "--model", str(checkpoint), "--device", "cpu"])
        assert result.exit_code == code, result.output
        return re.sub(r"\s+", " ", result.stdout)

    return invoke


def test_a_table_and_json(run, folder, tmp_path):
    out = run("classify", folder, "--labels", "dog, a man speaking", "--top-k", "1", "--json", tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert report["labels"] == ["dog", "a man speaking"]
    by_name = {result["file"].rsplit("/", 1)[-1]: result for result in report["results"]}
    assert set(by_name) == {"dog.ogg", "speech.wav", "long [1].wav"}
    assert by_name["long [1].wav"]["duration_s"] == 20.0 and "20.0 s" in out
    for name, result in by_name.items():
        assert sum(score["score"] for score in result["scores"]) == pytest.approx(1)
        best = result["scores"][0]
        assert name in out and f"{best['label']} │ {best['score']:.0%} │" in out
        assert "expected" not in result
    assert "labels.csv" not in out


def test_bad_files_are_skipped_counted_and_listed(run, folder, tmp_path):
    out = run("classify", folder, "--labels", "dog,cat", "--json", tmp_path / "out.json")
    assert "1 of 4 files were skipped" in out and "broken.wav" in out
    failures = json.loads((tmp_path / "out.json").read_text())["failures"]
    assert [failure["file"] for failure in failures] == [str(folder / "broken.wav")] and failures[0]["error"]


def test_exit_code_when_all_files_fail(run, folder):
    assert "1 of 1 files were skipped" in run("classify", folder / "broken.wav", code=1)


def test_scores_are_the_pipeline_s(run, folder, checkpoint, tmp_path):
    from transformers import pipeline

    options = ["--template", "{}", "--template", "hear {}"]
    run("classify", folder / "dog.ogg", "--labels", "dog,cat", *options, "--json", tmp_path / "out.json")
    classify = pipeline(
        "zero-shot-audio-classification",
        model=str(checkpoint),
        pipeline_class=clap_hf.MSClapZeroShotAudioClassificationPipeline,
        device="cpu",
    )
    expected = classify(folder / "dog.ogg", candidate_labels=["dog", "cat"], hypothesis_template=["{}", "hear {}"])
    assert json.loads((tmp_path / "out.json").read_text())["results"][0]["scores"] == expected


def test_a_plot_of_cosines_changes_no_score(run, folder, checkpoint, tmp_path):
    options = ("classify", folder, "--labels", "dog,cat,rain", "--json", tmp_path / "out.json")
    run(*options)
    plain = json.loads((tmp_path / "out.json").read_text())["results"]
    run(*options, "--plot", tmp_path / "it.png")
    drawn = json.loads((tmp_path / "out.json").read_text())["results"]
    with Image.open(tmp_path / "it.png") as image:
        assert image.width > 300 and image.height > 300
    model, processor = load_checked(clap_hf.MSClapModel, str(checkpoint))
    encoder = ClapEncoder(model, processor)
    for before, after in zip(plain, drawn, strict=True):
        assert [s["label"] for s in before["scores"]] == [s["label"] for s in after["scores"]]
        assert [s["score"] for s in before["scores"]] == pytest.approx([s["score"] for s in after["scores"]], abs=1e-6)
        if after["scores"]:
            sound_vector = encoder.embed_audio([encoder.prepare(Path(after["file"]))])[0]
            prompts = [[template.format(s["label"]) for template in TEMPLATES] for s in after["scores"]]
            texts = class_vectors(encoder.embed_texts([text for own in prompts for text in own]), prompts)
            assert [s["cosine"] for s in after["scores"]] == pytest.approx((texts @ sound_vector).tolist(), abs=1e-5)


def test_labels_csv_gives_labels_and_is_compared_with(run, tmp_path):
    for name in ("dog.ogg", "speech.wav"):
        shutil.copy(EXAMPLES / name, tmp_path)
    (tmp_path / "labels.csv").write_text("file,label\ndog.ogg,dog\nspeech.wav,speech\ngone.wav,cow\n")
    out = run("classify", tmp_path, "--json", tmp_path / "out.json")
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["labels"] == ["dog", "speech"]
    assert [result["expected"] for result in report["results"]] == ["dog", "speech"]
    agreeing = sum(result["scores"][0]["label"] == result["expected"] for result in report["results"])
    assert f"that of labels.csv for {agreeing} of 2 sounds" in out
    assert out.count("✓") == agreeing and out.count("✗") == 2 - agreeing
    assert "1 sounds" in run("classify", tmp_path, "--labels", "dog,cat"), "only labels to choose from are compared"


def test_labels_file_and_everyday_labels(run, folder, tmp_path):
    (tmp_path / "labels.txt").write_text("rain\n\n  a man speaking \n")
    run("classify", folder / "dog.ogg", "--labels-file", tmp_path / "labels.txt", "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["labels"] == ["rain", "a man speaking"]
    run("classify", folder / "dog.ogg", "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["labels"] == list(EVERYDAY_LABELS)
    assert len(set(EVERYDAY_LABELS)) == len(EVERYDAY_LABELS) >= 40


def invoke(*arguments, input=None):
    """A command as a user runs it; errors are one line on stderr, and nothing else is there."""
    return CliRunner().invoke(app, list(map(str, arguments)), input=input, env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """Inputs that no command can use, by name."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("empty", "no_config", "damaged_model", "bert", "damaged_index", "foreign_index"):
        (folder / name).mkdir()
    (folder / "zero.wav").touch()
    (folder / "text.wav").write_text("not a sound")
    (folder / "binary.txt").write_bytes(b"dog\n\xff\xfe")
    (folder / "blank.txt").write_text(" \n")
    (folder / "damaged_model" / "config.json").write_text('{"model_type": "msclap"')
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (folder / "damaged_index" / "part-000000-0.parquet").write_bytes(b"PAR1 and no more")
    datasets.Dataset.from_dict({"file": ["a"]}).to_parquet(folder / "foreign_index" / "part-0.parquet")
    for name, content in {
        "columns": b"name;word\n",
        "encoding": b"file,label\na.wav,\xff\n",
        "short": b"file,label\na.wav\n",
        "quotes": b'file,label\n"a.wav" x,dog\n',
    }.items():
        (folder / name).mkdir()
        soundfile.write(folder / name / "a.wav", sound(0.3), 16_000)
        (folder / name / "labels.csv").write_bytes(content)
    return folder


DOG = str(EXAMPLES / "dog.ogg")
WRONG = [
    # classify
    (["classify"], "Missing argument"),
    (["classify", DOG, "--nonsense"], "--nonsense"),
    (["classify", "gone.wav"], "gone.wav"),
    (["classify", "{wrong}/empty"], "no sound file in this folder"),
    (["classify", DOG, "--labels", " , "], "No labels"),
    (["classify", DOG, "--labels", "a,b", "--labels-file", "x"], "Both --labels and --labels-file"),
    (["classify", DOG, "--labels-file", "gone.txt"], "gone.txt: No such file"),
    (["classify", DOG, "--labels-file", "{wrong}"], "{wrong} is a folder, expected a text file"),
    (["classify", DOG, "--labels-file", "{wrong}/binary.txt"], "binary.txt is not UTF-8 text (byte 4)"),
    (["classify", DOG, "--labels-file", "{wrong}/blank.txt"], "No labels in {wrong}/blank.txt"),
    (["classify", "{wrong}/columns"], "columns/labels.csv has columns ['name;word'], expected file and label"),
    (["classify", "{wrong}/encoding"], "encoding/labels.csv is not UTF-8"),
    (["classify", "{wrong}/short"], "short/labels.csv, line 2"),
    (["classify", "{wrong}/quotes"], "quotes/labels.csv is no CSV file"),
    (["classify", DOG, "--template", "no place"], "where the label goes"),
    (["classify", DOG, "--top-k", "0"], "top-k"),
    (["classify", DOG, "--max-windows", "0"], "max-windows"),
    (["classify", DOG, "--format", "yaml"], "'yaml'"),
    (["classify", DOG, "--json", "{wrong}"], "--json {wrong} is a folder"),
    (["classify", DOG, "--device", "foo"], "--device is 'foo', expected cpu"),
    (["classify", DOG, "--device", "cuda:99"], "--device is 'cuda:99', expected cpu"),
    (["classify", DOG, "--model", "nosuchfolder"], "'nosuchfolder' is no folder, expected 'embedded'"),
    (["classify", DOG, "--model", "./acme/clap"], "'./acme/clap' is no folder"),
    (["classify", DOG, "--model", "runs/best/last"], "'runs/best/last' is no folder"),
    (["classify", DOG, "--model", DOG], "is a file, expected 'embedded'"),
    (["classify", DOG, "--model", "{wrong}/no_config"], "config.json"),
    (["classify", DOG, "--model", "{wrong}/damaged_model"], "config.json"),
    (["classify", DOG, "--model", "{wrong}/bert"], "is of the type 'bert', expected a CLAP model"),
    (["classify", DOG, "--model", "acme/nothing-here"], "acme/nothing-here"),
    (["classify", DOG, "--model", "{captioner}"], "is of the type 'msclap_captioning', expected a CLAP model"),
    (["classify", DOG, "--json", "{wrong}/zero.wav/out.json"], "zero.wav/out.json cannot be written (Not a dir"),
    # caption
    (["caption", DOG], "--model"),
    (["caption", "gone.wav", "--model", "{captioner}"], "gone.wav"),
    (["caption", DOG, "--model", "embedded"], "expected a captioner, such as"),
    (["caption", DOG, "--model", "{captioner}", "--beams", "0"], "beams"),
    (["caption", DOG, "--model", "{captioner}", "--json", "{wrong}"], "is a folder"),
    # embed
    (["embed", DOG], "--output"),
    (["embed", "gone.wav", "--output", "{wrong}/new"], "gone.wav"),
    (["embed", DOG, "--output", "{wrong}/text.wav/x", "--model", "{checkpoint}"], "text.wav"),
    (
        ["embed", DOG, "--output", "{wrong}/damaged_index", "--model", "{checkpoint}"],
        "part-000000-0.parquet: a damaged",
    ),
    (
        ["embed", DOG, "--output", "{wrong}/foreign_index", "--model", "{checkpoint}"],
        "part-0.parquet: not a part that",
    ),
    (["embed", DOG, "--output", "{wrong}/new", "--model", "{captioner}"], "expected a CLAP model"),
    # search
    (["search", "{wrong}/empty", "a dog"], "no collection of sounds here"),
    (["search", "{wrong}/empty"], "expected one of them"),
    (["search", "{wrong}/empty", "a dog", "--like", DOG], "expected one of them"),
    (["search", "{wrong}/damaged_index", "a dog"], "part-000000-0.parquet: a damaged part"),
    (["search", "{wrong}/foreign_index", "a dog"], "part-0.parquet: not a part that clap-hf wrote"),
    (["search", "{index}", ""], "expected words, or a sound"),
    (["search", "{index}", DOG], "is the name of a file, expected words"),
    (["search", "{index}", "--like", "gone.wav"], "gone.wav"),
    (["search", "{index}", "--like", "{wrong}/text.wav"], "text.wav"),
    (["search", "{index}", "a dog", "--model", "embedded"], "expected those of 'embedded'"),
    # push, convert, export, info
    (["push", "{wrong}/gone", "acme/x"], "gone is not a folder"),
    (["push", "{wrong}/empty", "acme/x"], "config.json"),
    (["push", "{wrong}/empty", "acme/x", "--type", "space"], "'space', expected model or dataset"),
    (["convert", "1999"], "1999"),
    (["convert", "2023", "--checkpoint", "{wrong}/gone.pth", "--output", "{wrong}/clap"], "gone.pth"),
    (["convert", "2023", "--checkpoint", "{wrong}/binary.txt", "--output", "{wrong}/clap"], "binary.txt"),
    (["export", "nosuchfolder", "{wrong}/onnx"], "'nosuchfolder' is no folder"),
    (["export", "{captioner}", "{wrong}/onnx"], "expected a CLAP model"),
    (["info", "nosuchfolder"], "'nosuchfolder' is no folder"),
    (["info", "{wrong}/bert"], "expected"),
    (["evaluate", "embedded", "--suite", "nonsense"], "nonsense"),
]


@pytest.mark.parametrize("arguments, message", WRONG, ids=[" ".join(case[0])[:60] for case in WRONG])
def test_every_wrong_input_is_one_line(wrong, checkpoint, captioner, index, arguments, message):
    places = {"wrong": wrong, "checkpoint": checkpoint, "captioner": captioner, "index": index}
    result = invoke(*(argument.format(**places) for argument in arguments))
    assert result.exit_code in (1, 2), result.output
    [line] = result.stderr.strip().splitlines()
    assert message.format(**places) in line and "Traceback" not in line
    assert result.stdout == "" and isinstance(result.exception, SystemExit)


@pytest.fixture(scope="module")
def index(tmp_path_factory, checkpoint):
    """A collection of the examples."""
    folder = tmp_path_factory.mktemp("library") / "index"
    result = invoke("embed", EXAMPLES, "--output", folder, "--model", checkpoint, "--device", "cpu")
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.skipif(os.geteuid() == 0, reason="everything can be read by root")
def test_files_without_permission_are_named(run, tmp_path):
    shutil.copy(DOG, tmp_path)
    (tmp_path / "dog.ogg").chmod(0)
    assert "Permission denied" in run("classify", tmp_path, "--labels", "dog", code=1)


def test_unexpected_errors_are_one_line_and_can_be_shown_whole(checkpoint, monkeypatch):
    monkeypatch.setattr("clap_hf.cli.commands.checked_checkpoint", lambda *_: {}["x"])
    result = invoke("classify", DOG)
    assert result.exit_code == 2 and result.stderr == "Error: KeyError: 'x' (--traceback shows where)\n"
    result = invoke("--traceback", "classify", DOG)
    assert "Traceback (most recent call last)" in result.stderr and result.stderr.endswith("shows where)\n")


# Output


def test_repeated_labels_and_unquoted_words(run, index, checkpoint, tmp_path):
    run("classify", DOG, "--labels", "dog", "--labels", "cat, a bird", "--json", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["labels"] == ["dog", "cat", "a bird"]
    options = ["--model", checkpoint, "--device", "cpu", "--format", "json"]
    quoted, unquoted = (
        json.loads(invoke("search", index, *words, *options).stdout) for words in (["a dog"], ["a", "dog"])
    )
    assert quoted == unquoted and quoted["words"] == "a dog" and len(quoted["hits"]) == 10


def test_json_and_csv_on_stdout(folder, checkpoint, tmp_path):
    command = ["classify", folder, "--labels", "dog,rain", "--model", checkpoint, "--device", "cpu"]
    results = [invoke(*command, *options) for options in (["--json", "-"], ["--format", "json"])]
    report = json.loads(results[0].stdout)
    assert results[0].stdout == results[1].stdout and len(report["results"]) == 3 and len(report["failures"]) == 1
    result = invoke(*command, "--format", "csv", "--top-k", 1, "--json", tmp_path / "out.json")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert json.loads((tmp_path / "out.json").read_text()) == report
    best = {found["file"]: found["scores"][0] for found in report["results"]}
    assert {row["file"]: (row["label"], float(row["score"])) for row in rows} == {
        file: (score["label"], score["score"]) for file, score in best.items()
    }
    assert "broken.wav" in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_lists_of_files_from_stdin(folder, checkpoint):
    names = [folder / "dog.ogg", folder / "inner" / "long [1].wav"]
    command = ["classify", "-", "--labels", "dog,rain", "--model", checkpoint, "--device", "cpu", "--json", "-"]
    for listed in ("\n".join(map(str, names)) + "\n", "\0".join(map(str, names)) + "\0"):
        report = json.loads(invoke(*command, input=listed).stdout)
        assert [found["file"] for found in report["results"]] == list(map(str, names))
    result = invoke(*command, input="\n")
    assert result.exit_code == 2 and "No file names on stdin" in result.stderr


def test_only_regular_files_are_replaced(checkpoint, tmp_path):
    command = ["classify", DOG, "--labels", "dog", "--model", checkpoint, "--device", "cpu", "--json"]
    target, link, fifo = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "fifo"
    target.write_text("old")
    link.symlink_to(target)
    assert invoke(*command, link).exit_code == 0
    assert link.is_symlink() and json.loads(target.read_text())["labels"] == ["dog"]
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    assert invoke(*command, fifo).exit_code == 0
    reader.join(60)
    assert json.loads(read[0])["labels"] == ["dog"] and stat.S_ISFIFO(fifo.stat().st_mode)
    assert invoke(*command, "/dev/null").exit_code == 0 and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    before = target.stat().st_ino
    assert invoke(*command, target).exit_code == 0
    assert target.stat().st_ino != before, "a regular file is replaced whole"


def test_a_full_disk_is_found_before_the_work(monkeypatch, tmp_path):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("clap_hf.cli.io.os.fsync", full)
    monkeypatch.setattr("clap_hf.cli.commands.checked_checkpoint", lambda *_: pytest.fail("the work began"))
    result = invoke("classify", DOG, "--json", tmp_path / "new" / "out.json")
    assert result.exit_code == 2 and "out.json cannot be written (No space left on device)" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_dev_stdout_is_stdout(tmp_path):
    code = (
        "import sys; from pathlib import Path; from clap_hf.cli.io import is_stdout; "
        "print([is_stdout(Path(name)) for name in sys.argv[1:]])"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run(
            [sys.executable, "-c", code, "/dev/stdout", "-", "out", "other"], stdout=out, cwd=tmp_path, check=True
        )
    assert (tmp_path / "out").read_text() == "[True, True, True, False]\n"
    piped = subprocess.run([sys.executable, "-c", code, "/dev/stdout", "out"], stdout=subprocess.PIPE, cwd=tmp_path)
    assert piped.stdout == b"[True, False]\n"


@pytest.mark.parametrize("peak, silent", [(0.0, True), (0.9e-4, True), (2e-4, False)])
def test_quiet_sounds(run, tmp_path, peak, silent):
    tone = peak * np.sin(np.arange(16_000) * 0.05)
    soundfile.write(tmp_path / "quiet.wav", 0.25 + tone, 16_000, subtype="FLOAT")  # a constant offset is no sound
    out = run("classify", tmp_path, "--labels", "dog,cat", "--json", tmp_path / "out.json")
    [found] = json.loads((tmp_path / "out.json").read_text())["results"]
    assert found["silent"] is silent and ("silence" in out) is silent and len(found["scores"]) == (0 if silent else 2)


def test_max_windows_reaches_the_pipeline(run, folder, tmp_path):
    long = folder / "inner" / "long [1].wav"
    scores = []
    for options in ([], ["--max-windows", "1"]):
        run("classify", long, "--labels", "dog,cat", *options, "--json", tmp_path / "out.json")
        scores.append(json.loads((tmp_path / "out.json").read_text())["results"][0]["scores"][0]["score"])
    assert scores[0] != scores[1]


def test_long_sounds_are_classified_in_blocks_as_whole_ones(run, folder, tmp_path, monkeypatch):
    file = tmp_path / "long.wav"
    soundfile.write(file, np.stack([sound(40.0, 22_050, seed=seed) for seed in (1, 2)], axis=1), 22_050)
    os.truncate(file, 44 + 35 * 22_050 * 4)
    soundfile.write(tmp_path / "silence.wav", np.full(40 * 8000, 0.1), 8000)
    reports = []
    for long_s in (1000.0, 30.0):
        monkeypatch.setattr("clap_hf.cli.sounds.LONG_S", long_s)
        run("classify", file, tmp_path / "silence.wav", "--labels", "dog,rain", "--json", tmp_path / "out.json")
        reports.append(json.loads((tmp_path / "out.json").read_text())["results"])
    scores = [
        {score["label"]: score["score"] for result in report for score in result.pop("scores")} for report in reports
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    assert reports[0] == reports[1]
    assert [(found["duration_s"], found["truncated"], found["silent"]) for found in reports[1]] == [
        (35.0, True, False),
        (40.0, False, True),
    ]


def test_ctrl_c_ends_with_what_is_done(checkpoint, folder, monkeypatch, tmp_path):
    """Ctrl-C at the second of three sounds."""
    calls: list[tuple] = []

    def stopped(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    original = clap_hf.MSClapZeroShotAudioClassificationPipeline.__call__
    monkeypatch.setattr(clap_hf.MSClapZeroShotAudioClassificationPipeline, "__call__", stopped)
    files = [folder / "dog.ogg", folder / "speech.wav", folder / "inner"]
    options = ["--labels", "dog", "--model", checkpoint, "--device", "cpu", "--json", tmp_path / "out.json"]
    result = invoke("classify", *files, *options)
    assert result.exit_code == 130 and result.stderr.strip().splitlines()[-1] == "Interrupted: 1 of 3 files are done."
    assert len(json.loads((tmp_path / "out.json").read_text())["results"]) == 1 and "dog.ogg" in result.stdout
    calls[1:] = []
    monkeypatch.setattr("clap_hf.search.SoundCollection.add", stopped)
    result = invoke("embed", files[0], "--output", tmp_path / "index", "--model", checkpoint, "--device", "cpu")
    assert result.exit_code == 130 and "0 sounds are in" in result.stderr and "goes on" in result.stderr


def test_prune_and_relative_paths_from_the_command_line(checkpoint, tmp_path):
    shutil.copy(DOG, tmp_path / "dog.ogg")
    shutil.copy(EXAMPLES / "speech.wav", tmp_path)
    command = ["embed", tmp_path, "--output", tmp_path / "index", "--model", checkpoint, "--device", "cpu"]
    invoke(*command)
    (tmp_path / "dog.ogg").rename(tmp_path / "hound.ogg")
    assert "0 sounds embedded, 1 known, 1 recognised, 0 dropped, 2 in" in invoke(*command, "--prune").stdout
    (tmp_path / "hound.ogg").unlink()
    assert "0 sounds embedded, 1 known, 1 dropped, 1 in" in invoke(*command, "--prune").stdout
    counts = {"embedded": 0, "known": 1, "recognised": 0, "dropped": 0, "sounds": 1}
    assert json.loads(invoke(*command, "--json", "-").stdout) == {**counts, "damaged": [], "failures": []}


@pytest.fixture
def cut(tmp_path):
    """A sound of which the last third is gone."""
    soundfile.write(tmp_path / "cut.wav", sound(3.0), 16_000)
    os.truncate(tmp_path / "cut.wav", 44 + 2 * 32_000)
    return tmp_path / "cut.wav"


def test_damage_is_reported_once_by_every_command(checkpoint, captioner, cut):
    options = ["--model", checkpoint, "--device", "cpu"]
    index = cut.parent / "index"
    results = []
    for command in (["classify", cut, "--labels", "dog", *options], ["caption", cut, "--model", captioner]):
        assert "(truncated)" in invoke(*command).stdout
        result = invoke(*command, "--json", "-")
        assert result.stderr.strip() == ""
        [found] = json.loads(result.stdout)["results"]
        assert found["truncated"] and "bytes, 64000 are there" in found["damage"][0]
        results.append(found)
    result = invoke("embed", cut, DOG, "--output", index, *options)
    lines = result.stdout.splitlines()
    assert result.stderr.strip() == "" and "1 of them are truncated or damaged:" in lines
    assert any(str(cut) in line and "bytes, 64000 are there" in line for line in lines)
    shutil.rmtree(index)
    report = json.loads(invoke("embed", cut, DOG, "--output", index, *options, "--json", "-").stdout)
    assert report["damaged"] == [{"file": str(cut), "damage": results[0]["damage"][0]}] and report["embedded"] == 2
    result = invoke("search", index, "--like", cut, *options, "--json", "-")
    [line] = result.stderr.strip().splitlines()
    assert line == f"{cut} is truncated or damaged: {results[0]['damage'][0]}"
    hits = {hit["file"]: hit["damage"] for hit in json.loads(result.stdout)["hits"]}
    assert hits == {str(cut): results[0]["damage"][0], DOG: ""}
    cut.rename(cut.with_name("moved.wav"))
    invoke("embed", cut.parent / "moved.wav", "--output", index, *options)
    hits = json.loads(invoke("search", index, "a dog", *options, "--json", "-").stdout)["hits"]
    assert [hit["damage"] != "" for hit in hits if hit["file"].endswith("moved.wav")] == [True]


def test_search_asks_the_hub_for_no_model_that_was_not_named(checkpoint, processor, monkeypatch, tmp_path):
    monkeypatch.setattr("clap_hf.cli.models.go_offline_if_unreachable", lambda: pytest.fail("the Hub was asked"))
    shutil.copy(DOG, tmp_path)
    for name in ("someone/model", ""):
        index = tmp_path / f"index of {name.replace('/', ' ')}"
        clap_hf.SoundCollection(index, make_model(), processor, name).add(tmp_path / "dog.ogg")
        result = invoke("search", index, "a dog")
        [line] = result.stderr.strip().splitlines()
        assert result.exit_code == 2 and f"made with the model '{name}'" in line
        assert line.endswith(f"--model {name or 'MODEL'}")
        assert invoke("search", index, "a dog", "--model", checkpoint, "--device", "cpu").exit_code == 0


# The Hub out of reach


def test_a_hub_out_of_reach_is_said_at_once(checkpoint, monkeypatch, tmp_path):
    requests = []
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", requests.append)  # between tries
    result = invoke("push", checkpoint, "acme/x", "--license", "mit", "--token", "hf_x")
    [line] = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and "Not pushed. acme/x: the Hub (http://127.0.0.1:9) cannot be reached" in line
    result = invoke("classify", DOG, "--model", "acme/never-seen")
    first, last = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and "cannot be reached" in first and last.startswith("Error: ")
    assert requests == []


def test_version_and_completion():
    assert invoke("--version").stdout == f"{clap_hf.__version__}\n"
    assert "--install-completion" in invoke("--help").stdout


def test_info_of_any_model(captioner):
    facts = json.loads(invoke("info", captioner, "--format", "json").stdout)
    assert facts["class"] == "MSClapForAudioCaptioning" and facts["window"] == "1 s at 16,000 Hz, 32 mel bins"
    model = clap_hf.MSClapForAudioCaptioning.from_pretrained(captioner)
    assert facts["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"


def test_info(monkeypatch):
    result = CliRunner().invoke(app, ["info"], env={"COLUMNS": "300"})
    assert result.exit_code == 0
    for word in ("torch", "transformers", "embedded checkpoint", "cpu"):
        assert word in result.stdout


def test_captions(captioner, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    command = ["caption", str(folder), "--model", str(captioner), "--beams", "2", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.json").read_text())
    by_name = {found["file"].rsplit("/", 1)[-1]: found for found in report["results"]}
    assert set(by_name) == {"dog.ogg", "speech.wav", "long [1].wav"}
    describe = pipeline("audio-captioning", model=str(captioner), device="cpu", num_beams=2)
    for name, found in by_name.items():
        assert [{"generated_text": found["caption"]}] == describe(found["file"])
        assert name in result.stdout and found["caption"]
    assert "1 of 4 files were skipped" in result.stdout
    assert [failure["file"] for failure in report["failures"]] == [str(folder / "broken.wav")]
    alone = [command[0], str(folder / "broken.wav"), *command[2:]]
    assert CliRunner().invoke(app, alone).exit_code == 1


def test_names_that_are_not_utf_8_are_written(tmp_path):
    shutil.copy(EXAMPLES / "dog.ogg", os.fsencode(tmp_path) + b"/\xff.ogg")
    result = invoke("classify", tmp_path, "--labels", "dog,rain", "--json", tmp_path / "out.json", "--format", "csv")
    assert result.exit_code == 0 and "\\udcff.ogg" in result.stdout
    [found] = json.loads((tmp_path / "out.json").read_text())["results"]
    assert os.fsencode(found["file"]) == os.fsencode(tmp_path) + b"/\xff.ogg"
