"""Near-duplicates between splits: game packages share sounds, and a shared sound would make a test too easy."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from clap_hf.audio import load_audio
from tools.sound_corpus.decode import SAMPLING_RATE, UnusableSound, read_excerpts, to_corpus_rate

THRESHOLD = 0.985
_BANDS = 32
_COLUMNS = 32
_FFT = 1024
_RANGE_DB = 60.0
_AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus")


@cache
def _filterbank() -> np.ndarray:
    """Mel filters from 50 Hz to 5 kHz, `[bins, bands]`: copies at a rate of 11 kHz still match."""
    frequencies = np.linspace(0, SAMPLING_RATE / 2, _FFT // 2 + 1)
    mel = 2595 * np.log10(1 + frequencies / 700)
    edges = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 5000 / 700), _BANDS + 2)
    rising = (mel[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def thumbnail(waveform: np.ndarray) -> np.ndarray:
    """Draw a clip as a small log-mel picture with zero mean and unit length, whatever its level.

    Silence at both ends is cut first, and time is pooled into a fixed number of columns, so copies that were trimmed,
    resampled or re-encoded look alike.

    Args:
        waveform: float32 samples at 44.1 kHz, shape `[samples]`.

    Returns:
        float16, shape `[1024]`.
    """
    audible = np.flatnonzero(np.abs(waveform) > np.abs(waveform).max() * 10 ** (-50 / 20))
    sound = waveform[audible[0] : audible[-1] + 1]
    hop = max(64, len(sound) // (4 * _COLUMNS))
    padded = np.pad(sound, (_FFT // 2, _FFT // 2 + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::hop] * np.hanning(_FFT).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)).astype(np.float32) ** 2 @ _filterbank()
    bounds = np.linspace(0, len(power), _COLUMNS + 1)
    low = np.floor(bounds[:-1]).astype(int)
    high = np.maximum(low + 1, np.ceil(bounds[1:]).astype(int))
    pooled = np.stack([power[start:stop].mean(axis=0) for start, stop in zip(low, high, strict=True)])
    decibels = 10 * np.log10(pooled + 1e-12)
    picture = np.maximum(decibels, decibels.max() - _RANGE_DB).ravel()
    picture -= picture.mean()
    return (picture / max(float(np.linalg.norm(picture)), 1e-6)).astype(np.float16)


def find_near_duplicates(
    candidates: np.ndarray, held_out: np.ndarray, threshold: float = THRESHOLD
) -> dict[int, tuple[int, float]]:
    """Find the candidates that look like a held-out clip.

    Args:
        candidates: thumbnails, shape `[n, 1024]`.
        held_out: thumbnails, shape `[m, 1024]`.
        threshold: Cosine above which two clips count as the same sound.

    Returns:
        For each candidate found: the index of the held-out clip most like it, and their cosine.
    """
    found: dict[int, tuple[int, float]] = {}
    if not len(candidates) or not len(held_out):
        return found
    reference = held_out.astype(np.float32).T
    for start in range(0, len(candidates), 1024):
        cosines = candidates[start : start + 1024].astype(np.float32) @ reference
        best = cosines.argmax(axis=1)
        for row in np.flatnonzero(cosines.max(axis=1) > threshold):
            found[start + int(row)] = (int(best[row]), round(float(cosines[row, best[row]]), 4))
    return found


@dataclass(frozen=True)
class Outside:
    """Thumbnails of the sounds of other datasets and folders.

    Args:
        names: Where each sound is from.
        pictures: thumbnails, shape `[sounds, 1024]`.
    """

    names: list[str]
    pictures: np.ndarray


def read_outside(folders: Iterable[Path]) -> Outside:
    """Draw the sounds of datasets (parquet files with an `audio` column) and of folders of audio files.

    Args:
        folders: Dataset folders, or folders of audio files.

    Returns:
        The thumbnails; a sound that cannot be used is left out.
    """
    names: list[str] = []
    pictures: list[np.ndarray] = []
    for folder in folders:
        for path in sorted(folder.rglob("*.parquet")):
            file = pq.ParquetFile(path)
            for batch in file.iter_batches(batch_size=64, columns=["audio"]):
                for row, content in enumerate(batch.column("audio").field("bytes")):
                    audio = load_audio(io.BytesIO(content.as_py()))
                    try:
                        waveform = to_corpus_rate(audio.samples, audio.sampling_rate)
                    except UnusableSound:
                        continue
                    names.append(f"{path.name}:{row}")
                    pictures.append(thumbnail(waveform))
        for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in _AUDIO_SUFFIXES):
            for excerpt in read_excerpts(path):
                names.append(path.name)
                pictures.append(thumbnail(excerpt.waveform))
    return Outside(names, np.array(pictures))
