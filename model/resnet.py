"""ResNets for small images: of He et al. (2016, arXiv:1512.03385, section 4.2), and ResNet9."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseModel, Pattern, Residual
from model.layers import ConvBlock, PatchWhitening, check_images


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a weight of 0 in the last norm leaves the shortcut."""

    last_norm = "norm2"  # what `init: zero_last_norm` sets to 0

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.n_new = stride, n_out - n_in
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (batch, n_in, h, w) -> (batch, n_out, h / s, w / s)
        # Option A of the paper, without parameters: every other pixel, zeros in new channels.
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.n_new))
        x = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(shortcut + self.norm2(self.conv2(x)))


class ResNet(BaseModel):
    """Residual blocks in stages and global average pooling, for 8x8 to 32x32 images or larger.

    Args:
        depth: number of layers with weights, 6n + 2: 20, 32, 44, 56, 110 in the paper.
        blocks: number of blocks in each stage, instead of ``depth``: [2, 2] for two stages.
        width: channels of the first stage; each further stage halves the image and doubles them.
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_classes: int = 10,
        depth: int = 20,
        width: int = 16,
        blocks: list[int] | None = None,
    ) -> None:
        super().__init__()
        if blocks is None:
            if depth < 8 or depth % 6 != 2:
                raise ValueError(
                    f"depth must be 6n + 2 (8, 14, 20, 32, 56), not {depth}; or set blocks"
                )
            blocks = [(depth - 2) // 6] * 3
        if not blocks or min(blocks) < 1:
            raise ValueError(
                f"blocks must list a number for each stage, such as [2, 2], not {blocks}"
            )
        self.in_channels = in_channels
        self.stem = ConvBlock(in_channels, width)
        self.stages = nn.Sequential()
        n_in = width
        for stage, n_blocks in enumerate(blocks):
            n_out, stride = width * 2**stage, 1 if stage == 0 else 2
            first = ResidualBlock(n_in, n_out, stride)
            others = [ResidualBlock(n_out, n_out) for _ in range(n_blocks - 1)]
            self.stages.append(nn.Sequential(first, *others))
            n_in = n_out
        self.head = nn.Linear(n_in, n_classes)

    def forward(self, images: Tensor) -> Tensor:  # (batch, channel, h, w) -> (batch, n_classes)
        check_images(self, images, self.in_channels)
        return self.head(self.stages(self.stem(images)).mean(dim=(2, 3)))

    @property
    def layer_order(self) -> list[Pattern]:
        """All parameters from the input to the output, for ``optimizer.layer_decay``."""
        blocks = self.find({"type": "ResidualBlock"})
        return ["stem.*", *(f"{name}.*" for name in blocks), "head.*"]


class ResNet9(BaseModel):
    """Eight convolutions and a linear layer for 32x32 images, quick to train on a GPU.

    From David Page, "How to train your ResNet" (2018): two residual blocks, max pooling, and
    logits that are scaled down so that a high learning rate does not saturate the softmax.

    The other arguments are those of its eighth part (2019), which needs fewer epochs: images are
    whitened, CELU replaces ReLU, and the pooling comes before the norm, which then costs a quarter.

    Args:
        width: channels of the first convolution; the last one has eight times as many.
        scale: the factor of the logits.
        whitens: whether the first layer is a fixed `PatchWhitening`, and the next one 1x1.
        alpha: of CELU; 0 is ReLU.
        pools_first: whether images are pooled before the norm.
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_classes: int = 10,
        width: int = 64,
        scale: float = 0.125,
        whitens: bool = False,
        alpha: float = 0.0,
        pools_first: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.scale = in_channels, scale
        self.stem: nn.Sequential = ConvBlock(in_channels, width)
        if whitens:
            block = ConvBlock(9 * in_channels, width, kernel_size=1)
            self.stem = nn.Sequential(OrderedDict(whitening=PatchWhitening(), block=block))
        self.stages = nn.Sequential()
        for n_in, is_residual in ((width, True), (2 * width, False), (4 * width, True)):
            n_out = 2 * n_in
            block, pool = ConvBlock(n_in, n_out), nn.MaxPool2d(2)
            if pools_first:
                block.conv = nn.Sequential(block.conv, pool)
            self.stages.append(block if pools_first else nn.Sequential(block, pool))
            if is_residual:
                first, second = ConvBlock(n_out, n_out), ConvBlock(n_out, n_out)
                self.stages.append(Residual({"first": first, "second": second}))
        self.head = nn.Linear(8 * width, n_classes, bias=False)
        if alpha:
            for each in self.modules():
                if isinstance(each, ConvBlock):
                    each.relu = nn.CELU(alpha)

    def forward(self, images: Tensor) -> Tensor:  # (batch, channel, h, w) -> (batch, n_classes)
        check_images(self, images, self.in_channels)
        return self.head(self.stages(self.stem(images)).amax(dim=(2, 3))) * self.scale

    @property
    def layer_order(self) -> list[Pattern]:
        """All parameters from the input to the output, for ``optimizer.layer_decay``."""
        return ["stem.*", *(f"stages.{number}.*" for number in range(len(self.stages))), "head.*"]
