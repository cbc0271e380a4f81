"""Conversion of official checkpoints: small ones in the official format, every key, and what must be refused."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from clap_hf import MSClapFeatureExtractor, load_audio, load_msclap_checkpoint
from msclap_reference import (
    EXAMPLES,
    SMALL_CNN14_CHANNELS,
    STYLES,
    TOKENIZER,
    official_state,
    random_clap,
    reference_wrapper,
)

HTSAT = "audio_encoder.base.htsat."
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def states() -> dict[tuple[str, str], State]:
    """State dicts of small models, by version and key style."""
    made = {}
    for version in ("2022", "2023"):
        clap = random_clap(version, seed=7, small=True)
        made.update({(version, style): official_state(clap, version, style) for style in STYLES})
    return made


@pytest.fixture
def save(states: dict[tuple[str, str], State], tmp_path: Path) -> Callable[..., Path]:
    """Writes an official file, with some keys changed or, by None, left out."""

    def write(version: str = "2023", style: str = "hub", **changes: torch.Tensor | None) -> Path:
        state = {key: value for key, value in (states[version, style] | changes).items() if value is not None}
        path = tmp_path / f"CLAP_weights_{version}.pth"
        torch.save({"model": state}, path)
        return path

    return write


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("version", ["2022", "2023"])
@torch.no_grad()
def test_converted_model_gives_the_reference_embeddings(save: Callable[..., Path], version: str, style: str) -> None:
    path = save(version, style)
    model, processor = load_msclap_checkpoint(path, version, TOKENIZER[version])
    wrapper = reference_wrapper(path, version, small=True)
    files = [EXAMPLES / name for name in ("bird.wav", "dog.ogg", "speech.wav")]
    texts = ["a dog barking", "rain", "a very long description of a very quiet sound, 3 s"]
    sounds = [load_audio(file) for file in files]
    clips = [{"array": sound.samples, "sampling_rate": sound.sampling_rate} for sound in sounds]
    outputs = model(**processor(text=texts, audio=clips))
    audio, text = wrapper.get_audio_embeddings(files), wrapper.get_text_embeddings(texts)
    assert not model.training
    torch.testing.assert_close(outputs.audio_embeds, F.normalize(audio, dim=-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.text_embeds, F.normalize(text, dim=-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(outputs.logits_per_audio, wrapper.compute_similarity(audio, text), atol=1e-2, rtol=0)


@torch.no_grad()
def test_frame_map_is_the_reference_one(save: Callable[..., Path]) -> None:
    path = save()
    model, processor = load_msclap_checkpoint(path, "2023", TOKENIZER["2023"])
    waveform = reference_wrapper(path, "2023", small=True).preprocess_audio([EXAMPLES / "fire.ogg"], True)[:, 0]
    reference = reference_wrapper(path, "2023", small=True).clap.audio_encoder.base(waveform)["framewise_output"]
    features = processor(audio=waveform[0], sampling_rate=44_100)["input_features"][0]
    states = model.audio_model(features).last_hidden_state
    frames = model.audio_model.frame_map(states)
    assert frames.shape == (1, 32, 527)
    torch.testing.assert_close(frames.repeat_interleave(32, dim=1), reference, atol=1e-4, rtol=0)


def test_sizes_come_from_the_tensors(save: Callable[..., Path]) -> None:
    model, processor = load_msclap_checkpoint(save("2023"), "2023", TOKENIZER["2023"])
    audio, text = model.config.audio_config, model.config.text_config
    assert (audio.embed_dim, audio.depths, audio.num_attention_heads) == (16, [1, 2, 2, 1], [2, 2, 4, 8])
    assert (audio.hidden_size, audio.mlp_ratio, audio.num_labels_frame_map) == (128, 2.0, 527)
    assert (text.model_type, text.n_embd, text.n_layer, text.n_head, text.n_inner) == ("gpt2", 128, 2, 2, 192)
    assert (model.config.projection_dim, model.config.text_pooling) == (96, "last_token")
    assert (processor.tokenizer.model_max_length, processor.feature_extractor.duration_s) == (77, 7.0)
    assert model.logit_scale.item() == 3.5

    model, processor = load_msclap_checkpoint(save("2022"), "2022", TOKENIZER["2022"])
    audio, text = model.config.audio_config, model.config.text_config
    assert (tuple(audio.conv_channels), audio.hidden_size) == (SMALL_CNN14_CHANNELS, SMALL_CNN14_CHANNELS[-1])
    assert (text.model_type, text.hidden_size, text.num_hidden_layers, text.intermediate_size) == ("bert", 128, 2, 192)
    assert (text.num_attention_heads, model.config.text_pooling) == (2, "cls")
    assert (processor.tokenizer.model_max_length, processor.feature_extractor.duration_s) == (100, 5.0)


@pytest.mark.parametrize("rate, fmax", [(32_000, 14_000.0), (44_100, 8_000.0), (44_100, 14_000.0)])
def test_stored_filterbank_decides_the_front_end(save: Callable[..., Path], rate: int, fmax: float) -> None:
    filters = MSClapFeatureExtractor(mel_sampling_rate=rate, fmax=fmax).mel_filters
    path = save(**{f"{HTSAT}logmel_extractor.melW": torch.from_numpy(filters)})
    front_end = load_msclap_checkpoint(path, "2023", TOKENIZER["2023"])[1].feature_extractor
    assert (front_end.mel_sampling_rate, front_end.fmin, front_end.fmax) == (rate, 50.0, fmax)


def test_released_code_designs_its_filters_for_other_rates_than_it_hears(save: Callable[..., Path]) -> None:
    settings = {}
    for version in ("2022", "2023"):
        front_end = load_msclap_checkpoint(save(version), version, TOKENIZER[version])[1].feature_extractor
        settings[version] = (front_end.sampling_rate, front_end.mel_sampling_rate, front_end.fmax)
    assert settings == {"2022": (44_100, 44_100, 14_000.0), "2023": (44_100, 32_000, 14_000.0)}


def test_unknown_filterbank_is_refused(save: Callable[..., Path]) -> None:
    filters = MSClapFeatureExtractor(fmax=9_000.0).mel_filters
    path = save(**{f"{HTSAT}logmel_extractor.melW": torch.from_numpy(filters)})
    with pytest.raises(ValueError, match=r"logmel_extractor\.melW.*none of the known Slaney filterbanks"):
        load_msclap_checkpoint(path, "2023", TOKENIZER["2023"])


def test_every_missing_weight_is_named(states: dict[tuple[str, str], State], save: Callable[..., Path]) -> None:
    constants = (
        "relative_position_index",
        "attn_mask",
        "attn.bias",
        "masked_bias",
        "position_ids",
        ".head.",
        "fc_aud",
    )
    for version in ("2022", "2023"):
        keys = [
            key for key in states[version, "hub"] if not any(constant in key for constant in (*constants, "pooler"))
        ]
        for key in keys[:: len(keys) // 12]:
            path = save(version, **{key: None})
            with pytest.raises(ValueError) as error:
                load_msclap_checkpoint(path, version, TOKENIZER[version])
            assert str(path) in str(error.value)
            assert repr(key) in str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "text_adapter.weight",
        "caption_encoder.base.h.0.attn.c_attn.lora_A",
        "caption_encoder.base.h.0.attn.rotary.bias",
        f"{HTSAT}layers.0.blocks.0.norm3.weight",
        f"{HTSAT}absolute_pos_embed",
        "audio_encoder.projection.linear3.weight",
        "module.logit_scale",
    ],
)
def test_unknown_key_is_named(save: Callable[..., Path], key: str) -> None:
    with pytest.raises(ValueError, match="1 unknown keys") as error:
        load_msclap_checkpoint(save(**{key: torch.zeros(3)}), "2023", TOKENIZER["2023"])
    assert repr(key) in str(error.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        (
            "caption_encoder.projection.layer_norm.bias",
            torch.zeros(95),
            r"layer_norm\.bias' is \[95\], expected \[96\]",
        ),
        ("caption_encoder.base.wte.weight", torch.zeros(9), r"wte\.weight' is \[9\], expected 2 dimensions"),
        (f"{HTSAT}tscam_conv.weight", torch.zeros(527, 128, 2, 5), r"tscam_conv\.weight' is \[527, 128, 2, 5\]"),
        (f"{HTSAT}norm.weight", torch.full((128,), float("nan")), r"norm\.weight' holds NaN"),
        ("logit_scale", torch.tensor(float("inf")), "'logit_scale' holds NaN or infinite"),
        (f"{HTSAT}layers.1.blocks.1.attn_mask", torch.zeros(16, 64, 64), r"attn_mask' is not the one"),
        (f"{HTSAT}layers.1.blocks.0.attn_mask", torch.zeros(16, 64, 64), r"attn_mask' is not the one"),
        (f"{HTSAT}layers.1.blocks.0.attn.relative_position_index", torch.zeros(64, 64), "index' is not the one"),
        ("caption_encoder.base.h.1.attn.bias", torch.ones(1, 1, 128, 128), r"h\.1\.attn\.bias' is not the one"),
        (
            f"{HTSAT}spectrogram_extractor.stft.conv_imag.weight",
            torch.ones(513, 1, 1024),
            "not the 1024-point Hann DFT",
        ),
    ],
)
def test_misfit_is_named(save: Callable[..., Path], key: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_msclap_checkpoint(save(**{key: value}), "2023", TOKENIZER["2023"])


def test_versions_are_told_apart(save: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a '2022' checkpoint, but version is '2023'. Pass version='2022'"):
        load_msclap_checkpoint(save("2022"), "2023")
    captioning = save(**{"clap_project.prefix_const": torch.zeros(40, 768), f"{HTSAT}patch_embed.proj.weight": None})
    with pytest.raises(ValueError, match="is a 'clapcap' checkpoint"):
        load_msclap_checkpoint(captioning, "2023")
    with pytest.raises(ValueError, match="version is '2024', expected one of"):
        load_msclap_checkpoint(captioning, "2024")


def test_tokenizer_must_fit_the_text_tower(save: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="has 50257 tokens, the text tower of .* 30522. Pass tokenizer="):
        load_msclap_checkpoint(save("2022"), "2022", TOKENIZER["2023"])


class Malicious:
    """Unpickled carelessly, this makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle"])
