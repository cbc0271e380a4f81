"""Runs tasks: embeds what is not embedded yet, scores, writes one JSON a task, and goes on when one fails."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console

from ..atomic_io import write_json
from ..embedding import Encoder
from .benchmarks import TABLE1_TASKS, Task
from .cache import EmbeddingCache, listen
from .captioner import Captioner, score_captions
from .loading import DataLocation, DataSourceError, TaskData, load, places
from .scoring import BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED, RANKING_BOOTSTRAP_SAMPLES
from .zero_shot_tasks import Details, score_classification, score_retrieval

LIMIT_SEED = 0
SCORES = ("softmax", "sigmoid", "raw")
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A task and how to reach its clips.

    Args:
        task: The task.
        find: Places of its clips, the best first, and errors for those out of reach.
        load: Reads the clips of a place.
    """

    task: Task
    find: Callable[[], Iterator[DataLocation | DataSourceError]]
    load: Callable[[DataLocation], TaskData]


@dataclass(frozen=True)
class Options:
    """What a user may choose about a run; all of it is recorded.

    Args:
        templates: Prompts with {} that replace those of the tasks; several are averaged, and each is measured too.
        descriptions: Texts of a class, by its words, that stand for it as they are; measured too.
        scores: `"softmax"`, `"sigmoid"` or `"raw"`; as the paper does (softmax for one label, sigmoid for several)
            when None.
        limit: Clips a task at most, drawn by a fixed seed.
        num_workers: Loader processes.
        plots: Whether to draw plots.
        overwrite: Score again what is done.
    """

    templates: tuple[str, ...] | None = None
    descriptions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    scores: str | None = None
    limit: int | None = None
    num_workers: int = 0
    plots: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.scores is not None and self.scores not in SCORES:
            raise ValueError(f"scores is {self.scores!r}, expected one of {SCORES}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, expected 1 clip or more.")
        wrong = [template for template in self.templates or () if "{}" not in template]
        if wrong:
            raise ValueError(f"templates {wrong} have no {{}} for the label.")


@dataclass
class TaskResult:
    """What became of a task.

    Attributes:
        task: The task.
        status: `"done"`, `"kept"` (done by an earlier run), `"failed"` or `"not reached"`.
        place: Where its clips were.
        result: Its scores, as in its JSON.
        reason: Why there is none.
    """

    task: Task
    status: str
    place: DataLocation | None = None
    result: dict[str, Any] | None = None
    reason: str = ""


def paper_jobs(tasks: Sequence[Task], data_dir: Path | None, cache_dir: Path) -> list[Job]:
    """Jobs of tasks on their own sources and on the CSVs of a data folder."""
    return [
        Job(task, partial(places, task, data_dir), lambda place, task=task: load(task, place, cache_dir))  # type: ignore[misc]
        for task in tasks
    ]


def slug(name: str) -> str:
    """A task's name as a file name."""
    return re.sub(r"[^\w.-]+", "_", name)


def find_places(jobs: Sequence[Job]) -> list[list[DataLocation | DataSourceError]]:
    """All places of all jobs, asked for on the main process only."""
    state = PartialState()
    found = [list(job.find()) if state.is_main_process else [] for job in jobs]
    box: list[Any] = [found]
    broadcast_object_list(box)
    return box[0]


def run(
    jobs: Sequence[Job],
    found: Sequence[Sequence[DataLocation | DataSourceError]],
    encoder: Encoder,
    captioner: Captioner | None,
    output_dir: Path,
    cache_dir: Path,
    options: Options,
    console: Console,
) -> list[TaskResult]:
    """Run jobs one after another; what is done with the same settings is kept, what fails is recorded.

    Args:
        jobs: The jobs.
        found: Their places, see `find_places`.
        encoder: The model.
        captioner: The captioning model, for captioning tasks.
        output_dir: Gets `tasks/*.json` and `plots/`.
        cache_dir: Embeddings are kept here.
        options: The user's choices.
        console: For a line a task.

    Returns:
        An outcome a job; results only on the main process.
    """
    outcomes = []
    for number, (job, its_places) in enumerate(zip(jobs, found, strict=True), 1):
        started = time.perf_counter()
        outcome = _run_job(job, its_places, encoder, captioner, output_dir, cache_dir, options)
        outcomes.append(outcome)
        if PartialState().is_main_process:
            console.print(_line(number, len(jobs), outcome, time.perf_counter() - started), highlight=False)
    return outcomes


