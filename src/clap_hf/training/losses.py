"""Contrastive losses as functions of the similarity matrix, beside the paper's own (`contrastive_loss`)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.pairs import PairDataset
from ..embedding import evaluation_mode
from ..model.modeling_msclap import MSClapModel
from ..model.processing_msclap import MSClapProcessor

TEXTS_PER_BATCH = 64


def multi_positive_contrastive_loss(logits_per_text: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy in which all pairs of one group are positives of each other.

    With short, templated captions many pairs of a batch have the same text; calling them negatives punishes the right
    answer. Every row's target is spread evenly over its group, as in WavCaps (Mei et al., 2023) for captions that
    share audio. With all groups distinct it equals the paper's loss (Eq. 4).

    Args:
        logits_per_text: Scaled similarities `[batch, batch]`, matching pairs on the diagonal.
        groups: Group of every pair `[batch]`, integers.

    Returns:
        Scalar loss.
    """
    target = (groups[:, None] == groups[None, :]).to(logits_per_text.device, torch.float32)
    target = target / target.sum(dim=1, keepdim=True)
    logits = logits_per_text.float()
    # The relation is symmetric and so is its row-normalised form within a group: one target serves both directions.
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target))


def text_bank_loss(
    logits: torch.Tensor, texts: torch.Tensor, also_true: torch.Tensor, offsets: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross-entropy of clips against all texts of the training set instead of the batch's alone.

    A frozen text tower encodes every text once, so that thousands of negatives cost one projection; a small batch
    then learns like a large one in the audio-to-text direction.

    Args:
        logits: Scaled similarities of clips and texts `[batch, texts]`.
        texts: The text of every clip `[batch]`, column numbers.
        also_true: Texts that are true of a clip too and must not count as negatives `[batch, texts]`, bool.
        offsets: Added to the logits in training alone `[texts]`: with the log of every text's share of the draws, a
            text that is drawn often need not lie near everything (Menon et al., 2021, "Long-tail learning via logit
            adjustment", Eq. 10).

    Returns:
        Scalar loss.
    """
    if offsets is not None:
        logits = logits.float() + offsets
    ignored = also_true.clone()
    ignored[torch.arange(len(texts), device=texts.device), texts] = False
    return F.cross_entropy(logits.float().masked_fill(ignored, -torch.inf), texts)


def logit_offsets(dataset: PairDataset, probabilities: np.ndarray, adjustment: float) -> torch.Tensor | None:
    """Offsets of `text_bank_loss` for logit adjustment.

    Args:
        dataset: Knows how often it draws every text.
        probabilities: Of drawing every row `[rows]`; sum 1.
        adjustment: Factor on the log of the shares of the texts; 0 adjusts nothing.

    Returns:
        `[texts]`, float32, or None where nothing is adjusted.
    """
    return (adjustment * dataset.text_shares(probabilities).log()).float() if adjustment else None


def sigmoid_loss(logits_per_text: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Pairwise sigmoid loss: every cell of the matrix is its own yes-or-no question (Zhai et al., 2023, "Sigmoid Loss
    for Language Image Pre-Training", Algorithm 1).

    Args:
        logits_per_text: Scaled similarities `[batch, batch]`, matching pairs on the diagonal; -inf takes a cell out.
        bias: Learned offset of all logits, scalar; starts at -10, since nearly all pairs do not match.

    Returns:
        Scalar: the sum over the cells, divided by the batch.
    """
    batch = logits_per_text.shape[0]
    signs = 2 * torch.eye(batch, device=logits_per_text.device) - 1
    return -F.logsigmoid(signs * (logits_per_text.float() + bias)).sum() / batch


class SigmoidLoss(nn.Module):
    """`sigmoid_loss` with its learned bias, which ranks nothing and so is no part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, logits_per_text: torch.Tensor) -> torch.Tensor:
        return sigmoid_loss(logits_per_text, self.bias)


def mask_shared_pairs(logits_per_text: torch.Tensor, audio_ids: torch.Tensor, text_ids: torch.Tensor) -> torch.Tensor:
    """Take pairs that share their audio or their text out of the negatives.

    A caption of the same clip, or the same caption of another clip, is no wrong answer. (WavCaps, Mei et al., 2023,
    makes such pairs positives instead: `multi_positive_contrastive_loss`.)

    Args:
        logits_per_text: Scaled similarities `[batch, batch]`, matching pairs on the diagonal.
        audio_ids: Equal for pairs of one clip, `[batch]`, integers.
        text_ids: Equal for pairs of one text, `[batch]`, integers.

    Returns:
        The matrix with -inf at such pairs, the diagonal untouched.
    """
    shared = (audio_ids[:, None] == audio_ids[None, :]) | (text_ids[:, None] == text_ids[None, :])
    shared.fill_diagonal_(False)
    return logits_per_text.masked_fill(shared, -torch.inf)


class TextBank:
    """Pooled states of every text; only the projection is applied per step.

    Args:
        model: Model with a frozen text tower.
        processor: Its processor.
        dataset: Names the texts, and which of them are true of each other's clips.
        offsets: See `text_bank_loss`.
    """

    def __init__(
        self,
        model: MSClapModel,
        processor: MSClapProcessor,
        dataset: PairDataset,
        offsets: torch.Tensor | None = None,
    ):
        states = []
        with evaluation_mode(model), torch.no_grad():
            for start in range(0, len(dataset.texts), TEXTS_PER_BATCH):
                tokens = processor(text=dataset.texts[start : start + TEXTS_PER_BATCH]).to(model.device)
                states.append(model.pool_text(model.text_model(**tokens), tokens["attention_mask"]))
        self.states = torch.cat(states)  # [texts, text tower's size]
        self.texts_of_groups = dataset.texts_of_groups().to(model.device)
        self.offsets = None if offsets is None else offsets.to(model.device)

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
        to_text = text_bank_loss(against_all, batch["texts"], self.texts_of_groups[batch["groups"]], self.offsets)
        return 0.5 * (to_text + multi_positive_contrastive_loss(within, batch["groups"])), within
