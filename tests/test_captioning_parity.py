"""The official `clapcap` format: conversion and parity with PyPI `msclap`, token by token, on real recordings.

Sizes are small, the code that runs is the real one; `benchmarks/captioning.py` compares full-size models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from clap_hf import (
    MSClapForAudioCaptioning,
    MSClapProcessor,
    load_audio,
    load_clapcap_checkpoint,
    load_msclap_checkpoint,
)
from clap_hf.convert import convert_checkpoint
from msclap_reference import (
    EXAMPLES,
    STOP,
    STYLES,
    TOKENIZER,
    caption_tokens,
    official_state,
    random_captioner,
    reference_wrapper,
)

# Mono and shorter than a window: msclap lays channels end to end, and crops longer clips at random.
RECORDINGS = [
    EXAMPLES / name
    for name in (
        *("applause.mp3", "bird.wav", "chainsaw.flac", "dog.ogg", "fire.ogg", "glass_break.ogg", "sheep.wav"),
        *("speech.wav", "steam_train.flac", "stream.ogg"),
    )
]
LONGEST = 12  # tokens; msclap's time grows with the square of it
State = dict[str, torch.Tensor]


@dataclass
class Pair:
    """One official checkpoint in both implementations."""

    wrapper: Any  # msclap.CLAPWrapper
    model: MSClapForAudioCaptioning
    processor: MSClapProcessor
    features: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def states() -> dict[str, State]:
    captioner = random_captioner(seed=1, small=True, stop_gain=3.0)
    return {style: official_state(captioner, "clapcap", style) for style in STYLES}


@pytest.fixture(scope="module")
def pair(states: dict[str, State], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    path = tmp_path_factory.mktemp("official") / "clapcap_weights_2023.pth"
    torch.save({"model": states["hub"]}, path)
    model, processor = load_clapcap_checkpoint(path, TOKENIZER["clapcap"])
    sounds = [load_audio(file) for file in RECORDINGS]
    clips = [{"array": sound.samples, "sampling_rate": sound.sampling_rate} for sound in sounds]
    yield Pair(reference_wrapper(path, "clapcap", small=True), model, processor, dict(processor(audio=clips)))
    path.unlink()


@pytest.fixture
def save(states: dict[str, State], tmp_path: Path) -> Callable[..., Path]:
    """Writes an official file, with some keys changed or, by None, left out."""

    def write(style: str = "hub", **changes: torch.Tensor | None) -> Path:
        path = tmp_path / "clapcap_weights_2023.pth"
        state = {key: value for key, value in (states[style] | changes).items() if value is not None}
        torch.save({"model": state}, path)
        return path

    return write


def cut(tokens: torch.Tensor) -> list[int]:
    """A caption's tokens, with its end mark and without padding."""
    ids = tokens.tolist()
    return ids[: ids.index(STOP) + 1] if STOP in ids else ids


