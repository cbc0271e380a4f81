"""Multi-task pretraining of the audio tower (paper Section 2.2, Eq. 5, after Pengi): what made HTSAT-22."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import torch

from ..data.prompts import PROMPT_STREAMS, PromptCollator, PromptDataset, PromptStream
from ..model.configuration_msclap import MSClapConditionalGenerationConfig
from ..model.feature_extraction_msclap import MSClapFeatureExtractor
from ..model.modeling_msclap_captioning import MSClapForConditionalGeneration
from ..model.processing_msclap import MSClapProcessor
from .generative import LanguageModel, TeacherForcing, build_language_model, labels_of, set_end_tokens
from .inputs import balanced_batches
from .loop import train
from .settings import TrainingSettings

CLIPS_PER_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class PromptRecipe(TrainingSettings):
    """Everything that decides a multi-task run; see `TrainingSettings` for what all stages share.

    Args:
        streams: What is trained on: `task` (a name of `clap_hf.data.prompts.PROMPT_STREAMS`), `dataset` (folder or
            Hub id), and optionally `split`, `validation_split`, `config`, `revision`, `weight` (for the task's).
        audio: Settings of `MSClapAudioConfig`.
        features: Settings of `MSClapFeatureExtractor`.
        language_model: The language model.
        model: Settings of `MSClapConditionalGenerationConfig`: mappers, projection, and what is frozen.
        balance: 1 draws tasks by their weights, 0 by their sizes too; see `PromptDataset.weights`.
        validation_clips: Clips of every task that are judged after every epoch.
    """

    streams: list[dict[str, Any]]
    audio: dict[str, Any]
    features: dict[str, Any]
    language_model: LanguageModel
    model: dict[str, Any] = field(default_factory=dict)
    balance: float = 0.5
    validation_clips: int = 50
    best_metric: str = "validation_loss"
    best_mode: str = "min"
    ema_decay: float = 0.0


def load_streams(recipe: PromptRecipe, split: str) -> list[tuple[PromptStream, datasets.Dataset]]:
    """The recipe's tasks with their datasets, each dataset read once.

    Args:
        recipe: The recipe.
        split: `"train"` or `"validation"`; a stream's `split` and `validation_split` say what these are called.

    Raises:
        ValueError: If a task is unknown, or a stream has unknown settings.
    """
    known = {"task", "dataset", "split", "validation_split", "config", "revision", "weight"}
    streams = []
    for settings in recipe.streams:
        if set(settings) - known or not {"task", "dataset"} <= set(settings):
            raise ValueError(
                f"A stream has the settings {sorted(settings)}, expected task, dataset and some of {known}."
            )
        if settings["task"] not in PROMPT_STREAMS:
            raise ValueError(f"task is {settings['task']!r}, expected one of {sorted(PROMPT_STREAMS)}.")
        task = PROMPT_STREAMS[settings["task"]]
        name = settings.get("split" if split == "train" else "validation_split", split)
        loaded = datasets.load_dataset(
            settings["dataset"], settings.get("config"), split=name, revision=settings.get("revision")
        )
        streams.append((replace(task, weight=settings.get("weight", task.weight)), loaded))
    return streams


def build_prompt_model(recipe: PromptRecipe) -> tuple[MSClapForConditionalGeneration, MSClapProcessor]:
    """The recipe's model, float32 on the CPU, with a new audio tower and new mappers, and its processor."""
    language_model, tokenizer = build_language_model(recipe.language_model, recipe.seed)
    torch.manual_seed(recipe.seed)
    config = MSClapConditionalGenerationConfig(
        text_config=language_model.config.to_dict(), audio_config=recipe.audio, **recipe.model
    )
    model = MSClapForConditionalGeneration(config)
    model.language_model.load_state_dict(language_model.state_dict())
    set_end_tokens(model, tokenizer)
    return model, MSClapProcessor(MSClapFeatureExtractor(**recipe.features), tokenizer)


class PromptValidation:
    """Loss of held-out answers by task, and how often a greedy answer to a closed question is exactly right.

    Args:
        dataset: Held-out rows.
        processor: The model's processor.
        clips: Clips of every task, evenly spaced over its rows, with a fixed crop and answer each.
    """

    def __init__(self, dataset: PromptDataset, processor: MSClapProcessor, clips: int):
        self.processor, self.collate = processor, PromptCollator(processor.tokenizer)
        self.examples = {}
        for number, task in enumerate(dataset.streams):
            places = list(dataset.examples_of(number))
            places = places[:: max(1, len(places) // clips)][:clips]
            self.examples[task.name] = (task, [dataset[place, 0] for place in places])

    @torch.inference_mode()
    def __call__(self, model: MSClapForConditionalGeneration) -> dict[str, Any]:
        losses, accuracies = {}, {}
        for name, (task, examples) in self.examples.items():
            total, right = 0.0, 0
            for start in range(0, len(examples), CLIPS_PER_BATCH):
                part = examples[start : start + CLIPS_PER_BATCH]
                batch = {key: value for key, value in self.collate(part).items() if key != "skipped"}
                batch = {key: value.to(model.device) for key, value in batch.items()}
                total += model(**batch, labels=labels_of(batch)).loss.item() * len(part)
                if task.closed:
                    asked = {key: batch[key] for key in ("input_features", "prompt_ids", "prompt_mask")}
                    tokens = model.generate(**asked, num_beams=1, max_new_tokens=batch["input_ids"].shape[1])
                    answers = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                    right += sum(a.strip() == e.answer for a, e in zip(answers, part, strict=True))
            losses[name] = total / len(examples)
            if task.closed:
                accuracies[name] = right / len(examples)
        return {
            "validation_loss": sum(losses.values()) / len(losses),
            "validation": {"loss": losses, "exact_match": accuracies},
        }


class PromptStage(TeacherForcing):
    """Teacher forcing on the answer to a prompt about a clip (Eq. 5).

    Args:
        model: The model.
        processor: Its processor.
        data: Batches of `PromptCollator`.
        evaluation: Judges a model after every epoch.
    """

    inputs = (*TeacherForcing.inputs, "prompt_ids", "prompt_mask")


def pretrain_prompts(
    recipe: PromptRecipe,
    output_dir: Path,
    *,
    resume: bool = False,
    num_workers: int = 1,
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Pretrain an audio tower by a recipe; see `clap_hf.training.loop.train` for the folder, resuming and errors.

    The tower of `best/` goes into the contrastive stage by its recipe's `audio_tower`.

    Args:
        recipe: What to train.
        output_dir: The run's folder.
        resume: Continue the run that is there.
        num_workers: Loader processes.
        trackers: Trackers, by the names that Accelerate knows.

    Returns:
        The record of the best epoch.
    """
    model, processor = build_prompt_model(recipe)
    dataset = PromptDataset(load_streams(recipe, "train"), processor.feature_extractor, recipe.seed)
    collate = PromptCollator(processor.tokenizer)
    data = balanced_batches(dataset, dataset.weights(recipe.balance), collate, recipe, num_workers)
    held_out = PromptDataset(load_streams(recipe, "validation"), processor.feature_extractor, recipe.seed)
    judge = PromptValidation(held_out, processor, recipe.validation_clips)
    return train(PromptStage(model, processor, data, judge), recipe, output_dir, resume=resume, trackers=trackers)