def _line(number: int, total: int, outcome: TaskResult, seconds: float) -> str:
    head = f"[{number}/{total}] {outcome.task.name}: ".replace("[", r"\[")
    if outcome.result is None:
        return f"{head}[yellow]{outcome.status}[/] ({outcome.reason})"
    value = outcome.result["value"]
    shown = "no value" if value is None else f"{value:.4f}"
    return f"{head}{outcome.result['metric']} {shown} ({outcome.status}, {seconds:.1f} s)"


def _run_job(
    job: Job,
    its_places: Sequence[DataLocation | DataSourceError],
    encoder: Encoder,
    captioner: Captioner | None,
    output_dir: Path,
    cache_dir: Path,
    options: Options,
) -> TaskResult:
    task = job.task
    reasons = [str(place) for place in its_places if isinstance(place, DataSourceError)]
    model = captioner if task.kind == "captioning" else encoder
    if model is None:
        return TaskResult(task, "not reached", reason="no captioning model was given")
    for place in its_places:
        if isinstance(place, DataSourceError):
            continue
        file = output_dir / "tasks" / f"{slug(task.name)}.json"
        texts = class_texts(task, options) if task.classes else None
        settings = task_settings(task, place, texts, model, options)
        kept = None if options.overwrite else _kept(file, settings)
        if kept is not None:
            return TaskResult(task, "kept", place, kept)
        try:
            data = _everywhere(lambda place=place: job.load(place))  # type: ignore[misc]
        except DataSourceError as error:
            reasons.append(str(error))
            continue
        except Exception as error:
            return TaskResult(task, "failed", place, reason=f"{type(error).__name__}: {error}")
        try:
            return _measure(task, place, data, model, file, settings, options, cache_dir, output_dir)
        except Exception as error:  # one task's trouble is not the others'
            return TaskResult(task, "failed", place, reason=f"{type(error).__name__}: {error}")
    return TaskResult(
        task, "not reached", reason="; ".join(reasons) or "no copy on the Hub and no CSV in the data folder"
    )


def _everywhere(work: Callable[[], T]) -> T:
    """Do the same on every process, the main one first; if it fails on one, it has failed on all."""
    state = PartialState()
    result: list[T] = []
    unreachable = wrong = ""
    for turn in (True, False):
        if state.is_main_process == turn:
            try:
                result.append(work())
            except DataSourceError as error:
                unreachable = str(error)
            except Exception as error:
                if state.num_processes == 1:
                    raise
                wrong = f"{type(error).__name__}: {error}"
        state.wait_for_everyone()
    told = gather_object([(unreachable, wrong)])
    for text in (text for _, text in told if text):
        raise RuntimeError(text)
    for text in (text for text, _ in told if text):
        raise DataSourceError(text)
    return result[0]


