"""A suite's results as tables, Markdown, JSON and `model-index`, and the listing of its sources before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import ModelCardData
from rich.markup import escape
from rich.table import Table

from ..atomic_io import write_json, write_text
from ..cards.results import eval_results, markdown_table, rows_of
from .loading import DataLocation, DataSourceError
from .runner import EvaluationOptions, Job, TaskResult, bootstrap_settings, versions

WIDEST_MATRIX = 20  # classes up to which results.md has the whole confusion matrix; the JSON has larger ones
PAPER_REMARK = (
    "Paper and benchmark: the two rows of its Table 2; the benchmark is the best figure in the literature, or chance "
    "where there was none, and the paper chose the epoch with the best mean over these very test sets. Clips of your "
    "own (`own data`) have no delta. Clips longer than the window are covered by several windows here; the released "
    "code crops one at random. `data` is how near the clips are to the paper's (paper, subset, proxy), `prompt` "
    "whether the wording is published. R@k is defined in docs/evaluate.md."
)


def size_text(size: int | None) -> str:
    """Bytes in words."""
    if size is None:
        return ""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def listing(jobs: Sequence[Job], found: Sequence[Sequence[DataLocation | DataSourceError]], full: bool) -> Table:
    """Sources of a suite's tasks, how near they are to the paper's, and sizes, before anything is fetched.

    Args:
        jobs: The jobs.
        found: Their locations.
        full: Also show the sources that are out of reach.
    """
    table = Table(title="Tasks and their sources")
    for name in ("task", "metric", "source", "fidelity", "revision"):
        table.add_column(name, overflow="fold")
    table.add_column("to fetch, at most", justify="right")
    for job, its_locations in zip(jobs, found, strict=True):
        first = _first(its_locations)
        head = (job.task.name, job.task.metric)
        if first is not None:
            revision = (first.revision or "")[:8]
            table.add_row(*head, escape(first.name), first.fidelity, revision, size_text(first.bytes))
        else:
            table.add_row(*head, "[yellow]none[/]", "", "", "")
        if full or first is None:
            for error in its_locations:
                if isinstance(error, DataSourceError):
                    table.add_row("", "", f"[dim]{escape(str(error))}[/]")
            if not its_locations:
                table.add_row("", "", f"[dim]{job.task.dataset}.csv in the data folder[/]")
    return table


def _first(its_locations: Sequence[DataLocation | DataSourceError]) -> DataLocation | None:
    return next((location for location in its_locations if isinstance(location, DataLocation)), None)


def fetched_bytes(found: Sequence[Sequence[DataLocation | DataSourceError]]) -> int:
    """Size of the best locations together, each counted once."""
    best = [location for own in found if (location := _first(own)) is not None]
    return sum({location.identity: location.bytes or 0 for location in best}.values())


def suite_score(results: Sequence[TaskResult]) -> dict[str, Any]:
    """The zero-shot score: the mean over the scored tasks that have a value, or over all such where none is scored.

    The scored tasks of the paper are the 16 of its Table 1; of a scored retrieval task, R@1 and R@10 count.

    Returns:
        `score` (None without tasks), `tasks` it was taken over, `missing` scored ones, and `paper`, the mean of the
        paper's Table 2 over the same tasks; None if clips of one's own are among them.
    """
    there = [r for r in results if r.result is not None and r.result["value"] is not None]
    scored = [r for r in there if r.task.scored]
    values = {row["task"]: row["value"] for r in scored for row in rows_of(r.result or {})}
    if not scored:
        values = {r.task.name: (r.result or {})["value"] for r in there}
    published = [(r.result or {})["paper"] for r in scored or there]
    return {
        "score": float(np.mean(list(values.values()))) if values else None,
        "tasks": list(values),
        "missing": [r.task.name for r in results if r.task.scored and r not in there],
        "paper": float(np.mean(published)) if published and None not in published else None,
    }


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _rows(results: Sequence[TaskResult]) -> list[list[str]]:
    """A row a task, and one of mAP@10 after the R@1 of retrieval."""
    rows = []
    for outcome in results:
        result, task = outcome.result, outcome.task
        if result is None:
            published = [_percent(task.paper), "", _percent(task.benchmark)]
            rows.append([task.name, task.metric, outcome.status, "", *published, "", "", "", ""])
            continue
        clips = f"{result['clips']}" + ("" if not result["skipped"] else f" ({len(result['skipped'])} skipped)")
        measured = [(result["metric"], result, task.paper, task.benchmark)]
        if "mAP@10" in result:
            measured.append(("mAP@10", result["mAP@10"], task.paper_map, task.benchmark_map))
        for metric, found, paper, benchmark in measured:
            value = _percent(found["value"])
            if found["value"] is None:  # SPIDEr without SPICE
                value = f"none (CIDEr-D {result['cider_d']['value']:.3f})"
            interval = "" if found.get("low") is None else f"{found['low']:.1%} – {found['high']:.1%}"
            delta = ""
            if result["paper"] is not None and paper is not None and found["value"] is not None:
                delta = f"{100 * (found['value'] - paper):+.1f}"
            rows.append(
                [task.name, metric, value, interval, _percent(paper), delta, _percent(benchmark),
                 _percent(found.get("chance")), clips, result["settings"]["fidelity"],
                 result["settings"]["prompt_status"]]
            )  # fmt: skip
    return rows


_HEAD = (
    "task",
    "metric",
    "value",
    "95 % interval",
    "paper",
    "delta",
    "benchmark",
    "chance",
    "clips",
    "data",
    "prompt",
)


def result_table(results: Sequence[TaskResult], title: str) -> Table:
    """The paper's Table 2 with a column of ours: value, interval, the difference in points, and its two rows."""
    table = Table(title=title)
    for name in _HEAD:
        table.add_column(name, justify="right" if name in _HEAD[2:9] else "left")
    for row in _rows(results):
        table.add_row(*map(escape, row))
    return table


