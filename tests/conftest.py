"""Shared fixtures: tiny models with real parts (the GPT-2 and BERT vocabularies, the recordings in examples/)."""

# First: the libraries read the address of the Hub when they are imported. What no test pushed there is not found.
from hub_server.session import HUB

# isort: split

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from clap_hf import (
    MSClapCaptioningConfig,
    MSClapConfig,
    MSClapFeatureExtractor,
    MSClapForAudioCaptioning,
    MSClapModel,
    MSClapProcessor,
)
from clap_hf.tokenization import sentence_tokenizer
from hub_server import LoopbackHub

TESTS = Path(__file__).parent
GPT2_TOKENIZER = TESTS / "tokenizers" / "gpt2"
EXAMPLES = TESTS.parent / "examples"

TINY_AUDIO = {
    "num_mel_bins": 32,
    "num_frames": 256,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_attention_heads": [2, 4],
    "window_size": 8,
}
TINY_CNN14 = {"architecture": "cnn14", "num_mel_bins": 32, "conv_channels": [4, 8, 8], "hidden_size": 12}
TINY_GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 50257,
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "n_positions": 128,
}


# Marks of transformers' common tests.
UPSTREAM_MARKS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "torch_compile_test",
)


def pytest_configure(config):
    for mark in UPSTREAM_MARKS:
        config.addinivalue_line("markers", f"{mark}: a mark of transformers' common tests")


def pytest_ignore_collect(collection_path, config):
    """Leave `common/`, which downloads transformers' tests, alone where slow tests are not asked for."""
    if collection_path == TESTS / "common" and config.option.markexpr == "not slow":
        return True
    return None


@pytest.fixture(autouse=True)
def one_environment(monkeypatch) -> None:
    """Undo that `Dataset.map` with several processes replaces `os.environ`: Rich goes on reading the first."""
    monkeypatch.setattr(os, "environ", os.environ)


def make_config(text=None, audio=None, **settings) -> MSClapConfig:
    """A configuration of a few thousand parameters, word embeddings aside."""
    return MSClapConfig(
        text_config=TINY_GPT2 if text is None else text,
        audio_config=TINY_AUDIO if audio is None else audio,
        projection_dim=24,
        **settings,
    )


def make_model(text=None, audio=None, seed=0, **settings) -> MSClapModel:
    """A tiny model in eval mode with seeded weights, larger than usual, so that inputs make a difference."""
    torch.manual_seed(seed)
    model = MSClapModel(make_config(text, audio, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


def make_feature_extractor(**settings) -> MSClapFeatureExtractor:
    """The tiny model's front end: 1-s windows at 16 kHz, 201 frames of 32 mel bins."""
    return MSClapFeatureExtractor(
        **{
            "feature_size": 32,
            "sampling_rate": 16_000,
            "duration_s": 1.0,
            "n_fft": 512,
            "hop_length": 80,
            "fmax": 8_000.0,
            **settings,
        }
    )


def sound(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """A noisy chirp, float32 in [-1, 1], `[samples]`."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=time.size)
    chirp = np.sin(2 * np.pi * (200 + 90 * seed + 300 * time) * time)
    return (0.3 * chirp + 0.05 * noise).astype(np.float32)


def write_sounds(folder: Path, count: int, rate: int) -> None:
    """Write WAV files numbered from 0, of which the first alone is longer than the tiny model's window."""
    folder.mkdir()
    for i in range(count):
        samples = sound(2.5 if i == 0 else 0.4 + 0.1 * i, seed=i)
        soundfile.write(folder / f"{i}.wav", samples, rate, subtype="FLOAT")


@pytest.fixture
def hub(monkeypatch) -> LoopbackHub:
    """The Hub of the tests, with the token that may write in `HF_TOKEN`."""
    monkeypatch.setenv("HF_TOKEN", HUB.tokens["write"])
    HUB.forget()
    yield HUB
    assert HUB.errors == []
    HUB.forget()


@pytest.fixture(scope="session")
def tokenizer():
    return sentence_tokenizer(GPT2_TOKENIZER, make_config().text_config, max_length=77)


@pytest.fixture(scope="session")
def processor(tokenizer):
    return MSClapProcessor(make_feature_extractor(), tokenizer)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, processor) -> Path:
    """Folder of a saved tiny model with its processor and its code."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def captioner(tmp_path_factory, processor) -> Path:
    """Folder of a saved tiny captioner that writes captions of up to 6 tokens, other ones for other sounds."""
    folder = tmp_path_factory.mktemp("captioner")
    torch.manual_seed(0)
    sizes = {"projection_dim": 24, "prefix_length": 4, "mapper_input_length": 4, "mapper_num_layers": 1}
    model = MSClapForAudioCaptioning(
        MSClapCaptioningConfig(text_config=TINY_GPT2, audio_config=TINY_AUDIO, mapper_num_heads=4, **sizes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
        model.mapper.linear.weight.mul_(10)
        # Words of plain letters only, so that texts can be compared and printed.
        model.language_model.transformer.wte.weight[1000:].mul_(0.1)
    model.generation_config.max_new_tokens = 6
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def batch(processor):
    """Three texts and three clips of other lengths, one of them of two windows."""
    return processor(
        text=["a dog barks", "rain on a tin roof, and far thunder", "silence!"],
        audio=[sound(0.7, seed=1), sound(1.6, seed=2), sound(1.0, seed=3)],
        sampling_rate=16_000,
    )
