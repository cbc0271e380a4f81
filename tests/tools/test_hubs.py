"""Labels that come first for more clips than are theirs, counted on real sounds."""

import json

import pytest
import typer
from tools.release import hubs
from typer.testing import CliRunner

from clap_hf.pretrained import embedded_checkpoint
from training.corpus import write_corpus


def test_a_label_without_clips_has_the_mean_share():
    counted = hubs.count_hubs(["dog"] * 6 + ["rain"] * 2, ["dog"] * 2 + ["cat"] * 6, ["dog", "cat", "rain", "car"])
    assert counted["clips"] == 8
    assert counted["labels"] == [
        {"label": "dog", "first": 6, "own": 2, "ratio": 3.0},
        {"label": "rain", "first": 2, "own": 0, "ratio": 1.0},
    ]
    assert hubs.count_hubs([None, "dog", None, None], ["dog"] * 4, ["dog", "cat"])["labels"] == [
        {"label": "dog", "first": 1, "own": 4, "ratio": 0.25}
    ]


def test_eighty_labels_each_once():
    assert len(set(hubs.everyday_labels())) == 80


def test_the_command(tmp_path):
    made = typer.Typer()
    made.command()(hubs.main)
    corpus = write_corpus(tmp_path / "corpus")
    options = [
        "--weights",
        str(embedded_checkpoint()),
        "--dataset",
        str(corpus),
        "--record",
        str(tmp_path / "hubs.json"),
    ]
    result = CliRunner().invoke(made, [*options, "--splits", "validation"])
    assert result.exit_code == 0, result.output
    counted = json.loads((tmp_path / "hubs.json").read_text())
    found = counted["splits"]["validation"]
    assert counted["everyday_labels"] == 80 and 1 <= len(found["labels"]) <= hubs.LISTED
    assert sum(row["first"] for row in found["labels"]) <= found["clips"] > 20
    assert sum(row["first"] for row in found["stated"]["labels"]) <= found["stated"]["clips"] < found["clips"]


def test_the_sealed_split_needs_a_look(tmp_path, monkeypatch):
    monkeypatch.setattr(hubs, "LEDGER", tmp_path / "looks.jsonl")
    with pytest.raises(typer.BadParameter, match="ledger"):
        hubs.main(embedded_checkpoint(), tmp_path, "test,sealed", tmp_path / "hubs.json")
