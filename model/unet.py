"""U-Net (Ronneberger et al., 2015, arXiv:1505.04597): maps an image to an image of its size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from base import BaseModel
from model.layers import ConvBlock, check_images


class UpBlock(nn.Module):
    """Doubles the size of the image, concatenates the skip connection, and convolves twice."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(n_in, n_out, kernel_size=2, stride=2)
        self.convs = nn.Sequential(ConvBlock(2 * n_out, n_out), ConvBlock(n_out, n_out))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        # Halving an odd size drops a row or column; output_size restores it.
        x = self.up(x, output_size=skip.shape[2:])
        return self.convs(torch.cat([skip, x], dim=1))


class UNet(BaseModel):
    """Returns a map with ``out_channels`` for images of at least 2 ** depth pixels a side.

    Unlike in the paper, convolutions are padded, so that no map is cropped, and have BatchNorm.

    Args:
        depth: number of times that the image is halved.
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
                f"not {size}: reduce its depth"
            )
        x = self.down[0](images)
        skips = []
        for block in self.down[1:]:
            skips.append(x)
            x = block(self.pool(x))
        for block in self.up:
            x = block(x, skips.pop())
        return self.head(x)
