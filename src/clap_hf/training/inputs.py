"""What stages feed on: streamed or balanced batches by a recipe, and log-mels made on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.batches import SampledBatches
from ..data.log_mels import LogMelStore
from ..data.pairs import BalancedSampler, PairCollator, PairDataset
from ..data.registry import source_of
from ..data.simple_stream import SimpleStream
from ..data.stream import CROP_ONLY, PairStream
from ..evaluation.sound_tasks import TEMPLATES
from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from ..model.processing_msclap import MSClapProcessor
from .settings import StreamedSettings, TrainingSettings
from .stage import Batch

LOG_MELS = "log-mels"  # folder of a run that keeps them


def streamed_batches(
    settings: StreamedSettings, processor: MSClapProcessor, num_workers: int
) -> PairStream | SimpleStream:
    """Batches of a recipe's sources."""
    sources = [source_of(source, "train") for source in settings.sources]
    shared = (processor, settings.batch_size, settings.seed, settings.augmentation, num_workers)
    if settings.streaming == "simple":
        return SimpleStream(sources[0], *shared)
    return PairStream(sources, *shared, settings.lanes, settings.window)


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


@dataclass(frozen=True)
class CorpusDraws:
    """How clips and texts are drawn from a split in the layout of the sound corpus.

    Args:
        balance: See `PairDataset.weights`; so are the next two.
        category_weights: Factors on the sampling weight by category.
        source_balance: Balance among the sources of a label.
        template_probability: How often a clip's label in the zero-shot template replaces its caption.
    """

    balance: float
    category_weights: dict[str, float]
    source_balance: float
    template_probability: float


def corpus_batches(
    split: datasets.Dataset,
    processor: MSClapProcessor,
    settings: StreamedSettings,
    draws: CorpusDraws,
    num_workers: int,
    cache_dir: Path,
) -> SampledBatches:
    """Class-balanced batches of a split in the layout of the sound corpus, from stored log-mels.

    Args:
        split: The split.
        processor: Makes log-mels and tokens.
        settings: The recipe.
        draws: How clips and texts are drawn.
        num_workers: Loader processes.
        cache_dir: Where the log-mels are kept.
    """
    augmentation, extractor = settings.augmentation or CROP_ONLY, processor.feature_extractor
    encoded = split.cast_column("audio", datasets.Audio(decode=False))
    dataset = PairDataset(
        split,
        LogMelStore(encoded, extractor, augmentation.speeds, cache_dir),
        1 + extractor.window_samples // extractor.hop_length,
        augmentation,
        TEMPLATES[0],
        draws.template_probability,
        settings.seed,
    )
    weights = dataset.weights(draws.balance, draws.category_weights, draws.source_balance)
    return balanced_batches(dataset, weights, PairCollator(processor.tokenizer, dataset.texts), settings, num_workers)


def make_log_mels(batch: Batch, extractor: MSClapFeatureExtractor, device: torch.device) -> None:
    """Replace a batch's `waveforms`, where it holds such, by `input_features` made on the device.

    Args:
        batch: With `waveforms`, a list of `[clips, samples]`, or with `input_features` already.
        extractor: Makes the log-mels `[1, frames, mel]`, dB.
        device: Where.
    """
    if "waveforms" not in batch:
        return
    with torch.inference_mode():
        parts = [part.to(device, non_blocking=True) for part in batch.pop("waveforms")]
        features = extractor.log_mels(waveform for part in parts for waveform in part)
    batch["input_features"] = features[:, None].clone()
