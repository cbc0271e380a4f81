"""Run logging: run.jsonl, skipped rows, trackers, progress."""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..atomic_io import write_text
from .distributed import gather_objects
from .settings import TrainingSettings
from .stage import Metrics

RECORD, SKIPPED, SHORTENED = "run.jsonl", "skipped.jsonl", "shortened.jsonl"
LOG_STEPS = 20
EARLY_STEPS = (1, 2, 5, 10)  # the first lines come soon, as a sign that the run works


@dataclass
class RunState:
    """Progress of a run, beside its tensors; JSON in its checkpoints.

    Args:
        step: Optimiser steps done.
        epoch: Epochs done, with their evaluation.
        best: Best value of the best metric so far.
        totals: Sums of the logged metrics over the running epoch's steps.
        seconds: Time spent in the running epoch's steps, s.
        waiting: Of these, time spent waiting for data, s.
        skipped: Rows that could not be read, listed so far.
        shortened: Rows of which sound was missing or damaged, listed so far.
    """

    step: int = 0
    epoch: int = 0
    best: float | None = None
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    waiting: float = 0.0
    skipped: int = 0
    shortened: int = 0


class RunRecord:
    """Records of a run; the main rank writes them.

    Args:
        output_dir: Gets `run.jsonl`, `skipped.jsonl` and `shortened.jsonl`.
        accelerator: The run's.
        settings: The run's.
        state: Counts are kept in it.
        steps_per_epoch: Steps of an epoch.
    """

    def __init__(
        self,
        output_dir: Path,
        accelerator: Accelerator,
        settings: TrainingSettings,
        state: RunState,
        steps_per_epoch: int,
    ):
        self.output_dir, self.accelerator, self.settings, self.state = output_dir, accelerator, settings, state
        self.steps_per_epoch = steps_per_epoch
        self.trackers: tuple[str, ...] = ()
        self.on_device: dict[str, torch.Tensor] = {}  # sums that have not been copied to the state yet
        self.skipped: list[dict[str, str]] = []  # rows that have not been listed yet
        self.shortened: list[dict[str, str]] = []
        self.progress: Progress | None = None

    def announce(self, facts: dict[str, Any], epochs: int, remark: str) -> None:
        """Print what a run works on before its first step.

        Args:
            facts: See `clap_hf.training.loop.train`.
            epochs: Epochs of the run.
            remark: What depends on the number of processes.
        """
        count, batch = self.accelerator.num_processes, self.settings.batch_size
        line = f"{count} process{'es' if count > 1 else ''}, batches of {batch}, "
        line += f"{epochs} epochs of {self.steps_per_epoch} steps"
        if facts.get("pairs") is not None:
            line += f"; {facts['pairs']:,} readable pairs"
            line += f", {facts['held_out']:,} more held out" if facts.get("held_out") is not None else ""
            line += f"; {facts['skipped']:,} rows skipped"
        self.log(f"{line}.")
        for name, reason in list(facts.get("reasons", {}).items())[:1]:
            self.log(f"The first skipped, {name}: {reason}")
        if remark:
            self.log(remark)

    def start(self, trackers: Sequence[str], more: dict[str, Any]) -> None:
        """Write the line of a start, first cutting what a killed run wrote after its last checkpoint.

        Args:
            trackers: Names of trackers.
            more: Further facts for that line.
        """
        start = {
            "recipe": self.settings.to_dict(),
            "from_step": self.state.step,
            "processes": self.accelerator.num_processes,
            "versions": versions(),
            "local": _local_names(self.settings.to_dict()),
            **more,
        }
        if self.accelerator.is_main_process:
            _keep_lines(self.output_dir / RECORD, lambda i, line: line.get("epoch", 0) <= self.state.epoch)
            _keep_lines(self.output_dir / SKIPPED, lambda i, line: i < self.state.skipped)
            _keep_lines(self.output_dir / SHORTENED, lambda i, line: i < self.state.shortened)
            _append(self.output_dir / RECORD, start)
        if trackers:
            self.trackers = tuple(trackers)
            self.accelerator.init_trackers("tracking", config={"recipe": json.dumps(start["recipe"])})

    @contextmanager
    def bar(self, epoch: int) -> Iterator[None]:
        """A progress bar over an epoch's steps, for a terminal."""
        first = self.state.step - epoch * self.steps_per_epoch
        columns = (TextColumn(f"epoch {epoch + 1}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(
            *columns,
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            transient=True,
            disable=not self.accelerator.is_main_process,
        ) as self.progress:
            self.bar_task = self.progress.add_task("", total=self.steps_per_epoch, completed=first, loss="")
            yield

    def after_step(self, metrics: Metrics, seconds: float, waited: float, learning_rate: float) -> None:
        """Count a step, and log it now and then.

        Args:
            metrics: Scalars to average over the epoch, on the device.
            seconds: Length of the step, s.
            waited: Of it, time spent waiting for data, s.
            learning_rate: The rate of the next step.
        """
        state = self.state
        for name, value in metrics.items():
            self.on_device[name] = self.on_device.get(name, 0) + value.detach().float()
        state.seconds += seconds
        state.waiting += waited
        done = (state.step - 1) % self.steps_per_epoch + 1  # steps of this epoch
        if self.progress is not None:
            self.progress.update(self.bar_task, completed=done)
        if done % LOG_STEPS == 0 or done == self.steps_per_epoch or state.step in EARLY_STEPS:
            current = {name: value.item() for name, value in metrics.items()}
            self.copy_totals()
            self.track(current | {"learning_rate": learning_rate} | self.speed(done))
            loss = state.totals["loss"] / done
            if self.progress is not None:
                self.progress.update(self.bar_task, loss=f"loss {loss:.3f}")
                if not self.progress.console.is_terminal:
                    rate, share = self.speed(done)["clips_per_s"], self.speed(done)["waiting"]
                    self.log(
                        f"epoch {state.epoch + 1} step {done}: loss {loss:.3f}, {rate:.1f} clips/s, "
                        f"waiting for data {share:.0%}"
                    )

    def speed(self, steps: int) -> dict[str, float]:
        """Clips a second over all ranks, the share of time spent waiting for data, and the peak of memory."""
        seconds = max(self.state.seconds, 1e-9)
        return {
            "clips_per_s": steps * self.settings.batch_size / seconds,
            "waiting": self.state.waiting / seconds,
            "peak_memory_gib": peak_memory_gib(),
        }

    def copy_totals(self) -> None:
        """Add the sums on the device to the state's."""
        for name, value in self.on_device.items():
            self.state.totals[name] = self.state.totals.get(name, 0.0) + value.item()
        self.on_device = {}

    def epoch(self, learning_rate: float) -> dict[str, Any]:
        """The record of the epoch that just ended its steps: means over these."""
        self.copy_totals()
        return {
            "epoch": self.state.epoch + 1,
            "step": self.state.step,
            **{name: total / self.steps_per_epoch for name, total in self.state.totals.items()},
            "learning_rate": learning_rate,
            **self.speed(self.steps_per_epoch),
            "seconds": self.state.seconds,
            "skipped": self.state.skipped,
            "shortened": self.state.shortened,
        }

    def write(self, record: dict[str, Any]) -> None:
        """Append an epoch's record, print it and send its metrics to the trackers."""
        if self.accelerator.is_main_process:
            _append(self.output_dir / RECORD, record)
        self.log(json.dumps(record))
        self.track({f"epoch/{name}": value for name, value in _flat(record).items()})

    def track(self, metrics: dict[str, float]) -> None:
        """Send metrics to the trackers."""
        if self.trackers:
            self.accelerator.log(metrics, step=self.state.step)

    def log(self, line: str) -> None:
        """Print a line, from the main rank alone."""
        if self.accelerator.is_main_process:
            print(line, flush=True)

    def list_skipped(self) -> None:
        """List the unreadable and the shortened rows of all ranks; every rank calls this at the same step.

        Raises:
            RuntimeError: If there are more unreadable ones than the settings allow.
        """
        found = gather_objects((self.skipped, self.shortened))
        rows = [row for skipped, _ in found for row in skipped]
        shortened = [row for _, shortened in found for row in shortened]
        self.skipped, self.shortened = [], []
        if shortened and not self.state.shortened:
            self.log(f"Of some rows sound is missing or damaged; {SHORTENED} lists them, and the rest is trained on.")
        if self.accelerator.is_main_process:
            for row in shortened:
                _append(self.output_dir / SHORTENED, row)
        self.state.shortened += len(shortened)
        if not rows:
            return
        if self.accelerator.is_main_process:
            for row in rows:
                _append(self.output_dir / SKIPPED, row)
        self.state.skipped += len(rows)
        if self.state.skipped > self.settings.max_skipped:
            raise RuntimeError(
                f"{self.state.skipped} rows could not be read, more than max_skipped={self.settings.max_skipped}; the "
                f"last: {rows[-1]['id']}: {rows[-1]['reason']}. All are in {self.output_dir / SKIPPED}. Repair or "
                "leave out the source, or raise max_skipped, and pass --resume."
            )


def check_trackers(names: Sequence[str]) -> list[str]:
    """Names of the trackers that are installed; a missing one is named on stderr.

    Raises:
        ValueError: If Accelerate knows no such tracker.
    """
    installed = []
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"There is no tracker {name!r}, expected some of {sorted(LOGGER_TYPE_TO_CLASS)}.")
        if name in [str(kind) for kind in accelerate.tracking.get_available_trackers()]:
            installed.append(name)
        else:
            print(f"Tracker {name} is not installed: the run is recorded in {RECORD} only.", file=sys.stderr)
    return installed


def peak_memory_gib() -> float:
    """Most memory used so far, GiB: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def versions() -> dict[str, str]:
    """Versions and hardware that a run depends on, for its record."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "datasets": datasets.__version__,
        "machine": machine,
    }


def _local_names(value: Any) -> list[str]:
    """Texts of a recipe that are files or folders here, which a card names without their folders."""
    if isinstance(value, dict):
        return [name for part in value.values() for name in _local_names(part)]
    if isinstance(value, (list, tuple)):
        return [name for part in value for name in _local_names(part)]
    return [value] if isinstance(value, str) and "/" in value and Path(value).exists() else []


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Metrics of a nested record by their path."""
    metrics: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            metrics |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            metrics[f"{prefix}{name}"] = float(value)
    return metrics


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _keep_lines(path: Path, keep: Any) -> None:
    """Keep the lines of a JSON Lines file that a resumed run does not write again; a torn last line goes too."""
    if not path.exists():
        return
    kept = []
    for i, text in enumerate(path.read_text().splitlines()):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and keep(i, line):
            kept.append(text)
    write_text(path, "".join(f"{text}\n" for text in kept))
