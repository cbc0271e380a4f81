"""What the loop asks of a training stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

Batch = dict[str, Any]


@dataclass(frozen=True)
class Position:
    """Where a run stands: everything random about a step is drawn from this, so that a resumed run draws the same.

    Args:
        seed: The run's seed.
        step: Optimiser steps done before this one.
        epoch: Epochs done before this one.
        process: Number of this process.
        processes: How many there are.
    """

    seed: int
    step: int
    epoch: int
    process: int
    processes: int

    def random_seed(self, *more: int) -> int:
        """A seed of 63 bits from (seed, step, more)."""
        state = np.random.SeedSequence([self.seed, self.step, *more]).generate_state(1, np.uint64)
        return int(state[0] >> np.uint64(1))


class Task(ABC):
    """A training stage: its data, its loss and its evaluation. The loop owns everything else.

    Attributes:
        model: What is trained, averaged, checkpointed and saved. The loop moves it to the device.
        criterion: Holds parameters that belong to the loss alone; none by default.
    """

    model: PreTrainedModel
    criterion: nn.Module

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.criterion = nn.Module()

    def setup(self, accelerator: Accelerator) -> None:  # noqa: B027  # most stages have nothing to do here
        """Called once, with the modules on the device, before the optimiser is made."""

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Steps that one pass over the data gives."""

    @abstractmethod
    def batches(self, epoch: int, first_step: int, process: int, processes: int) -> Iterable[Batch]:
        """This process's share of every batch of an epoch, on the CPU.

        The global batches must not depend on `processes`: a run may be resumed with another number of them.

        Args:
            epoch: Number of the epoch, from 0.
            first_step: Steps of the epoch that are done.
            process: Number of this process.
            processes: How many there are; divides the batch size.

        Returns:
            Batches from `first_step` to the epoch's end. A batch's `"skipped"`, if there, is the list of rows that
            could not be read, each a dict with `id` and `reason`; the loop counts and lists them.
        """

    def prepare_batch(self, batch: Batch, position: Position, device: torch.device) -> Batch:
        """Move a batch to the device and do there what is cheaper there; tensors are moved by default."""
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of this process's share of a batch, as a mean, and numbers to log (scalars, detached).

        Runs under autocast, with torch's random generators seeded from the position.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither loss nor its own backward.")

    def backward(self, accelerator: Accelerator, batch: Batch, position: Position) -> dict[str, torch.Tensor]:
        """Leave in `.grad` what the mean over processes makes the gradient of the global batch's loss.

        Returns:
            `loss` and numbers to log, scalars, detached, on the device.
        """
        torch.manual_seed(position.random_seed(position.process))
        with accelerator.autocast():
            loss, numbers = self.loss(batch)
        loss.backward()
        return {"loss": loss.detach()} | numbers

    def train_mode(self) -> None:
        """Called before every epoch's steps; a stage with frozen parts puts these into eval mode."""
        self.model.train()

    @abstractmethod
    def evaluate(self, model: PreTrainedModel, accelerator: Accelerator) -> dict[str, Any]:
        """Judge the averaged (or the trained) model after an epoch.

        Called on every process; the main process's result counts. It must hold the settings' `best_metric`, and
        `plateau_metric` where the schedule needs it.
        """

    @abstractmethod
    def save(self, folder: Path, model: PreTrainedModel) -> None:
        """Write what `from_pretrained` reads into a folder that does not exist yet."""

    def fingerprint(self) -> str:
        """Names the data: a run is resumed only on the data that it began with. Empty means unchecked."""
        return ""

    def state(self) -> dict[str, Any]:
        """What else must survive a resume, as plain JSON data."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take back what `state` gave."""
