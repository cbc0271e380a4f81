"""What another audio network, trained on far more sound, hears in every clip: an aim beside the captions.

The audio tower's state has to predict the teacher's, through a linear head (feature distillation, after Romero et al.,
"FitNets", ICLR 2015; here with a cosine, and of pooled states). The head belongs to the loss and is thrown away after
training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..atomic_io import replacing
from ..audio import Audio

LONGEST_S = 5.0  # of a sound, that a teacher hears


@dataclass(frozen=True)
class Teacher:
    """A teacher in a recipe.

    Args:
        states: File that `scripts/make_teacher_states.py` wrote for the training set.
        weight: Factor on the teacher's part of the loss, 1 - mean cosine.
    """

    states: str
    weight: float = 1.0


def first_seconds(audio: Audio, sampling_rate: int, shortest: int) -> torch.Tensor:
    """The first five seconds of a sound as a teacher takes them: mono, at its rate, the peak at half of full scale.

    Args:
        audio: Any sound.
        sampling_rate: The teacher's rate, in Hz.
        shortest: The teacher's shortest input, in samples; silence follows a shorter sound.

    Returns:
        `[samples]`, float32.
    """
    samples = audio.samples.mean(axis=0)[: round(LONGEST_S * audio.sampling_rate)]
    samples = soxr.resample(samples, audio.sampling_rate, sampling_rate)
    peak = float(np.abs(samples).max(initial=0.0))
    samples = samples / (2 * peak) if peak else samples
    return torch.from_numpy(np.pad(samples, (0, max(0, shortest - len(samples)))).astype(np.float32))


def principal_components(states: torch.Tensor, components: int) -> torch.Tensor:
    """Standardise every dimension, then keep the directions in which clips differ most.

    Each is divided by the square root of its deviation: else the first few, which tell how loud and how dense a sound
    is, would be all that counts.

    Args:
        states: `[clips, dim]`, float32.
        components: Directions to keep.

    Returns:
        `[clips, components]`, float32, centred, in order of falling variance.
    """
    deviation = states.std(dim=0)
    scaled = (states - states.mean(dim=0)) / deviation.clamp(min=1e-3 * float(deviation.mean()))
    scaled = scaled.clamp(-6.0, 6.0)  # silence and clicks lie far outside
    scaled = scaled - scaled.mean(dim=0)
    _, directions = torch.linalg.eigh(scaled.t() @ scaled)  # in order of rising variance
    kept = scaled @ directions[:, -components:].flip(1)
    return kept / kept.std(dim=0).sqrt()


def join(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """States of several teachers side by side, scaled to count alike in a cosine.

    Args:
        states: `[clips, dim]` of each teacher, float32.

    Returns:
        `[clips, sum of dims]`, float32.
    """
    return torch.cat([of_one * (16.0 / of_one.norm(dim=1).mean()) for of_one in states], dim=1)


def save_states(path: Path, states: torch.Tensor, ids: Sequence[str], about: dict[str, str]) -> None:
    """Write states `[clips, dim]` as float16, with the clips' ids and what is to be known of the teacher."""
    with replacing(path) as fresh:
        save_file({"states": states.half().contiguous()}, fresh, {"ids": json.dumps(list(ids)), **about})


def load_states(path: str | Path, ids: Sequence[str]) -> torch.Tensor:
    """Read states in the order of a training set's clips.

    Args:
        path: File of `save_states`.
        ids: The clips.

    Returns:
        `[clips, dim]`, float32.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it misses clips.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not a file, expected states of scripts/make_teacher_states.py.")
    with safe_open(path, "pt") as file:
        rows = {name: row for row, name in enumerate(json.loads(file.metadata()["ids"]))}
        states = file.get_tensor("states").float()
    missing = [name for name in ids if name not in rows]
    if missing:
        raise ValueError(
            f"{path} misses {len(missing)} of {len(ids)} clips, the first {missing[0]!r}. Make it again from the "
            "training set: scripts/make_teacher_states.py."
        )
    return states[[rows[name] for name in ids]]


class TeacherHead(nn.Module):
    """Predicts the teacher's states from the audio tower's.

    Args:
        hidden_size: Size of the tower's pooled state.
        states: The teacher's states of all clips `[clips, dim]`, float32.
    """

    def __init__(self, hidden_size: int, states: torch.Tensor):
        super().__init__()
        self.linear = nn.Linear(hidden_size, states.shape[1])
        self.register_buffer("states", states, persistent=False)

    def forward(self, pooled: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Mean cosine of predicted and true states.

        Args:
            pooled: The tower's states `[batch, hidden_size]`.
            rows: The clips' rows in the training set `[batch]`.

        Returns:
            A scalar, float32, at most 1.
        """
        aims = self.get_buffer("states")[rows]
        return F.cosine_similarity(self.linear(pooled.float()), aims, dim=-1).mean()
