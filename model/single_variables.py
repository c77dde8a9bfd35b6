"""A network with two parameters outside of layers, each trained at its own rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseModel


class SingleVariables(BaseModel):
    """Filters images with ``kernel``, thresholds them softly at ``theta``, and classifies them.

    A filtered pixel x becomes ``sigmoid(sharpness * (x - theta))``: near 1 for ink, near 0 for
    paper. The initial threshold is twice the value of ink, so that all images start almost blank.

    Args:
        theta: the initial threshold; pixels are in [0, 1], from paper to ink.
        sharpness: the slope of the threshold.
        n_pixels: height times width of the images.
        hidden: units of the hidden layer.
    """

    layer_order = (["theta", "kernel"], "net.hidden.*", "net.head.*")

    def __init__(
        self,
        theta: float = 2.0,
        sharpness: float = 8.0,
        n_pixels: int = 64,
        hidden: int = 64,
        n_classes: int = 10,
    ) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.theta = nn.Parameter(torch.tensor(theta))
        self.kernel = nn.Parameter(F.pad(torch.ones(1, 1), (1, 1, 1, 1)))  # the identity at first
        self.net = nn.Sequential()
        self.net.add_module("hidden", nn.Linear(n_pixels, hidden))
        self.net.add_module("relu", nn.ReLU())
        self.net.add_module("head", nn.Linear(hidden, n_classes))

    def forward(self, images: Tensor) -> Tensor:  # (batch, 1, height, width) -> (batch, n_classes)
        filtered = F.conv2d(images, self.kernel[None, None], padding=1)
        ink = torch.sigmoid(self.sharpness * (filtered - self.theta))
        return self.net(ink.flatten(1))
