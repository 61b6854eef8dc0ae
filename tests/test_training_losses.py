"""Losses other than CLIP's InfoNCE, against their definitions written out."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from training.losses import HARD_NEGATIVE, ContrastiveLoss, SigmoidLoss


def unit_rows(count: int, seed: int) -> Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_sigmoid_loss_asks_of_each_pair_alone_whether_it_matches() -> None:
    sources, targets = unit_rows(3, 1), unit_rows(4, 2)
    ids, target_ids = [7, 8, 9], [8, 7, HARD_NEGATIVE, 7]
    loss = SigmoidLoss(temperature=0.5, bias=-3.0)(
        sources, targets, torch.tensor(ids), torch.tensor(target_ids)
    )
    naive = 0.0
    for row in range(3):
        for column in range(4):
            logit = float(sources[row] @ targets[column]) / 0.5 - 3.0
            sign = 1 if ids[row] == target_ids[column] else -1
            naive += math.log(1 + math.exp(-sign * logit)) / 3
    assert loss.item() == pytest.approx(naive, abs=1e-5)


def test_temperature_and_bias_of_the_sigmoid_loss_are_learned() -> None:
    loss = SigmoidLoss()
    loss(unit_rows(3, 1), unit_rows(3, 2), torch.arange(3), torch.arange(3)).backward()
    assert all(each.grad is not None and each.grad != 0 for each in loss.parameters())
    assert loss.temperature == pytest.approx(0.1)


@pytest.mark.parametrize("loss", [ContrastiveLoss(), SigmoidLoss()])
def test_a_scale_that_an_update_made_0_has_a_temperature(loss: ContrastiveLoss | SigmoidLoss) -> None:
    loss.log_scale.data.fill_(-math.inf)
    assert loss.temperature == math.inf


def test_a_source_that_nothing_matches_repels_and_asks_for_no_match() -> None:
    sources, targets = unit_rows(3, 1), unit_rows(2, 2)
    ids = torch.tensor([4, HARD_NEGATIVE, 5])  # the second source matches no target
    target_ids = torch.tensor([4, 5])
    loss = ContrastiveLoss(temperature=1.0)(sources, targets, ids, target_ids)
    logits = sources @ targets.T
    forth = torch.nn.functional.cross_entropy(logits[[0, 2]], torch.tensor([0, 1]))
    back = torch.nn.functional.cross_entropy(logits.T, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx(float(forth + back) / 2, abs=1e-5)
