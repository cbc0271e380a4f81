"""Batches of a recipe's data: streamed pairs, or rows drawn by weight."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from ..data.batches import EpochDraws, PairRowCollator, PairRows, SampledBatches
from ..data.log_mels import LogMelStore
from ..data.own import NAMED_REASONS, Given, Pairs, is_parquet, read_pairs
from ..data.pairs import BalancedSampler, PairCollator, PairDataset
from ..data.registry import source_of
from ..data.simple_stream import SimpleStream, stream_rows
from ..data.source import StreamSource
from ..data.stream import CROP_ONLY, PairStream
from ..model.processing_msclap import MSClapProcessor
from .settings import PairSettings, TrainingSettings, refuse_unused

HeldOut = tuple[StreamSource, Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class OpenPairs:
    """The sources of a recipe, found and checked, before any is decoded.

    Args:
        training: What is trained on: rows by their number, or parquet files that are streamed.
        held_out: Sources of held-out pairs with their rows.
        labels: All label texts, where every source is labelled.
        facts: For the run's record: `pairs` for training, `held_out`, `skipped` rows, and the first `reasons`; a count
            is None where it is not known ahead.
    """

    training: Sequence[Pairs] | Sequence[StreamSource]
    held_out: Sequence[HeldOut]
    labels: tuple[str, ...]
    facts: dict[str, Any]


def open_pairs(settings: PairSettings, given: Given | None = None) -> OpenPairs:
    """Find the sources of a recipe, check their rows, and divide them where it holds out a share.

    Args:
        settings: The recipe, with `sources`.
        given: Datasets in Python by the name that a source's `dataset` has for them.

    Raises:
        ValueError: If a source is of no known form, or none of its rows can be read.
    """
    sources = [source_of(source, "train") for source in settings.sources]
    streamed = not settings.held_out and (
        settings.streaming == "simple"
        or all(source.dataset not in (given or {}) and is_parquet(source) for source in sources)
    )
    opened = [] if streamed else [read_pairs(source, given) for source in sources]
    held: list[HeldOut] = []
    if settings.held_out:
        sides = [pairs.hold_out(settings.held_out, settings.seed) for pairs in opened]
        opened = [train for train, _ in sides]
        held = [(rest.source, rest) for _, rest in sides]
    elif settings.validation:
        held = [stream_rows(source_of(settings.validation, "validation"), given)]
    labelled = bool(opened) and all(pairs.source.labelled for pairs in opened)
    texts = (
        text
        for pairs in (*opened, *(rows for _, rows in held))
        if isinstance(pairs, Pairs)
        for own in pairs.texts()
        for text in own
    )
    skipped = {name: reason for pairs in opened for name, reason in pairs.skipped.items()}
    facts = {
        "pairs": sum(map(len, opened)) if opened else None,
        "held_out": sum(len(rows) for _, rows in held if isinstance(rows, Pairs)) if settings.held_out else None,
        "skipped": len(skipped) if opened else None,
        "reasons": dict(itertools.islice(skipped.items(), NAMED_REASONS)),
    }
    return OpenPairs(opened or sources, held, tuple(sorted(set(texts))) if labelled else (), facts)


def pair_batches(
    settings: PairSettings,
    opened: OpenPairs,
    processor: MSClapProcessor,
    num_workers: int,
    given: Given | None = None,
) -> PairStream | SimpleStream | SampledBatches:
    """Batches of a recipe's sources.

    Args:
        settings: The recipe.
        opened: Its sources.
        processor: Its feature extractor has rate and window, its tokenizer makes the tokens.
        num_workers: Loader processes.
        given: Datasets in Python, see `open_pairs`.

    Raises:
        ValueError: If there are fewer pairs than a batch, or a setting of streams has no effect.
    """
    shared = (processor, settings.batch_size, settings.seed, settings.augmentation, num_workers)
    rows = [pairs for pairs in opened.training if isinstance(pairs, Pairs)]
    if not rows:
        sources = [source for source in opened.training if isinstance(source, StreamSource)]
        if settings.streaming == "simple":
            return SimpleStream(sources[0], *shared, given)
        return PairStream(sources, *shared, settings.lanes, settings.shuffle_block)
    refuse_unused(settings, ("lanes", "shuffle_block"), f"{rows[0].source.dataset}, whose rows are not streamed")
    dataset = PairRows(rows, processor.feature_extractor, settings.augmentation or CROP_ONLY, settings.seed)
    weights = [source.get("weight", 1.0) for source in settings.sources]
    draws = EpochDraws(dataset.text_counts(), weights, settings.seed)
    if len(draws) < settings.batch_size:
        raise ValueError(
            f"An epoch has {len(draws)} pairs, expected at least a batch of {settings.batch_size}. Lower batch_size."
        )
    return SampledBatches(dataset, draws, PairRowCollator(processor.tokenizer), settings.batch_size, num_workers)


def balanced_batches(
    dataset: Dataset, weights: np.ndarray, collate: Any, settings: TrainingSettings, num_workers: int
) -> SampledBatches:
    """Batches drawn from a dataset by weight; an epoch is the recipe's, or as many draws as there are rows.

    Args:
        dataset: Gives an example by (row, draw).
        weights: Weight of every row.
        collate: Makes a batch of examples.
        settings: The recipe.
        num_workers: Loader processes.
    """
    draws = len(weights) if settings.steps_per_epoch is None else settings.steps_per_epoch * settings.batch_size
    sampler = BalancedSampler(weights, draws, settings.seed)
    return SampledBatches(dataset, sampler, collate, settings.batch_size, num_workers)


def corpus_batches(
    rows: datasets.Dataset,
    processor: MSClapProcessor,
    settings: PairSettings,
    *,
    template: str,
    template_probability: float,
    num_workers: int,
    cache_dir: Path,
) -> SampledBatches:
    """Class-balanced batches of a split in the layout of the sound corpus, from stored log-mels.

    Args:
        rows: The split.
        processor: Makes log-mels and tokens.
        settings: The recipe.
        template: Zero-shot template with `{}` for a label.
        template_probability: How often a clip's label in the template replaces its caption.
        num_workers: Loader processes.
        cache_dir: Where the log-mels are kept.
    """
    augmentation, extractor = settings.augmentation or CROP_ONLY, processor.feature_extractor
    encoded = rows.cast_column("audio", datasets.Audio(decode=False))
    dataset = PairDataset(
        rows,
        LogMelStore(encoded, extractor, augmentation.speeds, cache_dir),
        frames=1 + extractor.window_samples // extractor.hop_length,
        augmentation=augmentation,
        template=template,
        template_probability=template_probability,
        seed=settings.seed,
    )
    weights = dataset.weights(settings.balance, settings.category_weights, settings.source_balance)
    return balanced_batches(dataset, weights, PairCollator(processor.tokenizer, dataset.texts), settings, num_workers)
