"""Segments of a label and spans ranked for a text, from scores over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Segment:
    """A label's segment of a recording: start and end, s, and the highest score within it."""

    label: str
    start_s: float
    end_s: float
    score: float


def smooth(scores: np.ndarray, steps: int, method: str = "median") -> np.ndarray:
    """Median or mean over a number of steps around every step; at both ends the scores are continued by their last.

    Args:
        scores: `[steps, labels]`.
        steps: Steps to smooth over; an even number is raised to the next odd one.
        method: `"median"` or `"mean"`.

    Returns:
        `[steps, labels]`, float32.
    """
    if method not in ("median", "mean"):
        raise ValueError(f"method is {method!r}, expected 'median' or 'mean'.")
    half = steps // 2
    if half < 1:
        return scores
    padded = np.pad(scores, ((half, half), (0, 0)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, axis=0)
    # A label at a time: the median copies what it sorts.
    reduce = np.median if method == "median" else np.mean
    return np.stack([reduce(around[:, label], axis=-1) for label in range(scores.shape[1])], axis=1).astype(np.float32)


def segments(
    scores: np.ndarray,
    labels: Sequence[str],
    step_s: float,
    thresholds: Sequence[float],
    *,
    release: float = 0.15,
    duration_s: float | None = None,
) -> list[Segment]:
    """Segments by hysteresis: from where a score falls below a lower threshold to where it does so again.

    Only those in which the score reaches the upper threshold are kept.

    Args:
        scores: `[steps, labels]`.
        labels: The labels.
        step_s: Length of a step, s.
        thresholds: Upper threshold of every label.
        release: How far below it the lower threshold is, as a share of it.
        duration_s: Where the recording ends, s; no segment ends later.

    Returns:
        The segments, by their start.
    """
    found = []
    for label, own, threshold in zip(labels, scores.T, thresholds, strict=True):
        for first, end in _runs(own >= threshold - release * abs(threshold)):
            if (score := float(own[first:end].max())) >= threshold:
                found.append(_segment(label, first, end, step_s, score, duration_s))
    return sorted(found, key=lambda segment: (segment.start_s, segment.end_s, segment.label))


def ranked_spans(
    scores: np.ndarray,
    label: str,
    step_s: float,
    *,
    top_k: int = 10,
    share: float = 0.6,
    duration_s: float | None = None,
) -> list[Segment]:
    """Spans of a recording by the height of their peak: each reaches down to a share of its peak over the median.

    A peak from which the scores do not fall so far on the way to a higher one has no span of its own.

    Args:
        scores: Scores of one text `[steps]`.
        label: The text.
        step_s: Length of a step, s.
        top_k: Spans at most.
        share: How far above the recording's median, as a share of the peak, a span's scores are. The default was the
            best of 0.4 to 0.8 for R1@0.5 on mixtures of the sound corpus' validation split.
        duration_s: Where the recording ends, s; no span ends later.

    Returns:
        Spans that do not overlap, the best first; at least one.
    """
    middle = float(np.median(scores[scores > -1] if scores.max() > -1 else scores))  # silence is -1
    taken = np.zeros(len(scores), bool)
    found: list[Segment] = []
    for at in np.argsort(-scores, kind="stable").tolist():
        peak = float(scores[at])
        if len(found) == top_k or (found and peak <= middle):
            break
        low = middle + share * (peak - middle)
        first, end = at, at + 1
        while first > 0 and scores[first - 1] >= low and not taken[first]:
            first -= 1
        while end < len(scores) and scores[end] >= low and not taken[end - 1]:
            end += 1
        if not taken[first:end].any():
            taken[first:end] = True
            found.append(_segment(label, first, end, step_s, peak, duration_s))
    return found


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and end of every run of true values."""
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))


def _segment(label: str, first: int, end: int, step_s: float, score: float, duration_s: float | None) -> Segment:
    end_s = end * step_s if duration_s is None else min(end * step_s, duration_s)
    return Segment(label, first * step_s, end_s, score)
