"""Moment retrieval: R@1 and mean average precision over spans, as QVHighlights and CASTELLA score them.

Source: Lei et al., "QVHighlights: Detecting Moments and Highlights in Videos via Natural Language Queries", 2021, and
its released `standalone_eval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Span = Sequence[float]  # start and end, s; of a prediction also its score

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of spans.

    Args:
        first: Starts and ends `[n, 2]`, s.
        second: Starts and ends `[m, 2]`, s.

    Returns:
        `[n, m]`.
    """
    starts = np.maximum(first[:, None, 0], second[None, :, 0])
    both = np.clip(np.minimum(first[:, None, 1], second[None, :, 1]) - starts, 0, None)
    either = np.diff(first)[:, 0][:, None] + np.diff(second)[:, 0][None] - both
    return both / np.maximum(either, 1e-12)


def recall_at_1(predicted: Sequence[Span], relevant: Sequence[Span], threshold: float) -> bool:
    """Whether the prediction of the highest score overlaps a relevant span by at least `threshold`."""
    if not len(predicted):
        return False
    best = max(predicted, key=lambda span: span[2])  # of equal scores the first
    return bool(overlap(_times([best]), _times(relevant)).max() >= threshold)


def average_precision(
    predicted: Sequence[Span], relevant: Sequence[Span], thresholds: Sequence[float] = IOU_THRESHOLDS
) -> np.ndarray:
    """Interpolated average precision of the spans of one query.

    A prediction is right where it overlaps a relevant span, that none of a higher score was given, by at least the
    threshold.

    Args:
        predicted: Start, end and score of every prediction, s.
        relevant: Start and end of every relevant span, s; at least one.
        thresholds: Overlaps.

    Returns:
        `[thresholds]`.
    """
    ranked = sorted(predicted, key=lambda span: -span[2])
    overlaps = overlap(_times(ranked), _times(relevant))
    values = np.zeros(len(thresholds))
    for number, threshold in enumerate(thresholds):
        free = np.ones(len(relevant), bool)
        right = np.zeros(len(ranked))
        for rank, own in enumerate(overlaps):
            best = int(np.argmax(np.where(free, own, -1.0)))
            if free[best] and own[best] >= threshold:
                free[best], right[rank] = False, 1.0
        precision = np.cumsum(right) / np.arange(1, len(ranked) + 1)
        highest_after = np.maximum.accumulate(precision[::-1])[::-1]
        values[number] = (highest_after * right).sum() / len(relevant)
    return values


def moment_scores(predictions: Sequence[dict[str, Any]], truth: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Scores of predicted moments, over the queries of the truth.

    Args:
        predictions: Rows with `qid` and `pred_relevant_windows` `[[start, end, score], ...]`; a query without a row
            has no predictions.
        truth: Rows with `qid` and `relevant_windows` `[[start, end], ...]`.

    Returns:
        `R1@0.5`, `R1@0.7`, `mAP` (over overlaps of 0.5 to 0.95), `mAP@0.5` and `mAP@0.75`, each 0 to 1.

    Raises:
        ValueError: There is no query, or one has no relevant span.
    """
    if not truth or not all(row["relevant_windows"] for row in truth):
        raise ValueError(f"{len(truth)} queries, expected at least one, and a relevant window of each.")
    found = {row["qid"]: row["pred_relevant_windows"] for row in predictions}
    pairs = [(found.get(row["qid"], []), row["relevant_windows"]) for row in truth]
    precisions = np.mean([average_precision(*pair) for pair in pairs], axis=0)
    return {
        "R1@0.5": float(np.mean([recall_at_1(*pair, 0.5) for pair in pairs])),
        "R1@0.7": float(np.mean([recall_at_1(*pair, 0.7) for pair in pairs])),
        "mAP": float(precisions.mean()),
        "mAP@0.5": float(precisions[IOU_THRESHOLDS.index(0.5)]),
        "mAP@0.75": float(precisions[IOU_THRESHOLDS.index(0.75)]),
    }


def _times(spans: Sequence[Span]) -> np.ndarray:
    return np.array([span[:2] for span in spans], np.float64).reshape(-1, 2)
