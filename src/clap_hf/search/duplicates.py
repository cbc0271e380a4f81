"""Copies of one recording in a collection: in another codec, at another level, or cut shorter.

Candidates are neighbours by their vectors; whether they are copies is decided by log-mels of the files themselves,
aligned in time, whose mean over time and bands is taken out: that is the level.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..atomic_io import PartStore
from ..audio import load_audio, read_ahead
from ..model.feature_extraction_msclap import resample
from .check import collection_facts, root_of
from .index import Index

RATE = 8_000  # Hz: what every codec keeps
FFT, HOP, BANDS = 512, 256, 24  # samples; 32 ms a frame
LOWEST, HIGHEST = 100.0, 3400.0  # Hz
RANGE_DB = 50.0  # below the loudest band; what is below is noise of the codec
LONGEST_S = 30.0  # of a file that is compared
OVERLAP = 0.5  # of the shorter one of two files, at least
NEIGHBOURS, COSINE = 30, 0.8  # of a vector, which are compared
ALIKE = 0.9  # correlation of two aligned log-mels


@dataclass(frozen=True)
class Duplicates:
    """Groups of files of one recording, and files that could not be read to be compared.

    Attributes:
        groups: Files of a recording, sorted, two or more each.
        skipped: Why the others were not compared.
    """

    groups: list[list[Path]]
    skipped: dict[Path, str]


def find_duplicates(folder: str | os.PathLike[str], *, alike: float = ALIKE) -> Duplicates:
    """Find files of a collection that hold the same recording. Needs no model.

    Args:
        folder: The collection.
        alike: Correlation of their log-mels from which two files are copies, 0 to 1.

    Raises:
        ValueError: There is no collection, or a part of it is damaged.
    """
    facts = collection_facts(folder)
    store = PartStore(Path(folder), facts["identity"], pa.schema([]))
    vectors = Index(store).vectors()
    whole = vectors.matrix[vectors.first]
    paths = [root_of(folder) / name for name in vectors.files]
    cosines = _candidates(whole)
    pairs = sorted(cosines, key=lambda pair: -cosines[pair])  # groups are found early, and their other pairs left out
    needed = sorted({number for pair in pairs for number in pair})
    skipped: dict[int, str] = {}
    pictures = dict(read_ahead(needed, lambda number: fingerprint(paths[number]), skipped))
    group = list(range(len(paths)))

    def first(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for one, other in pairs:
        if one in pictures and other in pictures and first(one) != first(other):
            if likeness(pictures[one], pictures[other]) >= alike:
                group[max(first(one), first(other))] = min(first(one), first(other))
    members: dict[int, list[Path]] = {}
    for number in needed:
        members.setdefault(first(number), []).append(paths[number])
    found = [sorted(files) for files in members.values() if len(files) > 1]
    return Duplicates(sorted(found), {paths[number]: reason for number, reason in skipped.items()})


def _candidates(vectors: np.ndarray) -> dict[tuple[int, int], float]:
    """Cosines of the pairs of files whose vectors are neighbours."""
    found: dict[tuple[int, int], float] = {}
    count = min(NEIGHBOURS + 1, len(vectors))
    for start in range(0, len(vectors), 1024):
        cosines = vectors[start : start + 1024] @ vectors.T
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        for row, column in zip(*np.nonzero(np.take_along_axis(cosines, nearest, axis=1) >= COSINE), strict=True):
            one, other = start + int(row), int(nearest[row, column])
            if one != other:
                found[min(one, other), max(one, other)] = float(cosines[row, other])
    return found


@cache
def _filterbank() -> np.ndarray:
    """Triangular filters on the mel scale `[bins, bands]`."""
    frequencies = np.linspace(0, RATE / 2, FFT // 2 + 1)
    edges = 700 * (10 ** (np.linspace(_mel(LOWEST), _mel(HIGHEST), BANDS + 2) / 2595) - 1)
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _mel(frequency: float) -> float:
    return 2595 * float(np.log10(1 + frequency / 700))


def fingerprint(file: Path) -> np.ndarray:
    """Log-mel of a file's first 30 s, whatever its level `[frames, bands]`, dB below its loudest band.

    Raises:
        AudioDecodeError: The file cannot be decoded.
    """
    import torch

    audio = load_audio(file, duration_s=LONGEST_S)
    mono = torch.from_numpy(audio.samples).mean(dim=0)
    samples = resample(mono, audio.sampling_rate, RATE).numpy()
    padded = np.pad(samples, (FFT // 2, FFT // 2 + HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP] * np.hanning(FFT).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)).astype(np.float32) ** 2 @ _filterbank()
    decibels = 10 * np.log10(power + 1e-12)
    return np.maximum(decibels - decibels.max() + RANGE_DB, 0)


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Highest correlation of two log-mels over all shifts in time at which they overlap enough, -1 to 1.

    Args:
        one: `[frames, bands]`.
        other: `[frames, bands]`.
    """
    shorter = min(len(one), len(other))
    size = len(one) + len(other) - 1
    length = 1 << (size - 1).bit_length()

    def against(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Sum of products of `a` and `b` for every shift of `b` by -(len(b) - 1) to len(a) - 1 frames."""
        spectrum = np.fft.rfft(a, length, axis=0) * np.fft.rfft(b[::-1], length, axis=0)
        return np.fft.irfft(spectrum.sum(axis=1), length)[:size]

    ones, others = np.ones_like(one), np.ones_like(other)
    count = against(ones, others)
    sum_one, sum_other = against(one, others), against(ones, other)
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = against(one, other) - sum_one * sum_other / count
        variances = (against(one**2, others) - sum_one**2 / count) * (against(ones, other**2) - sum_other**2 / count)
        correlation = covariance / np.sqrt(variances)
    enough = (count >= OVERLAP * shorter * BANDS - 0.5) & (variances > 1e-3)
    return float(np.max(correlation[enough], initial=-1.0))
