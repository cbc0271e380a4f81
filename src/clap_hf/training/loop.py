"""The training loop of every stage: steps, evaluation, checkpoints, resume.

Every random choice is drawn from (seed, step), so that a run which was stopped anywhere and resumed goes on as if it
had never stopped: the state of a run is its weights, its optimiser and the number of the step.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from ..atomic_io import replace_folder, restore_folder, write_json
from ..hub import BackgroundPush
from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from .distributed import any_rank, average_gradients, copy_from_main, gather_objects, launched_world_size
from .optimization import Schedule, build_optimizer, update_average
from .records import RECORD, RunRecord, RunState, check_trackers
from .resume import checkpoint_name, has_checkpoint, load_checkpoint, newest_checkpoint, save_checkpoint
from .settings import TrainingSettings
from .stage import Batch, Position, TrainingStage

LAST, BEST, NEWEST = "last", "best", "newest"
NOT_FINITE = "not_finite.json"  # where a run's loss was not finite
EVALUATION_TIMEOUT = timedelta(hours=6)  # the other ranks wait while the main one evaluates
LIST_STEPS = 100  # steps between looks at how many rows could not be read
MAY_CHANGE = {"name", "dataset", "checkpoint_steps", "max_skipped"}  # settings that a resumed run may change


def make_accelerator(
    settings: TrainingSettings, output_dir: Path | None = None, trackers: Sequence[str] = ()
) -> Accelerator:
    """The Accelerator of a run, over all ranks that `accelerate launch` or `torchrun` started.

    Args:
        settings: Its precision counts.
        output_dir: Where trackers that write files do so.
        trackers: Names that Accelerate knows: `"tensorboard"`, `"wandb"`, `"trackio"` ...
    """
    return Accelerator(
        mixed_precision=settings.precision,
        cpu=launched_world_size() > 1 and not torch.cuda.is_available(),
        log_with=list(trackers) or None,
        project_dir=output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=EVALUATION_TIMEOUT)],
    )


def train(
    stage: TrainingStage,
    settings: TrainingSettings,
    output_dir: Path,
    *,
    resume: bool = False,
    trackers: Sequence[str] = (),
    push: BackgroundPush | None = None,
    facts: dict[str, Any] | None = None,
    evaluate_first: bool = False,
) -> dict[str, Any]:
    """Train a stage.

    Args:
        stage: The stage.
        settings: Its recipe.
        output_dir: Gets `run.jsonl` (a line per start and per epoch), `last/` (to resume from), `best/` (for
            `from_pretrained`), `skipped.jsonl` (rows that could not be read) and `shortened.jsonl` (rows of which
            sound is missing or damaged).
        resume: Continue from the newest whole checkpoint in `last/`, at its exact step; the world size may be
            another.
        trackers: Trackers, by the names that Accelerate knows; one that is not installed is left out with a message.
        push: Uploads the best epoch, to its main branch, and the newest, to `last`, while training goes on.
        facts: What is known of the data, for the record of the start: `pairs`, `held_out`, `skipped`, `reasons`.
        evaluate_first: Evaluate before the first step, too; `before` in the record of the start.

    Returns:
        The record of the best epoch since this call; empty if there was none.

    Raises:
        FileExistsError: If the folder holds another run and `resume` is not given.
        FileNotFoundError: If there is nothing to resume.
        ValueError: If the batch does not divide by the world size, the settings do not fit the data or the evaluation,
            or the run was begun with other settings or data.
        RuntimeError: If more rows than `max_skipped` could not be read; or if the loss or its gradient is not finite:
            `not_finite.json` names the step and its batch then, and what was saved before stays.
    """
    return _Loop(
        stage, settings, output_dir, resume, check_trackers(trackers), push, facts or {}, evaluate_first
    ).run()


class _Loop:
    """A run: its stage, optimiser, averaged weights, state and records."""

    def __init__(
        self,
        stage: TrainingStage,
        settings: TrainingSettings,
        output_dir: Path,
        resume: bool,
        trackers: list[str],
        push: BackgroundPush | None,
        facts: dict[str, Any],
        evaluate_first: bool,
    ):
        self.stage, self.settings, self.output_dir, self.push = stage, settings, output_dir, push
        self.accelerator = make_accelerator(settings, output_dir, trackers)
        if (output_dir / RECORD).exists() and not resume:
            raise FileExistsError(
                f"{output_dir} holds a run already. Pass --resume to continue it, or another folder."
            )
        self.accelerator.wait_for_everyone()  # all have looked
        if settings.batch_size % self.accelerator.num_processes:
            raise ValueError(
                f"batch_size is {settings.batch_size} over all ranks, expected a multiple of their number, "
                f"{self.accelerator.num_processes}."
            )
        self.steps_per_epoch = steps_of_an_epoch(stage, settings)
        self.epochs = settings.num_epochs(self.steps_per_epoch)
        check_metrics(stage.metrics, settings)
        output_dir.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            restore_folder(output_dir / BEST)
        for module in (stage.model, stage.criterion):
            module.to(self.accelerator.device)
            copy_from_main(module)
        stage.setup(self.accelerator)
        if settings.gradient_checkpointing:
            stage.model.gradient_checkpointing_enable()
        self.optimizer = build_optimizer([stage.model, stage.criterion], settings)
        self.schedule = Schedule(self.optimizer, settings, self.epochs * self.steps_per_epoch)
        self.parts: dict[str, Any] = {
            "model": stage.model,
            "criterion": stage.criterion,
            "optimizer": self.optimizer,
            "schedule": self.schedule.scheduler,
        }
        self.average = stage.model
        if settings.ema_decay:
            self.average = copy.deepcopy(stage.model).eval().requires_grad_(False)
            self.parts["average"] = self.average
        self.state = self.load() if resume else RunState()
        self.record = RunRecord(output_dir, self.accelerator, settings, self.state, self.steps_per_epoch)
        self.record.announce(facts, self.epochs, stage.remark(self.accelerator.num_processes))
        before: dict[str, Any] = {}
        if evaluate_first and not self.state.step:
            before = {"before": gather_objects(stage.evaluate(self.average, self.accelerator))[0]}
        self.record.start(trackers, ({"data": facts} if facts else {}) | before)

    def run(self) -> dict[str, Any]:
        """All epochs that are left; returns the record of the best of them."""
        best: dict[str, Any] = {}
        with StopRequest() as stop:
            for epoch in range(self.state.epoch, self.epochs):
                if not self.train_epoch(epoch, stop):
                    self.record.log(f"Stopped after step {self.state.step}; --resume continues there.")
                    break
                record = self.evaluate()
                if record.get("best"):
                    best = record
        if self.push is not None and self.accelerator.is_main_process:
            for message in self.push.close():
                self.record.log(f"Not pushed: {message}; push {self.output_dir / BEST} again by hand.")
        self.accelerator.end_training()
        return best

    def train_epoch(self, epoch: int, stop: StopRequest) -> bool:
        """The steps of an epoch that are left; False if the run was asked to stop."""
        stage, settings, state, accelerator = self.stage, self.settings, self.state, self.accelerator
        first, last = state.step, (epoch + 1) * self.steps_per_epoch
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        rank, world_size = accelerator.process_index, accelerator.num_processes
        done = first - epoch * self.steps_per_epoch
        batches = stage.data.batches(epoch, done, rank, world_size) if first < last else ()
        iterator = iter(itertools.islice(batches, last - first))
        stage.train_mode()
        with self.record.bar(epoch):
            while True:
                started = time.perf_counter()
                batch = _next_batch(iterator, stop)
                waited = time.perf_counter() - started
                if any_rank(stop.requested, accelerator.device):
                    self.save()
                    return False
                if batch is None:
                    break
                self.record.skipped += batch.pop("skipped", [])
                self.record.shortened += batch.pop("shortened", [])
                position = Position(settings.seed, state.step, epoch, rank=rank, world_size=world_size)
                batch = batch_on_device(batch, stage.processor.feature_extractor, accelerator.device)
                metrics = stage.backward(accelerator, stage.prepare_batch(batch, position), position)
                average_gradients(parameters)
                norm = torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or float("inf"))
                self.check_finite(metrics["loss"], norm, batch)
                self.optimizer.step()
                self.schedule.after_step()
                self.optimizer.zero_grad()
                if settings.ema_decay:
                    update_average(self.average, stage.model, settings.ema_decay, state.step)
                state.step += 1
                metrics |= {"gradient_norm": norm}
                self.record.after_step(metrics, time.perf_counter() - started, waited, self.learning_rate)
                if state.step % LIST_STEPS == 0:
                    self.record.list_skipped()
                if settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0:
                    self.save()
        if state.step != last:
            raise RuntimeError(
                f"The data of epoch {epoch + 1} ended {last - state.step} steps early. Lower steps_per_epoch, which "
                f"is {self.steps_per_epoch}, or set it to null for the data's own."
            )
        self.save()  # evaluation can take long, and a scheduler that wants the machine will not wait for it
        return True

    def check_finite(self, loss: torch.Tensor, norm: torch.Tensor, batch: Batch) -> None:
        """Stop before the optimiser's step if the loss or the gradient is not finite; every rank calls this.

        Args:
            loss: This rank's loss, a scalar.
            norm: Norm of the gradient, a scalar.
            batch: This rank's share of the batch, for its `ids`, or `rows` of the dataset.

        Raises:
            RuntimeError: On every rank, if one of them is not finite on any.
        """
        finite = bool(torch.isfinite(torch.stack([loss.float(), norm.float()])).all())
        if not any_rank(not finite, self.accelerator.device):
            return
        self.record.list_skipped()
        rows = batch.get("rows")
        shares = gather_objects({"ids": batch.get("ids"), "rows": None if rows is None else rows.tolist()})
        found = {
            "step": self.state.step + 1,
            "epoch": self.state.epoch + 1,
            "loss": repr(loss.item()),
            "gradient_norm": repr(norm.item()),
            "learning_rate": self.learning_rate,
            "batch": shares,
        }
        if self.accelerator.is_main_process:
            write_json(self.output_dir / NOT_FINITE, found)
        self.accelerator.wait_for_everyone()
        raise RuntimeError(
            f"Step {found['step']}: the loss is {found['loss']} and its gradient's norm {found['gradient_norm']}, "
            f"expected finite numbers. {self.output_dir / NOT_FINITE} names the batch; {BEST}/ and {LAST}/ stay as "
            "they were. Leave out the clips at fault, or lower learning_rate or max_grad_norm, and start a new run."
        )

    @property
    def learning_rate(self) -> float:
        """The rate of the next step, of the first group of parameters."""
        return self.optimizer.param_groups[0]["lr"]

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the epoch whose steps are done, keep it if it is the best, and save; returns its record."""
        stage, settings, state = self.stage, self.settings, self.state
        started = time.perf_counter()
        results = gather_objects(stage.evaluate(self.average, self.accelerator))[0]  # the main rank's, everywhere
        results = {"step": state.step} | results
        check_metrics(sorted(results), settings)
        value, sign = float(results[settings.best_metric]), 1 if settings.best_mode == "max" else -1
        record = self.record.epoch(self.learning_rate) | results
        record["evaluation_seconds"] = time.perf_counter() - started
        if not math.isfinite(value):
            self.record.log(f"Epoch {state.epoch + 1}: {settings.best_metric} is {value}, so it is not kept as best.")
        elif state.best is None or sign * value > sign * state.best:
            state.best = value
            record["best"] = True
            if self.accelerator.is_main_process:
                replace_folder(self.output_dir / BEST, partial(stage.save, model=self.average))
        self.schedule.after_epoch(results.get(settings.plateau_metric))
        state.epoch, state.totals, state.seconds, state.waiting = state.epoch + 1, {}, 0.0, 0.0
        self.record.write(record)
        self.save()
        if self.push is not None and self.accelerator.is_main_process:
            message = f"Epoch {state.epoch}: {settings.best_metric} {value:.4f}"
            if record.get("best"):
                self.push.submit(self.output_dir / BEST, message)
            replace_folder(self.output_dir / NEWEST, partial(stage.save, model=self.average))
            self.push.submit(self.output_dir / NEWEST, message, revision=LAST)
        return record

    def save(self) -> None:
        """Write `last/`; every rank calls this at the same step."""
        self.record.list_skipped()
        self.record.copy_totals()
        if self.accelerator.is_main_process:
            evaluated = self.state.step == self.state.epoch * self.steps_per_epoch
            tensors = {name: part.state_dict() for name, part in self.parts.items()}
            about = {
                "state": asdict(self.state),
                "stage": self.stage.state(),
                "data": self.stage.data.fingerprint(),
                "settings": self.settings.to_dict(),
            }
            save_checkpoint(self.output_dir / LAST, checkpoint_name(self.state.step, evaluated), tensors, about)
        self.accelerator.wait_for_everyone()

    def load(self) -> RunState:
        """Restore everything from the newest whole checkpoint; a run killed before its first one begins again."""
        if (self.output_dir / RECORD).exists() and not has_checkpoint(self.output_dir / LAST):
            return RunState()
        path = newest_checkpoint(self.output_dir / LAST)
        tensors, about = load_checkpoint(path)
        now = json.loads(json.dumps(self.settings.to_dict()))  # as the checkpoint went through JSON
        before = about["settings"]
        changed = [name for name in {**now, **before} if now.get(name) != before.get(name) and name not in MAY_CHANGE]
        if changed:
            found = ", ".join(f"{name}: {before.get(name)!r} then, {now.get(name)!r} now" for name in changed)
            raise ValueError(f"{path} was begun with other settings ({found}). Resume with the same recipe.")
        data = self.stage.data.fingerprint()
        if about["data"] != data:
            raise ValueError(
                f"{path} was begun on other data (fingerprint {about['data']!r} then, {data!r} now). Resume on the "
                "same files, or start a new run from best/."
            )
        for name, part in self.parts.items():
            part.load_state_dict(tensors[name])
        self.stage.load_state(about["stage"])
        return RunState(**about["state"])


