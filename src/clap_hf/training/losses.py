"""Contrastive losses as pure functions of embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def multi_positive_contrastive_loss(logits_per_text: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy in which all pairs of one group are positives of each other.

    With short, templated captions many pairs of a batch say the same; calling them negatives punishes the right
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


def text_bank_loss(logits: torch.Tensor, texts: torch.Tensor, also_true: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of clips against all texts of the training set instead of the batch's alone.

    A frozen text tower encodes every text once, so that thousands of negatives cost one projection; a small batch
    then learns like a large one in the audio-to-text direction.

    Args:
        logits: Scaled similarities of clips and texts `[batch, texts]`.
        texts: The text of every clip `[batch]`, column numbers.
        also_true: Texts that are true of a clip too and must not count as negatives `[batch, texts]`, bool.

    Returns:
        Scalar loss.
    """
    ignored = also_true.clone()
    ignored[torch.arange(len(texts), device=texts.device), texts] = False
    return F.cross_entropy(logits.float().masked_fill(ignored, -torch.inf), texts)
