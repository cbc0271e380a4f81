"""Reading of sounds, shared by the pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..audio import is_one_sound, read_ahead, read_sound


class Sounds(torch.utils.data.Dataset):
    """A sequence in the form that pipelines read item by item, so that a `datasets` column decodes one at a time."""

    def __init__(self, sounds: Sequence[Any]):
        self.sounds = sounds

    def __len__(self) -> int:
        return len(self.sounds)

    def __getitem__(self, index: int) -> Any:
        return self.sounds[index]


def pipeline_inputs(sounds: Any, num_workers: int | None) -> tuple[Any, bool]:
    """What transformers' `Pipeline.__call__` takes for one sound or many.

    Args:
        sounds: A sound of any kind that `read_sound` takes, or several; generators and torch datasets stay as they
            are.
        num_workers: Processes of the pipeline that decode; threads of this one if there are none.

    Returns:
        The input, and whether a list is expected of it.
    """
    if is_one_sound(sounds):
        # A pipeline takes every list for several inputs.
        return (np.asarray(sounds) if isinstance(sounds, (list, tuple)) else sounds), False
    if num_workers:
        return Sounds(sounds), True

    def decoded() -> Iterator[Any]:
        for _, sound in read_ahead(sounds, read_sound):
            yield sound

    return decoded(), True
