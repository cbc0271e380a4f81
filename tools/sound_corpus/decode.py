"""Decoding of every sound of the corpus: 44.1 kHz, one channel, at most ten seconds."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from clap_hf.audio import AudioDecodeError, load_audio

SAMPLING_RATE = 44_100
MAX_SECONDS = 10.0
MIN_SECONDS = 0.04
# A file this long gives several excerpts where several are wanted; music gives three.
LONG_SECONDS = 40.0
MUSIC_WINDOWS = 3
# -80 dB of full scale: below it a 16-bit file holds a few steps of noise at most.
SILENCE_PEAK = 1e-4
_LEADING_SILENCE = 1e-3


class UnusableSound(ValueError):
    """A sound that cannot enter the corpus; the message is the reason."""


@dataclass(frozen=True)
class Excerpt:
    """A decoded stretch of a file.

    Args:
        waveform: float32 samples at 44.1 kHz, shape `[samples]`.
        sampling_rate: Rate of the source file in Hz.
        part: 0 for the only excerpt, otherwise counted from 1.
    """

    waveform: np.ndarray
    sampling_rate: int
    part: int = 0


def _transcode(path: Path, folder: str) -> Path:
    """Turn a headerless GSM 06.10 file (telephone prompts) into wav; only its name shows the format."""
    target = Path(folder) / "sound.wav"
    command = ["ffmpeg", "-nostdin", "-v", "error", "-f", "gsm", "-i", str(path), "-bitexact", str(target)]
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UnusableSound("is raw GSM and ffmpeg is not installed") from error
    if outcome.returncode or not target.is_file():
        raise UnusableSound(
            f"cannot be decoded: {(outcome.stderr.strip() or 'ffmpeg gave no sound').splitlines()[-1]}"
        )
    return target


def to_corpus_rate(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Average the channels, resample once to 44.1 kHz and undo overshoot.

    Args:
        samples: float32, shape `[channels, samples]`.
        sampling_rate: Rate of the samples in Hz.

    Returns:
        float32, shape `[samples]`.

    Raises:
        UnusableSound: The sound is silent or too short.
    """
    mono = samples.mean(axis=0, dtype=np.float32)
    waveform = (
        soxr.resample(mono, sampling_rate, SAMPLING_RATE, quality="HQ") if sampling_rate != SAMPLING_RATE else mono
    )
    if len(waveform) < MIN_SECONDS * SAMPLING_RATE:
        raise UnusableSound(f"shorter than {MIN_SECONDS} s")
    peak = float(np.abs(waveform).max())
    if peak < SILENCE_PEAK:
        raise UnusableSound("digital silence")
    # Lossy files and resampling overshoot full scale; scaling keeps the shape that clipping would break.
    return waveform / peak if peak > 1.0 else waveform


def _window_starts(path: Path, windows: int) -> list[float]:
    """Where in seconds to cut the excerpts out of a long file; empty for a short one."""
    try:
        file = soundfile.info(path)
    except soundfile.LibsndfileError:
        return []  # formats left to ffmpeg: a handful of files, treated as short
    if file.duration <= LONG_SECONDS:
        return []
    windows = min(windows, int(file.duration / MAX_SECONDS))
    half_window = MAX_SECONDS * file.samplerate / 2
    shares = ((2 * window + 1) / (2 * windows) for window in range(windows))
    return [int(file.frames * share - half_window) / file.samplerate for share in shares]


def _read(path: Path, windows: int) -> list[Excerpt]:
    try:
        starts = _window_starts(path, windows) if windows > 1 else []
        if starts:
            parts = [load_audio(path, start_s=start, duration_s=MAX_SECONDS) for start in starts]
            return [
                Excerpt(to_corpus_rate(audio.samples, audio.sampling_rate), audio.sampling_rate, part)
                for part, audio in enumerate(parts, start=1)
            ]
        audio = load_audio(path, duration_s=3 * MAX_SECONDS)
    except AudioDecodeError as error:
        raise UnusableSound(f"cannot be decoded: {error}") from error
    samples, window = audio.samples, round(MAX_SECONDS * audio.sampling_rate)
    if samples.shape[1] > window:
        audible = np.flatnonzero(np.abs(samples).max(axis=0) > _LEADING_SILENCE)
        start = max(0, int(audible[0]) - audio.sampling_rate // 100) if len(audible) else 0
        samples = samples[:, start : start + window]
    return [Excerpt(to_corpus_rate(samples, audio.sampling_rate), audio.sampling_rate)]


def read_excerpts(path: Path, windows: int = 1) -> list[Excerpt]:
    """Decode a sound file: channels averaged, resampled once with soxr's HQ filter, at most ten seconds.

    A longer file gives its first ten seconds after the leading silence; where several windows are wanted, a file above
    40 s gives that many excerpts spread over it.

    Args:
        path: The file, in any format that `clap_hf.load_audio` reads, or raw GSM named `.gsm`.
        windows: At most this many excerpts of a file above 40 s.

    Returns:
        One excerpt, or several of a long file.

    Raises:
        UnusableSound: The file cannot be decoded, or is silent or too short.
    """
    if path.suffix.lower() != ".gsm":
        return _read(path, windows)
    with tempfile.TemporaryDirectory(prefix="sound-corpus-") as folder:
        return _read(_transcode(path, folder), windows)
