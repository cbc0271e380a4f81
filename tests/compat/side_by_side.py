"""Every public method and attribute of msclap 1.3.4 beside `clap_hf.compat.msclap`: a table of differences."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

TEXTS = ["a dog barks", "rain on a tin roof, and far thunder", "", "440 Hz sine wave, -12.5 dB?"]
MARKED = ["a dog barks!", "stop! thief! run!!", "!"]


def difference(own: torch.Tensor, theirs: torch.Tensor, are_vectors: bool = False) -> float:
    """Largest difference of two tensors, relative to the largest value where that is above 1.

    Args:
        own: Of this package.
        theirs: Of msclap, in the same shape.
        are_vectors: Whether rows are embeddings, which are compared as unit vectors.
    """
    assert own.shape == theirs.shape and own.dtype == theirs.dtype, (own.shape, theirs.shape)
    own, theirs = own.detach().double(), theirs.detach().double()
    if are_vectors:
        own, theirs = F.normalize(own, dim=-1), F.normalize(theirs, dim=-1)
    return float((own - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))


def unequal(own: Any, theirs: Any) -> float:
    """0 for equal values of other kinds, 1 for unequal ones."""
    return float(own != theirs)


@torch.no_grad()
def shared_rows(own: Any, theirs: Any, files: Sequence[Path]) -> dict[str, float]:
    """Differences of what every version has.

    Args:
        own: `clap_hf.compat.msclap.CLAP`.
        theirs: `msclap.CLAP` of the same file.
        files: Mono recordings that are no longer than a window.
    """
    table: dict[str, float] = {
        "model_repo": unequal(own.model_repo, theirs.model_repo),
        "model_name": unequal(own.model_name, theirs.model_name),
        "supported_versions": unequal(set(own.supported_versions), set(theirs.supported_versions)),
        "model_fp": unequal(own.model_fp, theirs.model_fp),
        "use_cuda": unequal(own.use_cuda, theirs.use_cuda),
        "token_keys": unequal(own.token_keys, theirs.token_keys),
        "tokenizer": unequal(own.tokenizer(TEXTS)["input_ids"], theirs.tokenizer(TEXTS)["input_ids"]),
    }
    batch = [{"x": np.arange(3.0), "y": 1, "z": "text"}, {"x": np.zeros(3), "y": 2, "z": "other"}]
    ours, other = own.default_collate(batch), theirs.default_collate(batch)
    table["default_collate"] = unequal([str(ours[name]) for name in "xyz"], [str(other[name]) for name in "xyz"])
    duration = theirs.args.duration
    table["read_audio"] = max(difference(own.read_audio(f)[0], theirs.read_audio(f)[0]) for f in files)
    for resample in (True, False):
        pairs = [[m.load_audio_into_tensor(f, duration, resample) for m in (own, theirs)] for f in files]
        name = "load_audio_into_tensor" if resample else "load_audio_into_tensor(resample=False)"
        table[name] = max(difference(*pair) for pair in pairs)
    table["preprocess_audio"] = difference(own.preprocess_audio(files, True), theirs.preprocess_audio(files, True))
    return table


def audio_rows(name: str, own: Any, theirs: Any, waveforms: torch.Tensor) -> dict[str, float]:
    """Differences of an audio encoder on waveforms `[clips, samples]`."""
    with torch.no_grad():
        (vectors, classes), (reference, reference_classes) = own(waveforms), theirs(waveforms)
        outputs, reference_outputs = own.base(waveforms), theirs.base(waveforms)
    assert outputs.keys() == reference_outputs.keys()
    table = {f"{name}(x)[0]": difference(vectors, reference, True)}
    table[f"{name}(x)[1]"] = difference(classes, reference_classes)
    for key, expected in reference_outputs.items():
        table[f"{name}.base(x)[{key!r}]"] = difference(outputs[key], expected, key in ("embedding", "latent_output"))
    return table


@torch.no_grad()
def contrastive_rows(own: Any, theirs: Any, files: Sequence[Path]) -> dict[str, float]:
    """Differences of the versions 2022 and 2023; arguments as of `shared_rows`."""
    waveforms = theirs.preprocess_audio(files, True)[:, 0]
    longer = torch.cat([waveforms, waveforms.flip(0)], dim=1)[:2]  # more frames than HTSAT takes at once
    tokens = theirs.preprocess_text(TEXTS)
    audio, text = theirs.get_audio_embeddings(files), theirs.get_text_embeddings(TEXTS)
    table = shared_rows(own, theirs, files)
    table["args"] = unequal(own.args, theirs.args)
    table["preprocess_text"] = max(
        difference(own.preprocess_text(TEXTS)[key], tokens[key]) for key in theirs.token_keys
    )
    table["get_audio_embeddings"] = difference(own.get_audio_embeddings(files), audio, True)
    table["get_text_embeddings"] = difference(own.get_text_embeddings(TEXTS), text, True)
    for method, items in {"get_audio_embeddings_per_batch": files, "get_text_embeddings_per_batch": TEXTS}.items():
        found, expected = (torch.cat(list(getattr(m, method)(items, 3))) for m in (own, theirs))
        table[method] = difference(found, expected, True)
    table["compute_similarity"] = difference(
        own.compute_similarity(audio, text), theirs.compute_similarity(audio, text)
    )
    table["clap.logit_scale"] = difference(own.clap.logit_scale, theirs.clap.logit_scale)
    table["clap.caption_encoder(tokens)"] = difference(own.clap.caption_encoder(tokens), text, True)
    states = [m.clap.caption_encoder.base(**tokens)[0] * tokens["attention_mask"][..., None] for m in (own, theirs)]
    table["clap.caption_encoder.base(**tokens)[0]"] = difference(*states)
    table["clap(x, tokens)"] = max(
        difference(found, expected, expected.ndim > 0)
        for found, expected in zip(own.clap(waveforms, tokens), theirs.clap(waveforms, tokens), strict=True)
    )
    table |= audio_rows("clap.audio_encoder", own.clap.audio_encoder, theirs.clap.audio_encoder, waveforms)
    more = audio_rows("clap.audio_encoder", own.clap.audio_encoder, theirs.clap.audio_encoder, longer)
    return table | {f"{name}, 14 s": value for name, value in more.items() if "base" in name}


def captioning_rows(
    own: Any, theirs: Any, files: Sequence[Path], settings: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """Differences of the version clapcap; `settings` are arguments of `generate_caption`, the others as above."""
    table = shared_rows(own, theirs, files)
    table["args"] = unequal(own.args, theirs.args)
    waveforms = theirs.preprocess_audio(files, True)[:, 0]
    table |= audio_rows("clapcap.clap", own.clapcap.clap, theirs.clapcap.clap, waveforms)
    table["clapcap.prefix_length"] = unequal(own.clapcap.prefix_length, theirs.clapcap.prefix_length)
    for options in settings:
        name = ", ".join(f"{key}={value}" for key, value in options.items())
        captions = own.generate_caption(files, **options)
        table[f"generate_caption({name})"] = unequal(captions, theirs.generate_caption(files, **options))
    return table


def quirk_rows(quirky: Any, theirs: Any, stereo: Path) -> dict[str, float]:
    """Differences under `msclap_quirks=True`.

    Args:
        quirky: `clap_hf.compat.msclap.CLAP` with them.
        theirs: `msclap.CLAP` of the same file.
        stereo: Recording of two channels, longer than half a window.
    """
    found = []
    for model in (quirky, theirs):
        random.seed(7)
        found.append(model.get_audio_embeddings([stereo, stereo]))
    return {
        "quirks: get_audio_embeddings of a random crop of channels laid end to end": difference(*found, True),
        "quirks: preprocess_text of texts with '!'": difference(
            quirky.preprocess_text(MARKED)["input_ids"], theirs.preprocess_text(MARKED)["input_ids"]
        ),
        "quirks: get_text_embeddings of texts with '!'": difference(
            quirky.get_text_embeddings(MARKED), theirs.get_text_embeddings(MARKED), True
        ),
    }
