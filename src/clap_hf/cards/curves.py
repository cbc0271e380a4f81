"""The picture of a run: loss and validation scores of every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .records import epochs_of


def draw_curves(run: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw loss and validation scores of every epoch. Needs matplotlib (extra `train`).

    Args:
        run: Lines of `run.jsonl`.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    epochs = epochs_of(run)
    steps = [epoch["step"] for epoch in epochs]
    figure = Figure(figsize=(10, 3.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [epoch["loss"] for epoch in epochs], color="tab:blue")
    left.set(xlabel="optimiser steps", ylabel="training loss", title="Loss")
    for task in sorted({task for epoch in epochs for task in epoch.get("validation", {})}):
        known = [(epoch["step"], epoch["validation"][task]) for epoch in epochs if task in epoch.get("validation", {})]
        right.plot(*zip(*known, strict=True), linewidth=0.8, alpha=0.7, label=task)
    metric = "zero_shot_score" if "zero_shot_score" in epochs[0] else "loss"
    right.plot(steps, [epoch[metric] for epoch in epochs], color="black", linewidth=2, label=metric.replace("_", " "))
    best = max((e for e in epochs if e.get("best")), key=lambda e: e["step"], default=epochs[-1])
    right.plot(best["step"], best[metric], "o", color="black")
    right.set(xlabel="optimiser steps", title="Validation (dot: the epoch kept)")
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Software": None})
