"""The losses. A function ``(output, target) -> one number`` or a module can be named in a config.

Those of torch need no line here: ``loss: cross_entropy``, ``loss: {type: HuberLoss, args: {delta:
0.5}}``. Several, each with its share: ``loss: [{type: l1_loss, weight: 0.5}, {type: mse_loss}]``.

A loss of your own is taken for a mean over the samples of a batch. One that divides by something
else says so with ``denominator(target)``, so that parts of a batch, accumulated batches and the
last, smaller one count as they should; one that compares samples with each other sets
``needs_whole_batches = True``. It may have more parameters, named after items of the batch (a
mask), and give several terms, ``{name: tensor}``. See docs/losses.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base import same_denominator_as


@same_denominator_as(F.cross_entropy)
def smooth_cross_entropy(output: Tensor, target: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross entropy against targets that leave a little for every class (Szegedy et al., 2016)."""
    return F.cross_entropy(output, target, label_smoothing=smoothing)


class FocalLoss(nn.Module):
    """Cross entropy that looks away from what is easy already (Lin et al., 2017).

    A sample whose true class has probability p counts ``(1 - p) ** gamma``; with ``gamma`` 0 this
    is cross entropy. For classes of very unequal size. Targets equal to ``ignore_index`` are left
    out.
    """

    def __init__(self, gamma: float = 2.0, ignore_index: int = -100) -> None:
        super().__init__()
        self.gamma = gamma
        self.ignore_index = ignore_index

    def denominator(self, target: Tensor) -> Tensor:
        """Return the number of targets that are counted."""
        return (target != self.ignore_index).sum()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(output, target, reduction="none", ignore_index=self.ignore_index)
        uncertainty = (1 - (-losses).exp()).clamp_min(torch.finfo(losses.dtype).tiny)
        focal = uncertainty**self.gamma * losses  # 0 where the target is ignored
        return focal.sum() / self.denominator(target)
