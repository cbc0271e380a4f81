"""The contrastive stage (paper Section 2.1): two towers, one loss over the global batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..data.augment import augment_log_mel
from ..data.batches import SampledBatches
from ..data.pairs import BalancedSampler
from ..model.modeling_msclap import MSClapModel, contrastive_loss
from ..model.processing_msclap import MSClapProcessor
from .cached_step import cached_backward, prepare_batch_norm, trunk_batch_norms, whole_batch_statistics
from .chunking import automatic_chunk_size
from .distributed import gather, world_size
from .factory import resolve, save_adapters
from .losses import SigmoidLoss, TextBank, logit_offsets, mask_shared_pairs, multi_positive_contrastive_loss
from .recipe import ContrastiveRecipe
from .stage import Batch, Batches, Metrics, Position, TrainingStage
from .teacher import TeacherHead

CHUNKS = 8  # of a batch whose activations are all kept, seeded each: the same on 1, 2, 4 and 8 processes


class ContrastiveStage(TrainingStage):
    """Contrastive training of `MSClapModel`.

    Args:
        model: The model.
        processor: Its processor.
        recipe: The recipe.
        data: Source of the pairs. A batch holds log-mels or waveforms (see `Batches`), `input_ids` and
            `attention_mask` `[batch, tokens]`, and `groups` `[batch]`, equal for pairs with the same meaning; `clips`
            and `texts` `[batch]` are equal for pairs of one clip or one text.
        evaluation: Evaluates a model after every epoch, on every rank; returns the metrics that the recipe names.
        teacher_features: The teacher's features of every row of the dataset `[rows, dim]`, where the recipe has one.
        metrics: Results of the evaluation, see `TrainingStage`.

    Raises:
        ValueError: If the recipe's chunks, BatchNorm, bank or checkpointing do not fit the model or the world size.
    """

    evaluated_everywhere = True

    def __init__(
        self,
        model: MSClapModel,
        processor: MSClapProcessor,
        recipe: ContrastiveRecipe,
        data: Batches,
        evaluation: Callable[[MSClapModel], dict[str, Any]],
        teacher_features: torch.Tensor | None = None,
        metrics: Sequence[str] | None = None,
    ):
        super().__init__(model, processor, data, evaluation, metrics)
        self.model: MSClapModel = model
        self.recipe = recipe
        self.bank: TextBank | None = None
        self.chunk_size: int | None = None  # set at the first step where the recipe has "auto"
        if recipe.loss == "sigmoid":
            self.criterion = SigmoidLoss()
        if teacher_features is not None:
            self.criterion = TeacherHead(model.audio_model.config.hidden_size, teacher_features)
        if recipe.gradient_checkpointing and trunk_batch_norms(model):
            raise ValueError(
                "gradient_checkpointing would advance the BatchNorm statistics of CNN14 twice a step. Use a smaller "
                "share of the batch per process, or HTSAT."
            )

    def setup(self, accelerator: Accelerator) -> None:
        if self.recipe.text_bank:
            data = self.data
            if (
                world_size() > 1
                or not isinstance(data, SampledBatches)
                or not isinstance(data.sampler, BalancedSampler)
            ):
                raise ValueError(
                    "text_bank needs one process and a dataset in the layout of the sound corpus; leave it out."
                )
            offsets = logit_offsets(data.dataset, data.sampler.probabilities, self.recipe.logit_adjustment)
            self.bank = TextBank(self.model, self.processor, data.dataset, offsets)
        if self.recipe.chunk_size != "auto":
            self.set_chunk_size(self.asked_chunk_size)

    @property
    def asked_chunk_size(self) -> int:
        """Pairs of a chunk on one process; a part of the batch where the recipe leaves it open and the model can."""
        batch = self.recipe.batch_size
        if self.recipe.chunk_size is not None:
            return int(self.recipe.chunk_size)
        needs_whole = trunk_batch_norms(self.model) and self.recipe.batch_norm == "exact"
        return batch if needs_whole or self.recipe.text_bank else batch // math.gcd(batch, CHUNKS)

    def remark(self, processes: int) -> str:
        if self.recipe.chunk_size != "auto" and self.share % self.asked_chunk_size == 0:
            return ""  # every chunk is seeded by its place in the batch, on any process
        return super().remark(processes)

    @property
    def share(self) -> int:
        """Pairs of a batch that are this rank's."""
        return self.recipe.batch_size // world_size()

    def set_chunk_size(self, size: int) -> None:
        """Set how many pairs are encoded at once."""
        self.chunk_size = min(size, self.share)
        prepare_batch_norm(self.model, self.recipe.batch_norm, in_chunks=self.chunk_size < self.share)

    def train_mode(self) -> None:
        self.model.train()
        if self.recipe.text.freeze:
            self.model.text_model.eval()
        if self.recipe.batch_norm == "frozen":
            for layer in trunk_batch_norms(self.model):
                layer.eval()

    def prepare_batch(self, batch: Batch, position: Position) -> Batch:
        """Augment the log-mels, chunk by chunk; the first batch sets an automatic chunk size."""
        features = batch["input_features"]
        if self.chunk_size is None:
            dtype = torch.bfloat16 if self.recipe.precision == "bf16" else None
            with torch.autocast(features.device.type, dtype, enabled=dtype is not None):
                self.set_chunk_size(automatic_chunk_size(self.model, batch, self.share))
        if self.recipe.augmentation is not None:
            generator = torch.Generator(features.device)
            chunks = features.split(self.chunk_size or self.share)
            batch["input_features"] = torch.cat(
                [
                    augment_log_mel(chunk, generator.manual_seed(seed), self.recipe.augmentation)
                    for seed, chunk in zip(self._seeds(position, 1), chunks, strict=True)
                ]
            )
        return batch

    def _seeds(self, position: Position, purpose: int) -> list[int]:
        """A seed per chunk, by its place in the global batch: the same at any world size."""
        start = position.rank * self.share
        return [
            position.random_seed(purpose, start + first)
            for first in range(0, self.share, self.chunk_size or self.share)
        ]

    def backward(self, accelerator: Accelerator, batch: Batch, position: Position) -> Metrics:
        if self.bank is not None:
            return self._bank_backward(self.bank, accelerator, batch, position)
        features, size = batch["input_features"], self.chunk_size or self.share

        def encode(number: int) -> tuple[torch.Tensor, ...]:
            rows = slice(number * size, (number + 1) * size)
            mask = batch["attention_mask"][rows]
            tokens = int(mask.sum(dim=1).max())  # padding is on the right: the chunk's longest text decides
            with accelerator.autocast():
                audio = self.model.get_audio_features(features[rows]).pooler_output
                text = self.model.get_text_features(batch["input_ids"][rows, :tokens], mask[:, :tokens]).pooler_output
            return audio, text

        groups = gather(batch["groups"])
        ids = [gather(batch[name]) for name in ("clips", "texts")] if self.recipe.mask_shared else []
        with whole_batch_statistics(self.model, features):
            return cached_backward(
                encode,
                self._seeds(position, 0),
                lambda audio, text: self.global_loss(audio, text, groups, *ids),
                self.model,
                kept=1 if self.recipe.chunk_size is not None else self.share,
            )

    def _bank_backward(self, bank: TextBank, accelerator: Accelerator, batch: Batch, position: Position) -> Metrics:
        """The step of one rank, in one chunk, against all texts of the training set."""
        torch.manual_seed(position.random_seed(0, 0))
        with accelerator.autocast():
            pooled = self.model.audio_model(batch["input_features"]).pooler_output
            audio = F.normalize(self.model.audio_projection(pooled).float(), dim=-1)
        loss, logits = bank.loss(self.model, audio, batch)
        metrics = self._metrics(logits.detach(), batch["groups"])
        if self.recipe.teacher is not None:
            cosine = self.criterion(pooled, batch["rows"])
            loss = loss + self.recipe.teacher.weight * (1 - cosine)
            metrics["teacher_cosine"] = cosine.detach()
        loss.backward()
        return {"loss": loss.detach()} | metrics

    def global_loss(
        self, audio: torch.Tensor, text: torch.Tensor, groups: torch.Tensor, *ids: torch.Tensor
    ) -> tuple[torch.Tensor, Metrics]:
        """The recipe's loss over the embeddings of the global batch.

        Args:
            audio: Unit vectors `[batch, dim]`, float32.
            text: Unit vectors `[batch, dim]`, float32.
            groups: Equal for pairs with the same meaning `[batch]`.
            ids: Clip and text of every pair, `[batch]` each, where shared ones are masked.

        Returns:
            The scalar loss and metrics to log.
        """
        logits = self.model.compute_similarity(audio, text).t()
        scored = mask_shared_pairs(logits, *ids) if ids else logits
        if self.recipe.loss == "sigmoid":
            loss = self.criterion(scored)
        elif self.recipe.loss == "multi_positive":
            loss = multi_positive_contrastive_loss(scored, groups)
        else:
            loss = contrastive_loss(scored)
        return loss, self._metrics(logits.detach(), groups)

    @torch.no_grad()
    def _metrics(self, logits: torch.Tensor, groups: torch.Tensor) -> Metrics:
        """Both directions' cross-entropy and accuracy among the batch's own items, and the logit scale."""
        target = torch.arange(len(logits), device=logits.device)
        to_audio, to_text = groups[logits.argmax(dim=1)], groups[logits.argmax(dim=0)]
        return {
            "loss_text_to_audio": F.cross_entropy(logits, target),
            "loss_audio_to_text": F.cross_entropy(logits.t(), target),
            "batch_accuracy_text_to_audio": (to_audio == groups).float().mean(),
            "batch_accuracy_audio_to_text": (to_text == groups).float().mean(),
            "logit_scale": self.model.logit_scale.detach().float().exp(),
        }

    def save(self, folder: Path, model: PreTrainedModel) -> None:
        if self.recipe.lora is None or self.recipe.weights is None:
            return super().save(folder, model)
        save_adapters(model, resolve(self.recipe.weights), folder)
        self.processor.save_pretrained(folder)

    def state(self) -> dict[str, Any]:
        return {"chunk_size": self.chunk_size}

    def load_state(self, state: dict[str, Any]) -> None:
        if state["chunk_size"] is not None:
            self.set_chunk_size(state["chunk_size"])  # an automatic one stays: the random numbers depend on it
