"""The order of an epoch over parquet files, as a pure function of (seed, epoch).

Shuffle buffers cannot be resumed exactly, and files larger than memory cannot be permuted row by row. So the row
groups of all files are permuted, their rows laid end to end, and that line is cut into equal lanes. Every batch takes
the next few rows of every lane; within a lane, rows are permuted in blocks of a few row groups. The position in an
epoch is then one number, the batch; and since a lane is read by one loader process, whichever it is, neither the
number of processes nor that of loaders changes what a batch holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

MOST_LANES = 128


@dataclass(frozen=True)
class RowGroup:
    """A row group of a parquet file: source and file as numbers, its index in the file, its rows.

    Rows are pairs throughout this module: a row with five captions may count as five, see `StreamSource.every_text`.
    """

    source: int
    file: int
    index: int
    rows: int


@dataclass(frozen=True)
class Segment:
    """Rows `first` to `last` (exclusive) of a row group; `copy` counts the earlier passes of the epoch over it."""

    group: RowGroup
    copy: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class ShuffleBlock:
    """What a lane holds in memory at once: segments, the order of their rows, and how many of these are done."""

    segments: tuple[Segment, ...]
    order: np.ndarray
    taken: int


class Plan:
    """Lanes through the row groups of all sources.

    Args:
        groups: All row groups, in a fixed order.
        weights: Of every source, how often an epoch passes over it: 1 is each row once, 2 twice, 0.5 half of its rows,
            others in every epoch.
        batch_size: Rows of a batch, over all processes.
        seed: Source of the order.
        lanes: Divides the batch size, and is divided by the number of loaders over all processes; the largest divisor
            of the batch size up to 128 that suits powers of two when None.
        block: Row groups of a lane whose rows are permuted together.

    Raises:
        ValueError: If the lanes do not divide the batch, a weight is not positive, or there are too few rows.
    """

    def __init__(
        self,
        groups: Sequence[RowGroup],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        lanes: int | None = None,
        block: int = 2,
    ):
        if any(weight <= 0 for weight in weights):
            raise ValueError(f"weights are {list(weights)}, expected numbers above 0; leave a source out instead.")
        self.groups, self.weights, self.batch_size, self.seed, self.block = groups, weights, batch_size, seed, block
        self.lanes = math.gcd(batch_size, MOST_LANES) if lanes is None else lanes
        if batch_size % self.lanes:
            raise ValueError(f"lanes is {self.lanes}, expected a divisor of batch_size={batch_size}.")
        self.per_lane = batch_size // self.lanes  # rows of a lane in a batch
        rows = sum(self._rows_of_epoch(source) for source in range(len(weights)))
        self.rows_per_lane = rows // self.lanes
        self.steps_per_epoch = self.rows_per_lane // self.per_lane
        if self.steps_per_epoch == 0:
            raise ValueError(f"An epoch has {rows} rows, expected at least a batch of {batch_size}.")

    def _rows_of_epoch(self, source: int) -> int:
        return round(self.weights[source] * sum(group.rows for group in self.groups if group.source == source))

    def segments(self, epoch: int) -> list[Segment]:
        """All segments of an epoch, permuted."""
        rng = np.random.default_rng([self.seed, epoch])
        found: list[Segment] = []
        for source in range(len(self.weights)):
            groups = [group for group in self.groups if group.source == source]
            left, copy = self._rows_of_epoch(source), 0
            while left > 0:
                for i in rng.permutation(len(groups)):
                    rows = min(groups[i].rows, left)
                    if rows:
                        # A last partial group starts anywhere, so that no row is favoured.
                        first = int(rng.integers(0, groups[i].rows - rows + 1))
                        found.append(Segment(groups[i], copy, first, first + rows))
                    left -= rows
                copy += 1
        return [found[i] for i in rng.permutation(len(found))]

    def blocks(self, segments: list[Segment], epoch: int, lane: int, first_step: int) -> Iterator[ShuffleBlock]:
        """Shuffle blocks of a lane in an epoch, from a step on.

        Args:
            segments: Of the epoch.
            epoch: Number of the epoch.
            lane: Number of the lane.
            first_step: Batches of the epoch that are done.
        """
        start, end = lane * self.rows_per_lane, (lane + 1) * self.rows_per_lane
        own: list[Segment] = []
        offset = 0
        for segment in segments:
            low, high = max(start - offset, 0), min(end - offset, segment.rows)
            if low < high:
                own.append(Segment(segment.group, segment.copy, segment.first + low, segment.first + high))
            offset += segment.rows
            if offset >= end:
                break
        done = first_step * self.per_lane
        for number, i in enumerate(range(0, len(own), self.block)):
            chosen = tuple(own[i : i + self.block])
            rows = sum(segment.rows for segment in chosen)
            if done < rows:
                order = np.random.default_rng([self.seed, epoch, lane, number]).permutation(rows)
                yield ShuffleBlock(chosen, order, done)
            done = max(done - rows, 0)
