"""Copies of one recording in a collection: in another codec, at another level, or cut shorter.

Candidates are neighbours by their vectors, or by the means of their log-mels over time: copies of a telephone are
closer to one another by their vectors than to what they are copies of. Those whose aligned log-mels are alike whatever
their level are compared by the correlation of their waveforms in a band that every codec keeps: two sounds of
one kind have log-mels alike, but not waveforms.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..atomic_io import PartStore
from ..audio import Audio, load_audio, read_ahead
from ..model.feature_extraction_msclap import resample
from .check import collection_facts, root_of
from .index import Index

RATE, WAVE_RATE = 8_000, 16_000  # Hz; of the waveforms twice what the band needs, so that samples are aligned well
FFT, HOP, BANDS = 512, 256, 24  # samples; 32 ms a frame
LOWEST, HIGHEST = 100.0, 3400.0  # Hz
RANGE_DB = 50.0  # below the loudest band; what is below is noise of the codec
LONGEST_S = 30.0  # of a file that is compared
OVERLAP = 0.5  # of the shorter one of two files, at least
NEIGHBOURS, COSINE = 30, 0.6  # of a vector, which are compared
SHAPES = 8  # neighbours by the shape of the log-mel, which are compared too
SOUNDING_DB = 20.0  # level of the loudest band from which a frame counts for the shape, above the range's end
SIMILAR = 0.7  # correlation of two aligned log-mels from which the waveforms are compared
ALIKE = 0.8  # correlation of two aligned waveforms from which files are copies
CLOSE, TRIES = 0.9, 3  # cosine of pairs compared before all others; pairs of two groups compared before they are apart
WAVES = 64  # waveforms kept in memory, 2 MB each


@dataclass(frozen=True)
class Duplicates:
    """Groups of files of one recording, and files that could not be read to be compared.

    Attributes:
        groups: Files of a recording, sorted, two or more each.
        skipped: Why the others were not compared.
    """

    groups: list[list[Path]]
    skipped: dict[Path, str]


def find_duplicates(
    folder: str | os.PathLike[str], *, alike: float = ALIKE, cosine: float = COSINE, neighbours: int = NEIGHBOURS
) -> Duplicates:
    """Find files of a collection that hold the same recording. Needs no model.

    Args:
        folder: The collection.
        alike: Correlation of their waveforms from which two files are copies, 0 to 1.
        cosine: Of the vectors of two files, from which they are compared, -1 to 1.
        neighbours: Of a file, those with the highest cosines, that it is compared with, beside those of its shape.

    Raises:
        ValueError: There is no collection, or a part of it is damaged.
    """
    facts = collection_facts(folder)
    store = PartStore(Path(folder), facts["identity"], pa.schema([]))
    vectors = Index(store).vectors()
    whole = vectors.matrix[vectors.first]
    paths = [root_of(folder) / name for name in vectors.files]
    cosines = _candidates(whole, cosine, neighbours)
    skipped: dict[int, str] = {}
    known = sorted({number for pair in cosines for number in pair})
    pictures = dict(read_ahead(known, lambda number: fingerprint(paths[number]), skipped))
    if pictures:
        read = list(pictures)
        for places in _candidates(_shapes(pictures.values()), -1.0, SHAPES):
            one, other = sorted(read[place] for place in places)
            if (close := float(whole[one] @ whole[other])) >= cosine:
                cosines[one, other] = close
    # Close ones first, so that groups are found and their other pairs left out; file by file, so that a waveform is
    # read once.
    pairs = sorted(cosines, key=lambda pair: (cosines[pair] < CLOSE, pair[0], -cosines[pair]))
    waves = lru_cache(WAVES)(lambda number: waveform(paths[number]))
    group = list(range(len(paths)))
    apart: Counter[tuple[int, int]] = Counter()

    def first(number: int) -> int:
        while group[number] != number:
            number = group[number]
        return number

    for one, other in pairs:
        if one not in pictures or other not in pictures or first(one) == first(other):
            continue
        groups = (min(first(one), first(other)), max(first(one), first(other)))
        if apart[groups] == TRIES or likeness(pictures[one], pictures[other]) < SIMILAR:
            continue
        if likeness(waves(one), waves(other)) >= alike:
            group[groups[1]] = groups[0]
        else:
            apart[groups] += 1
    members: dict[int, list[Path]] = {}
    for number in known:
        members.setdefault(first(number), []).append(paths[number])
    found = [sorted(files) for files in members.values() if len(files) > 1]
    return Duplicates(sorted(found), {paths[number]: reason for number, reason in skipped.items()})


def _candidates(vectors: np.ndarray, cosine: float, neighbours: int) -> dict[tuple[int, int], float]:
    """Cosines of the pairs of files whose vectors are neighbours."""
    found: dict[tuple[int, int], float] = {}
    count = min(neighbours + 1, len(vectors))
    for start in range(0, len(vectors), 1024):
        cosines = vectors[start : start + 1024] @ vectors.T
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        for row, column in zip(*np.nonzero(np.take_along_axis(cosines, nearest, axis=1) >= cosine), strict=True):
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
    samples = _mono(load_audio(file, duration_s=LONGEST_S), RATE)
    padded = np.pad(samples, (FFT // 2, FFT // 2 + HOP))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP] * np.hanning(FFT).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)).astype(np.float32) ** 2 @ _filterbank()
    decibels = 10 * np.log10(power + 1e-12)
    return np.maximum(decibels - decibels.max() + RANGE_DB, 0)


def _shapes(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Means and deviations of fingerprints over their frames, as unit vectors about a center `[files, 2 * bands]`."""
    means = [[picture[picture.max(axis=1) > SOUNDING_DB].mean(axis=0), picture.std(axis=0)] for picture in pictures]
    shapes = np.stack(means).reshape(len(means), -1)
    shapes = shapes - shapes.mean(axis=0)
    return shapes / np.maximum(np.linalg.norm(shapes, axis=1, keepdims=True), 1e-12)


