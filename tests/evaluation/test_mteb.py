"""CLAP in mteb and in sentence-transformers: the same vectors as ours, at the model's own rate."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from clap_hf.embedding import embed_texts
from clap_hf.evaluation.mteb import BENCHMARK, MtebEncoder, run_maeb
from conftest import make_model, sound
from evaluation.soundfile_torchcodec import provide as provide_torchcodec

TEXTS = ["a dog barks", "rain on a tin roof, and far thunder", "silence!"]


@pytest.fixture(scope="module")
def encoder(processor):
    return MtebEncoder(make_model(), processor, "acme/tiny")


def clips():
    """Sounds of other lengths and rates; the second is longer than the window."""
    return [
        {"array": sound(0.7, seed=1), "sampling_rate": 16_000},
        {"array": sound(1.6, 44_100, seed=2), "sampling_rate": 44_100},
        {"array": sound(1.0, 8_000, seed=3), "sampling_rate": 8_000},
    ]


def vectors_of(model, processor, audio):
    with torch.inference_mode():
        return model.get_audio_features(**processor(audio=audio)).pooler_output


def test_mteb_vectors_are_ours(encoder, processor):
    meta = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    sounds = encoder.encode([{"audio": clips()[:2]}, {"audio": clips()[2:]}], **meta, batch_size=2)
    np.testing.assert_allclose(sounds, vectors_of(encoder.model, processor, clips()), atol=1e-5)
    texts = encoder.encode([{"text": TEXTS}], **meta)
    np.testing.assert_allclose(texts, embed_texts(encoder.model, processor.tokenizer, TEXTS).cpu(), atol=1e-5)
    both = encoder.encode([{"audio": clips(), "text": TEXTS}], **meta)
    mean = sounds + texts
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)
    assert encoder.mteb_model_meta.modalities == ["audio", "text"]
    with pytest.raises(ValueError, match="expected audio, text"):
        encoder.encode([{"image": []}], **meta)


@pytest.mark.slow
def test_mteb_s_mock_run(encoder, monkeypatch):
    """Every mock task of audio and of text that mteb has for such a model."""
    provide_torchcodec(monkeypatch)
    from mteb.mocks.mock_run import get_compatible_mock_tasks, mock_run

    expected = {task.metadata.name for task in get_compatible_mock_tasks(encoder)}
    results = mock_run(encoder).task_results
    wrong = {name: results[name] for name in expected if hasattr(results[name], "exception")}
    assert not wrong
    audio = [name for name in expected if "Audio" in name or "Any2Any" in name]
    assert len(audio) >= 10 and len(expected) - len(audio) >= 25


def test_maeb_is_listed_and_checked(encoder, capsys):
    from rich.console import Console

    from clap_hf.embedding import ClapEncoder

    clap = ClapEncoder(encoder.model, encoder.processor, "tiny")
    assert run_maeb(clap, ["BeijingOpera"], None, Console(), dry_run=True) == 0
    assert "mteb/beijing-opera" in capsys.readouterr().out
    with pytest.raises(ValueError, match=BENCHMARK.replace("(", r"\(").replace(")", r"\)")):
        run_maeb(clap, ["NoSuchTask"], None, Console(), dry_run=True)


def test_sentence_transformers_loads_a_saved_model_and_encodes_both_sides(checkpoint, processor):
    theirs = SentenceTransformer(str(checkpoint), device="cpu")
    model = make_model()
    assert set(theirs.modalities) == {"text", "audio"}
    np.testing.assert_allclose(theirs.encode(TEXTS), embed_texts(model, processor.tokenizer, TEXTS).cpu(), atol=1e-5)
    # Sounds of one rate a call: sentence-transformers passes one rate for a batch.
    same_rate = [clip | {"array": sound(0.5 + i, seed=i), "sampling_rate": 16_000} for i, clip in enumerate(clips())]
    ours = vectors_of(model, processor, same_rate)
    np.testing.assert_allclose(theirs.encode(same_rate), ours, atol=1e-5)
    expected = embed_texts(model, processor.tokenizer, TEXTS).cpu() @ ours.T
    np.testing.assert_allclose(theirs.similarity(theirs.encode(TEXTS), ours), expected, atol=1e-5)
