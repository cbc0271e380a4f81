"""Pairs from any dataset that `datasets` can stream, in any format, shuffled by a buffer.

What that costs, against `clap_hf.data.stream`: a resumed run reads its epoch
again from the start to find its place, every process reads all rows, and shuffling goes no further than the buffer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from ..model.processing_msclap import MSClapProcessor
from .augment import Augmentation
from .own import Given, is_parquet, read_pairs
from .source import RowError, StreamSource, resolve_columns
from .stream import CROP_ONLY, Example, join_parts, make_example, make_part, parquet_features

BUFFER_ROWS = 1000


def stream_rows(source: StreamSource, given: Given | None = None) -> tuple[StreamSource, datasets.IterableDataset]:
    """A source with its columns named, and its rows, audio encoded as it is stored.

    Parquet files are read as they come; every other form is listed first, see `clap_hf.data.own.read_pairs`.
    """
    if source.dataset in (given or {}) or not is_parquet(source):
        pairs = read_pairs(source, given)
        return pairs.source, pairs.rows.select(pairs.kept).to_iterable_dataset()
    features = parquet_features(source.files()[0])
    rows = datasets.load_dataset(
        source.dataset, source.config, split=source.split, revision=source.revision, streaming=True
    )
    source = resolve_columns(source, features)
    if isinstance(features[source.sound_column], datasets.Audio):
        rows = rows.cast_column(source.sound_column, datasets.Audio(decode=False))
    return source, rows.select_columns(source.columns)


class SimpleStream:
    """Batches from `load_dataset(..., streaming=True)`.

    Args:
        source: Where pairs come from.
        processor: Its feature extractor has rate and window, its tokenizer makes the tokens.
        batch_size: Pairs of a batch, over all processes.
        seed: Source of every choice.
        augmentation: Random changes of the samples; None only crops.
        num_workers: 0 loads in this process, anything else in one other.
        given: Datasets in Python, see `clap_hf.data.own.read_pairs`.
    """

    def __init__(
        self,
        source: StreamSource,
        processor: MSClapProcessor,
        batch_size: int,
        seed: int,
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
        given: Given | None = None,
    ):
        self.processor, self.batch_size, self.seed = processor, batch_size, seed
        self.augmentation, self.num_workers = augmentation or CROP_ONLY, num_workers
        self.source, self.rows = stream_rows(source, given)

    def steps_per_epoch(self) -> None:
        """None: the number of rows is not known ahead."""
        return None

    def fingerprint(self) -> str:
        """Name of the data; its size is not known."""
        return f"{self.source.dataset}:{self.source.split}"

    def batches(self, epoch: int, first_step: int, process: int, processes: int) -> Iterable[dict[str, Any]]:
        """See `clap_hf.training.stage.Batches.batches`."""
        loader = DataLoader(
            _Rows(self, epoch, first_step, process, processes), batch_size=None, num_workers=min(self.num_workers, 1)
        )
        return map(lambda part: join_parts([part], self.processor.tokenizer), loader)


class _Rows(IterableDataset):
    """This process's share of every batch; the data begins again when it ends."""

    def __init__(self, stream: SimpleStream, epoch: int, first_step: int, process: int, processes: int):
        self.stream, self.epoch, self.first_step = stream, epoch, first_step
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = self.stream
        share = stream.batch_size // self.processes
        start = self.process * share
        rows = self._endless_rows()
        for step in itertools.count():
            batch = list(itertools.islice(rows, stream.batch_size))
            if step < self.first_step:
                continue
            skipped: list[dict[str, str]] = []
            examples = [self._example(batch, place, skipped) for place in range(start, start + share)]
            yield make_part(examples, skipped, stream.processor.tokenizer, self.epoch)

    def _endless_rows(self) -> Iterator[tuple[dict[str, Any], int]]:
        numbers = itertools.count()
        for again in itertools.count():
            rows = self.stream.rows.shuffle(seed=self.stream.seed + 1_000_003 * again, buffer_size=BUFFER_ROWS)
            rows.set_epoch(self.epoch)
            yield from zip(rows, numbers, strict=False)

    def _example(self, batch: list[tuple[dict[str, Any], int]], place: int, skipped: list[dict[str, str]]) -> Example:
        """The example at a place of the batch, or, if that cannot be read, the next one that can."""
        stream, reason = self.stream, ""
        for attempt in range(len(batch)):
            row, number = batch[(place + attempt) % len(batch)]
            name = f"{stream.source.dataset}:{row[stream.source.id] if stream.source.id else number}"
            rng = np.random.default_rng([stream.seed, self.epoch, attempt, number])
            try:
                return make_example(
                    row, name, stream.source, stream.processor.feature_extractor, stream.augmentation, rng
                )
            except RowError as error:
                if attempt == 0:
                    reason = str(error)
                    skipped.append({"id": name, "epoch": str(self.epoch), "reason": reason})
        raise RuntimeError(f"None of {len(batch)} rows from {skipped[0]['id']} on can be read: {reason}")
