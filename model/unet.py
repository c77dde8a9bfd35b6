"""U-Net (Ronneberger et al., 2015, arXiv:1505.04597): an image in, an image of that size out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from base import BaseModel
from model.layers import ConvBlock, check_images


class UpBlock(nn.Module):
    """Doubles the image's size, joins what the way down had there, and convolves twice."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(n_in, n_out, kernel_size=2, stride=2)
        self.convs = nn.Sequential(ConvBlock(2 * n_out, n_out), ConvBlock(n_out, n_out))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        # Halving an odd size drops a row or column; the size asked for brings it back.
        x = self.up(x, output_size=skip.shape[2:])
        return self.convs(torch.cat([skip, x], dim=1))


class UNet(BaseModel):
    """A map of ``out_channels`` for each image, of any height and width from 2 ** depth on.

    The convolutions are padded and have BatchNorm, so that nothing need be cropped.

    Args:
        depth: how often the image is halved on the way down.
        width: channels at full size; each halving doubles them.
    """

    def __init__(
        self, in_channels: int = 1, out_channels: int = 1, width: int = 16, depth: int = 3
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        widths = [width * 2**level for level in range(depth + 1)]
        inputs = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(ConvBlock(n_in, n_out), ConvBlock(n_out, n_out))
            for n_in, n_out in zip(inputs, widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(UpBlock(2 * n_out, n_out) for n_out in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, out_channels, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:  # (batch, in, h, w) -> (batch, out, h, w)
        check_images(self, images, self.in_channels)
        smallest = 2 ** len(self.up)
        if min(images.shape[2:]) < smallest:
            size = "x".join(map(str, images.shape[2:]))
            raise ValueError(
                f"UNet of depth {len(self.up)} needs images of size {smallest}x{smallest} or more, "
                f"not {size}: make it less deep"
            )
        x = self.down[0](images)
        skips = []
        for block in self.down[1:]:
            skips.append(x)
            x = block(self.pool(x))
        for block in self.up:
            x = block(x, skips.pop())
        return self.head(x)
