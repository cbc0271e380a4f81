"""Files that other programs read: segments as Audacity's label tracks and WebVTT, scores over time as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..atomic_io import replacing
from ..streaming import clock
from .segments import Segment


def audacity_labels(segments: Iterable[Segment]) -> str:
    """A label track that Audacity imports: start and end, s, and text, a line each."""
    return "".join(
        f"{found.start_s:.6f}\t{found.end_s:.6f}\t{_one_line(found.label)} ({found.score:.2f})\n" for found in segments
    )


def web_vtt(segments: Iterable[Segment]) -> str:
    """Captions in WebVTT, which players show over a recording."""
    cues = []
    for found in segments:
        label = _one_line(found.label).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(
            f"{clock(found.start_s, exact=True)} --> {clock(found.end_s, exact=True)}\n{label} ({found.score:.2f})\n"
        )
    return "\n".join(["WEBVTT\n", *cues])


def write_scores(scores: np.ndarray, labels: Sequence[str], step_s: float, path: Path) -> None:
    """Write the scores of every step `[steps, labels]` as CSV: its start, s, and a column for each label."""
    with replacing(path) as fresh, fresh.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["start_s", *labels])
        writer.writerows([f"{i * step_s:.3f}", *(f"{score:.4f}" for score in own)] for i, own in enumerate(scores))


def _one_line(text: str) -> str:
    return " ".join(text.split())
