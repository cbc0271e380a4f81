"""Comparison of pairs of encoders (paper Table 1): a run of each, its zero-shot score beside the paper's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..atomic_io import write_json, write_text
from ..cards.records import epochs_of, read_records
from ..cards.results import markdown_table
from ..evaluation.benchmarks import SUITES, TABLE1_ROWS, TABLE1_SCORES, TABLE1_TASKS
from .recipe import ContrastiveRecipe, combinations_of, load_recipe
from .records import RECORD
from .run import LOG_MELS, train_recipe

ZERO_SHOT = "zero_shot_score"


def compare_encoders(
    recipe: Path,
    output_dir: Path,
    combinations: Sequence[str],
    seeds: Sequence[int],
    *,
    overrides: dict[str, Any],
    num_workers: int,
    cache_dir: Path | None = None,
    data_dir: Path | None = None,
    train: bool = True,
) -> dict[str, Any]:
    """Train every combination that is not finished yet, then compare all.

    Args:
        recipe: A recipe with `combinations`.
        output_dir: Gets a run per combination and seed, `comparison.json` and `comparison.md`.
        combinations: Which of them.
        seeds: A run each.
        overrides: Settings that replace the recipe's for all combinations.
        num_workers: Loader processes.
        cache_dir: Where the log-mels of a corpus' clips are kept; `log-mels/` of the output folder when None.
        data_dir: See `train_recipe`.
        train: False compares what is finished.

    Returns:
        By combination: the best epochs' scores of all seeds, their mean and the paper's, and `tasks`, the same by the
        tasks of Table 1 that were evaluated.

    Raises:
        ValueError: If the recipe has no such combination.
    """
    unknown = [name for name in combinations if name not in combinations_of(recipe)]
    if unknown:
        raise ValueError(f"{recipe} has no combinations {unknown}, expected some of {combinations_of(recipe)}.")
    results: dict[str, Any] = {}
    for name in combinations:
        metric = ""
        scores: dict[int, float] = {}
        by_task: list[dict[str, float]] = []
        for seed in seeds:
            folder = output_dir / f"{name.lower().replace('+', '-')}-{seed}"
            settings = load_recipe(recipe, name, **(overrides | {"seed": seed}))
            assert isinstance(settings, ContrastiveRecipe)  # no other stage has combinations
            metric = settings.best_metric
            epochs = None if settings.steps_per_epoch is None else settings.num_epochs(settings.steps_per_epoch)
            if train and not _is_finished(folder, epochs or settings.epochs):
                train_recipe(
                    settings,
                    folder,
                    resume=(folder / RECORD).exists(),
                    num_workers=num_workers,
                    cache_dir=cache_dir or output_dir / LOG_MELS if settings.dataset else None,
                    data_dir=data_dir,
                )
            found = _best_epoch(folder, settings.best_metric, settings.best_mode)
            if found is not None:
                scores[seed] = found[settings.best_metric]
                by_task.append(found.get("tasks", {}))
        results[name] = {
            "metric": metric,
            "scores": scores,
            "mean": float(np.mean(list(scores.values()))) if scores else None,
            "paper": TABLE1_SCORES.get(name) if metric == ZERO_SHOT else None,
            "tasks": _tasks(by_task, TABLE1_ROWS.get(name) if metric == ZERO_SHOT else None),
        }
        write_json(output_dir / "comparison.json", {"recipe": str(recipe), "combinations": results})
    write_text(output_dir / "comparison.md", as_markdown(results))
    return results


def _epochs(folder: Path) -> list[dict[str, Any]]:
    return epochs_of(read_records(run=folder / RECORD).run)


def _is_finished(folder: Path, epochs: int | None) -> bool:
    done = _epochs(folder)
    return bool(done) and epochs is not None and done[-1]["epoch"] >= epochs


def _best_epoch(folder: Path, metric: str, mode: str) -> dict[str, Any] | None:
    return (max if mode == "max" else min)(_epochs(folder), key=lambda epoch: epoch[metric], default=None)


def _tasks(by_seed: list[dict[str, float]], paper: list[float] | None) -> dict[str, dict[str, float | None]]:
    """Mean over the seeds and the paper's value, by the tasks of Table 1 that every seed has."""
    there = [name for name in TABLE1_TASKS if by_seed and all(name in own for own in by_seed)]
    published = dict(zip(TABLE1_TASKS, paper, strict=True)) if paper else {}
    return {
        name: {"mean": float(np.mean([own[name] for own in by_seed])), "paper": published.get(name)} for name in there
    }


def _row(name: str, result: dict[str, Any]) -> list[str]:
    scores = list(result["scores"].values())
    spread = f" ± {np.std(scores, ddof=1):.3f}" if len(scores) > 1 else ""
    return [
        name,
        "not trained" if result["mean"] is None else f"{result['mean']:.3f}{spread}",
        str(len(scores)),
        "" if result["paper"] is None else f"{result['paper']:.3f}",
    ]


def _headers(results: dict[str, Any]) -> tuple[str, ...]:
    """Column heads; the metric is the recipe's, which another than the zero-shot score is not compared with."""
    metric = next((result["metric"] for result in results.values()), ZERO_SHOT)
    name = "zero-shot score" if metric == ZERO_SHOT else metric.replace("_", " ")
    return ("encoders", f"{name} here", "seeds", "paper (16 tasks)")


def as_table(results: dict[str, Any]) -> Table:
    """The comparison for a terminal."""
    table = Table(*_headers(results), title="Encoders compared (paper Table 1)")
    for name, result in results.items():
        table.add_row(*_row(name, result))
    return table


def as_markdown(results: dict[str, Any]) -> str:
    """The comparison for a file: scores, Table 1 by task and by domain (Section 4.3), each beside the paper's rows.

    Scores on other tasks than the paper's compare in order only.
    """
    parts = [markdown_table(_headers(results), [_row(name, result) for name, result in results.items()])]
    tasks = [task for task in SUITES["table1"] if any(task.name in result["tasks"] for result in results.values())]
    if tasks:
        rows, domains = [], []
        names = list(dict.fromkeys(task.domain for task in tasks))
        for name, result in results.items():
            for kind, label in (("mean", name), ("paper", f"{name}, paper")):
                values = {task.name: result["tasks"].get(task.name, {}).get(kind) for task in tasks}
                rows.append([label, *(_cell([values[task.name]]) for task in tasks)])
                own = [[values[task.name] for task in tasks if task.domain == domain] for domain in names]
                domains.append([label, *map(_cell, own)])
        parts += ["## Table 1 by task", markdown_table(("encoders", *(task.name for task in tasks)), rows)]
        parts += ["## By domain, means", markdown_table(("encoders", *names), domains)]
    return "\n\n".join(parts) + "\n"


def _cell(values: list[float | None]) -> str:
    """Mean of values; empty where one is missing."""
    there = [value for value in values if value is not None]
    return f"{np.mean(there):.3f}" if len(there) == len(values) else ""
