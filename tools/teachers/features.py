"""Clips as the teachers take them, and their features reduced, joined and saved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr
import torch
from safetensors.torch import save_file

from clap_hf.atomic_io import replacing
from clap_hf.audio import Audio

MAX_SECONDS = 5.0  # of a clip
JOINED_NORM = 16.0  # mean length of a teacher's part of the joined features


def first_seconds(audio: Audio, sampling_rate: int, min_samples: int) -> torch.Tensor:
    """The first five seconds of a clip: mono, at the teacher's rate, the peak at half of full scale.

    Args:
        audio: The clip.
        sampling_rate: The teacher's rate, in Hz.
        min_samples: The teacher's shortest input; silence follows a shorter clip.

    Returns:
        `[samples]`, float32.
    """
    samples = audio.samples.mean(axis=0)[: round(MAX_SECONDS * audio.sampling_rate)]
    samples = soxr.resample(samples, audio.sampling_rate, sampling_rate)
    peak = float(np.abs(samples).max(initial=0.0))
    samples = samples / (2 * peak) if peak else samples
    return torch.from_numpy(np.pad(samples, (0, max(0, min_samples - len(samples)))).astype(np.float32))


def principal_components(features: torch.Tensor, components: int) -> torch.Tensor:
    """Standardise every dimension, then keep the directions of the highest variance.

    Each is divided by the square root of its deviation: else the first few, which follow loudness and density, would
    outweigh the others in a cosine.

    Args:
        features: `[clips, dim]`, float32.
        components: Directions to keep.

    Returns:
        `[clips, components]`, float32, centred, in order of falling variance.
    """
    deviation = features.std(dim=0)
    scaled = (features - features.mean(dim=0)) / deviation.clamp(min=1e-3 * float(deviation.mean()))
    scaled = scaled.clamp(-6.0, 6.0)  # silence and clicks lie far outside
    scaled = scaled - scaled.mean(dim=0)
    _, directions = torch.linalg.eigh(scaled.t() @ scaled)  # in order of rising variance
    kept = scaled @ directions[:, -components:].flip(1)
    return kept / kept.std(dim=0).sqrt()


def join(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Features of several teachers side by side, scaled to weigh alike in a cosine.

    Args:
        features: `[clips, dim]` of each teacher, float32.

    Returns:
        `[clips, sum of dims]`, float32.
    """
    return torch.cat([of_one * (JOINED_NORM / of_one.norm(dim=1).mean()) for of_one in features], dim=1)


def save_features(path: Path, features: torch.Tensor, ids: Sequence[str], about: dict[str, str]) -> None:
    """Write features for `clap_hf.training.teacher.load_features`.

    Args:
        path: Safetensors file.
        features: `[clips, dim]`; stored as float16.
        ids: Of the clips.
        about: Further text metadata, such as the teacher's name.
    """
    with replacing(path) as fresh:
        save_file({"features": features.half().contiguous()}, fresh, {"ids": json.dumps(list(ids)), **about})