def _kept(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier result with exactly these settings."""
    if not file.is_file():
        return None
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    same = result.get("settings") == json.loads(json.dumps(settings))
    return result if same else None


def class_texts(task: Task, options: Options, classes: Sequence[str] | None = None) -> dict[str, list[list[str]]]:
    """Texts of every class by prompt: one group a template, and one of descriptions where there are any.

    Returns:
        Prompt -> texts of every class; the prompts together are the ensemble that is reported.
    """
    names = list(task.classes if classes is None else classes)
    if options.templates is None and task.phrases:
        return {"phrases": [list(task.phrases.get(name) or _filled(task.templates, name)) for name in names]}
    templates = options.templates or task.templates
    prompts = {template: [_filled((template,), name) for name in names] for template in templates}
    if any(name in options.descriptions for name in names):
        prompts["descriptions"] = [list(options.descriptions.get(name) or _filled(templates, name)) for name in names]
    return prompts


def _filled(templates: Sequence[str], name: str) -> list[str]:
    return [template.replace("{}", name) for template in templates]


def task_settings(
    task: Task,
    place: DataLocation,
    prompts: dict[str, list[list[str]]] | None,
    model: Encoder | Captioner,
    options: Options,
) -> dict[str, Any]:
    """All that a task's number depends on."""
    source = None if place.source is None else asdict(place.source)
    return {
        "task": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "source": source,
        "place": place.name,
        "revision": place.revision,
        "identity": place.identity,
        "fidelity": place.fidelity,
        "expected_clips": task.size,
        "limit": options.limit,
        "limit_seed": LIMIT_SEED,
        "templates": list(options.templates or task.templates),
        "prompt_status": "ours" if options.templates or options.descriptions else task.prompt_status,
        "prompts": prompts,
        "descriptions": {name: list(texts) for name, texts in options.descriptions.items()},
        "classes": list(task.classes) or "of the data",
        "scores": options.scores or ("sigmoid" if task.multi_label else "softmax"),
        "bootstrap": {
            "samples": BOOTSTRAP_SAMPLES,
            "ranking_samples": RANKING_BOOTSTRAP_SAMPLES,
            "seed": BOOTSTRAP_SEED,
        },
        "model": model.settings(),
    }


def versions() -> dict[str, str]:
    """Versions of what computed the scores."""
    names = ("clap-hf", "torch", "transformers", "datasets", "numpy", "soundfile")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def chosen_positions(clips: int, limit: int | None) -> list[int]:
    """All clips, or `limit` of them drawn by a fixed seed, so that no class is favoured by its place."""
    if limit is None or limit >= clips:
        return list(range(clips))
    return sorted(np.random.default_rng(LIMIT_SEED).permutation(clips)[:limit].tolist())


def _measure(
    task: Task,
    place: DataLocation,
    data: TaskData,
    model: Any,
    file: Path,
    settings: dict[str, Any],
    options: Options,
    cache_dir: Path,
    output_dir: Path,
) -> TaskResult:
    chosen = chosen_positions(len(data), options.limit)
    positions = [data.rows[i] for i in chosen]

    def hear(prepared: list[Any]) -> tuple[torch.Tensor, list[str]]:
        if task.kind == "captioning":
            return torch.zeros(len(prepared), 1), model.caption(prepared)
        return model.embed_audio(prepared), []

    cache = EmbeddingCache(cache_dir, f"{place.identity} {'captions' if task.kind == 'captioning' else ''}", model.key)
    made = listen(data.audio, positions, model, hear, cache, name=task.name, num_workers=options.num_workers)
    audio, kept = made.select(positions)
    if not PartialState().is_main_process:
        return TaskResult(task, "done", place)
    if not kept:
        first = next(iter(made.skipped.values()), "none was read")
        raise ValueError(f"none of {len(positions)} sounds could be read; the first: {first}")
    clips = [chosen[i] for i in kept]
    details = None
    if task.kind == "captioning":
        captions = [made.texts[positions[i]] for i in kept]
        result = score_captions(captions, [data.captions[i] for i in clips])
    elif task.kind == "classification":
        prompts = class_texts(task, options, data.classes)
        truth = [data.labels[i] for i in clips]
        result, details = score_classification(task, audio, truth, data.classes, prompts, model, settings["scores"])
    else:
        result, details = score_retrieval(task, audio, [data.captions[i] for i in clips], model)
    skipped = {str(p): made.skipped[p] for p in positions if p in made.skipped}
    record = {
        "task": task.name,
        **result,
        "paper": task.paper,
        "benchmark": task.benchmark,
        "delta": None if task.paper is None or result["value"] is None else result["value"] - task.paper,
        "note": task.note,
        "skipped": skipped,
        "left_out_labels": data.left_out,
        "settings": settings,
        "versions": versions(),
    }
    write_json(file, record)
    if options.plots and details is not None:
        _plot(details, task, output_dir / "plots" / slug(task.name))
    return TaskResult(task, "done", place, json.loads(json.dumps(record)))


def _plot(details: Details, task: Task, folder: Path) -> None:
    try:
        from .plots import draw
    except ImportError:
        return  # matplotlib is an extra; the command says so once
    draw(details, task.name, folder)


def suite_score(outcomes: Sequence[TaskResult]) -> dict[str, Any]:
    """The zero-shot score: the mean of the 16 tasks of the paper's Table 1, over those that have a value.

    Returns:
        `score` (None without tasks), `tasks` it was taken over, `missing` ones of the 16, and `paper`, the mean of the
        paper's Table 2 over the same tasks.
    """
    values = {
        o.task.name: o.result["value"] for o in outcomes if o.result is not None and o.result["value"] is not None
    }
    there = [name for name in TABLE1_TASKS if name in values]
    if not there:
        there = list(values)
    published = [o.task.paper for o in outcomes if o.task.name in there and o.task.paper is not None]
    return {
        "score": float(np.mean([values[name] for name in there])) if there else None,
        "tasks": there,
        "missing": [
            name for name in TABLE1_TASKS if name not in values and any(o.task.name == name for o in outcomes)
        ],
        "paper": float(np.mean(published)) if published else None,
    }
