"""Cross-validated fine-tuning on cuts of the recordings in examples/: probe, tower, kept folds, bad sounds."""

import json

import datasets
import pytest
import torch

from clap_hf import MSClapForAudioClassification
from clap_hf.audio import load_stored_audio
from clap_hf.training import classification
from clap_hf.training.classification import cross_validate
from clap_hf.training.recipe import ClassificationRecipe
from conftest import EXAMPLES
from evaluation.paper_hub import Cuts

NAMES = ("bird.wav", "fire.ogg", "steam_train.flac")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve cuts of each of three recordings in three folds, one broken file, and a long clip."""
    folder = tmp_path_factory.mktemp("classes")
    rows = []
    for name in NAMES:
        cuts = Cuts([EXAMPLES / name])
        rows += [{"audio": {"bytes": cuts.wav(), "path": None}, "kind": name, "fold": 1 + i % 3} for i in range(12)]
    rows.append({"audio": {"bytes": b"noise", "path": None}, "kind": NAMES[0], "fold": 1})
    rows.append({"audio": {"bytes": (EXAMPLES / NAMES[1]).read_bytes(), "path": None}, "kind": NAMES[1], "fold": 2})
    data = datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio())
    data.to_parquet(folder / "train-00000-of-00001.parquet")
    return str(folder)


def settings(checkpoint, folder, **changes):
    return ClassificationRecipe(
        **{"model": str(checkpoint), "dataset": folder, "label": "kind", "fold": "fold"} | changes
    )


def test_a_probe_learns_and_is_kept(checkpoint, folder, tmp_path, monkeypatch):
    found = cross_validate(settings(checkpoint, folder, frozen=True), tmp_path, device="cpu")
    assert [fold["fold"] for fold in found["folds"]] == [1, 2, 3]
    assert [fold["clips"] for fold in found["folds"]] == [12, 13, 12]
    assert list(found["skipped"]) == ["36"] and "not a sound" in found["skipped"]["36"]
    assert found["classes"] == 3 and found["low"] <= found["pooled"] <= found["high"]
    assert found["pooled"] > 0.6  # chance is a third
    # The saved model calls what was measured.
    result = json.loads((tmp_path / "fold-2" / "result.json").read_text())
    model = MSClapForAudioClassification.from_pretrained(tmp_path / "fold-2").eval()
    assert model.config.id2label == dict(enumerate(sorted(NAMES)))
    data = datasets.load_dataset(folder, split="train")
    rows, kinds = [i for i, fold in enumerate(data["fold"]) if fold == 2], data["kind"][:]
    audio = data.cast_column("audio", datasets.Audio(decode=False))
    extractor = classification.MSClapFeatureExtractor.from_pretrained(tmp_path / "fold-2")
    hits = []
    for row in rows:
        sound = load_stored_audio(audio[row]["audio"])
        with torch.inference_mode():
            logits = model(**extractor(sound.samples, sound.sampling_rate)).logits
        hits.append(int(model.config.id2label[int(logits.argmax())] == kinds[row]))
    assert hits == result["hits"]
    # A second run trains nothing; other settings do.
    fitted = []
    monkeypatch.setattr(classification, "_probe", lambda *arguments: fitted.append(1) or 1 / 0)
    again = cross_validate(settings(checkpoint, folder, frozen=True), tmp_path, device="cpu")
    assert again["folds"] == found["folds"] and again["pooled"] == found["pooled"] and not fitted
    with pytest.raises(ZeroDivisionError):
        cross_validate(settings(checkpoint, folder, frozen=True, seed=1), tmp_path, device="cpu")


def test_the_whole_tower_trains(checkpoint, folder, tmp_path):
    options = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "fold": None, "folds": 2}
    found = cross_validate(settings(checkpoint, folder, **options), tmp_path)
    assert len(found["folds"]) == 2 and sum(fold["clips"] for fold in found["folds"]) == 37
    before = MSClapForAudioClassification.from_pretrained(checkpoint, num_labels=3)
    after = MSClapForAudioClassification.from_pretrained(tmp_path / "fold-1")
    name = "audio_model.patch_embed.weight"
    assert not torch.equal(before.get_parameter(name), after.get_parameter(name))
    again = cross_validate(settings(checkpoint, folder, **options), tmp_path / "again")
    assert [fold["accuracy"] for fold in again["folds"]] == [fold["accuracy"] for fold in found["folds"]]


def test_what_is_missing_is_named(checkpoint, folder, tmp_path):
    with pytest.raises(ValueError, match="not \\['label'\\]"):
        cross_validate(settings(checkpoint, folder, label="label"), tmp_path)
    with pytest.raises(ValueError, match="one class"):
        cross_validate(settings(checkpoint, folder, split="train[:5]", fold=None), tmp_path)