@torch.no_grad()
def test_prefix_and_first_logits(pair: Pair) -> None:
    captioner = pair.wrapper.clapcap
    embeds = captioner.clap(pair.wrapper.preprocess_audio(RECORDINGS, resample=True)[:, 0])[0]
    embeds = embeds / embeds.norm(dim=-1, keepdim=True)
    reference = captioner.clap_project(embeds)
    own = pair.model.get_prefix(**pair.features)
    assert own.shape == (len(RECORDINGS), 6, 128)
    assert (reference - reference.mean(dim=0)).abs().max() > 0.1, "clips make a difference"
    torch.testing.assert_close(own, reference, atol=1e-4, rtol=0)
    logits = captioner.gpt(inputs_embeds=reference).logits[:, -1]
    torch.testing.assert_close(pair.model(**pair.features).logits[:, 0], logits, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def captions(pair: Pair) -> torch.Tensor:
    assert pair.model.generation_config.num_beams == 5
    assert pair.model.generation_config.max_new_tokens == 67
    return pair.model.generate(**pair.features, max_new_tokens=LONGEST)


def test_captions_are_equal_token_by_token(pair: Pair, captions: torch.Tensor) -> None:
    reference = caption_tokens(pair.wrapper, RECORDINGS, entry_length=LONGEST)
    assert [cut(tokens) for tokens in captions] == reference
    lengths = [len(tokens) for tokens in reference]
    assert min(lengths) < LONGEST and len(set(lengths)) > 2, "some end early, at various lengths"
    assert len({tuple(tokens) for tokens in reference}) >= 5


def test_texts_are_equal(pair: Pair, captions: torch.Tensor) -> None:
    files = RECORDINGS[3:5]
    reference = pair.wrapper.generate_caption(files, entry_length=LONGEST)
    own = pair.processor.tokenizer.batch_decode(captions[3:5], skip_special_tokens=True)
    # msclap capitalises the first character, a space as often as not, and lowers all others.
    assert [text.strip().lower() for text in own] == [text.strip().lower() for text in reference]


def test_batches_do_not_change_captions(pair: Pair, captions: torch.Tensor) -> None:
    for i in (0, 5):
        alone = pair.model.generate(pair.features["input_features"][i : i + 1], max_new_tokens=LONGEST)
        assert cut(alone[0]) == cut(captions[i])


def test_beams_come_best_first_with_their_averages(pair: Pair, captions: torch.Tensor) -> None:
    out = pair.model.generate(
        **pair.features, max_new_tokens=LONGEST, num_return_sequences=3, return_dict_in_generate=True
    )
    assert [cut(tokens) for tokens in out.sequences[::3]] == [cut(tokens) for tokens in captions]
    scores = out.sequences_scores.view(-1, 3)
    assert (scores.diff(dim=1) <= 0).all()
    # The score of a caption is the mean log-probability of its tokens, end mark included.
    ids = torch.tensor([cut(out.sequences[0])])
    log_probs = pair.model(pair.features["input_features"][:1], input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
    torch.testing.assert_close(log_probs.gather(1, ids[0, :, None]).mean(), scores[0, 0], atol=1e-4, rtol=0)


def test_transformers_own_search_can_find_other_captions(pair: Pair, captions: torch.Tensor) -> None:
    """It compares sums among running beams only; captions that end early then stay when longer ones are likelier."""
    pair.model.config.beam_scores = "sum"
    try:
        stock = pair.model.generate(**pair.features, max_new_tokens=LONGEST)
    finally:
        pair.model.config.beam_scores = "average"
    same = [cut(tokens) == cut(other) for tokens, other in zip(captions, stock, strict=True)]
    assert any(same) and not all(same)


# Conversion


def test_sizes_and_settings_come_from_the_file(pair: Pair) -> None:
    config = pair.model.config
    assert (config.prefix_length, config.mapper_input_length, config.mapper_num_layers) == (6, 4, 2)
    assert (config.projection_dim, config.mapper_mlp_ratio, config.beam_scores) == (96, 2.0, "average")
    assert (config.text_config.n_embd, config.text_config.n_layer) == (128, 2)
    assert pair.model.generation_config.eos_token_id == STOP
    assert pair.model.language_model.lm_head.weight is pair.model.get_input_embeddings().weight
    assert not pair.model.training
    assert pair.processor.feature_extractor.mel_sampling_rate == 32_000
    trains = {name.split(".")[0] for name, value in pair.model.named_parameters() if value.requires_grad}
    assert trains == {"mapper"}


def test_saved_captioner_is_the_same(pair: Pair, captions: torch.Tensor, tmp_path: Path) -> None:
    pair.model.save_pretrained(tmp_path)
    model = MSClapForAudioCaptioning.from_pretrained(tmp_path)
    tokens = model.generate(pair.features["input_features"][:2], max_new_tokens=LONGEST)
    assert [cut(row) for row in tokens] == [cut(row) for row in captions[:2]]


def test_every_weight_of_the_file_is_used(states: dict[str, State], save: Callable[..., Path]) -> None:
    """A weight that is missing is named; what may be missing is what the model computes or never uses."""
    model, _ = load_clapcap_checkpoint(save("current"), TOKENIZER["clapcap"])
    assert sum(value.numel() for value in model.parameters()) == sum(
        value.numel()
        for key, value in states["current"].items()
        if value.is_floating_point()
        and not any(
            part in key
            for part in ("extractor", "attn_mask", "running_", "htsat.head.", "lm_head", "relative_position_index")
        )
    )
    for key in (
        "clap_project.prefix_const",
        "clap_project.transformer.layers.1.attn.to_keys_values.weight",
        "clap.projection.linear2.weight",
        "gpt.transformer.ln_f.bias",
        "clap.base.htsat.norm.weight",
    ):
        with pytest.raises(ValueError) as error:
            load_clapcap_checkpoint(save(**{key: None}), TOKENIZER["clapcap"])
        assert repr(key) in str(error.value)


@pytest.mark.parametrize(
    "key", ["clap_project.model.0.weight", "gpt.transformer.h.0.crossattention.bias", "clap.logit_scale"]
)
def test_unknown_key_is_named(save: Callable[..., Path], key: str) -> None:
    with pytest.raises(ValueError, match="1 unknown keys") as error:
        load_clapcap_checkpoint(save(**{key: torch.zeros(3)}), TOKENIZER["clapcap"])
    assert repr(key) in str(error.value)


def test_output_layer_must_be_the_word_embeddings(states: dict[str, State], save: Callable[..., Path]) -> None:
    other = states["hub"]["gpt.lm_head.weight"] + 0.01
    with pytest.raises(ValueError, match=r"gpt\.lm_head\.weight' is not the one"):
        load_clapcap_checkpoint(save(**{"gpt.lm_head.weight": other}), TOKENIZER["clapcap"])


def test_versions_are_told_apart(save: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="is a 'clapcap' checkpoint, but version is '2023'. Call load_clapcap"):
        load_msclap_checkpoint(save(), "2023")
    with pytest.raises(ValueError, match="version is 'clapcap', the captioner. Call load_clapcap_checkpoint"):
        load_msclap_checkpoint(save(), "clapcap")


def test_convert_writes_a_captioner_with_its_card(save: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "captioner"
    convert_checkpoint("clapcap", folder, checkpoint=save(), tokenizer=TOKENIZER["clapcap"])
    report = json.loads((folder / "conversion.json").read_text())
    assert report["reload_is_bit_equal"] and "mean_text_cosine" not in report
    assert "AutoModelForMultimodalLM" in json.loads((folder / "config.json").read_text())["auto_map"]
    assert (folder / "modeling_msclap_captioning.py").is_file() and (folder / "pipeline_msclap.py").is_file()
    card = (folder / "README.md").read_text()
    assert "`clap-hf convert clapcap`" in card and 'pipeline("audio-captioning", model="captioner")' in card
