"""The paper's chain: the list of its commands, and all of it in miniature on this machine."""

import json
import re
import runpy

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel

from clap_hf import MSClapModel
from clap_hf.data.registry import training_sets
from clap_hf.evaluation.benchmarks import PAPER_TASKS
from conftest import HUB, TESTS

ROOT = TESTS.parent
REPRODUCE = runpy.run_path(str(ROOT / "scripts" / "reproduce.py"))


def test_the_commands_are_there_with_sizes_and_hours_that_follow_from_the_counts():
    found = {step.command.split(" --")[0]: step for step in REPRODUCE["steps"]("me/clap", 100)}
    assert sum("tools.training_sets" in command for command in found) == len(training_sets())
    for command in found:
        for name in re.findall(r"(?:scripts|configs)/[\w.]+", command):
            assert (ROOT / name).is_file(), name
    clotho = found["-m tools.training_sets clotho"]
    assert clotho.size == pytest.approx(4884 * 22.5 * 29_947_691 / 600, rel=1e-3)
    tower = found["scripts/pretrain_prompts.py configs/htsat_audioset.yaml"]
    assert tower.gflop == 10 * 1_700_000 * 85.0
    text = REPRODUCE["listing"]([tower], tflops=100.0, gpus=2)
    assert "| 2.01 |" in text  # 1.7e7 clips x 85e9 / 200e12 / 3600
    assert "an assumption" in text and re.search(r"hours here`: 0\.1\d TFLOP/s", text)


def test_every_command_of_a_run_waits_for_the_ones_before_it():
    """A folder that a command reads is one that an earlier command writes."""
    written: set[str] = set()
    for step in REPRODUCE["steps"]("me/clap", 100):
        words = step.command.split()
        outputs = {words[i + 1] for i, word in enumerate(words) if word.startswith("--output")}
        for word in words:
            if re.fullmatch(r"(runs|data)/[\w/-]+", word) and word not in outputs:
                assert any(word.startswith(folder) for folder in written), step.command
        written |= outputs


@pytest.mark.slow
def test_the_whole_chain_in_miniature(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Java, whose programs take long to start
    REPRODUCE["run_tiny"](tmp_path / "chain")
    runs = tmp_path / "chain" / "runs"
    # HTSAT-22 trained on all 22 tasks, and its tower went into the contrastive run.
    lines = [json.loads(line) for line in (runs / "htsat-22" / "run.jsonl").read_text().splitlines()]
    assert len(lines[-1]["validation"]["loss"]) == 22
    start = json.loads((runs / "table2" / "run.jsonl").read_text().splitlines()[0])["recipe"]
    assert start["audio_tower"] == "runs/htsat-22/best" and len(start["sources"]) == 20
    # Every task of the paper has a result.
    tasks = json.loads((runs / "table2" / "results.json").read_text())["tasks"]
    assert {task["task"] for task in tasks} == {task.name for task in PAPER_TASKS} and len(tasks) == 26
    assert {task["status"] for task in tasks} == {"done"}
    table = (runs / "table2" / "results.md").read_text()
    assert all(f"| {task.name} |" in table for task in PAPER_TASKS)
    # The cards and weights are on the Hub.
    card = ModelCard.load("acme/clap-tiny")
    assert len(card.data.eval_results) == 30 and "HTSAT" in card.text
    assert type(AutoModel.from_pretrained("acme/clap-tiny")) is MSClapModel
    assert ModelCard.load("acme/clap-tiny-captioner").data.pipeline_tag == "audio-text-to-text"
    assert HUB.errors == []