def markdown(results: Sequence[TaskResult], title: str) -> str:
    """The same table as Markdown, with remarks on its columns and tasks."""
    notes = [f"- {outcome.task.name}: {note}" for outcome in results if (note := _note(outcome))]
    remarks = []
    if any(outcome.task.paper is not None for outcome in results):
        remarks = [_domains(results), PAPER_REMARK]
    tables = [text for outcome in results if (text := _classes_table(outcome))]
    parts = [f"# {title}", markdown_table(_HEAD, _rows(results)), score_line(results), *remarks, *tables]
    return "\n\n".join([*parts, "\n".join(notes)]).rstrip() + "\n"


def _domains(results: Sequence[TaskResult]) -> str:
    """Means by the domains of Table 2 (paper Section 4.3), over the tasks that have a value."""
    rows = []
    for domain in dict.fromkeys(outcome.task.domain for outcome in results):
        own = [outcome for outcome in results if outcome.task.domain == domain]
        there = [o for o in own if o.result is not None and o.result["value"] is not None]
        if there:
            columns = [[(o.result or {})["value"] for o in there], *([getattr(o.task, name) for o in there]
                       for name in ("paper", "benchmark"))]  # fmt: skip
            means = [_percent(float(np.mean(values)) if None not in values else None) for values in columns]
            rows.append([domain, f"{len(there)} of {len(own)}", *means])
    return "## By domain\n\n" + markdown_table(("domain", "tasks", "value", "paper", "benchmark"), rows)


def _classes_table(outcome: TaskResult) -> str:
    """Accuracy of every class and the confusion matrix of sounds of one's own; empty for other tasks."""
    result = outcome.result or {}
    if outcome.task.domain != "own" or "confusion" not in result:
        return ""
    names = list(result["per_class"])
    shown = len(names) <= WIDEST_MATRIX
    head = ["true class", "clips", "accuracy", *(names if shown else ["most often called instead"])]
    rows = []
    for i, (name, found) in enumerate(result["per_class"].items()):
        counts: list[int] = result["confusion"][i]
        wrong = sorted((c for c in range(len(names)) if c != i and counts[c]), key=lambda c: -counts[c])[:3]
        others = [", ".join(f"{names[c]} ({counts[c]})" for c in wrong)]
        rows.append([name, found["clips"], _percent(found["accuracy"]), *(counts if shown else others)])
    columns = " Columns of classes count the clips that were given that class." if shown else ""
    return f"## {outcome.task.name}: classes\n\n{markdown_table(head, rows)}\n\nRows are true classes.{columns}"


