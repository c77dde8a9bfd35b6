"""The losses. A function ``(output, target) -> one number`` or a module can be named in a config.

Those of torch need no line here: ``loss: cross_entropy``, ``loss: {type: HuberLoss, args: {delta:
0.5}}``. Several, each with its share: ``loss: [{type: l1_loss, weight: 0.5}, {type: mse_loss}]``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def nll_loss(output: Tensor, target: Tensor) -> Tensor:
    """For a model that ends in ``log_softmax``."""
    return F.nll_loss(output, target)


def smooth_cross_entropy(output: Tensor, target: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross entropy against targets that leave a little for every class (Szegedy et al., 2016)."""
    return F.cross_entropy(output, target, label_smoothing=smoothing)


class FocalLoss(nn.Module):
    """Cross entropy that looks away from what is easy already (Lin et al., 2017).

    A sample whose true class has probability p counts ``(1 - p) ** gamma``; with ``gamma`` 0 this
    is cross entropy. For classes of very unequal size.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(output, target, reduction="none")
        return ((1 - (-losses).exp()) ** self.gamma * losses).mean()
