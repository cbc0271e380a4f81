"""`clap-hf evaluate`: from the user's request to results on disk and a table on the console."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.constants import HF_HOME
from rich.console import Console

from ..embedding import ClapEncoder
from ..model.modeling_msclap import MSClapModel
from ..model.modeling_msclap_captioning import MSClapForAudioCaptioning
from ..model.processing_msclap import MSClapProcessor
from ..pretrained import checkpoint_path
from .benchmarks import SUITES
from .captioner import ClapCaptioner
from .loading import DataSourceError, own_tasks
from .runner import Job, Options, TaskResult, find_places, paper_jobs, run
from .suite_report import fetched_bytes, listing, result_table, score_line, size_text, write_report

ALL_RAN, FAILED, NOT_REACHED = 0, 1, 3
SUITE_NAMES = (*SUITES, "sounds", "own", "maeb")


@dataclass(frozen=True)
class EvaluationRequest:
    """What a user asks of `clap-hf evaluate`; see its help.

    Args:
        model: `"embedded"`, a folder, or a Hub id.
        captioner: Folder or Hub id of a captioning model, for the captioning tasks.
        suite: `"paper"`, `"table1"`, `"sounds"`, `"own"` or `"maeb"`.
        tasks: Names of the suite's tasks to run; all when None.
        data_dir: Folder with CSVs, or the sound corpus.
        output_dir: Gets the results.
        cache_dir: Keeps embeddings; below the Hugging Face home when None.
        templates: Prompts that replace the tasks'.
        descriptions: JSON file, class -> texts.
        scores: See `Options`.
        long_audio: Policy for clips longer than the window.
        limit: Clips a task at most.
        device: Torch device; the process' own when None.
        num_workers: Loader processes.
        plots: Whether to draw.
        overwrite: Score again what is done.
        dry_run: Only list.
    """

    model: str
    captioner: str | None = None
    suite: str = "paper"
    tasks: tuple[str, ...] | None = None
    data_dir: str | None = None
    output_dir: Path = Path("results")
    cache_dir: Path | None = None
    templates: tuple[str, ...] | None = None
    descriptions: Path | None = None
    scores: str | None = None
    long_audio: str | None = None
    limit: int | None = None
    device: str | None = None
    num_workers: int = 0
    plots: bool = True
    overwrite: bool = False
    dry_run: bool = False


def evaluate_model(request: EvaluationRequest, console: Console) -> int:
    """Run a suite.

    Args:
        request: What to run.
        console: Gets the listing, a line a task, and the table.

    Returns:
        Exit code: 0 if every task ran, 1 if one failed or none ran, 3 if some had no source in reach.

    Raises:
        ValueError: If the suite or a task is unknown, or an option is out of range.
        OSError: If the model or a file cannot be read.
    """
    if request.suite not in SUITE_NAMES:
        raise ValueError(f"suite is {request.suite!r}, expected one of {SUITE_NAMES}.")
    options = Options(
        request.templates,
        _descriptions(request.descriptions),
        request.scores,
        request.limit,
        request.num_workers,
        request.plots,
        request.overwrite,
    )
    # Told here, since on CPUs it starts no process group by itself; later calls find this one.
    state = PartialState(cpu=request.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"))
    quiet = console if state.is_main_process else Console(quiet=True)
    if request.suite == "maeb":
        from .mteb import run_maeb

        return run_maeb(load_encoder(request), request.tasks, request.output_dir, quiet, request.dry_run)

    cache_dir = request.cache_dir or Path(HF_HOME) / "clap_hf"
    jobs = _jobs(request, cache_dir)
    found = find_places(jobs)
    quiet.print(listing(jobs, found, full=request.dry_run))
    size = size_text(fetched_bytes(found))
    quiet.print(f"{len(jobs)} tasks; to fetch, at most, what is not in the local cache of: {size}.")
    if request.dry_run:
        return ALL_RAN
    encoder = load_encoder(request)
    if options.plots and importlib.util.find_spec("matplotlib") is None:
        quiet.print("[yellow]No plots: matplotlib is not installed (pip install clap-hf\\[plots]).[/]")
    outcomes = run(
        jobs, found, encoder, load_captioner(request), request.output_dir, cache_dir / "embeddings", options, quiet
    )
    if state.is_main_process:
        _report(request, outcomes, quiet)
    state.wait_for_everyone()
    return _exit_code(outcomes)


def _jobs(request: EvaluationRequest, cache_dir: Path) -> list[Job]:
    if request.suite == "sounds":
        if request.data_dir is None:
            raise ValueError("suite sounds needs data_dir, the folder or Hub id of the sound corpus.")
        from .sound_suite import sound_jobs

        jobs = sound_jobs(request.data_dir)
    else:
        folder = None if request.data_dir is None else Path(request.data_dir)
        if folder is not None and not folder.is_dir():
            raise ValueError(f"data_dir {folder} is not a folder, expected one with CSVs named after tasks.")
        if request.suite == "own" and folder is None:
            raise ValueError("suite own needs data_dir, a folder with CSVs path,label or path,caption.")
        try:
            tasks = own_tasks(folder) if request.suite == "own" and folder is not None else SUITES[request.suite]
        except DataSourceError as error:
            raise ValueError(str(error)) from error
        jobs = paper_jobs(tasks, folder, cache_dir)
    if request.tasks is None:
        return jobs
    names = [job.task.name for job in jobs]
    unknown = [name for name in request.tasks if name not in names]
    if unknown:
        raise ValueError(f"tasks {unknown} are not in the suite {request.suite}, expected some of {names}.")
    return [job for job in jobs if job.task.name in request.tasks]


def _descriptions(path: Path | None) -> dict[str, tuple[str, ...]]:
    """Class -> texts, from a JSON file."""
    if path is None:
        return {}
    given = json.loads(path.read_text(encoding="utf-8"))
    right = isinstance(given, dict) and all(
        isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts) for texts in given.values()
    )
    if not right:
        raise ValueError(f'{path} is not a JSON object of lists of texts, expected {{"dog": ["a dog barks", ...]}}.')
    return {name: tuple(texts) for name, texts in given.items()}


def load_encoder(request: EvaluationRequest) -> ClapEncoder:
    """The model that a request names, in float32 on the process' device."""
    name = checkpoint_path(request.model)
    model = MSClapModel.from_pretrained(name, dtype=torch.float32).eval().to(request.device or PartialState().device)
    processor = MSClapProcessor.from_pretrained(name)
    return ClapEncoder(model, processor, request.model, request.long_audio)


