"""Queries of a collection: words, sounds, parts of sounds, and weighted sums of these."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import AUDIO_EXTENSIONS, Audio, AudioReader, read_whole
from ..embedding import ClapEncoder

TERM = re.compile(r'\s*"([^"]*)"\s*:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*(?:,|$)')
PART = re.compile(r"(.+)@(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class WeightedQuery:
    """A sum of queries: a sound's score is the weighted sum of its cosines.

    Attributes:
        terms: Words or sounds, each with its weight; a negative one is for what the sound is not to be like.
    """

    terms: tuple[tuple[Any, float], ...]


def parse_words(words: str) -> str | WeightedQuery:
    """Words as they are, or a weighted query where they are of the form `"dog":1,"rain":-0.5`."""
    terms: list[tuple[str, float]] = []
    position = 0
    while position < len(words) and (found := TERM.match(words, position)):
        terms.append((found[1], float(found[2])))
        position = found.end()
    return WeightedQuery(tuple(terms)) if terms and position == len(words) else words


def load_part(name: str) -> Audio:
    """Decode a sound file, or the part of it that a name such as `f.wav@3.2-4.5` states, in s; no warning of damage.

    Raises:
        ValueError: The part ends before it starts.
        AudioDecodeError: The file cannot be decoded.
    """
    found = None if os.path.exists(name) else PART.fullmatch(name)
    file, start_s, duration_s = name, 0.0, None
    if found is not None:
        file, start_s, duration_s = found[1], float(found[2]), float(found[3]) - float(found[2])
        if duration_s <= 0:
            raise ValueError(f"{name} ends at {found[3]} s, expected an end after its start, {found[2]} s.")
    with AudioReader(file, start_s=start_s, duration_s=duration_s) as reader:
        return read_whole(reader)


def query_vector(encoder: ClapEncoder, query: Any, sampling_rate: int | None = None) -> np.ndarray:
    """Vector of a query `[dim]`, of unit length where it is no weighted sum.

    Args:
        encoder: The model.
        query: Words as a `str`, a sound, or a `WeightedQuery`.
        sampling_rate: Rate of samples that do not carry their own, Hz.

    Raises:
        ValueError: Words are empty or name a file; a weighted query has no terms.
    """
    if isinstance(query, WeightedQuery):
        if not query.terms:
            raise ValueError("The weighted query is empty, expected at least one term.")
        return np.sum([w * query_vector(encoder, term, sampling_rate) for term, w in query.terms], axis=0)
    if not isinstance(query, str):
        return encoder.embed_audio([encoder.prepare(query, sampling_rate)])[0].numpy()
    if not query.strip():
        raise ValueError(f"The query is {query!r}, expected words, or a sound.")
    if Path(query).suffix.lower() in AUDIO_EXTENSIONS and os.path.isfile(query):
        raise ValueError(
            f"The query {query!r} is the name of a file, expected words. For sounds like that one, pass a Path, or "
            "--like on the command line."
        )
    return encoder.embed_texts([query])[0].numpy()
