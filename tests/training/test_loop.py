"""A real (tiny) training run on real recordings: it learns, stops, resumes exactly, and keeps its best epoch."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
import yaml
from corpus import write_corpus

from clap_hf import MSClapModel, MSClapProcessor
from clap_hf.training.contrastive_stage import ContrastiveStage
from clap_hf.training.recipe import load_recipe
from clap_hf.training.resume import load_checkpoint, newest_checkpoint
from clap_hf.training.run import train_recipe
from clap_hf.training.validation import CorpusValidation

AUDIO = {
    "num_mel_bins": 32, "num_frames": 128, "num_time_chunks": 2, "embed_dim": 16, "depths": [1, 1],
    "num_attention_heads": [2, 4], "window_size": 4, "spec_augment_time_width": 8, "spec_augment_freq_width": 4,
}  # fmt: skip
FEATURES = {"feature_size": 32, "sampling_rate": 16_000, "duration_s": 0.5, "n_fft": 512, "hop_length": 64}
TEXT = {"config": {"model_type": "gpt2", "n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 77}}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    from conftest import GPT2_TOKENIZER

    folder = tmp_path_factory.mktemp("training")
    settings = {
        "stage": "contrastive",
        "name": "tiny",
        "dataset": str(write_corpus(folder / "corpus")),
        "audio": AUDIO,
        "features": FEATURES,
        "text": TEXT | {"tokenizer": str(GPT2_TOKENIZER)},
        "model": {"projection_dim": 32},
        "batch_size": 8,
        "steps": 12,
        "steps_per_epoch": 4,
        "warmup_steps": 2,
        "learning_rate": 3e-3,
        "ema_decay": 0.5,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return load_recipe(folder / "recipe.yaml")


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train_recipe(recipe, folder / "a", num_workers=0)
    return folder / "a"


def records(folder):
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def test_record_tells_what_ran(finished, recipe):
    first, *epochs = records(finished)
    assert first["recipe"] == json.loads(json.dumps(recipe.to_dict())) and first["from_step"] == 0
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert "animals" in epochs[0]["validation"]


def test_best_epoch_loads_with_from_pretrained(finished):
    best = max(records(finished)[1:], key=lambda epoch: epoch["zero_shot_score"])
    assert best["best"] is True
    model = MSClapModel.from_pretrained(finished / "best").eval()
    processor = MSClapProcessor.from_pretrained(finished / "best")
    inputs = processor(text=["a dog", "rain"], audio=[torch.randn(9_000).numpy() * 0.1], sampling_rate=16_000)
    with torch.inference_mode():
        assert model(**inputs).logits_per_audio.shape == (1, 2)


def test_a_last_run_learns_from_validation_too_and_keeps_its_last_epoch(finished, recipe, tmp_path):
    """As the embedded checkpoint's recipe does."""
    train_recipe(replace(recipe, split="train+validation", best_metric="step"), tmp_path / "run", num_workers=0)
    assert [epoch["best"] for epoch in records(tmp_path / "run")[1:]] == [True, True, True]
    tensors, about = load_checkpoint(newest_checkpoint(tmp_path / "run" / "last"))
    kept = MSClapModel.from_pretrained(tmp_path / "run" / "best").state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in tensors["average"].items())
    _, without = load_checkpoint(newest_checkpoint(finished / "last"))
    rows, both = (int(found["data"].split()[0]) for found in (without, about))
    assert both == 2 * rows


def final_weights(folder):
    tensors, about = load_checkpoint(newest_checkpoint(folder / "last"))
    return tensors, about["state"]


def assert_same_run(ours, theirs):
    (tensors, state), (expected, expected_state) = final_weights(ours), final_weights(theirs)
    for part in ("model", "average"):
        for name, value in expected[part].items():
            assert torch.equal(value, tensors[part][name]), name
    assert {**state, "totals": 0} == {**expected_state, "totals": 0}


def test_a_run_stopped_within_an_epoch_goes_on_as_if_it_had_not_stopped(finished, recipe, tmp_path, monkeypatch):
    real = ContrastiveStage.prepare_batch

    def stop_at_step_6(self, batch, position):
        if position.step == 6 and not stopped:
            stopped.append(position)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, position)

    stopped = []
    monkeypatch.setattr(ContrastiveStage, "prepare_batch", stop_at_step_6)
    train_recipe(recipe, tmp_path / "b", num_workers=0)
    assert final_weights(tmp_path / "b")[1]["step"] == 7  # the step under way is finished first
    with pytest.raises(FileExistsError, match="--resume"):
        train_recipe(recipe, tmp_path / "b", num_workers=0)
    train_recipe(recipe, tmp_path / "b", resume=True, num_workers=1)  # the loader's workers change nothing either
    assert_same_run(tmp_path / "b", finished)
    assert [r.get("epoch", "start") for r in records(tmp_path / "b")] == ["start", 1, "start", 2, 3]
    for ours, theirs in zip([r for r in records(tmp_path / "b") if "epoch" in r], records(finished)[1:], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"]) and ours["validation"] == theirs["validation"]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_saved(recipe, tmp_path, monkeypatch):
    real, seen = ContrastiveStage.prepare_batch, []

    def spoil_step_6(self, batch, position):
        if position.step == 6:
            batch["input_features"][0] = float("nan")
            seen.extend(batch["rows"].tolist())
        return real(self, batch, position)

    monkeypatch.setattr(ContrastiveStage, "prepare_batch", spoil_step_6)
    with pytest.raises(RuntimeError, match="Step 7: the loss is nan.*not_finite.json names the batch"):
        train_recipe(recipe, tmp_path / "run", num_workers=0)
    found = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert (found["step"], found["epoch"], found["loss"]) == (7, 2, "nan")
    assert found["batch"] == [{"ids": None, "rows": seen}]
    tensors, state = final_weights(tmp_path / "run")
    assert state["step"] == 4  # of the epoch before
    assert all(value.isfinite().all() for part in ("model", "average") for value in tensors[part].values())
    assert all(value.isfinite().all() for value in MSClapModel.from_pretrained(tmp_path / "run" / "best").parameters())


def test_a_metric_that_is_not_finite_is_never_best(recipe, tmp_path, monkeypatch):
    real, values = CorpusValidation.__call__, iter([float("nan"), 0.5, float("inf")])
    monkeypatch.setattr(
        CorpusValidation, "__call__", lambda self, model: real(self, model) | {"zero_shot_score": next(values)}
    )
    train_recipe(recipe, tmp_path / "run", num_workers=0)
    assert [epoch.get("best", False) for epoch in records(tmp_path / "run")[1:]] == [False, True, False]
    assert final_weights(tmp_path / "run")[1]["best"] == 0.5


def test_the_best_epoch_is_brought_back_after_a_kill_between_its_renames(finished, recipe, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "best").rename(tmp_path / "run" / "best.old")
    train_recipe(recipe, tmp_path / "run", resume=True, num_workers=0)
    MSClapModel.from_pretrained(tmp_path / "run" / "best")


def test_nothing_to_resume_is_said(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="Nothing to resume"):
        train_recipe(recipe, tmp_path / "new", resume=True, num_workers=0)
