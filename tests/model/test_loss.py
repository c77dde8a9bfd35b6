"""The shipped losses against their formulas."""

import pytest
import torch
from torch.nn import functional as F

from model.loss import FocalLoss, SigmoidFocalLoss, smooth_cross_entropy

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


ALPHA = [0.1, 0.2, 0.3, 0.4]


def test_focal_loss_without_gamma_is_cross_entropy_weighted_by_class():
    """As in the paper, the weights are factors: the mean is over the samples."""
    weights = torch.tensor(ALPHA, dtype=torch.double)
    total = F.cross_entropy(OUTPUT, TARGET, weight=weights, reduction="sum")
    found = FocalLoss(gamma=0, alpha=ALPHA)(OUTPUT, TARGET)
    torch.testing.assert_close(found, total / 7, rtol=1e-6, atol=0)
    torch.testing.assert_close(FocalLoss(gamma=0)(OUTPUT, TARGET), F.cross_entropy(OUTPUT, TARGET))


def test_focal_loss_of_pixels_weights_each_by_its_class():
    output = torch.randn(2, 4, 3, 5, dtype=torch.double)
    target = torch.randint(0, 4, (2, 3, 5))
    target[0, 0] = 255
    loss = FocalLoss(1.5, ignore_index=255, alpha=ALPHA)
    flat, classes = output.movedim(1, -1).reshape(-1, 4), target.flatten()
    kept = classes != 255
    torch.testing.assert_close(loss(output, target), loss(flat[kept], classes[kept]))
    assert loss.denominator(target) == 25


@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_focal_loss_of_probabilities_is_that_of_classes_where_they_are_certain(alpha):
    loss = FocalLoss(2.0, alpha=alpha)
    shares = F.one_hot(TARGET, 4).double()
    torch.testing.assert_close(loss(OUTPUT, shares), loss(OUTPUT, TARGET))
    assert loss.denominator(shares) == 7


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_of_two_classes_is_that_of_one_logit(gamma):
    """The softmax of two scores is the sigmoid of their difference."""
    output, target = OUTPUT[:, :2], TARGET % 2
    found = FocalLoss(gamma, alpha=0.25)(output, target)
    logits = output[:, 1] - output[:, 0]
    torch.testing.assert_close(found, SigmoidFocalLoss(gamma, alpha=0.25)(logits, target))


@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_sigmoid_focal_loss_is_that_of_torchvision(gamma, alpha):
    ops = pytest.importorskip("torchvision.ops")
    output = torch.randn(5, 3, requires_grad=True)
    target = torch.randint(0, 2, (5, 3)).float()
    theirs = ops.sigmoid_focal_loss(output, target, -1 if alpha is None else alpha, gamma, "mean")
    expected = torch.autograd.grad(theirs, output)[0]
    ours = SigmoidFocalLoss(gamma, alpha)(output, target)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, output)[0], expected)


def test_sigmoid_focal_loss_leaves_ignored_targets_out_and_weights_labels():
    output = torch.randn(6, 2, requires_grad=True)
    target = torch.randint(0, 2, (6, 2))
    target[:3, 0] = -1
    loss = SigmoidFocalLoss(2.0, [0.2, 0.7], ignore_index=-1)
    parts = [
        SigmoidFocalLoss(2.0, alpha)(output[rows, label], target[rows, label]) * n
        for label, alpha, rows, n in ((0, 0.2, slice(3, 6), 3), (1, 0.7, slice(0, 6), 6))
    ]
    found = loss(output, target)
    torch.testing.assert_close(found, sum(parts) / 9)
    found.backward()
    assert output.grad.isfinite().all()
    assert not output.grad[:3, 0].any()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: FocalLoss(gamma=-1), "gamma must be at least 0"),
        (lambda: FocalLoss(alpha=[0.5, -0.5]), "alpha must be"),
        (lambda: FocalLoss(alpha=1.5), "alpha must be"),
        (lambda: SigmoidFocalLoss(alpha=2.0), "alpha must be"),
        (lambda: FocalLoss(alpha=0.25)(OUTPUT, TARGET), "alpha has 2 weights for 4 classes"),
    ],
)
def test_focal_losses_refuse_impossible_weights(make, text):
    with pytest.raises(ValueError, match=text):
        make()
