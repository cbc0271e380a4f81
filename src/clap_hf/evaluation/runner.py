"""Runs tasks: embeds what is not embedded yet, scores, writes one JSON a task, and goes on when one fails."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from huggingface_hub.constants import HF_HOME
from rich.console import Console

from ..atomic_io import write_json
from ..embedding import Encoder
from ..text_files import read_json
from .benchmarks import SUITES, Task
from .cache import EmbeddingCache, encode_clips, take_from_collection
from .captioner import Captioner, score_captions
from .loading import DataLocation, DataSourceError, TaskData, load, locations
from .scoring import BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED, RANKING_BOOTSTRAP_SAMPLES
from .task_scores import Details, Prompts, class_texts, score_classification, score_retrieval

LIMIT_SEED = 0
CACHE_DIR = Path(HF_HOME) / "clap_hf"
SCORES = ("softmax", "sigmoid", "raw")
SUITE_NAMES = (*SUITES, "sounds", "own", "maeb")
T = TypeVar("T")


@dataclass(frozen=True)
class EvaluationOptions:
    """Everything that a user may choose about an evaluation.

    Args:
        model: `"embedded"`, a folder, or a Hub id.
        captioner: Folder or Hub id of a captioning model, for the captioning tasks.
        suite: `"paper"`, `"table1"`, `"sounds"`, `"own"` or `"maeb"`.
        tasks: Names of the suite's tasks to run; all when None.
        data_dir: Folder with CSVs; folder or Hub id of the sound corpus for `sounds`, see `own_jobs` for `own`.
        split: Split of the sound corpus, or of a dataset of one's own.
        relabelled: JSON of clips of the sound corpus whose labels were corrected, see
            `model_cards/embedded.relabelled.json`: results by the labels before are added.
        output_dir: Gets the results.
        cache_dir: Keeps embeddings.
        collection: What `clap-hf embed` made by the same model: sounds that are in it are not embedded again.
        templates: Prompts with {} that replace those of the tasks; several are averaged, and each is measured too.
        descriptions: Texts of a class, by its words, that stand for it as they are; measured too.
        scores: `"softmax"`, `"sigmoid"` or `"raw"`; as the paper does (softmax for one label, sigmoid for several)
            when None.
        long_audio: Policy for clips longer than the window.
        limit: Clips a task at most, drawn by a fixed seed.
        device: Torch device; the process' own when None.
        plots: Whether to draw plots.
        overwrite: Score again what is done, and try again what could not be read.
        dry_run: Only list.

    Raises:
        ValueError: If an option is none of those possible.
    """

    model: str = "embedded"
    captioner: str | None = None
    suite: str = "paper"
    tasks: tuple[str, ...] | None = None
    data_dir: str | None = None
    split: str = "test"
    relabelled: Path | None = None
    output_dir: Path = Path("results")
    cache_dir: Path = CACHE_DIR
    collection: Path | None = None
    templates: tuple[str, ...] | None = None
    descriptions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scores: str | None = None
    long_audio: str | None = None
    limit: int | None = None
    device: str | None = None
    plots: bool = True
    overwrite: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.suite not in SUITE_NAMES:
            raise ValueError(f"suite is {self.suite!r}, expected one of {SUITE_NAMES}.")
        if self.scores is not None and self.scores not in SCORES:
            raise ValueError(f"scores is {self.scores!r}, expected one of {SCORES}.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}, expected 1 clip or more.")
        wrong = [template for template in self.templates or () if "{}" not in template]
        if wrong:
            raise ValueError(f"templates {wrong} have no {{}} for the label.")
        if self.suite in ("sounds", "own") and self.data_dir is None:
            expected = (
                "the sound corpus"
                if self.suite == "sounds"
                else "a folder with CSVs path,label or path,caption, with a folder of sounds a class, or a dataset"
            )
            raise ValueError(f"suite {self.suite} needs data_dir, {expected}.")
        if self.suite != "sounds" and self.relabelled is not None:
            raise ValueError(f"relabelled is of the suite sounds, and the suite is {self.suite}.")
        if self.suite not in ("sounds", "own") and self.split != "test":
            raise ValueError(f"split is of the suites sounds and own, and the suite is {self.suite}.")


@dataclass(frozen=True)
class Job:
    """A task and how to reach its clips.

    Args:
        task: The task.
        find: Locations of its clips, the best first, and errors for those out of reach.
        load: Reads the clips of a location.
    """

    task: Task
    find: Callable[[], Iterator[DataLocation | DataSourceError]]
    load: Callable[[DataLocation], TaskData]


@dataclass
class TaskResult:
    """Result of a task, or why there is none.

    Attributes:
        task: The task.
        status: `"done"`, `"kept"` (done by an earlier run), `"failed"` or `"not reached"`.
        location: Where its clips were.
        result: Its scores, as in its JSON.
        reason: Why there is none.
    """

    task: Task
    status: str
    location: DataLocation | None = None
    result: dict[str, Any] | None = None
    reason: str = ""


def paper_jobs(tasks: Sequence[Task], data_dir: Path | None, cache_dir: Path) -> list[Job]:
    """Jobs of tasks on their own sources and on the CSVs of a data folder."""

    def loader(task: Task) -> Callable[[DataLocation], TaskData]:
        return lambda location: load(task, location, cache_dir)

    return [Job(task, partial(locations, task, data_dir), loader(task)) for task in tasks]


def slug(name: str) -> str:
    """A task's name as a file name."""
    return re.sub(r"[^\w.-]+", "_", name)


