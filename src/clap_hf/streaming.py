"""Windows of a recording of any length, a hop apart, decoded once and in blocks; and what a model computes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import torch

from .audio import AudioReader, open_audio
from .audio.reader import Source
from .audio.stream import windows
from .embedding import WINDOWS_PER_BATCH, evaluation_mode, in_groups, log_mels_on, model_input
from .fast_cpu import optimize_if_possible
from .model.feature_extraction_msclap import MSClapFeatureExtractor
from .model.modeling_msclap import MSClapModel
from .model.processing_msclap import MSClapProcessor


class Window(NamedTuple):
    """A window of a recording: its start and end, seconds, and its log-mel `[1, frames, mel]`, dB."""

    start_s: float
    end_s: float
    log_mel: torch.Tensor


class WindowGroup(NamedTuple):
    """Windows that went through a model together, all on the CPU.

    Attributes:
        starts_s: Start of every window `[windows]`, float64, seconds.
        ends_s: End of every window `[windows]`, float64, seconds.
        log_mels: Their log-mels `[windows, frames, mel]`, dB.
        values: What was computed of them `[windows, ...]`, float32.
    """

    starts_s: torch.Tensor
    ends_s: torch.Tensor
    log_mels: torch.Tensor
    values: torch.Tensor


class EmbeddedStream(NamedTuple):
    """Embedded windows of a recording.

    Attributes:
        starts_s: Start of every window `[windows]`, float64, seconds.
        ends_s: End of every window `[windows]`, float64, seconds.
        vectors: Unit vectors `[windows, projection_dim]`, float32 on the CPU.
        damage: What is missing or damaged in the recording, a sentence each.
    """

    starts_s: torch.Tensor
    ends_s: torch.Tensor
    vectors: torch.Tensor
    damage: list[str]


def stream_windows(
    source: Source | AudioReader, extractor: MSClapFeatureExtractor, *, hop_s: float | None = None
) -> Iterator[Window]:
    """Windows of a recording as log-mels, in memory that does not grow with its length.

    The last window is moved back so that it ends with the recording. A recording shorter than a window makes one
    window, filled as the extractor's `short_audio` says; its end is that of the recording.

    Args:
        source: A path, encoded bytes, or a binary file object such as `sys.stdin.buffer`, which is copied to disk
            where it is large; or an open reader, whose `damage` is complete after the last window.
        extractor: The model's feature extractor.
        hop_s: From the start of a window to that of the next, seconds; a window's length when None.

    Raises:
        ValueError: `hop_s` is shorter than a sample.
        AudioDecodeError: The recording cannot be decoded.
    """
    with opened(source) as reader:
        for start_s, end_s, samples in _full_windows(reader, extractor, hop_s):
            yield Window(start_s, end_s, extractor.log_mel(samples)[None])


@torch.inference_mode()
def map_windows(
    model: MSClapModel,
    processor: MSClapProcessor,
    source: Source | AudioReader,
    function: Callable[[torch.Tensor], torch.Tensor],
    *,
    hop_s: float | None = None,
    windows_per_batch: int = WINDOWS_PER_BATCH,
) -> Iterator[WindowGroup]:
    """What a function of the model gives for the windows of a recording; the next ones are decoded meanwhile.

    Args:
        model: The model, on its device; in evaluation mode for the duration. On a CPU it is optimised in place, see
            `optimize_for_cpu`.
        processor: Its processor.
        source: As for `stream_windows`.
        function: Called with log-mels `[windows, 1, frames, mel]` on the model's device; gives `[windows, ...]`.
        hop_s: As for `stream_windows`.
        windows_per_batch: Windows that go through the model together.

    Returns:
        Groups of windows.

    Raises:
        ValueError: As for `stream_windows`.
    """
    optimize_if_possible(model)
    extractor, device = processor.feature_extractor, model.device

    def prepare(
        group: Iterable[tuple[float, float, torch.Tensor]],
    ) -> tuple[list[float], list[float], torch.Tensor]:
        starts_s: list[float] = []
        ends_s: list[float] = []

        def samples() -> Iterator[torch.Tensor]:
            for start_s, end_s, window in group:
                starts_s.append(start_s)
                ends_s.append(end_s)
                yield window

        return starts_s, ends_s, model_input(extractor, device, samples())

    with opened(source) as reader:
        cut = _full_windows(reader, extractor, hop_s)
        with closing(in_groups(cut, windows_per_batch, prepare)) as groups:
            for starts_s, ends_s, inputs in groups:
                log_mels = log_mels_on(extractor, device, [inputs])
                with evaluation_mode(model):
                    values = function(log_mels).float().cpu()
                times_s = torch.tensor([starts_s, ends_s], dtype=torch.float64)
                yield WindowGroup(times_s[0], times_s[1], log_mels[:, 0].cpu(), values)


def embed_stream(
    model: MSClapModel,
    processor: MSClapProcessor,
    source: Source | AudioReader,
    *,
    hop_s: float | None = None,
    windows_per_batch: int = WINDOWS_PER_BATCH,
) -> EmbeddedStream:
    """Embed every window of a recording of any length.

    Args:
        model: As for `map_windows`, and so are the others.
        processor: Its processor.
        source: As for `stream_windows`.
        hop_s: As for `stream_windows`.
        windows_per_batch: Windows that go through the model together.

    Returns:
        Times and vectors; memory holds these and a batch.

    Raises:
        ValueError: As for `stream_windows`.
    """
    with opened(source) as reader:
        groups = map_windows(
            model,
            processor,
            reader,
            lambda log_mels: model.get_audio_features(log_mels).pooler_output,
            hop_s=hop_s,
            windows_per_batch=windows_per_batch,
        )
        kept = [(group.starts_s, group.ends_s, group.values) for group in groups]
        starts_s, ends_s, vectors = (torch.cat(found) for found in zip(*kept, strict=True))
        return EmbeddedStream(starts_s, ends_s, vectors, reader.damage)


@contextmanager
def opened(source: Source | AudioReader) -> Iterator[AudioReader]:
    """An open reader as it is, or one that is closed afterwards."""
    if isinstance(source, AudioReader):
        yield source
    else:
        with open_audio(source) as reader:
            yield reader


def _full_windows(
    reader: AudioReader, extractor: MSClapFeatureExtractor, hop_s: float | None
) -> Iterator[tuple[float, float, torch.Tensor]]:
    """Start, end and samples `[window_samples]` of every window."""
    rate, window_s = extractor.sampling_rate, extractor.duration_s
    for start_s, end_s, samples in windows(reader, rate, window_s, window_s if hop_s is None else hop_s):
        if len(samples) < extractor.window_samples:
            [[samples]] = extractor.windows([samples], rate)
        yield start_s, end_s, samples


def clock(seconds: float, *, exact: bool = False, hours: bool = False) -> str:
    """A time as 01:23, or 01:02:03 from an hour on.

    Args:
        seconds: The time, s.
        exact: Always with hours, and with thousandths, as 01:02:03.004.
        hours: Always with hours.
    """
    total = round(seconds * 1000) if exact else round(seconds) * 1000
    text = f"{total // 3_600_000:02d}:{total // 60_000 % 60:02d}:{total // 1000 % 60:02d}"
    if exact:
        return f"{text}.{total % 1000:03d}"
    return text if hours or total >= 3_600_000 else text[3:]