def steps_of_an_epoch(stage: TrainingStage, settings: TrainingSettings) -> int:
    """Steps between evaluations.

    Raises:
        ValueError: If the data have fewer, their number is not known, or a run is shorter.
    """
    of_data, asked = stage.data.steps_per_epoch(), settings.steps_per_epoch
    if asked is None and of_data is None:
        raise ValueError("steps_per_epoch is null, but the data are streamed without a plan. Set steps_per_epoch.")
    if asked is not None and of_data is not None and asked > of_data:
        raise ValueError(
            f"steps_per_epoch is {asked}, but one pass over the data has {of_data} steps of {settings.batch_size}. "
            "Lower it, or set it to null for the data's own."
        )
    found = asked or of_data or 0
    if settings.steps is not None and settings.steps < found:
        raise ValueError(
            f"steps is {settings.steps}, expected at least an epoch's {found}: a run ends with the evaluation of an "
            f"epoch. Set steps_per_epoch to {settings.steps} too, or more steps."
        )
    return found


def check_metrics(known: Sequence[str] | None, settings: TrainingSettings) -> None:
    """Refuse a metric that the evaluation does not return.

    Args:
        known: What it returns; nothing is refused when None.
        settings: Name the metrics.

    Raises:
        ValueError: If one of them is none of these.
    """
    asked = {"best_metric": settings.best_metric}
    if settings.schedule == "plateau":
        asked["plateau_metric"] = settings.plateau_metric
    for name, metric in asked.items():
        if known is not None and metric not in ("step", *known):
            raise ValueError(
                f"{name} is {metric!r}, expected one of what the evaluation returns: {sorted({'step', *known})}."
            )


class StopRequest:
    """Records SIGTERM, which job schedulers send before they kill; the loop checks for it between steps."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self.previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self.previous)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def batch_on_device(batch: Batch, extractor: MSClapFeatureExtractor, device: torch.device) -> Batch:
    """Move a batch's tensors to the device, and make log-mels there of its waveforms, where it holds such.

    Args:
        batch: See `Batches`.
        extractor: Makes the log-mels `[1, frames, mel]`, dB.
        device: Where to.
    """
    moved = {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    if "waveforms" in moved:
        with torch.inference_mode():
            parts = [part.to(device, non_blocking=True) for part in moved.pop("waveforms")]
            features = extractor.log_mels(waveform for part in parts for waveform in part)
        moved["input_features"] = features[:, None].clone()
    return moved


def _next_batch(iterator: Iterator[Batch], stop: StopRequest) -> Batch | None:
    """The next batch; None at the end, or where loader processes died of the signal that asks to stop."""
    try:
        return next(iterator, None)
    except RuntimeError:
        if stop.requested:
            return None
        raise
