"""Scores of any words over the time of a recording of any length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..audio import AudioReader
from ..audio.reader import Source
from ..calibration import Calibration
from ..embedding import WINDOWS_PER_BATCH, embed_classes
from ..model.modeling_msclap import MSClapModel
from ..model.processing_msclap import MSClapProcessor
from ..streaming import map_windows, opened

COLUMNS = 4096  # of a spectrogram, at most
SILENT_DB = -75.0  # of every frame and mel bin: digital silence, with 16-bit dither or without
SILENT_SCORE = -1.0


@dataclass(frozen=True)
class Timeline:
    """Scores of labels over the time of a recording.

    Attributes:
        labels: The labels.
        vectors: Their unit vectors `[labels, dim]`.
        step_s: Length of a step, s; step `i` begins at `i * step_s`.
        scores: Cosine similarity of every step and label `[steps, labels]`, float32; -1 where all is silent.
        duration_s: Length of the recording, s.
        damage: What is missing or damaged in it, a sentence each.
        spectrogram: Its spectrogram, for pictures.
    """

    labels: list[str]
    vectors: np.ndarray
    step_s: float
    scores: np.ndarray
    duration_s: float
    damage: list[str]
    spectrogram: Spectrogram


class Spectrogram:
    """Mean log-mel of a recording of any length in at most `COLUMNS` columns, which grow wider as it goes on.

    Args:
        frequencies_hz: Frequency of every mel bin, Hz.
        frame_s: From a frame to the next, s.
    """

    def __init__(self, frequencies_hz: np.ndarray, frame_s: float) -> None:
        self.frequencies_hz = frequencies_hz
        self.column_s = self._frame_s = frame_s
        self._sums = np.zeros((COLUMNS, len(frequencies_hz)))
        self._counts = np.zeros(COLUMNS)

    def add(self, start_s: float, log_mel: np.ndarray) -> None:
        """Add a window's log-mel `[frames, mel]`, dB."""
        columns = ((start_s + self._frame_s * np.arange(len(log_mel))) / self.column_s + 1e-6).astype(int)
        while columns[-1] >= COLUMNS:
            for values in (self._sums, self._counts):
                values[: COLUMNS // 2] = values[::2] + values[1::2]
                values[COLUMNS // 2 :] = 0
            self.column_s *= 2
            columns //= 2
        np.add.at(self._sums, columns, log_mel)
        np.add.at(self._counts, columns, 1)

    @property
    def image(self) -> np.ndarray:
        """Mean log-mel of every column `[columns, mel]`, dB."""
        used = int(np.flatnonzero(self._counts)[-1]) + 1
        return self._sums[:used] / np.maximum(self._counts[:used, None], 1)


class _Overlaps:
    """Mean of the scores of pieces that overlap, on a grid of steps; memory grows with the steps."""

    def __init__(self, labels: int) -> None:
        self.sums, self.counts = np.zeros((1024, labels), np.float32), np.zeros(1024, np.float32)

    def add(self, first: int, end: int, scores: np.ndarray) -> None:
        """Add the scores `[labels]` of a piece that covers steps `first` to `end`."""
        while end > len(self.counts):
            self.sums = np.concatenate([self.sums, np.zeros_like(self.sums)])
            self.counts = np.concatenate([self.counts, np.zeros_like(self.counts)])
        self.sums[first:end] += scores
        self.counts[first:end] += 1


def score_timeline(
    model: MSClapModel,
    processor: MSClapProcessor,
    source: Source | AudioReader,
    labels: Sequence[str],
    *,
    step_s: float = 0.25,
    hop_s: float | None = None,
    frames: bool = True,
    templates: Sequence[str] = ("{}",),
    windows_per_batch: int = WINDOWS_PER_BATCH,
) -> Timeline:
    """Score labels over the time of a recording: the mean, at every step, over the pieces that cover it.

    Args:
        model: The model, on its device; in evaluation mode for the duration.
        processor: Its processor.
        source: A path, encoded bytes, a binary file object, or an open reader, see `stream_windows`.
        labels: Labels or sentences, in any words.
        step_s: Length of a step of the result, s.
        hop_s: From a window to the next, s; a third of a window when None.
        frames: Whether pieces are the positions of the audio tower's last feature map, or else whole windows.
        templates: Texts with {} for the label; several are averaged.
        windows_per_batch: Windows that go through the model together.

    Returns:
        The scores; memory holds these and a batch.

    Raises:
        ValueError: `step_s` or `hop_s` is too short, or the recording cannot be decoded.
    """
    extractor = processor.feature_extractor
    window_s, frame_s = extractor.duration_s, extractor.hop_length / extractor.sampling_rate
    if not step_s >= frame_s:
        raise ValueError(f"step_s is {step_s}, expected at least {frame_s:.3f} s, a frame of the log-mel.")
    if hop_s is not None and hop_s > window_s:
        raise ValueError(f"hop_s is {hop_s}, expected at most a window, {window_s} s: nothing may lie between two.")
    texts = [[template.replace("{}", label) for template in templates] for label in labels]
    classes = embed_classes(model, processor.tokenizer, texts)

    def piece_scores(log_mels: torch.Tensor) -> torch.Tensor:
        if frames:
            return model.get_audio_frame_features(log_mels) @ classes.T
        return model.get_audio_features(log_mels).pooler_output[:, None] @ classes.T

    frequencies_hz = extractor.mel_filters.argmax(axis=0) * extractor.mel_sampling_rate / extractor.n_fft
    found, spectrogram, end_s = _Overlaps(len(labels)), Spectrogram(frequencies_hz, frame_s), 0.0
    with opened(source) as reader:
        for group in map_windows(
            model,
            processor,
            reader,
            piece_scores,
            hop_s=window_s / 3 if hop_s is None else hop_s,
            windows_per_batch=windows_per_batch,
        ):
            length = group.log_mels.shape[1]
            piece_s = model.audio_model.frames_per_position(length) * frame_s if frames else window_s
            for start_s, end_s, log_mel, scores in zip(
                group.starts_s.tolist(),
                group.ends_s.tolist(),
                group.log_mels.numpy(),
                group.values.numpy(),
                strict=True,
            ):
                spectrogram.add(start_s, log_mel[: round((end_s - start_s) / frame_s)])
                edges = np.round((start_s + piece_s * np.arange(len(scores) + 1)) / step_s).astype(int)
                edges[-1] = max(math.ceil(end_s / step_s - 1e-6), edges[-1])  # frames that no position stands for
                loud = np.array_split(log_mel.max(axis=1) > SILENT_DB, len(scores))
                for first, end, own, frames_of_it in zip(edges, edges[1:], scores, loud, strict=False):
                    if frames_of_it.any():
                        found.add(first, end, own)
    steps = max(math.ceil(end_s / step_s - 1e-6), 1)
    covered = found.counts[:steps, None]
    scores = np.where(covered > 0, found.sums[:steps] / np.maximum(covered, 1), SILENT_SCORE)
    vectors = classes.cpu().numpy()
    return Timeline(list(labels), vectors, step_s, scores, end_s, reader.damage, spectrogram)


def false_alarm_thresholds(calibration: Calibration, vectors: np.ndarray, rate: float) -> np.ndarray:
    """The cosine of every label that a share of a checkpoint's background sounds exceeds.

    Args:
        calibration: Of the checkpoint; its background sounds are a few hundred, so that rates below 1 % are rough.
        vectors: Unit vectors of the labels `[labels, dim]`.
        rate: The share, 0 to 1.

    Returns:
        `[labels]`.
    """
    if not 0 < rate < 1:
        raise ValueError(f"The rate of false alarms is {rate}, expected more than 0 and less than 1.")
    return np.quantile(calibration.sounds @ vectors.T, 1 - rate, axis=0)
