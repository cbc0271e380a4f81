"""A suite's results for people and for cards: the listing before, the table after, Markdown, and the model-index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from rich.markup import escape
from rich.table import Table

from ..atomic_io import write_json, write_text
from .loading import DataLocation, DataSourceError
from .runner import Job, TaskResult, suite_score

TASK_TYPES = {
    "classification": "zero-shot-audio-classification",
    "audio-to-text": "audio-text-retrieval",
    "text-to-audio": "audio-text-retrieval",
    "captioning": "audio-captioning",
}


def size_text(size: int | None) -> str:
    """Bytes in words."""
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def listing(jobs: Sequence[Job], found: Sequence[Sequence[DataLocation | DataSourceError]], full: bool) -> Table:
    """What a suite would run on: sources, how near they are to the paper's, and sizes, before anything is fetched.

    Args:
        jobs: The jobs.
        found: Their places.
        full: Also show the sources that are out of reach.
    """
    table = Table(title="Tasks and their sources")
    for name in ("task", "metric", "source", "fidelity", "revision"):
        table.add_column(name, overflow="fold")
    table.add_column("to fetch, at most", justify="right")
    for job, its_places in zip(jobs, found, strict=True):
        places = [place for place in its_places if isinstance(place, DataLocation)]
        errors = [place for place in its_places if isinstance(place, DataSourceError)]
        head = (job.task.name, job.task.metric)
        if places:
            first = places[0]
            revision = (first.revision or "")[:8]
            table.add_row(*head, escape(first.name), first.fidelity, revision, size_text(first.bytes))
        else:
            table.add_row(*head, "[yellow]none[/]", "", "", "")
        if full or not places:
            sources = job.task.sources or ()
            for error in errors:
                table.add_row("", "", f"[dim]{escape(str(error))}[/]")
            if not sources and not places:
                table.add_row("", "", f"[dim]{job.task.dataset}.csv in the data folder[/]")
    return table


def fetched_bytes(found: Sequence[Sequence[DataLocation | DataSourceError]]) -> int:
    """Size of the best places together, each counted once."""
    first = [next((place for place in own if isinstance(place, DataLocation)), None) for own in found]
    return sum({place.identity: place.bytes or 0 for place in first if place is not None}.values())


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _rows(outcomes: Sequence[TaskResult]) -> list[list[str]]:
    rows = []
    for outcome in outcomes:
        result, task = outcome.result, outcome.task
        if result is None:
            rows.append([task.name, task.metric, outcome.status, "", _percent(task.paper), "", "", "", "", ""])
            continue
        value = _percent(result["value"])
        if result["value"] is None:  # SPIDEr without SPICE
            value = f"none (CIDEr-D {result['cider_d']['value']:.3f})"
        interval = "" if result.get("low") is None else f"{result['low']:.1%} – {result['high']:.1%}"
        delta = "" if result["delta"] is None else f"{100 * result['delta']:+.1f}"
        place, status = result["settings"], result["settings"]["prompt_status"]
        clips = f"{result['clips']}" + ("" if not result["skipped"] else f" ({len(result['skipped'])} skipped)")
        rows.append(
            [task.name, result["metric"], value, interval, _percent(task.paper), delta, _percent(result.get("chance")),
             clips, place["fidelity"], status]
        )  # fmt: skip
    return rows


_HEAD = ("task", "metric", "value", "95 % interval", "paper", "delta", "chance", "clips", "data", "prompt")


def result_table(outcomes: Sequence[TaskResult], title: str) -> Table:
    """The paper's table with a column of ours: value, interval, the paper's figure and the difference in points."""
    table = Table(title=title)
    for name in _HEAD:
        table.add_column(name, justify="right" if name in _HEAD[2:8] else "left")
    for row in _rows(outcomes):
        table.add_row(*map(escape, row))
    return table


def markdown(outcomes: Sequence[TaskResult], title: str) -> str:
    """The same table as Markdown, with what to know beside it."""
    lines = [f"# {title}", "", "| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(outcomes)]
    lines += ["", score_line(outcomes), ""]
    lines.append(
        "Paper: its Table 2; it chose the epoch with the best mean over these very test sets. Clips longer than "
        "the window are covered by several windows here; the released code crops one at random. `data` says how near "
        "the clips are to the paper's (paper, subset, proxy), `prompt` whether the wording is published."
    )
    notes = [f"- {o.task.name}: {note}" for o in outcomes if (note := _note(o))]
    return "\n".join([*lines, "", *notes]) + "\n"


def _note(outcome: TaskResult) -> str:
    source = None if outcome.place is None else outcome.place.source
    missing = {} if outcome.result is None else outcome.result.get("unavailable", {})
    parts = [outcome.task.note, source.note if source is not None else "", outcome.reason, missing.get("spider", "")]
    return " ".join(part.rstrip(".") + "." for part in parts if part)


def score_line(outcomes: Sequence[TaskResult]) -> str:
    """The zero-shot score in a sentence."""
    score = suite_score(outcomes)
    if score["score"] is None:
        return "No task has a value."
    paper = "" if score["paper"] is None else f"; the paper's CLAP over the same tasks: {score['paper']:.3f}"
    missing = f"; missing: {', '.join(score['missing'])}" if score["missing"] else ""
    return f"Zero-shot score, the mean of {len(score['tasks'])} tasks: {score['score']:.3f}{paper}{missing}."


def model_index(outcomes: Sequence[TaskResult], model_name: str) -> list[dict[str, Any]]:
    """The card's `model-index`: one entry a task that has a value."""
    results = []
    for outcome in outcomes:
        result, task = outcome.result, outcome.task
        if result is None or result["value"] is None:
            continue
        settings = result["settings"]
        source = settings["source"]
        results.append(
            EvalResult(
                task_type=TASK_TYPES[task.kind],
                dataset_type=source["repo"] if source else "own",
                dataset_name=task.name,
                dataset_config=(source["config"] if source else None) or task.name,  # else tasks would be merged
                dataset_split=source["split"] if source else None,
                dataset_revision=settings["revision"],
                metric_type=result["metric"],
                metric_value=round(result["value"], 4),
                metric_name=f"{result['metric']} ({settings['fidelity']} data)",
            )
        )
    if not results:
        return []
    return ModelCardData(model_name=model_name, eval_results=results).to_dict()["model-index"]


# What `results.json` repeats of every task's own file.
REPORTED = ("metric", "value", "low", "high", "paper", "clips", "cider_d", "examples")


def write_report(outcomes: Sequence[TaskResult], output_dir: Path, title: str, model_name: str) -> None:
    """Write `results.json`, `results.md` and `model_index.yaml`.

    Args:
        outcomes: Of all tasks.
        output_dir: Where to.
        title: Heading of the table.
        model_name: Name in the model-index.
    """
    tasks = [
        {
            "task": o.task.name,
            "status": o.status,
            "reason": o.reason,
            "place": None if o.place is None else o.place.name,
        }
        | ({} if o.result is None else {k: o.result[k] for k in REPORTED if k in o.result})
        for o in outcomes
    ]
    write_json(output_dir / "results.json", {"title": title, "score": suite_score(outcomes), "tasks": tasks})
    write_text(output_dir / "results.md", markdown(outcomes, title))
    index = {"model-index": model_index(outcomes, model_name)}
    write_text(output_dir / "model_index.yaml", yaml.safe_dump(index, sort_keys=False, allow_unicode=True))