def load_captioner(request: EvaluationRequest) -> ClapCaptioner | None:
    """The captioning model that a request names."""
    if request.captioner is None:
        return None
    model = MSClapForAudioCaptioning.from_pretrained(request.captioner, dtype=torch.float32)
    processor = MSClapProcessor.from_pretrained(request.captioner)
    return ClapCaptioner(model.eval().to(request.device or PartialState().device), processor, request.captioner)


def _report(request: EvaluationRequest, outcomes: list[TaskResult], console: Console) -> None:
    name = Path(request.model).name if Path(request.model).is_dir() else request.model
    title = f"{name}, suite {request.suite}" + ("" if request.limit is None else f", limit {request.limit}")
    write_report(outcomes, request.output_dir, title, Path(request.model).name)
    console.print(result_table(outcomes, title))
    console.print(score_line(outcomes), highlight=False)
    for outcome in outcomes:
        if outcome.status == "failed":
            console.print(f"[red]{outcome.task.name} failed:[/] ", end="")
            console.print(outcome.reason, markup=False)
    console.print(
        f"Everything is in {request.output_dir}/: results.md, results.json, model_index.yaml, tasks/, plots/."
    )


def _exit_code(outcomes: list[TaskResult]) -> int:
    statuses = {outcome.status for outcome in outcomes}
    if "failed" in statuses or not statuses & {"done", "kept"}:
        return FAILED
    return NOT_REACHED if "not reached" in statuses else ALL_RAN
