"""The captioning model for evaluation, and the result of a captioning task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from ..audio import Audio
from ..embedding import fingerprint, front_end
from ..model.feature_extraction_msclap import pad_windows
from ..model.modeling_msclap_captioning import MSClapForAudioCaptioning
from ..model.processing_msclap import MSClapProcessor
from . import scoring
from .captions import caption_scores

CLIPS_PER_BATCH = 8
EXAMPLES, EXAMPLE_SEED = 20, 2023


class Captioner(Protocol):
    """Anything that describes sounds in words."""

    key: str  # changes whenever the captions may change

    def prepare(self, audio: Audio) -> Any:
        """The model's input for a sound; called in other threads."""

    def caption(self, prepared: Sequence[Any]) -> list[str]:
        """A caption a sound."""

    def settings(self) -> dict[str, Any]:
        """Everything about the model that affects a score, for the record."""


def join_clips(clips: Sequence[dict[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    """`input_features` and `num_windows` of clips that went through the feature extractor one by one, as a batch."""
    features = pad_windows([clip["input_features"][0] for clip in clips])
    return {
        "input_features": features.to(device),
        "num_windows": torch.cat([clip["num_windows"] for clip in clips]).to(device),
    }


def write_captions(
    model: MSClapForAudioCaptioning, tokenizer: PreTrainedTokenizerFast, inputs: dict[str, torch.Tensor]
) -> list[str]:
    """A caption for every clip of a batch."""
    tokens = model.generate(**inputs)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


class ClapCaptioner:
    """The paper's captioning model for evaluation.

    Args:
        model: In evaluation mode, on its device; its own generation settings apply.
        processor: Its processor, with the language model's tokenizer.
        name: Folder or Hub id, for the record.
    """

    def __init__(self, model: MSClapForAudioCaptioning, processor: MSClapProcessor, name: str = ""):
        self.model, self.processor = model, processor
        settings = {
            **front_end(processor.feature_extractor),
            "generation": model.generation_config.to_diff_dict(),
            "beam_scores": model.config.beam_scores,
        }
        self.key = fingerprint(model, settings)
        revision = model.config.__dict__.get("_commit_hash")
        self._settings = {"model": name, "revision": revision, "fingerprint": self.key[:16], **settings}

    def prepare(self, audio: Audio) -> dict[str, torch.Tensor]:
        """Log-mel windows of a sound."""
        return dict(self.processor.feature_extractor(audio.samples, audio.sampling_rate))

    @torch.inference_mode()
    def caption(self, prepared: Sequence[dict[str, torch.Tensor]]) -> list[str]:
        """A caption a sound."""
        texts: list[str] = []
        for start in range(0, len(prepared), CLIPS_PER_BATCH):
            inputs = join_clips(prepared[start : start + CLIPS_PER_BATCH], self.model.device)
            texts += write_captions(self.model, self.processor.tokenizer, inputs)
        return texts

    def settings(self) -> dict[str, Any]:
        """Model, revision and generation settings."""
        return self._settings


def score_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Result of a captioning task: SPIDEr where it can be computed, and every other metric.

    Args:
        captions: A caption a clip.
        references: The clip's own captions.
    """
    scores = caption_scores(captions, references)
    low, high = (None, None) if scores.spider is None else scoring.bootstrap_interval(scores.spider)
    cider_low, cider_high = scoring.bootstrap_interval(np.asarray(scores.cider_d))
    return {
        "metric": "SPIDEr",
        "value": scores.values["spider"],
        "low": low,
        "high": high,
        "chance": None,
        "clips": len(captions),
        "captions": sum(map(len, references)),
        "scores": scores.values,
        "cider_d": {"value": scores.values["cider_d"], "low": cider_low, "high": cider_high},
        "unavailable": scores.unavailable,
        "tokenizer": scores.tokenizer,
        "examples": caption_examples(captions, references),
    }


def caption_examples(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Captions to show, chosen by a fixed seed and not by eye.

    Args:
        captions: A caption a clip.
        references: The clip's own captions.

    Returns:
        `caption` and `references` of up to 20 clips, in the clips' order.
    """
    chosen = sorted(random.Random(EXAMPLE_SEED).sample(range(len(captions)), min(EXAMPLES, len(captions))))
    return [{"caption": captions[i], "references": list(references[i])} for i in chosen]
