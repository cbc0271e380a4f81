"""The picture of a timeline: spectrogram above, scores and segments of every label below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..atomic_io import replacing
from ..streaming import clock
from .segments import Segment
from .timeline import SILENT_SCORE, Timeline

COLUMNS = 1600  # of the picture; more steps are shown by the highest score of each column
KILOHERTZ = (0.1, 0.5, 1, 2, 5, 10)
LONGEST_NAME = 40
TICKS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400)


def draw_timeline(timeline: Timeline, segments: Sequence[Segment], path: Path) -> None:
    """Draw a timeline. Needs matplotlib (extra `plots`).

    Args:
        timeline: Scores and spectrogram.
        segments: Segments of its labels.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    labels, scores, duration_s = timeline.labels, timeline.scores, timeline.duration_s
    spectrogram = timeline.spectrogram
    rows = len(labels)
    figure = Figure(figsize=(14, 2.6 + 0.32 * rows), layout="constrained", dpi=110)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 0.32 * rows))
    image = spectrogram.image.T
    low, high = np.quantile(image, [0.05, 0.995])
    extent = (0, image.shape[1] * spectrogram.column_s, -0.5, len(image) - 0.5)
    above.imshow(image, extent=extent, aspect="auto", origin="lower", cmap="magma", vmin=low, vmax=max(high, low + 1))
    shown = [value for value in KILOHERTZ if 1000 * value < spectrogram.frequencies_hz[-1]]
    above.set_yticks(np.searchsorted(spectrogram.frequencies_hz, 1000 * np.array(shown)), [f"{f:g}" for f in shown])
    above.set_ylabel("kHz")

    width = -(-len(scores) // COLUMNS)
    padded = np.pad(scores, ((0, -len(scores) % width), (0, 0)), mode="edge")
    columns = padded.reshape(-1, width, rows).max(axis=1).T
    columns = np.where(columns > SILENT_SCORE, columns, np.nan)
    extent = (0, columns.shape[1] * width * timeline.step_s, rows - 0.5, -0.5)
    heat = below.imshow(columns, extent=extent, aspect="auto", cmap="Greys", interpolation="nearest")
    shortest_s = duration_s / COLUMNS  # so that it is seen
    for row, label in enumerate(labels):  # one artist for all segments of a label: a long recording has thousands
        own = [found for found in segments if found.label == label]
        spans = [(found.start_s, max(found.end_s - found.start_s, shortest_s)) for found in own]
        below.broken_barh(spans, (row - 0.42, 0.84), facecolors=(0.1, 0.45, 0.85, 0.65))
    names = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..." for name in labels]
    below.set_yticks(range(rows), names)
    below.set_xlim(0, duration_s)
    below.set_xticks(
        np.arange(0, duration_s, next((step for step in TICKS_S if duration_s / step < 15), duration_s / 10))
    )
    below.xaxis.set_major_formatter(lambda seconds, _: _time(seconds, duration_s))
    figure.colorbar(heat, ax=below, label="cosine", fraction=0.03, pad=0.01)
    with replacing(path) as fresh:
        figure.savefig(fresh, format="png", metadata={"Software": None})


def _time(seconds: float, duration_s: float) -> str:
    """A time as the axis shows it: seconds, minutes and seconds, or hours too."""
    return f"{seconds:g} s" if duration_s < 20 else clock(max(seconds, 0.0), hours=duration_s >= 3600)
