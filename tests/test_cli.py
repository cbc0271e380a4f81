import json
import re
import shutil

import numpy as np
import pytest
import soundfile
from transformers import pipeline
from typer.testing import CliRunner

import clap_hf
from clap_hf.cli import EVERYDAY_LABELS, app
from conftest import EXAMPLES, sound


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
        assert name in out and f"{best['label']} {best['score']:.0%}" in out
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


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["gone.wav"], "gone.wav"),
        (["{folder}", "--labels", " , "], "No labels"),
        (["{folder}", "--labels", "a,b", "--labels-file", "x"], "Both --labels and --labels-file"),
        (["{folder}", "--labels-file", "gone.txt"], "gone.txt"),
        (["{folder}", "--template", "no place"], "where the label goes"),
        (["{folder}", "--top-k", "0"], "top-k"),
    ],
)
def test_bad_arguments_are_usage_errors(folder, checkpoint, arguments, message):
    arguments = [argument.format(folder=folder) if argument == "{folder}" else argument for argument in arguments]
    result = CliRunner().invoke(app, ["classify", *arguments, "--model", str(checkpoint)], env={"COLUMNS": "200"})
    assert result.exit_code == 2 and message in result.stderr


def test_a_labels_csv_with_other_columns_is_an_error(run, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8_000)
    (tmp_path / "labels.csv").write_text("name;word\n")
    run("classify", tmp_path, code=2)


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


def test_captioning_needs_a_captioner(checkpoint, folder):
    result = CliRunner().invoke(app, ["caption", str(folder), "--model", str(checkpoint)])
    assert result.exit_code == 2
