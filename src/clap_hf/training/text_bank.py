"""All texts of a training set behind a frozen text tower, encoded once."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..data.pairs import PairDataset
from ..model.modeling_msclap import MSClapModel
from ..model.processing_msclap import MSClapProcessor
from .losses import multi_positive_contrastive_loss, text_bank_loss

TEXTS_PER_BATCH = 64


class TextBank:
    """Pooled states of every text; only the projection is applied per step.

    Args:
        model: Model with a frozen text tower.
        processor: Its processor.
        dataset: Names the texts, and which of them are true of each other's clips.
    """

    def __init__(self, model: MSClapModel, processor: MSClapProcessor, dataset: PairDataset):
        was_training = model.training
        model.eval()
        states = []
        with torch.no_grad():
            for start in range(0, len(dataset.texts), TEXTS_PER_BATCH):
                tokens = processor(text=dataset.texts[start : start + TEXTS_PER_BATCH]).to(model.device)
                states.append(model.pool_text(model.text_model(**tokens), tokens["attention_mask"]))
        model.train(was_training)
        self.states = torch.cat(states)  # [texts, text tower's size]
        self.texts_of_groups = dataset.texts_of_groups().to(model.device)

    def loss(
        self, model: MSClapModel, audio_embeds: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Symmetric loss of a batch: clips against all texts, the batch's texts against its clips.

        Args:
            model: The model, on the same device as the bank.
            audio_embeds: Unit vectors of the batch's clips `[batch, projection_dim]`, float32.
            batch: With `texts` (numbers of the batch's texts) and `groups`, both `[batch]`.

        Returns:
            The scalar loss, and the scaled similarities within the batch, texts by clips.
        """
        texts = F.normalize(model.text_projection(self.states).float(), dim=-1)
        against_all = model.compute_similarity(audio_embeds, texts)  # [batch, texts]
        within = against_all[:, batch["texts"]].t()
        to_text = text_bank_loss(against_all, batch["texts"], self.texts_of_groups[batch["groups"]])
        return 0.5 * (to_text + multi_positive_contrastive_loss(within, batch["groups"])), within
