"""Random changes of images, a whole batch at once, each image by numbers of its own.

A transform here has ``batch(images, draws)``: images (sample, channel, height, width), and the
`Draws` that give each sample its numbers from (seed, epoch, index). It may be called on one image
(channel, height, width) too, and then draws from torch's stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from base.errors import BatchError, DataError
from base.keyed import Draws


class KeyedTransform:
    """A transform of a batch that draws each sample's numbers by its key: override ``batch``."""

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images (sample, channel, height, width), each changed in its own way."""
        raise NotImplementedError

    def __call__(self, image: Tensor) -> Tensor:
        return self.batch(image[None], Draws.from_torch(1))[0]


class RandomShift(KeyedTransform):
    """Move an image by up to `pixels` each way; black comes in."""

    def __init__(self, pixels: int) -> None:
        self.pixels = _checked("RandomShift: pixels", pixels, pixels >= 0, "at least 0")

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        refuse_no_images(self, images)
        offsets = draws.integers(2 * self.pixels + 1, 2)
        size = (images.shape[-2], images.shape[-1])
        return crop(F.pad(images, [self.pixels] * 4), offsets[:, 0], offsets[:, 1], size)


class RandomFlip(KeyedTransform):
    """Mirror an image from left to right (`dim` -1) or from top to bottom (-2), in `p` of cases."""

    def __init__(self, p: float = 0.5, dim: int = -1) -> None:
        self.p = _checked("RandomFlip: p", p, 0 <= p <= 1, "from 0 to 1")
        self.dim = _checked("RandomFlip: dim", dim, dim in (-1, -2), "-1 or -2")

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        refuse_no_images(self, images)
        is_flipped = (draws.uniform()[:, 0] < self.p).view(-1, 1, 1, 1)
        return torch.where(is_flipped, images.flip(self.dim), images)


class RandomCutout(KeyedTransform):
    """Black out a square of `pixels`, its centre anywhere (DeVries and Taylor, 2017)."""

    def __init__(self, pixels: int) -> None:
        self.pixels = _checked("RandomCutout: pixels", pixels, pixels >= 1, "at least 1")

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        refuse_no_images(self, images)
        centres, is_inside = draws.uniform(2), []
        for side, size in enumerate(images.shape[-2:]):
            first = (centres[:, side : side + 1] * size).floor() - self.pixels // 2
            places = torch.arange(size, device=images.device)
            is_inside.append((places >= first) & (places < first + self.pixels))
        is_cut = is_inside[0][:, None, :, None] & is_inside[1][:, None, None, :]
        return images.masked_fill(is_cut, 0)


class _Crop(KeyedTransform):
    """Cut out a part of `size` (height, width) after padding: torchvision's, by the batch."""

    def __init__(self, size: Sequence[int], pad: Callable[[Tensor], Tensor]) -> None:
        self.size, self.pad = (size[0], size[1]), pad

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        images = self.pad(images)
        spare = [have - want for have, want in zip(images.shape[-2:], self.size, strict=True)]
        if min(spare) < 0:
            found = "x".join(map(str, images.shape[-2:]))
            raise ValueError(f"RandomCrop of {self.size[0]}x{self.size[1]} from images of {found}")
        offsets = (draws.uniform(2) * (torch.tensor(spare, device=images.device) + 1)).long()
        return crop(images, offsets[:, 0], offsets[:, 1], self.size)


class _ResizedCrop(KeyedTransform):
    """Cut out a part of random area and shape and bring it to `size`: torchvision's, by key."""

    N_TRIES = 10
    takes_lists = True  # of unequal images, and is worth threads where the data are in memory

    def __init__(
        self,
        size: Sequence[int],
        scale: Sequence[float],
        ratio: Sequence[float],
        resize: Callable[..., Tensor],
    ) -> None:
        self.size, self.scale, self.ratio, self.resize = list(size), scale, ratio, resize

    def batch(self, images: Tensor | Sequence[Tensor], draws: Draws) -> Tensor:
        crops = []
        for image, numbers in zip(images, draws.numbers(4 * self.N_TRIES), strict=True):
            tries = [numbers[i : i + 4] for i in range(0, 4 * self.N_TRIES, 4)]
            crops.append(self.resize(image, *self._box(tries, *image.shape[-2:])))
        return torch.stack(crops)

    def _box(self, tries: list[list[float]], height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the first try that fits, else the largest part."""
        low, high = map(math.log, self.ratio)
        for area, shape, top, left in tries:
            area = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
        ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (height - h) // 2, (width - w) // 2, h, w


def refuse_no_images(transform: Any, images: Tensor) -> None:
    """Make sure that a transform is given images.

    Raises:
        BatchError: it is given something else, such as the rows of a table.
    """
    if images.dim() != 4:
        text = "is for images (sample, channel, height, width)"
        raise BatchError(f"{type(transform).__name__} {text}, not for data {tuple(images.shape)}")


def _checked(what: str, value: Any, is_good: bool, wanted: str) -> Any:
    if not is_good:
        raise DataError(f"{what} must be {wanted}, not {value!r}")
    return value


def crop(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a part of one size out of each image, at its own place: ``top``, ``left`` (sample,)."""
    height, width = size
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    places = (rows[:, :, None] * images.shape[-1] + columns[:, None, :]).flatten(1)
    n_samples, n_channels = images.shape[:2]
    places = places[:, None].expand(-1, n_channels, -1)
    return images.flatten(2).gather(2, places).view(n_samples, n_channels, height, width)


def by_key(transform: Any) -> KeyedTransform | None:
    """Return what does the same as a random transform of torchvision by key; None where none does.

    The distribution is torchvision's; the numbers drawn are not.
    """
    module, name = type(transform).__module__, type(transform).__name__
    if not module.startswith("torchvision.transforms"):
        return None
    if name == "RandomHorizontalFlip":
        return RandomFlip(transform.p)
    if name == "RandomVerticalFlip":
        return RandomFlip(transform.p, dim=-2)
    from torchvision.transforms.v2 import functional

    if name == "RandomCrop" and not transform.pad_if_needed:
        padding, fill, mode = transform.padding, transform.fill, transform.padding_mode
        if isinstance(fill, dict):  # v2 keeps one fill a kind of input
            return None
        if padding is None:
            return _Crop(transform.size, lambda images: images)
        left, right, top, bottom = padding
        sides = [left, top, right, bottom]
        return _Crop(transform.size, lambda x: functional.pad(x, sides, fill, mode))
    if name == "RandomResizedCrop":

        def resize(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
            return functional.resized_crop(
                image, top, left, height, width, list(transform.size),
                transform.interpolation, transform.antialias,
            )  # fmt: skip

        return _ResizedCrop(transform.size, transform.scale, transform.ratio, resize)
    return None
