"""Contrastive losses as pure functions of the similarity matrix, beside the paper's own (`contrastive_loss`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


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
