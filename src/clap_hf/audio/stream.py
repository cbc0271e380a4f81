"""Mono sound of any length at the model's sampling rate, in blocks and in windows with a hop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from ..model.feature_extraction_msclap import MAX_AMPLITUDE, resample
from .reader import AudioDecodeError, AudioReader

_RESAMPLED_FRAMES = 1 << 18  # of the file, at a time
_MARGIN_S = 0.02  # of the neighbouring blocks, beside the 6 zero crossings of the resampling kernel


def mono_blocks(reader: AudioReader, sampling_rate: int) -> Iterator[torch.Tensor]:
    """The mean of a file's channels at another rate, equal to `resample` on the whole of it.

    Args:
        reader: the file; iterated to its end.
        sampling_rate: Hz.

    Returns:
        Blocks `[samples]`, float32, which joined are `[ceil(frames * sampling_rate / reader.sampling_rate)]`.

    Raises:
        AudioDecodeError: as for iterating over the reader, or samples are far outside [-1, 1].
    """
    mono = _mono(reader)
    rate = reader.sampling_rate
    if rate == sampling_rate:
        yield from mono
        return
    divisor = math.gcd(rate, sampling_rate)
    cycle, new_cycle = rate // divisor, sampling_rate // divisor  # after `cycle` samples the kernels repeat
    crossings = math.ceil(6 / (0.99 * min(1.0, sampling_rate / rate)))
    margin = cycle * math.ceil((crossings + _MARGIN_S * rate) / cycle)
    step = cycle * math.ceil(_RESAMPLED_FRAMES / cycle)
    new_margin, new_step = margin // cycle * new_cycle, step // cycle * new_cycle
    held = torch.zeros(0)
    before = 0  # samples at the beginning of `held` that earlier blocks have been made of
    waiting: list[torch.Tensor] = []
    count = 0
    for block in mono:
        waiting.append(block)
        count += len(block)
        if len(held) + count >= before + step + margin:
            held, waiting, count = torch.cat([held, *waiting]), [], 0
            while len(held) >= before + step + margin:
                resampled = resample(held[: before + step + margin], rate, sampling_rate)
                skip = new_margin if before else 0
                yield resampled[skip : skip + new_step]
                held = held[before + step - margin :]
                before = margin
    held = torch.cat([held, *waiting])
    if len(held) > before:
        yield resample(held, rate, sampling_rate)[new_margin if before else 0 :]


def windows(
    reader: AudioReader, sampling_rate: int, window_s: float, hop_s: float
) -> Iterator[tuple[float, float, torch.Tensor]]:
    """Mono windows of one length, a hop apart; the last one is moved back so that it ends with the sound.

    Args:
        reader: the file; iterated to its end.
        sampling_rate: of the windows, Hz.
        window_s: length of a window, seconds.
        hop_s: from the start of a window to that of the next, seconds.

    Returns:
        Start and end of every window in what the reader reads, seconds, and its samples `[samples]`, float32. Only a
        sound that is shorter than `window_s` makes a shorter window.

    Raises:
        ValueError: `window_s` or `hop_s` is shorter than a sample.
        AudioDecodeError: as for `mono_blocks`.
    """
    length, hop = round(window_s * sampling_rate), hop_s * sampling_rate
    if not (length >= 1 and hop >= 1):
        raise ValueError(
            f"window_s is {window_s} and hop_s is {hop_s}; expected at least a sample, 1/{sampling_rate} s"
        )
    held = torch.zeros(0)
    waiting: list[torch.Tensor] = []  # joined when a window is complete: joining every block would copy far more
    first = total = number = end = 0  # where `held` starts; samples so far; the window to come; the end of the last
    for block in mono_blocks(reader, sampling_rate):
        waiting.append(block)
        total += len(block)
        if round(number * hop) + length > total:
            continue
        held, waiting = torch.cat([held, *waiting]), []
        while (start := round(number * hop)) + length <= total:
            end = start + length
            yield start / sampling_rate, end / sampling_rate, held[start - first : end - first]
            number += 1
        passed = min(start, total - length) - first  # the last window may need `length` samples
        held, first = held[passed:], first + passed
    if total > end:
        start = max(total - length, 0)
        yield start / sampling_rate, total / sampling_rate, torch.cat([held, *waiting])[start - first :]


class Slices:
    """Pieces of one length cut out of blocks as they come, in the memory of a piece and a block; iterate once.

    Args:
        blocks: Blocks `[samples]` of one sound.
        starts: First sample of every piece, ascending; pieces may overlap.
        length: Length of a piece, samples.

    Attributes:
        total: Samples of the blocks so far; of the whole sound after the iteration, which goes on to the last block.
    """

    def __init__(self, blocks: Iterable[torch.Tensor], starts: Sequence[int], length: int) -> None:
        self._blocks, self._starts, self._length = blocks, starts, length
        self.total = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        held = torch.zeros(0)
        first = number = 0  # where `held` starts; the piece to come
        for block in self._blocks:
            self.total += len(block)
            held = torch.cat([held, block])
            while number < len(self._starts) and self._starts[number] + self._length <= self.total:
                start = self._starts[number] - first
                yield held[start : start + self._length]
                number += 1
            next_start = self._starts[number] if number < len(self._starts) else self.total
            passed = min(next_start - first, len(held))
            held, first = held[passed:], first + passed


def _mono(reader: AudioReader) -> Iterator[torch.Tensor]:
    for block in reader:
        samples = torch.from_numpy(block).mean(dim=0)
        peak = float(samples.abs().max())
        if peak > MAX_AMPLITUDE:
            raise AudioDecodeError(reader.path, f"samples up to {peak:g}", "[-1, 1]", "write the file again, scaled")
        yield samples
