"""A small vision transformer (Dosovitskiy et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from base import BaseModel, Pattern
from model.layers import check_images


class TransformerClassifier(BaseModel):
    """Patches with learned positions, encoder layers, and the mean over all patches.

    Args:
        image_size: the side of a square image, or [height, width].
        patch_size: the same for the patches; they must tile the image.
        width: size of the embedding of a patch; a multiple of ``n_heads``.
        depth: number of encoder layers.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 8,
        patch_size: int | Sequence[int] = 2,
        in_channels: int = 1,
        n_classes: int = 10,
        width: int = 64,
        depth: int = 4,
        n_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels, self.image_size = in_channels, _pair(image_size)
        (height, patch_height), (length, patch_length) = zip(
            self.image_size, _pair(patch_size), strict=True
        )
        if height % patch_height or length % patch_length:
            raise ValueError(f"patches of size {patch_size} do not tile images of {image_size}")
        if width % n_heads:
            raise ValueError(f"width {width} must be a multiple of n_heads, {n_heads}")
        n_patches = (height // patch_height) * (length // patch_length)

        self.patches = nn.Conv2d(in_channels, width, _pair(patch_size), stride=_pair(patch_size))
        self.position = nn.Parameter(0.02 * torch.randn(n_patches, width))
        sizes = (width, n_heads, 4 * width, dropout, "gelu")
        layers = (
            nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, images: Tensor) -> Tensor:  # (batch, channel, h, w) -> (batch, n_classes)
        check_images(self, images, self.in_channels, self.image_size)
        patches = self.patches(images).flatten(2).transpose(1, 2)  # (batch, patch, width)
        features = self.layers(patches + self.position)
        return self.head(self.norm(features).mean(dim=1))

    @property
    def layer_order(self) -> list[Pattern]:
        """All parameters from the input to the output, for ``optimizer.layer_decay``."""
        layers = [f"layers.{number}.*" for number in range(len(self.layers))]
        return [["patches.*", "position"], *layers, ["norm.*", "head.*"]]


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
