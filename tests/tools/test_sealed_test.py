"""The sealed test's ledger: every look is written before the test is read, and no weights are measured twice."""

import json

import pytest
import typer
from tools.release import sealed_test
from typer.testing import CliRunner

from clap_hf.pretrained import embedded_checkpoint
from training.corpus import write_corpus


@pytest.fixture
def app():
    made = typer.Typer()
    made.command()(sealed_test.main)
    return made


@pytest.fixture
def options(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    validation = corpus / "data" / "validation-00000-of-00001.parquet"
    validation.rename(validation.with_name("sealed-00000-of-00001.parquet"))
    values = {"weights": embedded_checkpoint(), "dataset": corpus, "why": "decided before the run began"}
    values |= {"output-dir": tmp_path / "out", "ledger": tmp_path / "looks.jsonl"}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def test_a_look_counts_even_where_the_evaluation_fails(app, options, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(sealed_test, "evaluate_model", fail)
    assert isinstance(CliRunner().invoke(app, options).exception, OSError)
    (look,) = [json.loads(line) for line in (tmp_path / "looks.jsonl").read_text().splitlines()]
    assert look["look"] == 1 and look["weights"] == sealed_test.weights_hash(embedded_checkpoint())
    again = CliRunner().invoke(app, options)
    assert again.exit_code == 2 and "measured" in again.output


def test_a_look_measures_and_needs_a_reason(app, options, tmp_path):
    short = CliRunner().invoke(app, [*options, "--why", "why not"])
    assert short.exit_code == 2 and "says too little" in short.output and not (tmp_path / "looks.jsonl").exists()
    assert CliRunner().invoke(app, options).exit_code == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["split"] == "sealed"
