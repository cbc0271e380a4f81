"""Interface of a training stage: what the loop needs of its model, data, loss and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from ..embedding import evaluation_mode
from ..model.processing_msclap import MSClapProcessor

Batch = dict[str, Any]
Metrics = dict[str, torch.Tensor]  # scalars, detached, on the device


@dataclass(frozen=True)
class Position:
    """Where a run stands: everything random about a step is drawn from this, so that a resumed run draws the same.

    Args:
        seed: The run's seed.
        step: Optimiser steps done before this one.
        epoch: Epochs done before this one.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    seed: int
    step: int
    epoch: int
    rank: int
    world_size: int

    def random_seed(self, *more: int) -> int:
        """A seed of 63 bits from (seed, step, more)."""
        state = np.random.SeedSequence([self.seed, self.step, *more]).generate_state(1, np.uint64)
        return int(state[0] >> np.uint64(1))


class Batches(Protocol):
    """Source of a stage's examples."""

    def steps_per_epoch(self) -> int | None:
        """Steps of one pass over the data; None where their number is not known ahead."""

    def batches(self, epoch: int, first_step: int, rank: int, world_size: int, /) -> Iterable[Batch]:
        """This rank's share of every batch of an epoch, on the CPU.

        The global batches must not depend on `world_size`: a run may be resumed with another one.

        Args:
            epoch: Number of the epoch, from 0.
            first_step: Steps of the epoch that are done.
            rank: Rank of this process.
            world_size: Number of processes; divides the batch size.

        Returns:
            Batches from `first_step` to the epoch's end. A batch holds what the stage's loss takes; log-mels as
            `input_features` `[batch, 1, frames, mel]`, dB, or as `waveforms`, a list of `[clips, samples]`, from which
            the loop makes them on the device. Its `"skipped"`, if there, is the list of rows that could not be read,
            each a dict with `id` and `reason`; the loop counts and lists them.
        """

    def fingerprint(self) -> str:
        """Identifies the data: a run is resumed only on the data that it began with."""


class TrainingStage:
    """A training stage: its model, data and evaluation, and, in a subclass, its loss. The loop owns everything else.

    Args:
        model: What is trained, averaged, checkpointed and saved. The loop moves it to the device.
        processor: Saved beside the model; its feature extractor makes log-mels of a batch's waveforms.
        data: Source of its examples.
        evaluation: Evaluates the averaged (or the trained) model after an epoch. Its result must hold the settings'
            `best_metric`, and `plateau_metric` where the schedule needs it.
        metrics: Results of the evaluation that these may name; unknown before the first epoch when None.

    Attributes:
        criterion: Holds parameters that belong to the loss alone; none by default.
        evaluated_everywhere: Whether the evaluation is called on every rank, because it shares its work among them;
            on the main one alone by default, whose result counts either way.
    """

    evaluated_everywhere = False

    def __init__(
        self,
        model: PreTrainedModel,
        processor: MSClapProcessor,
        data: Batches,
        evaluation: Callable[[Any], dict[str, Any]],
        metrics: Sequence[str] | None = None,
    ):
        self.model, self.processor, self.data, self.evaluation = model, processor, data, evaluation
        self.metrics = metrics
        self.criterion = nn.Module()

    def setup(self, accelerator: Accelerator) -> None:
        """Called once, with the modules on the device, before the optimiser is made."""

    def prepare_batch(self, batch: Batch, position: Position) -> Batch:
        """Change a batch on the device, with its log-mels, before its step; nothing by default."""
        return batch

    def loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Loss of this rank's share of a batch, as a mean, and metrics to log.

        Runs under autocast, with torch's random generators seeded from the position.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither loss nor its own backward.")

    def backward(self, accelerator: Accelerator, batch: Batch, position: Position) -> Metrics:
        """Accumulate in `.grad` this rank's part, the mean of which over ranks is the global batch's gradient.

        Returns:
            `loss` and metrics to log.
        """
        torch.manual_seed(position.random_seed(position.rank))
        with accelerator.autocast():
            loss, metrics = self.loss(batch)
        loss.backward()
        return {"loss": loss.detach()} | metrics

    def remark(self, processes: int) -> str:
        """What a user should know of a run on so many processes; nothing on one."""
        if processes == 1:
            return ""
        return (
            "Dropout and augmentation are seeded by each process' share of a batch: on another number of processes "
            f"than {processes} the losses are others."
        )

    def train_mode(self) -> None:
        """Called before every epoch's steps; a stage with frozen parts puts these into eval mode."""
        self.model.train()

    def evaluate(self, model: PreTrainedModel, accelerator: Accelerator) -> dict[str, Any]:
        """Result of the evaluation; every rank calls this."""
        if not (accelerator.is_main_process or self.evaluated_everywhere):
            return {}
        with evaluation_mode(model):
            return self.evaluation(model)

    def save(self, folder: Path, model: PreTrainedModel) -> None:
        """Write what `from_pretrained` reads into a folder that does not exist yet."""
        model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def state(self) -> dict[str, Any]:
        """Further state that a resumed run needs, as plain JSON data."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
