"""The multi-positive loss against Eq. 4 and against a plain loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from clap_hf.model.modeling_msclap import contrastive_loss
from clap_hf.training.losses import multi_positive_contrastive_loss, text_bank_loss


def test_distinct_groups_give_the_papers_loss():
    logits = torch.randn(7, 7, generator=torch.Generator().manual_seed(0)) * 5
    torch.testing.assert_close(multi_positive_contrastive_loss(logits, torch.arange(7)), contrastive_loss(logits))


def test_every_member_of_a_group_is_a_positive_in_both_directions():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    groups = torch.tensor([3, 8, 3, 3, 1])
    expected = 0.0
    for matrix in (logits, logits.t()):
        log_probabilities = matrix.log_softmax(dim=1)
        for row in range(5):
            members = [column for column in range(5) if groups[column] == groups[row]]
            expected -= sum(log_probabilities[row, column] for column in members) / len(members) / 10
    torch.testing.assert_close(multi_positive_contrastive_loss(logits, groups), expected.float())


def test_one_group_pulls_all_pairs_together():
    logits = torch.zeros(4, 4, requires_grad=True)
    multi_positive_contrastive_loss(logits, torch.zeros(4, dtype=torch.long)).backward()
    assert logits.grad.abs().max() < 1e-7  # evenly spread already: nothing to push apart


def test_text_bank_leaves_out_what_is_also_true_and_nothing_else():
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    also_true = torch.tensor([[True, False, True, False], [False, True, False, False]])
    loss = text_bank_loss(logits, torch.tensor([0, 1]), also_true)
    first = F.cross_entropy(logits[0, [0, 1, 3]][None], torch.tensor([0]))
    second = F.cross_entropy(logits[1][None], torch.tensor([1]))
    assert loss.item() == pytest.approx(((first + second) / 2).item(), abs=1e-6)
    loss.backward()
    assert logits.grad[0, 2] == 0 and (logits.grad[0, [1, 3]] > 0).all()


def test_text_bank_with_shares_of_the_draws_learns_what_does_not_depend_on_them():
    """Of two texts that sound alike, one is drawn nine times as often: their logits end equal, not log 9 apart."""
    shares = torch.tensor([0.9, 0.1])
    texts = torch.tensor([0] * 9 + [1])
    apart = {}
    for name, offsets in (("plain", None), ("adjusted", shares.log())):
        bias = torch.zeros(2, requires_grad=True)
        optimizer = torch.optim.Adam([bias], lr=0.1)
        for _ in range(500):
            optimizer.zero_grad()
            text_bank_loss(bias.expand(10, 2), texts, torch.zeros(10, 2, dtype=torch.bool), offsets).backward()
            optimizer.step()
        apart[name] = (bias[0] - bias[1]).item()
    assert apart["plain"] == pytest.approx(math.log(9), abs=1e-3)
    assert apart["adjusted"] == pytest.approx(0, abs=1e-3)
