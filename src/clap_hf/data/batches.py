"""Batches of a map-style dataset whose order is known ahead: any step of any epoch, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from .augment import Augmentation
from .own import Pairs
from .source import RowError
from .stream import Example, join_parts, make_example, make_part

ATTEMPTS = 100  # rows that are tried in place of one that cannot be read


class Draws(Protocol):
    """A sampler of a known number of draws, whose keys depend on the epoch."""

    epoch: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


class SampledBatches:
    """Batches drawn from a dataset by a sampler.

    Args:
        dataset: Gives an example by the sampler's keys.
        sampler: Draws the keys of an epoch from its number.
        collate: Makes a batch of examples.
        batch_size: Examples per batch, over all processes.
        num_workers: Loader processes; 0 loads in this one.
    """

    def __init__(self, dataset: Any, sampler: Draws, collate: Any, batch_size: int, num_workers: int):
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
            batch_sampler=[keys[start : start + share] for start in starts],
            num_workers=self.num_workers,
            collate_fn=self.collate,
        )

    def fingerprint(self) -> str:
        """Number of rows, known without reading the data."""
        return f"{len(self.dataset)} rows"


class PairRows(Dataset):
    """Decoded pairs of several sources by (row, text, copy, epoch), which is also what all random choices come from.

    Args:
        pairs: The sources; their rows are numbered on.
        feature_extractor: Has the model's rate and window.
        augmentation: Random changes of the samples.
        seed: Source of every choice.
    """

    def __init__(
        self,
        pairs: Sequence[Pairs],
        feature_extractor: MSClapFeatureExtractor,
        augmentation: Augmentation,
        seed: int,
    ):
        self.pairs, self.feature_extractor = pairs, feature_extractor
        self.augmentation, self.seed = augmentation, seed
        self.starts = np.cumsum([0, *map(len, pairs)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def text_counts(self) -> list[np.ndarray]:
        """Pairs of every row of every source: its texts, or 1 where a visit draws one of them, or there are none."""
        return [np.array(pairs.text_counts()) for pairs in self.pairs]

    def __getitem__(self, key: tuple[int, int, int, int]) -> tuple[Example, list[dict[str, str]], int]:
        """The example of a row, or of the next one that can be read; the rows left out for it; the epoch."""
        row, text, copy, epoch = key
        skipped: list[dict[str, str]] = []
        for attempt in range(min(len(self), ATTEMPTS)):
            number = (row + attempt) % len(self)
            source = int(np.searchsorted(self.starts, number, side="right")) - 1
            pairs, place = self.pairs[source], number - int(self.starts[source])
            values = pairs[place]
            name = f"{pairs.source.dataset}:{pairs.source.name_of(values, int(pairs.kept[place]))}"
            rng = np.random.default_rng([self.seed, epoch, copy, number, *([text] if text else [])])
            which = text if pairs.source.lists_pairs and attempt == 0 else None
            try:
                example = make_example(
                    values, name, pairs.source, self.feature_extractor, self.augmentation, rng, which
                )
                return example, skipped, epoch
            except RowError as error:
                if attempt == 0 and not text:  # once a row; a replacement that fails too is listed at its own place
                    skipped.append({"id": name, "epoch": str(epoch), "reason": str(error)})
        raise RuntimeError(f"None of {ATTEMPTS} rows from {skipped[0]['id']} on can be read: {skipped[0]['reason']}")


class EpochDraws:
    """Keys of an epoch over several sources, in an order from (seed, epoch).

    Args:
        texts: Pairs of every row of every source, see `PairRows.text_counts`.
        weights: How often an epoch passes over each; 0.5 is half of its pairs, others in every epoch.
        seed: Source of the order.
    """

    def __init__(self, texts: Sequence[np.ndarray], weights: Sequence[float], seed: int):
        self.texts, self.seed, self.epoch = texts, seed, 0
        self.wanted = [round(weight * int(own.sum())) for weight, own in zip(weights, texts, strict=True)]

    def __len__(self) -> int:
        return sum(self.wanted)

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        keys: list[tuple[int, int, int, int]] = []
        start = 0
        for own, wanted in zip(self.texts, self.wanted, strict=True):
            pairs = [(start + row, text) for row, count in enumerate(own) for text in range(count)]
            passes = [rng.permutation(len(pairs)) for _ in range(-(-wanted // len(pairs)))]
            drawn = [(*pairs[i], copy) for copy, order in enumerate(passes) for i in order]
            keys += [(row, text, copy, self.epoch) for row, text, copy in drawn[:wanted]]
            start += len(own)
        return (keys[i] for i in rng.permutation(len(keys)))


class PairRowCollator:
    """Makes a batch of `PairRows`' examples, as `clap_hf.data.stream` does.

    Args:
        tokenizer: Tokenizer with the text tower's sentence rules.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, found: Sequence[tuple[Example, list[dict[str, str]], int]]) -> dict[str, Any]:
        examples = [example for example, _, _ in found]
        skipped = [row for _, own, _ in found for row in own]
        return join_parts([make_part(examples, skipped, self.tokenizer, found[0][2])], self.tokenizer)
