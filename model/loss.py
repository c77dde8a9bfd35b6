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

    A sample whose true class has probability p has the weight ``(1 - p) ** gamma``; with ``gamma``
    0 this is cross entropy. Targets equal to ``ignore_index`` do not count.
    """

    def __init__(self, gamma: float = 2.0, ignore_index: int = -100) -> None:
        super().__init__()
        self.gamma = gamma
        self.ignore_index = ignore_index

    def denominator(self, target: Tensor) -> Tensor:
        """Return the number of targets that are not ignored."""
        return (target != self.ignore_index).sum()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(output, target, reduction="none", ignore_index=self.ignore_index)
        uncertainty = (1 - (-losses).exp()).clamp_min(torch.finfo(losses.dtype).tiny)
        focal = uncertainty**self.gamma * losses  # 0 where the target is ignored
        return focal.sum() / self.denominator(target)
