"""YAMNet fine-tuned on a small training set, in the space of the embedded model's texts."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import typer
from onnx import save
from tools.teachers import tune
from tools.teachers.yamnet import YAMNet

from clap_hf.adapters import load_model
from clap_hf.audio import Audio
from clap_hf.embedding import embed_texts
from clap_hf.training.factory import resolve
from clap_hf.training.teacher import load_features
from training.corpus import write_corpus
from yamnet_graph import graph

CAPTIONING = Path(__file__).parents[2] / "configs" / "captioning.yaml"
RECIPE = """
stage: contrastive
name: tuned
dataset: corpus
weights: embedded
text: {freeze: true}
text_bank: true
logit_adjustment: 1.0
batch_size: 8
steps: 10
template_probability: 0.5
"""


@pytest.fixture
def network(tmp_path: Path) -> YAMNet:
    save(graph(quantized=True), tmp_path / "model.onnx")
    return YAMNet(tmp_path / "model.onnx")


@pytest.mark.slow
def test_the_tuned_network_names_the_sounds_it_was_trained_on(
    network: YAMNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "FROZEN", 0)  # the small network has three layers
    monkeypatch.setattr(tune, "WARMUP_STEPS", 5)
    monkeypatch.setattr(tune, "RATES", (1e-2, 1e-2))
    monkeypatch.setattr(tune, "DECAY", 0.5)
    corpus = write_corpus(tmp_path / "corpus")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    paths = [tmp_path / "recipe.yaml", str(corpus), "embedded", tmp_path / "model.onnx"]
    for name, steps in (("first", 3), ("again", 3), ("trained", 120)):
        tune.main(*paths, tmp_path / name, steps=steps)
    rows = datasets.load_dataset(str(corpus), split="train")
    first, again, vectors = (load_features(tmp_path / name, rows["id"][:]) for name in ("first", "again", "trained"))
    assert torch.equal(first, again)  # by the recipe's seed
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(rows)), rtol=0, atol=1e-3)
    labels = sorted(set(rows["label"]))
    model, processor = load_model(resolve("embedded"))
    wanted = torch.tensor([labels.index(label) for label in rows["label"]])
    texts = embed_texts(model, processor.tokenizer, labels).cpu()

    def nearer(vectors: torch.Tensor) -> float:
        """How much nearer the clips lie to their own labels than to all, a cosine."""
        cosines = vectors @ texts.t()
        return float((cosines[torch.arange(len(rows)), wanted] - cosines.mean(dim=1)).mean())

    assert nearer(vectors) > nearer(first) + 0.01


def test_the_first_layers_stay_as_they_are(network: YAMNet) -> None:
    tuned = tune.TunedYAMNet(network, 16)
    tuned(torch.randn(2, 96, 64)).sum().backward()
    layers = list(tuned.convolutions.parameters())
    assert layers and all(parameter.grad is None for parameter in layers)  # three layers, all of the first seven
    assert all(parameter.grad is not None for parameter in tuned.head.parameters())


def test_clips_of_any_length_give_windows(network: YAMNet) -> None:
    rng = np.random.default_rng(0)
    for samples in (480, 4_000, 48_000 * 12):
        log_mel = tune.clip_log_mel(network, Audio(np.ones((2, samples), np.float32) * 0.1, 48_000, "<bytes>", False))
        assert 1 <= len(log_mel) <= tune.LONGEST
        assert 96 <= tune.whole(log_mel).shape[1] <= 500
        windows = np.stack([tune.crop(log_mel, rng) for _ in range(20)])
        assert windows.shape == (20, tune.WINDOW, 64) and windows.dtype == np.float32
        changed = tune.change(torch.from_numpy(windows), torch.Generator().manual_seed(0))
        assert changed.shape == windows.shape and torch.isfinite(changed).all()


def test_another_stage_is_refused(network: YAMNet, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="captioning, expected contrastive"):
        tune.main(CAPTIONING, "none", "embedded", tmp_path / "model.onnx", tmp_path / "out")