def waveform(file: Path) -> np.ndarray:
    """Waveform of a file's first 30 s at 16 kHz, from 100 to 3400 Hz, whatever its level `[samples, 1]`.

    Raises:
        AudioDecodeError: The file cannot be decoded.
    """
    return speech_band(load_audio(file, duration_s=LONGEST_S))


def speech_band(audio: Audio) -> np.ndarray:
    """Waveform of decoded audio as `waveform` has it: the first 30 s at 16 kHz, 100 to 3400 Hz `[samples, 1]`."""
    samples = _mono(audio, WAVE_RATE)
    frequencies = np.fft.rfftfreq(len(samples), 1 / WAVE_RATE)
    # High bands are weak in most sounds, but differ between similar ones: 3 dB more an octave.
    weights = np.sqrt(frequencies) * ((frequencies >= LOWEST) & (frequencies <= HIGHEST))
    filtered = np.fft.irfft(np.fft.rfft(samples) * weights, len(samples))
    return (filtered / max(float(np.abs(filtered).max()), 1e-12)).astype(np.float32)[:, None]


def _mono(audio: Audio, rate: int) -> np.ndarray:
    """Mono samples of the first 30 s at a rate, Hz `[samples]`."""
    import torch

    samples = audio.samples[:, : round(LONGEST_S * audio.sampling_rate)]
    return resample(torch.from_numpy(samples).mean(dim=0), audio.sampling_rate, rate).numpy()


def likeness(one: np.ndarray, other: np.ndarray, overlap: float = OVERLAP) -> float:
    """Highest correlation of two log-mels or waveforms over all shifts at which they overlap enough, -1 to 1.

    Args:
        one: `[frames, bands]` or `[samples, 1]`.
        other: The same.
        overlap: Share of the shorter one that overlaps at least, 0 to 1.
    """
    shifts = np.arange(1 - len(other), len(one))  # of the other's first frame, in frames of the one
    length = 1 << (len(shifts) - 1).bit_length()
    spectrum = np.fft.rfft(one, length, axis=0) * np.fft.rfft(other[::-1], length, axis=0)
    products = np.fft.irfft(spectrum.sum(axis=1), length)[: len(shifts)]
    first, end = np.maximum(shifts, 0), np.minimum(shifts + len(other), len(one))

    def overlaps(picture: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums of values and of squares of the frames that overlap, for every shift."""
        sums = np.cumsum([picture.sum(axis=1), (picture**2).sum(axis=1)], axis=1, dtype=np.float64)
        before = np.concatenate([np.zeros((2, 1)), sums], axis=1)
        return tuple(before[:, start + (end - first)] - before[:, start])

    (sum_one, square_one), (sum_other, square_other) = overlaps(one, first), overlaps(other, first - shifts)
    count = (end - first) * one.shape[1]
    covariance = products - sum_one * sum_other / count
    variances = (square_one - sum_one**2 / count) * (square_other - sum_other**2 / count)
    enough = (end - first >= overlap * min(len(one), len(other))) & (variances > 1e-3)
    return float(np.max(covariance[enough] / np.sqrt(variances[enough]), initial=-1.0))
