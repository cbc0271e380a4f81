"""Batches of a map-style dataset whose order is known ahead: any step of any epoch, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from .pairs import BalancedSampler


class SampledBatches:
    """Batches drawn from a dataset by a sampler.

    Args:
        dataset: Gives an example by the sampler's keys.
        sampler: Draws the keys of an epoch from its number.
        collate: Makes a batch of examples.
        batch_size: Examples per batch, over all processes.
        num_workers: Loader processes; 0 loads in this one.
    """

    def __init__(self, dataset: Any, sampler: BalancedSampler, collate: Any, batch_size: int, num_workers: int):
        self.dataset, self.sampler, self.collate = dataset, sampler, collate
        self.batch_size, self.num_workers = batch_size, num_workers

    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch's draws."""
        return len(self.sampler) // self.batch_size

    def batches(self, epoch: int, first_step: int, process: int, processes: int) -> Iterable[dict[str, Any]]:
        """See `clap_hf.training.stage.Batches.batches`."""
        self.sampler.epoch = epoch
        keys = list(self.sampler)
        share = self.batch_size // processes
        starts = [step * self.batch_size + process * share for step in range(first_step, self.steps_per_epoch())]
        return DataLoader(
            self.dataset,
            batch_sampler=_Lists([keys[start : start + share] for start in starts]),
            num_workers=self.num_workers,
            collate_fn=self.collate,
        )

    def fingerprint(self) -> str:
        """Number of rows, known without reading the data."""
        return f"{len(self.sampler.probabilities)} rows"


class _Lists:
    """A batch sampler over lists that are there already."""

    def __init__(self, lists: list[list[Any]]):
        self.lists = lists

    def __len__(self) -> int:
        return len(self.lists)

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self.lists)
