"""Random changes of one image, drawn from torch's stream, seeded by the loader for each sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor], Tensor]


class RandomShift:
    """Move an image (channel, height, width) by up to `pixels` each way; black comes in."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        top, left = torch.randint(2 * self.pixels + 1, (2,)).tolist()
        padded = F.pad(image, [self.pixels] * 4)
        return padded[..., top : top + height, left : left + width]


class RandomFlip:
    """Mirror every second image from left to right."""

    def __call__(self, image: Tensor) -> Tensor:
        return image.flip(-1) if torch.rand(()) < 0.5 else image


class Chain:
    """Apply one transform after the other."""

    def __init__(self, transforms: list[Transform]) -> None:
        self.transforms = transforms

    def __call__(self, image: Tensor) -> Tensor:
        for transform in self.transforms:
            image = transform(image)
        return image
