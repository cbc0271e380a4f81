"""Rows of evaluation results for tables and for a card's `model-index`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult

CUTOFFS = (1, 10)  # of the R@k of a retrieval task


def rows_of(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers of one task, each as a row with `task`, `metric`, `value`, `low` and `high`.

    Args:
        task: `task` (its name) and its result. Retrieval has a row for R@1 and one for R@10; captions that could not
            be given SPIDEr have CIDEr-D.

    Returns:
        The rows; none if the task has no number.
    """
    if "R@10" in task:
        paper = {1: task.get("paper")}
        return [
            task | task[f"R@{k}"] | {"task": f"{task['task']} R@{k}", "metric": f"R@{k}", "paper": paper.get(k)}
            for k in CUTOFFS
        ]
    if task.get("value") is not None:
        return [task]
    return [task | task["cider_d"] | {"metric": "CIDEr-D"}] if task.get("cider_d") else []


def measured(evaluation: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Rows of all tasks of an evaluation's `results.json`."""
    return [] if evaluation is None else [row for task in evaluation["tasks"] for row in rows_of(task)]


def eval_results(evaluation: dict[str, Any] | None) -> list[EvalResult]:
    """Entries of a `model-index`, one a row."""
    return [
        EvalResult(
            task_type=_task_type(row["metric"]),
            dataset_type=dataset.get("type") or "audio",
            dataset_name=f"{dataset['name']}, {row['task']}" if dataset.get("name") else row["task"],
            dataset_config=dataset.get("config") or row["task"],  # else the tasks would be merged into one
            dataset_split=dataset.get("split"),
            dataset_revision=dataset.get("revision"),
            metric_type=row["metric"],
            metric_value=round(row["value"], 4),
            metric_name=f"{row['metric']} ({dataset['fidelity']} data)" if dataset.get("fidelity") else None,
        )
        for row in measured(evaluation)
        for dataset in [row.get("dataset") or {}]
    ]


def _task_type(metric: str) -> str:
    if metric.lower().startswith(("spider", "cider")):
        return "audio-captioning"
    return "audio-text-retrieval" if "@" in metric else "zero-shot-audio-classification"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    first, *others = ("| " + " | ".join(map(_cell, line)) + " |" for line in (head, *rows))
    return "\n".join([first, "|" + "---|" * len(head), *others])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
