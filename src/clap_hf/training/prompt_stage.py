"""The prompt stage: multi-task pretraining of the audio tower (paper Section 2.2, Eq. 5, after Pengi; HTSAT-22)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import datasets
import torch

from ..data.prompts import PROMPT_STREAMS, PromptCollator, PromptDataset, PromptStream
from ..data.splits import load_split
from ..model.modeling_msclap_captioning import MSClapForConditionalGeneration
from ..model.processing_msclap import MSClapProcessor
from .captioning_stage import CaptioningStage, labels_of
from .recipe import PromptRecipe

CLIPS_PER_BATCH = 32


class PromptStage(CaptioningStage):
    """Teacher forcing on the answer to a prompt about a clip (Eq. 5); batches are those of `PromptCollator`."""

    inputs = (*CaptioningStage.inputs, "prompt_ids", "prompt_mask")


def load_streams(recipe: PromptRecipe, split: str) -> list[tuple[PromptStream, datasets.Dataset]]:
    """The recipe's tasks with their datasets, each dataset read once.

    Args:
        recipe: The recipe.
        split: `"train"` or `"validation"`; a stream's `split` and `validation_split` rename these.

    Raises:
        ValueError: If the prompts are unknown, or a stream has unknown settings.
    """
    known = {"prompts", "dataset", "split", "validation_split", "config", "revision", "weight"}
    streams = []
    for settings in recipe.streams:
        if set(settings) - known or not {"prompts", "dataset"} <= set(settings):
            raise ValueError(
                f"A stream has the settings {sorted(settings)}, expected prompts, dataset and some of {known}."
            )
        if settings["prompts"] not in PROMPT_STREAMS:
            raise ValueError(f"prompts is {settings['prompts']!r}, expected one of {sorted(PROMPT_STREAMS)}.")
        stream = PROMPT_STREAMS[settings["prompts"]]
        name = settings.get("split" if split == "train" else "validation_split", split)
        loaded = load_split(settings["dataset"], name, settings.get("config"), settings.get("revision"))
        streams.append((replace(stream, weight=settings.get("weight", stream.weight)), loaded))
    return streams


class PromptValidation:
    """Loss of held-out answers by stream, and how often a greedy answer to a closed question is exactly right.

    Args:
        dataset: Held-out rows.
        processor: The model's processor.
        clips: Clips of every stream, evenly spaced over its rows, with a fixed crop and answer each.
    """

    metrics = ("validation_loss",)

    def __init__(self, dataset: PromptDataset, processor: MSClapProcessor, clips: int):
        self.processor, self.collate = processor, PromptCollator(processor.tokenizer)
        self.examples = {}
        for number, stream in enumerate(dataset.streams):
            places = list(dataset.examples_of(number))
            places = places[:: max(1, len(places) // clips)][:clips]
            self.examples[stream.name] = (stream, [dataset[place, 0] for place in places])

    @torch.inference_mode()
    def __call__(self, model: MSClapForConditionalGeneration) -> dict[str, Any]:
        losses, accuracies = {}, {}
        for name, (stream, examples) in self.examples.items():
            total, right = 0.0, 0
            for start in range(0, len(examples), CLIPS_PER_BATCH):
                part = examples[start : start + CLIPS_PER_BATCH]
                batch = {key: value for key, value in self.collate(part).items() if key != "skipped"}
                batch = {key: value.to(model.device) for key, value in batch.items()}
                total += model(**batch, labels=labels_of(batch)).loss.item() * len(part)
                if stream.closed:
                    asked = {key: batch[key] for key in ("input_features", "prompt_ids", "prompt_mask")}
                    tokens = model.generate(**asked, num_beams=1, max_new_tokens=batch["input_ids"].shape[1])
                    answers = self.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
                    right += sum(a.strip() == e.answer for a, e in zip(answers, part, strict=True))
            losses[name] = total / len(examples)
            if stream.closed:
                accuracies[name] = right / len(examples)
        return {
            "validation_loss": sum(losses.values()) / len(losses),
            "validation": {"loss": losses, "exact_match": accuracies},
        }
