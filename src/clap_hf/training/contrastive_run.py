"""From a recipe to a contrastive run: model, data, evaluation, loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

from ..data.augment import Augmentation
from ..data.batches import SampledBatches
from ..data.pairs import BalancedSampler, PairCollator, PairDataset
from ..evaluation.sound_tasks import TEMPLATES
from ..evaluation.zero_shot import EvaluationClips, evaluate, load_clips, zero_shot_score
from ..model.modeling_msclap import MSClapModel
from ..model.processing_msclap import MSClapProcessor
from .build import build_model
from .contrastive_task import ContrastiveTask
from .loop import train
from .recipe import Recipe

VALIDATION_CLIPS_PER_CLASS = 6
CROP_ONLY = Augmentation(gain_db=0.0, speed=0.0, pad_probability=0.0)


def train_contrastive(
    recipe: Recipe,
    output_dir: Path,
    *,
    resume: bool = False,
    num_workers: int = 1,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Train CLAP by a recipe; see `clap_hf.training.loop.train` for the folder, resuming, trackers and errors.

    Args:
        recipe: What to train.
        output_dir: The run's folder.
        resume: Continue the run that is there.
        num_workers: Loader processes.
        trackers: Trackers, by the names that Accelerate knows.

    Returns:
        The record of the best epoch.
    """
    model, processor = build_model(recipe)
    model = model.to(memory_format=torch.channels_last)  # CNN14's convolutions are a third faster so
    splits = datasets.load_dataset(recipe.dataset)
    data = corpus_batches(splits["train"], processor, recipe, num_workers)
    clips = load_clips(splits["validation"], processor, VALIDATION_CLIPS_PER_CLASS)

    def judge(judged: MSClapModel) -> dict[str, Any]:
        return zero_shot(judged, processor, clips)

    task = ContrastiveTask(model, processor, recipe, data, judge)
    return train(task, recipe, output_dir, resume=resume, trackers=trackers)


def corpus_batches(
    split: datasets.Dataset, processor: MSClapProcessor, recipe: Recipe, num_workers: int
) -> SampledBatches:
    """Class-balanced batches of a split in the layout of the sound corpus."""
    dataset = PairDataset(
        split,
        processor.feature_extractor,
        recipe.augmentation or CROP_ONLY,
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


def zero_shot(model: MSClapModel, processor: MSClapProcessor, clips: EvaluationClips) -> dict[str, Any]:
    """Zero-shot score on the validation split, with the value of every task."""
    results = evaluate(model, processor, clips)
    return {
        "zero_shot_score": zero_shot_score(results),
        "validation": {name: result["value"] for name, result in results.items()},
    }