def _note(outcome: TaskResult) -> str:
    source = None if outcome.location is None else outcome.location.source
    result = outcome.result or {}
    shared = result.get("captions_of_several_clips")
    parts = [
        outcome.task.note,
        source.note if source is not None else "",
        outcome.reason,
        result.get("unavailable", {}).get("spider", ""),
        f"{shared} of {result['captions']} captions are those of several clips, each of which is right"
        if shared
        else "",
    ]
    return " ".join(part.rstrip(".") + "." for part in parts if part)


def score_line(results: Sequence[TaskResult]) -> str:
    """The zero-shot score in a sentence."""
    score = suite_score(results)
    if score["score"] is None:
        return "No task has a value."
    paper = "" if score["paper"] is None else f"; the paper's CLAP over the same tasks: {score['paper']:.3f}"
    missing = f"; missing: {', '.join(score['missing'])}" if score["missing"] else ""
    return f"Zero-shot score, the mean of {len(score['tasks'])} values: {score['score']:.3f}{paper}{missing}."


# What `results.json` repeats of every task's own file.
REPORTED = (
    *("metric", "value", "low", "high", "chance", "paper", "clips", "classes", "balanced", "per_class", "skipped"),
    *("captions_of_several_clips", "R@1", "R@5", "R@10", "mAP@10", "cider_d", "examples"),
)


def task_entries(results: Sequence[TaskResult], split: str | None = None) -> list[dict[str, Any]]:
    """Entries of `results.json`.

    Args:
        results: Of all tasks.
        split: Split of the sound corpus, for its suite.
    """
    entries = []
    for outcome in results:
        task, result = outcome.task, outcome.result or {}
        source = result.get("settings", {}).get("source")
        dataset: dict[str, Any] = {"type": "own"}
        if split is not None:
            dataset = {"type": "sound-corpus", "name": "sound corpus", "split": split}
        elif source:
            dataset = {"type": source["repo"], "config": source["config"], "split": source["split"]}
            dataset |= {"revision": result["settings"]["revision"], "fidelity": source["fidelity"]}
        location = None if outcome.location is None else outcome.location.name
        entry = {"task": task.name, "status": outcome.status, "reason": outcome.reason, "location": location}
        entries.append(entry | {"dataset": dataset} | {k: result[k] for k in REPORTED if k in result})
    return entries


def write_report(
    results: Sequence[TaskResult],
    options: EvaluationOptions,
    title: str,
    model: dict[str, Any],
    before_relabelling: dict[str, Any] | None = None,
) -> None:
    """Write `results.json`, `results.md` and `model_index.yaml` to the output folder.

    Args:
        results: Of all tasks.
        options: Of the evaluation.
        title: Heading of the table.
        model: Settings of the model, see `Encoder.settings`.
        before_relabelling: `clips` whose labels were corrected, and `tasks` as in `results.json` by the labels before.
    """
    split = options.split if options.suite == "sounds" else None
    templates = options.templates or next((r.task.templates for r in results if split is not None), None)
    document = {
        "title": title,
        "settings": {
            "suite": options.suite,
            "split": split,
            "templates": templates,
            "phrases": {r.task.name: r.task.phrases for r in results if r.task.phrases},
            "bootstrap": bootstrap_settings(),
            "model": model,
            "versions": versions(),
        },
        "score": suite_score(results),
        "tasks": task_entries(results, split),
    }
    if before_relabelling is not None:
        document["before_relabelling"] = before_relabelling
    write_json(options.output_dir / "results.json", document)
    write_text(options.output_dir / "results.md", markdown(results, title))
    index = model_index(document, Path(options.model).name)
    write_text(options.output_dir / "model_index.yaml", yaml.safe_dump(index, sort_keys=False, allow_unicode=True))


def model_index(document: dict[str, Any], model_name: str) -> dict[str, Any]:
    """The card's `model-index` from the content of `results.json`."""
    found = eval_results(document)
    return {
        "model-index": ModelCardData(model_name=model_name, eval_results=found).to_dict()["model-index"]
        if found
        else []
    }
