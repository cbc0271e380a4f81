"""From a recipe to a contrastive run: model, data, evaluation, loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

from ..data.batches import SampledBatches
from ..data.log_mels import LogMelStore
from ..data.pairs import BalancedSampler, PairCollator, PairDataset
from ..data.simple_stream import SimpleStream
from ..data.sources import source_of
from ..data.stream import CROP_ONLY, PairStream
from ..evaluation.sound_tasks import TEMPLATES
from ..model.processing_msclap import MSClapProcessor
from .build import build_model
from .contrastive_task import ContrastiveTask, PairBatches
from .loop import train
from .recipe import Recipe
from .validation import CorpusValidation, PairValidation

LOG_MELS = "log-mels"


def train_contrastive(
    recipe: Recipe,
    output_dir: Path,
    *,
    resume: bool = False,
    num_workers: int = 1,
    trackers: Sequence[str] = (),
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Train CLAP by a recipe; see `clap_hf.training.loop.train` for the folder, resuming, trackers and errors.

    Args:
        recipe: What to train.
        output_dir: The run's folder.
        resume: Continue the run that is there.
        num_workers: Loader processes.
        trackers: Trackers, by the names that Accelerate knows.
        cache_dir: Where the log-mels of a corpus' clips are kept, for several runs to share; `log-mels/` of the run's
            folder when None.

    Returns:
        The record of the best epoch.
    """
    model, processor = build_model(recipe)
    model = model.to(memory_format=torch.channels_last)  # CNN14's convolutions are a third faster so
    data: PairBatches
    judge: PairValidation | CorpusValidation
    if recipe.sources:
        data = streamed_batches(recipe, processor, num_workers)
        judge = PairValidation(source_of(recipe.validation, "validation"), processor, recipe)
    else:
        rows = datasets.load_dataset(recipe.dataset, split=recipe.split)
        held_out = datasets.load_dataset(recipe.dataset, split="validation")
        data = corpus_batches(rows, processor, recipe, num_workers, cache_dir or output_dir / LOG_MELS)
        judge = CorpusValidation(held_out, processor, recipe)
    task = ContrastiveTask(model, processor, recipe, data, judge)
    return train(task, recipe, output_dir, resume=resume, trackers=trackers)


def streamed_batches(recipe: Recipe, processor: MSClapProcessor, num_workers: int) -> PairStream | SimpleStream:
    """Batches of the recipe's sources."""
    sources = [source_of(settings, "train") for settings in recipe.sources]
    shared = (processor, recipe.batch_size, recipe.seed, recipe.augmentation, num_workers)
    if recipe.streaming == "simple":
        return SimpleStream(sources[0], *shared)
    return PairStream(sources, *shared, recipe.lanes, recipe.window)


def corpus_batches(
    split: datasets.Dataset, processor: MSClapProcessor, recipe: Recipe, num_workers: int, cache_dir: Path
) -> SampledBatches:
    """Class-balanced batches of a split in the layout of the sound corpus."""
    augmentation, extractor = recipe.augmentation or CROP_ONLY, processor.feature_extractor
    encoded = split.cast_column("audio", datasets.Audio(decode=False))
    dataset = PairDataset(
        split,
        LogMelStore(encoded, extractor, augmentation.speeds, cache_dir),
        1 + extractor.window_samples // extractor.hop_length,
        augmentation,
        TEMPLATES[0],
        recipe.template_probability,
        recipe.seed,
    )
    if recipe.steps_per_epoch is None:
        draws = len(dataset)
    else:
        draws = recipe.steps_per_epoch * recipe.batch_size
    sampler = BalancedSampler(dataset.weights(recipe.balance, recipe.category_weights), draws, recipe.seed)
    collate = PairCollator(processor.tokenizer, dataset.texts)
    return SampledBatches(dataset, sampler, collate, recipe.batch_size, num_workers)