def find_locations(jobs: Sequence[Job]) -> list[list[DataLocation | DataSourceError]]:
    """All locations of all jobs, asked for on the main process only."""
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
    options: EvaluationOptions,
    console: Console,
) -> list[TaskResult]:
    """Run jobs one after another; what is done with the same settings is kept, what fails is recorded.

    Args:
        jobs: The jobs.
        found: Their locations, see `find_locations`.
        encoder: The model.
        captioner: The captioning model, for captioning tasks.
        options: The user's choices; `output_dir` gets `tasks/*.json` and `plots/`.
        console: For a line a task.

    Returns:
        A result a job; scores only on the main process.
    """
    results = []
    for number, (job, its_locations) in enumerate(zip(jobs, found, strict=True), 1):
        started = time.perf_counter()
        model = captioner if job.task.kind == "captioning" else encoder
        if model is None:
            result = TaskResult(job.task, "not reached", reason="no captioning model was given")
        else:
            result = _run_job(job, its_locations, model, options)
        results.append(result)
        if PartialState().is_main_process:
            console.print(_line(number, len(jobs), result, time.perf_counter() - started), highlight=False)
    return results


def _line(number: int, total: int, result: TaskResult, seconds: float) -> str:
    head = f"[{number}/{total}] {result.task.name}: ".replace("[", r"\[")
    if result.result is None:
        return f"{head}[yellow]{result.status}[/] ({result.reason})"
    value = result.result["value"]
    shown = "no value" if value is None else f"{value:.4f}"
    return f"{head}{result.result['metric']} {shown} ({result.status}, {seconds:.1f} s)"


def _run_job(
    job: Job,
    its_locations: Sequence[DataLocation | DataSourceError],
    model: Encoder | Captioner,
    options: EvaluationOptions,
) -> TaskResult:
    task = job.task
    reasons = [str(location) for location in its_locations if isinstance(location, DataSourceError)]
    for location in its_locations:
        if isinstance(location, DataSourceError):
            continue
        file = options.output_dir / "tasks" / f"{slug(task.name)}.json"
        prompts = class_texts(task, list(task.classes), options.templates, options.descriptions)
        settings = task_settings(task, location, prompts if task.classes else None, model, options)
        kept = None if options.overwrite else _kept(file, settings)
        if kept is not None:
            return TaskResult(task, "kept", location, kept)
        try:
            data = _everywhere(partial(job.load, location))
            return _measure(task, location, data, model, file, settings, options)
        except DataSourceError as error:
            reasons.append(str(error))
        except Exception as error:  # a failure of one task must not stop the others
            return TaskResult(task, "failed", location, reason=f"{type(error).__name__}: {error}")
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
    reports = gather_object([(unreachable, wrong)])
    for text in (text for _, text in reports if text):
        raise RuntimeError(text)
    for text in (text for text, _ in reports if text):
        raise DataSourceError(text)
    return result[0]


