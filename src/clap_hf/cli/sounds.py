"""Sounds of the commands that answer file by file: decoded ahead, long ones in blocks, silent ones left out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ..audio import Audio, open_audio, read_ahead, read_whole

SILENT_PEAK = 1e-4  # -80 dBFS: a sound whose peak is below has nothing in it that a model could name
LONG_S = 120.0  # longer sounds are classified in blocks
AHEAD = 4  # sounds of that length in memory


@dataclass(frozen=True)
class Decoded:
    """A sound that was decoded, and what the commands report of it; `audio` is None for a long one."""

    audio: Audio | None
    duration_s: float
    damage: tuple[str, ...]
    silent: bool


def run_over_files(
    files: list[Path],
    pipeline: Callable[[Audio], Any],
    record: Callable[[Path, Any], dict[str, Any]],
    for_long: Callable[[Path], Any] | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, str]], bool]:
    """Run a pipeline over files, decoding ahead of it.

    Args:
        files: The files.
        pipeline: Called with every sound that is not silent.
        record: What to keep of a file and the pipeline's answer, which is None for a silent sound.
        for_long: Called instead with every file longer than `LONG_S`, which is not decoded whole then.

    Returns:
        A record of every file, the files that could not be read, and whether Ctrl-C ended it.
    """
    results: list[dict[str, Any]] = []
    skipped: dict[Path, str] = {}
    interrupted = False
    progress = track(files, "Reading", console=Console(stderr=True), transient=True)
    try:
        read = partial(decoded, longest_s=math.inf if for_long is None else LONG_S)
        for file, sound in read_ahead(progress, read, skipped, ahead=AHEAD):
            try:
                if sound.silent:
                    answer = None
                elif sound.audio is not None:
                    answer = pipeline(sound.audio)
                else:
                    assert for_long is not None  # or no sound is too long
                    answer = for_long(file)
            except ValueError as error:
                skipped[file] = str(error) if str(file) in str(error) else f"{file}: {error}"
                continue
            facts = {
                "duration_s": sound.duration_s,
                "truncated": bool(sound.damage),
                "damage": list(sound.damage),
                "silent": sound.silent,
            }
            results.append({"file": str(file), **facts, **record(file, answer)})
    except KeyboardInterrupt:
        interrupted = True
    return results, [{"file": str(file), "error": reason} for file, reason in skipped.items()], interrupted


def decoded(file: Path, longest_s: float) -> Decoded:
    """Decode a sound, in blocks that are not kept where it is longer than `longest_s`; no warning of damage."""
    with open_audio(file) as reader:
        if reader.duration_s is None or reader.duration_s <= longest_s:
            audio = read_whole(reader)
            return Decoded(audio, audio.duration_s, audio.damage, is_silent(audio))
        samples, total, low, high = 0, 0.0, math.inf, -math.inf
        for block in reader:
            mono = block.mean(axis=0)
            samples, total = samples + len(mono), total + float(mono.sum(dtype=np.float64))
            low, high = min(low, float(mono.min())), max(high, float(mono.max()))
    mean = total / samples
    silent = max(high - mean, mean - low) < SILENT_PEAK
    return Decoded(None, samples / reader.sampling_rate, tuple(reader.damage), silent)


def is_silent(audio: Audio) -> bool:
    """Whether the peak is below -80 dBFS, a constant offset aside."""
    samples = audio.samples.mean(axis=0)
    return bool(np.abs(samples - samples.mean()).max() < SILENT_PEAK)
