"""Losses. A config can name a function ``(output, target) -> scalar tensor`` or a module.

Losses of torch need no code: ``loss: cross_entropy``, ``loss: {type: HuberLoss, args: {delta:
0.5}}``. Several losses have weights: ``loss: [{type: l1_loss, weight: 0.5}, {type: mse_loss}]``.

A loss of your own is assumed to be the mean over the samples of a batch. A loss with another
denominator defines ``denominator(target)``, so that micro-batches, accumulated batches and a
smaller last batch are weighted correctly. A loss that compares samples with each other sets
``needs_whole_batches = True``. Further parameters receive the items of the batch with their names,
such as a mask. A loss may return several terms, ``{name: tensor}``. See docs/losses.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base import same_denominator_as


@same_denominator_as(F.cross_entropy)
def smooth_cross_entropy(output: Tensor, target: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross entropy with label smoothing (Szegedy et al., 2016)."""
    return F.cross_entropy(output, target, label_smoothing=smoothing)


class FocalLoss(nn.Module):
    """Focal loss for imbalanced classes (Lin et al., 2017): down-weights samples that are easy.

    A sample whose true class has probability p has the weight ``alpha * (1 - p) ** gamma``; with
    ``gamma`` 0 and no ``alpha`` this is cross entropy. As in the paper, ``alpha`` is a factor: the
    mean is over the samples, not over their weights. Targets equal to ``ignore_index`` do not
    count. Targets may be probabilities of the classes, as after mixup.

    Args:
        alpha: the weight of each class; of two classes, one number is the weight of class 1, and
            class 0 has ``1 - alpha``.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        ignore_index: int = -100,
        alpha: float | list[float] | Tensor | None = None,
    ) -> None:
        super().__init__()
        self.alpha: Tensor | None
        self.gamma = _checked_gamma(gamma)
        self.ignore_index = ignore_index
        if isinstance(alpha, int | float):
            alpha = [1 - alpha, alpha]
        weights = None if alpha is None else torch.as_tensor(alpha, dtype=torch.float32)
        if weights is not None and not (weights.dim() == 1 and (weights >= 0).all()):
            raise ValueError(f"alpha must be a number from 0 to 1 or one per class, not {alpha}")
        self.register_buffer("alpha", weights, persistent=False)

    def denominator(self, target: Tensor) -> Tensor | int:
        """Return the number of targets that are not ignored."""
        if target.is_floating_point():  # (batch, class, ...)
            return target.numel() // target.shape[1]
        return (target != self.ignore_index).sum()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of scores (batch, class, ...) and classes (batch, ...)."""
        if self.alpha is not None and len(self.alpha) != output.shape[1]:
            text = f"alpha has {len(self.alpha)} weights for {output.shape[1]} classes"
            raise ValueError(f"{text}; give one number per class")
        if target.is_floating_point():
            shares = target if self.alpha is None else target * _per_label(self.alpha, output)
            losses = -F.log_softmax(output, dim=1)
            focal = shares * self._uncertainty(losses) ** self.gamma * losses
        else:
            ignored = self.ignore_index
            losses = F.cross_entropy(output, target, reduction="none", ignore_index=ignored)
            focal = self._uncertainty(losses) ** self.gamma * losses  # 0 for an ignored target
            if self.alpha is not None:
                weights = self.alpha.to(focal.dtype)
                focal = focal * weights[target.where(target != ignored, 0)]
        return focal.sum() / self.denominator(target)

    @staticmethod
    def _uncertainty(losses: Tensor) -> Tensor:
        """Return 1 - p, above 0: the gradient of a power is infinite there."""
        return (1 - (-losses).exp()).clamp_min(torch.finfo(losses.dtype).tiny)


class SigmoidFocalLoss(nn.Module):
    """Focal loss of independent yes/no outputs (Lin et al., 2017), each with a sigmoid.

    For one logit, several labels per sample, or a mask. Targets, 0 or 1 or between, have the shape
    of the output; those equal to ``ignore_index`` do not count. The mean is over the targets.

    Args:
        alpha: the weight of the targets 1; those of 0 have ``1 - alpha``. A list has one for each
            entry of the second dimension. None weights all targets by 1.
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | list[float] | Tensor | None = 0.25,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        self.alpha: Tensor | None
        self.gamma = _checked_gamma(gamma)
        self.ignore_index = ignore_index
        weights = None if alpha is None else torch.as_tensor(alpha, dtype=torch.float32)
        if weights is not None and not ((weights >= 0) & (weights <= 1)).all():
            raise ValueError(f"alpha must be from 0 to 1, not {alpha}")
        self.register_buffer("alpha", weights, persistent=False)

    def denominator(self, target: Tensor) -> Tensor:
        """Return the number of targets that are not ignored."""
        return (target != self.ignore_index).sum()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits and targets of the same shape."""
        is_counted = target != self.ignore_index
        shares = target.where(is_counted, 0).to(output.dtype)
        losses = F.binary_cross_entropy_with_logits(output, shares, reduction="none")
        p = output.sigmoid()
        uncertainty = p * (1 - shares) + (1 - p) * shares
        uncertainty = uncertainty.clamp_min(torch.finfo(losses.dtype).tiny)
        focal = uncertainty**self.gamma * losses
        if self.alpha is not None:
            alpha = _per_label(self.alpha, output)
            focal = focal * (alpha * shares + (1 - alpha) * (1 - shares))
        return (focal * is_counted).sum() / self.denominator(target)


def _per_label(alpha: Tensor, output: Tensor) -> Tensor:
    """Return weights, one or (label,), in a shape that fits outputs (batch, label, ...)."""
    alpha = alpha.to(output.dtype)
    return alpha.view(1, -1, *[1] * (output.dim() - 2)) if alpha.dim() else alpha


def _checked_gamma(gamma: float) -> float:
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, not {gamma}")
    return gamma
