"""The shipped losses against their formulas."""

import pytest
import torch
from torch.nn import functional as F

from model.loss import FocalLoss, smooth_cross_entropy

torch.manual_seed(0)
OUTPUT, TARGET = torch.randn(7, 4, dtype=torch.double), torch.randint(0, 4, (7,))
PROBABILITIES = OUTPUT.softmax(dim=1)


def test_smoothed_targets_give_each_class_its_share():
    shares = F.one_hot(TARGET, 4) * 0.8 + 0.2 / 4
    by_hand = -(shares * PROBABILITIES.log()).sum(dim=1).mean()
    torch.testing.assert_close(smooth_cross_entropy(OUTPUT, TARGET, smoothing=0.2), by_hand)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_follows_its_formula(gamma):
    p = PROBABILITIES[torch.arange(7), TARGET]
    by_hand = (-((1 - p) ** gamma) * p.log()).mean()
    torch.testing.assert_close(FocalLoss(gamma)(OUTPUT, TARGET), by_hand)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_leaves_ignored_targets_out(gamma):
    output, target = OUTPUT.clone().requires_grad_(), TARGET.clone()
    target[::2] = -100
    loss = FocalLoss(gamma)(output, target)
    torch.testing.assert_close(loss, FocalLoss(gamma)(OUTPUT[1::2], TARGET[1::2]))
    loss.backward()
    assert output.grad.isfinite().all()
    assert not output.grad[::2].any()


def test_focal_loss_has_a_finite_gradient_where_a_sample_is_certain():
    output = torch.tensor([[100.0, -100.0], [-100.0, 100.0]], requires_grad=True)
    FocalLoss()(output, torch.tensor([0, 0])).backward()
    assert output.grad.isfinite().all()
