"""Long files in pipelines: found by their headers, and embedded in blocks instead of decoded whole."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch

from ..audio import open_audio
from ..embedding import LONG_WINDOWS, embed_files
from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from ..model.processing_msclap import MSClapProcessor


def is_long(extractor: MSClapFeatureExtractor, sound: Any) -> bool:
    """Whether a sound is a file of more than `LONG_WINDOWS` windows, or of unknown length, which is read in blocks.

    Args:
        extractor: The model's feature extractor.
        sound: A sound of any kind that `read_sound` takes; what is no path of a readable file is not long.
    """
    if not isinstance(sound, (str, os.PathLike)) or extractor.long_audio == "random":
        return False
    try:
        with open_audio(sound) as reader:
            return reader.duration_s is None or reader.duration_s > LONG_WINDOWS * extractor.duration_s
    except ValueError:  # the pipeline's own reader names what is wrong
        return False


def long_sounds(extractor: MSClapFeatureExtractor, sounds: Sequence[Any]) -> set[int]:
    """Places of the long files among sounds, see `is_long`."""
    return {number for number, sound in enumerate(sounds) if is_long(extractor, sound)}


def embed_file(
    model: Any, extractor: MSClapFeatureExtractor, file: str | os.PathLike[str], max_windows: int | None
) -> torch.Tensor:
    """Unit vector of a file `[projection_dim]`, see `embed_files`; what is damaged is warned of.

    Args:
        model: A model with `get_audio_features`, a captioner too.
        extractor: Its feature extractor.
        file: The file.
        max_windows: As for `embed_files`.

    Raises:
        ValueError: It cannot be read.
    """
    processor = cast(MSClapProcessor, SimpleNamespace(feature_extractor=extractor))  # no text is embedded
    found = embed_files(model, processor, [file], max_windows=max_windows)
    for reason in found.skipped.values():
        raise ValueError(reason)
    for reason in found.damaged.values():
        warnings.warn(f"{file}: truncated or damaged: {reason}", stacklevel=4)
    return found.vectors[0]
