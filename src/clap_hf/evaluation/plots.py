"""Plots of a task as PNG: confusion matrix, scores per class, similarity of clips and labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..atomic_io import replacing
from .task_scores import Details

MOST_BARS = 60  # of more classes, the worst and the best are shown
LARGEST_HEATMAP = 100


def draw(details: Details, title: str, folder: Path) -> list[Path]:
    """Draw what a task has.

    Args:
        details: See `Details`.
        title: The task's name.
        folder: Gets the PNG files.

    Returns:
        The files written.
    """
    files = [_bars(details, title, folder / "per_class.png")]
    if details.confusion is not None and len(details.classes) <= LARGEST_HEATMAP:
        counts = details.confusion.sum(axis=1, keepdims=True)
        shares = np.divide(details.confusion, counts, out=np.zeros(details.confusion.shape), where=counts > 0)
        labels = ("true class", "called")
        heading = f"{title}: confusion"
        file = folder / "confusion.png"
        files.append(draw_heatmap(shares, details.classes, details.classes, heading, labels, file, low=0.0))
    if len(details.classes) <= LARGEST_HEATMAP:
        labels = ("sounds of", "text")
        heading = f"{title}: mean cosine"
        file = folder / "similarity.png"
        files.append(draw_heatmap(details.similarity, details.classes, details.classes, heading, labels, file))
    return files


def _short(name: str) -> str:
    return name if len(name) <= 40 else name[:37] + "..."


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as fresh:
        figure.savefig(fresh, dpi=120, format="png")
    return path


def _bars(details: Details, title: str, path: Path) -> Path:
    there = np.flatnonzero(~np.isnan(details.per_class))
    order = there[np.argsort(details.per_class[there], kind="stable")]
    if len(order) > MOST_BARS:
        order = np.concatenate([order[: MOST_BARS // 2], order[-MOST_BARS // 2 :]])
    figure = Figure(figsize=(8, 1.2 + 0.22 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([_short(details.classes[i]) for i in order], details.per_class[order], color="#3b6ea5")
    if len(there):
        mean = float(details.per_class[there].mean())
        axes.axvline(mean, color="black", linewidth=0.8, linestyle="--", label=f"mean {mean:.3f}")
        axes.legend(loc="lower right")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_xlabel(details.score_name)
    axes.set_title(title)
    return _save(figure, path)


def draw_heatmap(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    labels: tuple[str, str],
    path: Path,
    *,
    low: float | None = None,
) -> Path:
    """Draw a matrix as colors, with its numbers where there are few.

    Args:
        values: `[rows, columns]`.
        rows: Names of the rows.
        columns: Names of the columns.
        title: Heading.
        labels: What rows and columns are.
        path: PNG file to write.
        low: Value of the darkest color, with 1 that of the brightest; those of the values when None.

    Returns:
        The file.
    """
    figure = Figure(figsize=(4 + 0.2 * len(columns), 3 + 0.2 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="viridis", vmin=low, vmax=None if low is None else 1.0)
    figure.colorbar(image, ax=axes, shrink=0.7)
    axes.set_xticks(range(len(columns)), map(_short, columns), rotation=90)
    axes.set_yticks(range(len(rows)), map(_short, rows))
    axes.set_ylabel(labels[0])
    axes.set_xlabel(labels[1])
    axes.set_title(title)
    if len(columns) <= 12:
        middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
        for (row, column), value in np.ndenumerate(values):
            color = "black" if value > middle else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=7)
    return _save(figure, path)