def _kept(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """An earlier result with exactly these settings."""
    if not file.is_file():
        return None
    try:
        result = read_json(file)
    except ValueError:
        return None
    same = result.get("settings") == json.loads(json.dumps(settings))
    return result if same else None


def task_settings(
    task: Task, location: DataLocation, prompts: Prompts | None, model: Encoder | Captioner, options: EvaluationOptions
) -> dict[str, Any]:
    """All that a task's number depends on."""
    return {
        "task": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "source": None if location.source is None else asdict(location.source),
        "location": location.name,
        "revision": location.revision,
        "identity": location.identity,
        "fidelity": location.fidelity,
        "expected_clips": task.size,
        "limit": options.limit,
        "limit_seed": LIMIT_SEED,
        "templates": list(options.templates or task.templates),
        "prompt_status": "ours" if options.templates or options.descriptions else task.prompt_status,
        "prompts": prompts,
        "descriptions": {name: list(texts) for name, texts in options.descriptions.items()},
        "classes": list(task.classes) or "of the data",
        "scores": options.scores or ("sigmoid" if task.multi_label else "softmax"),
        "bootstrap": bootstrap_settings(),
        "model": model.settings(),
    }


def bootstrap_settings() -> dict[str, int]:
    """How the intervals are made."""
    return {
        "samples": BOOTSTRAP_SAMPLES,
        "ranking_samples": RANKING_BOOTSTRAP_SAMPLES,
        "seed": BOOTSTRAP_SEED,
    }


def versions() -> dict[str, str]:
    """Versions of what computed the scores."""
    names = ("clap-hf", "torch", "transformers", "datasets", "numpy", "soundfile")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def chosen_positions(clips: int, limit: int | None) -> list[int]:
    """All clips, or `limit` of them drawn by a fixed seed, so that no class is favoured by its position."""
    if limit is None or limit >= clips:
        return list(range(clips))
    return sorted(np.random.default_rng(LIMIT_SEED).permutation(clips)[:limit].tolist())


def _measure(
    task: Task,
    location: DataLocation,
    data: TaskData,
    model: Any,
    file: Path,
    settings: dict[str, Any],
    options: EvaluationOptions,
) -> TaskResult:
    data = data.select(chosen_positions(len(data), options.limit))
    captioning = task.kind == "captioning"

    def encode_batch(prepared: list[Any]) -> list[dict[str, Any]]:
        if captioning:
            return [{"caption": caption} for caption in model.caption(prepared)]
        return [{"vector": vector} for vector in model.embed_audio(prepared).numpy()]

    cache_key = f"{location.identity} {'captions' if captioning else ''}"
    cache = EmbeddingCache(options.cache_dir / "embeddings", cache_key, model.key)
    if options.collection is not None and not captioning and PartialState().is_main_process:
        take_from_collection(options.collection, model.key, data.audio, data.rows, cache)
    encoded = encode_clips(
        data.audio, data.rows, model, encode_batch, cache, name=task.name, retry_skipped=options.overwrite
    )
    if not PartialState().is_main_process:
        return TaskResult(task, "done", location)
    skipped = {str(p): encoded.skipped[p] for p in data.rows if p in encoded.skipped}
    readable = data.select([i for i, position in enumerate(data.rows) if position in encoded])
    if not readable.rows:
        first = next(iter(skipped.values()), "there is none")
        raise ValueError(f"none of {len(data)} sounds could be read; the first: {first}")
    details = None
    if captioning:
        result = score_captions([encoded.captions[p] for p in readable.rows], readable.captions)
    else:
        audio = np.stack([encoded.vectors[p] for p in readable.rows])
        if task.kind == "classification":
            prompts = class_texts(task, data.classes, options.templates, options.descriptions)
            scale, scores = model.logit_scale, settings["scores"]
            result, details = score_classification(
                task, readable, audio, prompts, model.embed_texts, logit_scale=scale, scores=scores
            )
        else:
            result, details = score_retrieval(task, readable, audio, model.embed_texts)
    comparable, value = location.source is not None, result["value"]
    record = {
        "task": task.name,
        **result,
        # Clips of one's own, under a name of the paper's, are not what the paper measured.
        "paper": task.paper if comparable else None,
        "benchmark": task.benchmark if comparable else None,
        "delta": None if not comparable or task.paper is None or value is None else value - task.paper,
        "note": task.note,
        "skipped": skipped,
        "left_out_labels": data.left_out,
        "settings": settings,
        "versions": versions(),
    }
    write_json(file, record)
    if options.plots and details is not None:
        _plot(details, task, options.output_dir / "plots" / slug(task.name))
    return TaskResult(task, "done", location, json.loads(json.dumps(record)))


def _plot(details: Details, task: Task, folder: Path) -> None:
    try:
        from .plots import draw
    except ImportError:
        return  # matplotlib is an extra; the command prints that once
    draw(details, task.name, folder)
