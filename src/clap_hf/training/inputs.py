"""Batches of a recipe's data: streamed pairs, or rows drawn by weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch.utils.data import Dataset

from ..data.batches import SampledBatches
from ..data.log_mels import LogMelStore
from ..data.pairs import BalancedSampler, PairCollator, PairDataset
from ..data.registry import source_of
from ..data.simple_stream import SimpleStream
from ..data.stream import CROP_ONLY, PairStream
from ..model.processing_msclap import MSClapProcessor
from .settings import PairSettings, TrainingSettings


def streamed_batches(
    settings: PairSettings, processor: MSClapProcessor, num_workers: int
) -> PairStream | SimpleStream:
    """Batches of a recipe's sources."""
    sources = [source_of(source, "train") for source in settings.sources]
    shared = (processor, settings.batch_size, settings.seed, settings.augmentation, num_workers)
    if settings.streaming == "simple":
        return SimpleStream(sources[0], *shared)
    return PairStream(sources, *shared, settings.lanes, settings.shuffle_block)


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
