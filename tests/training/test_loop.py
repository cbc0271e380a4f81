"""A real (tiny) training run on real recordings: it learns, stops, resumes exactly, and keeps its best epoch."""

import json
import shutil

import pytest
import torch
import yaml
from corpus import write_corpus

from clap_hf import MSClapModel, MSClapProcessor
from clap_hf.files import replace_folder
from clap_hf.training import loop
from clap_hf.training.recipe import load_recipe

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
    loop.train(recipe, folder / "a", num_workers=0)
    return folder / "a"


def records(folder):
    return [json.loads(line) for line in (folder / loop.RECORD).read_text().splitlines()]


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


def test_stopped_and_resumed_run_equals_the_unbroken_one(finished, recipe, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    real = loop._train_epoch

    def stop_in_the_third_epoch(*args):
        if args[-1] == 2:
            raise Stop
        return real(*args)

    monkeypatch.setattr(loop, "_train_epoch", stop_in_the_third_epoch)
    with pytest.raises(Stop):
        loop.train(recipe, tmp_path / "b", num_workers=0)
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="--resume"):
        loop.train(recipe, tmp_path / "b", num_workers=0)
    loop.train(recipe, tmp_path / "b", resume=True, num_workers=1)  # the loader's workers change nothing either

    ours = torch.load(tmp_path / "b" / "last" / "state.pt", weights_only=True)
    theirs = torch.load(finished / "last" / "state.pt", weights_only=True)
    for part in ("model", "average"):
        for name, value in theirs[part].items():
            assert torch.equal(value, ours[part][name]), name
    assert [r.get("epoch", "start") for r in records(tmp_path / "b")] == ["start", 1, 2, "start", 3]


def test_nothing_to_resume_is_said(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match="Nothing to resume"):
        loop.train(recipe, tmp_path / "new", resume=True, num_workers=0)


def test_a_kill_while_the_last_checkpoint_is_written_leaves_one_whole(finished, tmp_path):
    folder = tmp_path / "last"
    shutil.copytree(finished / "last", folder)

    def die_half_way(fresh):
        fresh.mkdir()
        (fresh / "state.pt").write_bytes(b"torn")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_folder(folder, die_half_way)
    assert (folder / "state.json").is_file()
    torch.load(folder / "state.pt", weights_only=True)
