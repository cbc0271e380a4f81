"""The captioning stage (paper Section 2.3): a mapper learns to make CLAP's audio embedding a prefix of a frozen LM."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from rich.progress import track

from ..audio import AudioDecodeError, load_audio
from ..data.source import RowError
from ..evaluation.captioner import caption_examples, join_clips, write_captions
from ..evaluation.captions import caption_scores
from ..model.modeling_msclap_captioning import MSClapForAudioCaptioning
from ..model.processing_msclap import MSClapProcessor
from .inputs import HeldOut
from .stage import Batch, Metrics, TrainingStage

CLIPS_PER_BATCH = 16


def labels_of(batch: Batch) -> torch.Tensor:
    """Tokens to predict: the batch's own, -100 on padding."""
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


@torch.no_grad()
def token_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of tokens that were the likeliest; `logits[:, i]` predicts token i."""
    known = labels != -100
    return (logits[:, : labels.shape[1]].argmax(dim=-1) == labels)[known].float().mean()


class CaptioningStage(TrainingStage):
    """Teacher forcing on one caption per clip and visit: each token is predicted from the true ones before it (Eq. 5).

    Attributes:
        inputs: Parts of a batch that the model takes.
    """

    inputs: tuple[str, ...] = ("input_features", "input_ids", "attention_mask")

    def loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        labels = labels_of(batch)
        outputs = self.model(**{name: batch[name] for name in self.inputs}, labels=labels)
        return outputs.loss, {"token_accuracy": token_accuracy(outputs.logits, labels)}


class CaptionValidation:
    """Captions of held-out clips, scored against all of their own, and the loss of the first of these.

    Args:
        held_out: Sources with their rows; the first that can be read are kept as log-mel windows of the whole clip.
        processor: The model's processor.
        clips: How many.

    Raises:
        ValueError: If no clip can be read.
    """

    metrics = ("cider_d", "validation_loss")

    def __init__(self, held_out: Sequence[HeldOut], processor: MSClapProcessor, clips: int):
        self.processor = processor
        self.features: list[dict[str, torch.Tensor]] = []
        self.references: list[list[str]] = []
        reasons = []
        rows = ((source, row) for source, rows in held_out for row in rows)
        for number, (source, row) in enumerate(itertools.islice(rows, clips)):
            try:
                texts, encoded = source.read(row)
                sound = load_audio(encoded)
            except (RowError, AudioDecodeError) as error:
                reasons.append(f"; the first, {source.name_of(row, number)}: {error}")
                continue
            self.features.append(dict(processor.feature_extractor([sound.samples], sound.sampling_rate)))
            self.references.append(texts)
        if not self.features:
            names = ", ".join(f"{source.dataset}, {source.split}" for source, _ in held_out)
            raise ValueError(f"{names}: no readable clips with captions, expected some{''.join(reasons[:1])}")

    @torch.inference_mode()
    def __call__(self, model: MSClapForAudioCaptioning) -> dict[str, Any]:
        tokenizer, captions, losses = self.processor.tokenizer, [], []
        for start in track(
            range(0, len(self.features), CLIPS_PER_BATCH),
            "Captioning",
            transient=True,
            disable=len(self.features) < 64,
        ):
            rows = slice(start, start + CLIPS_PER_BATCH)
            inputs = join_clips(self.features[rows], model.device)
            captions += write_captions(model, tokenizer, inputs)
            first = tokenizer([own[0] for own in self.references[rows]], padding=True, truncation=True)
            batch = {name: torch.tensor(first[name]).to(model.device) for name in ("input_ids", "attention_mask")}
            losses.append(model(**inputs, **batch, labels=labels_of(batch)).loss.item() * len(self.references[rows]))
        scores = caption_scores(captions, self.references)
        return {
            "cider_d": scores.values["cider_d"],
            "validation_loss": sum(losses) / len(self.references),
            "validation": {name: value for name, value in scores.values.items() if value is not None},
            "captions": caption_examples(captions, self.references),
        }