def test_malicious_pickle_is_refused_unrun(save: Callable[..., Path], tmp_path: Path, container: str) -> None:
    target = tmp_path / "owned"
    state = torch.load(save(), weights_only=True)["model"] | {"logit_scale": Malicious(target)}
    path = tmp_path / "CLAP_weights_evil.pth"
    if container == "bare pickle":
        path.write_bytes(pickle.dumps({"model": {"logit_scale": Malicious(target)}}))
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=container == "zip")
    found = "" if container == "bare pickle" else ": it asks for .*mkdir, code"
    with pytest.raises(ValueError, match=f"not a checkpoint of plain tensors{found}") as error:
        load_msclap_checkpoint(path, "2023")
    assert "weights_only" not in str(error.value)
    assert not target.exists()
    with contextlib.suppress(RuntimeError):  # the attack itself works
        torch.load(path, weights_only=False)
    assert target.is_dir()


def test_files_that_are_no_checkpoint(save: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    with pytest.raises(FileNotFoundError, match="is not a file, expected an official checkpoint"):
        load_msclap_checkpoint(path, "2023")
    whole = save().read_bytes()
    for content in (b"", b"<!DOCTYPE html>", whole[: len(whole) // 2], EXAMPLES.joinpath("bird.wav").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or of another format"):
            load_msclap_checkpoint(path, "2023")
    for content, found in (
        ({"state_dict": {}}, r"keys \['state_dict'\]"),
        ([1], "holds list"),
        ({"model": {"a": 1}}, ""),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=found + ".*expected {'model': state_dict}"):
            load_msclap_checkpoint(path, "2023")


def test_file_of_an_older_torch_and_half_precision(states: dict[tuple[str, str], State], tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    half = {
        "audio_encoder.projection.linear1.weight": states["2023", "hub"][
            "audio_encoder.projection.linear1.weight"
        ].half()
    }
    torch.save({"model": states["2023", "hub"] | half}, path, _use_new_zipfile_serialization=False)
    model, _ = load_msclap_checkpoint(path, "2023", TOKENIZER["2023"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.audio_projection.linear1.weight, next(iter(half.values())).float())
