"""`clap-hf evaluate`: from the user's options to results on disk and a table on the console."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from rich.console import Console

from ..adapters import load_model
from ..data.splits import load_split
from ..embedding import ClapEncoder
from ..model.modeling_msclap_captioning import MSClapForAudioCaptioning
from ..pretrained import checkpoint_path, load_checked
from ..text_files import read_json
from .benchmarks import SUITES
from .captioner import ClapCaptioner
from .loading import AudioColumn, DataLocation, DataSourceError, TaskData
from .own_sets import own_jobs
from .report import fetched_bytes, listing, result_table, score_line, size_text, task_entries, write_report
from .runner import EvaluationOptions, Job, TaskResult, find_locations, paper_jobs, run
from .sound_tasks import corpus_tasks, with_labels

ALL_RAN, FAILED, NOT_REACHED = 0, 1, 3


def evaluate_model(options: EvaluationOptions, console: Console) -> int:
    """Run a suite.

    Args:
        options: What to run.
        console: Gets the listing, a line a task, and the table.

    Returns:
        Exit code: 0 if every task ran, 1 if one failed or none ran, 3 if some had no source in reach.

    Raises:
        ValueError: If a task is unknown, or a file is not what is expected.
        OSError: If the model or a file cannot be read.
    """
    # The device is passed here, since on CPUs it starts no process group by itself; later calls find this one.
    state = PartialState(cpu=options.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"))
    quiet = console if state.is_main_process else Console(quiet=True)
    if options.suite == "maeb":
        from .mteb import run_maeb

        return run_maeb(load_encoder(options), options.tasks, options.output_dir, quiet, options.dry_run)

    before = _labels_before(options.relabelled)
    jobs = suite_jobs(options)
    found = find_locations(jobs)
    quiet.print(listing(jobs, found, full=options.dry_run))
    size = size_text(fetched_bytes(found))
    quiet.print(f"{len(jobs)} tasks; to fetch, at most, what is not in the local cache of: {size}.")
    if options.dry_run:
        return ALL_RAN
    encoder = load_encoder(options)
    if options.plots and importlib.util.find_spec("matplotlib") is None:
        quiet.print("[yellow]No plots: matplotlib is not installed (pip install clap-hf\\[plots]).[/]")
    results = run(jobs, found, encoder, load_captioner(options), options, quiet)
    earlier = None
    if before:
        jobs = suite_jobs(options, before)
        beside = replace(options, output_dir=options.output_dir / "before_relabelling", plots=False)
        measured = run(jobs, find_locations(jobs), encoder, None, beside, quiet)
        earlier = {"clips": len(before), "tasks": task_entries(measured, options.split)}
    if state.is_main_process:
        name = Path(options.model).name if Path(options.model).is_dir() else options.model
        title = f"{name}, suite {options.suite}" + ("" if options.limit is None else f", limit {options.limit}")
        write_report(results, options, title, encoder.settings(), earlier)
        _print_report(results, options, title, quiet)
    state.wait_for_everyone()
    return _exit_code(results)


def suite_jobs(options: EvaluationOptions, labels: dict[str, dict[str, str]] | None = None) -> list[Job]:
    """Jobs of the suite and the tasks that the options name.

    Args:
        options: Of the evaluation.
        labels: Labels of clips of the sound corpus that replace its own, by their ids.

    Raises:
        ValueError: If a task or the data folder is not there.
    """
    if options.suite == "sounds":
        jobs = sound_jobs(str(options.data_dir), options.split, labels)
    elif options.suite == "own":
        try:
            jobs = own_jobs(str(options.data_dir), options.split)
        except DataSourceError as error:
            raise ValueError(str(error)) from error
    else:
        folder = None if options.data_dir is None else Path(options.data_dir)
        if folder is not None and not folder.is_dir():
            raise ValueError(f"data_dir {folder} is not a folder, expected one with CSVs named after tasks.")
        jobs = paper_jobs(SUITES[options.suite], folder, options.cache_dir)
    if options.tasks is None:
        return jobs
    names = [job.task.name for job in jobs]
    unknown = [name for name in options.tasks if name not in names]
    if unknown:
        raise ValueError(f"tasks {unknown} are not in the suite {options.suite}, expected some of {names}.")
    return [job for job in jobs if job.task.name in options.tasks]


def sound_jobs(dataset: str, split: str = "test", labels: dict[str, dict[str, str]] | None = None) -> list[Job]:
    """Jobs on a split of the sound corpus.

    Args:
        dataset: Folder or Hub id of the corpus, see `python -m tools.sound_corpus`.
        split: The split.
        labels: Labels of clips that replace the corpus' own, by their ids.
    """
    corpus = load_split(dataset, split)
    audio, identity, name = AudioColumn(corpus, "audio"), f"corpus:{corpus._fingerprint}", f"sound corpus, {split}"
    if labels:
        digest = hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()
        corpus, name = with_labels(corpus, labels), f"{name}, other labels {digest[:8]}"
    location = DataLocation(None, None, name, identity)

    def job_of(task: Any, data: TaskData) -> Job:
        reached = location if data.rows else DataSourceError(f"{name} has too few clips for {task.name}")
        return Job(task, lambda: iter([reached]), lambda _: data)

    return [job_of(task, data) for task, data in corpus_tasks(corpus.remove_columns("audio").to_list(), audio)]


def _labels_before(path: Path | None) -> dict[str, dict[str, str]]:
    """Labels of clips before they were corrected, by the clips' ids."""
    if path is None:
        return {}
    try:
        return {clip["id"]: dict(clip["was"]) for clip in read_json(path)["clips"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error!r}; expected JSON with clips, each with id and was, its labels.") from error


def read_descriptions(path: Path) -> dict[str, tuple[str, ...]]:
    """Texts of classes from a JSON file `{"dog": ["a dog barks", ...]}`.

    Raises:
        ValueError: If the file holds something else.
    """
    given = read_json(path)
    right = all(
        isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in given.values()
    )
    if not right:
        raise ValueError(f'{path} is not a JSON object of lists of texts, expected {{"dog": ["a dog barks", ...]}}.')
    return {name: tuple(texts) for name, texts in given.items()}


def load_encoder(options: EvaluationOptions) -> ClapEncoder:
    """The model that the options name, in float32 on the process' device."""
    name = checkpoint_path(options.model)
    model, processor = load_model(name, dtype=torch.float32)
    model = model.to(options.device or PartialState().device)
    return ClapEncoder(model, processor, options.model, options.long_audio)


def load_captioner(options: EvaluationOptions) -> ClapCaptioner | None:
    """The captioning model that the options name."""
    if options.captioner is None:
        return None
    model, processor = load_checked(MSClapForAudioCaptioning, options.captioner, dtype=torch.float32)
    return ClapCaptioner(model.to(options.device or PartialState().device), processor, options.captioner)


def _print_report(results: list[TaskResult], options: EvaluationOptions, title: str, console: Console) -> None:
    console.print(result_table(results, title))
    console.print(score_line(results), highlight=False)
    for result in results:
        if result.status == "failed":
            console.print(f"[red]{result.task.name} failed:[/] ", end="")
            console.print(result.reason, markup=False)
    console.print(
        f"Everything is in {options.output_dir}/: results.md, results.json, model_index.yaml, tasks/, plots/."
    )


def _exit_code(results: list[TaskResult]) -> int:
    statuses = {result.status for result in results}
    if "failed" in statuses or not statuses & {"done", "kept"}:
        return FAILED
    return NOT_REACHED if "not reached" in statuses else ALL_RAN
