"""Random changes of images, a whole batch at once, each image by numbers of its own.

A transform here has ``batch(images, draws)``: images (sample, channel, height, width), and the
`Draws` that give each sample its numbers from (seed, epoch, index). It may be called on one image
(channel, height, width) too, and then draws from torch's stream.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from base.data.random_draws import Draws
from base.errors import BatchError, DataError

Size = tuple[int, int]  # height, width


class KeyedTransform:
    """A transform of a batch that draws each sample's numbers by its key: override ``batch``.

    Where it moves pixels, override ``move`` too, so that masks and boxes move with their image;
    where it moves none, set ``keeps_places = True``.
    """

    keeps_places = False

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the images (sample, channel, height, width), each changed in its own way."""
        raise NotImplementedError

    def move(self, target: Tensor, size: Size, draws: Draws) -> Tensor:
        """Move one target as ``batch`` moves its image, by the same draws.

        Args:
            target: one of torchvision's tv_tensors: a Mask, BoundingBoxes or KeyPoints.
            size: of the image before the move.
            draws: of this sample, as they were before ``batch`` drew.
        """
        raise NotImplementedError

    move.refuses = True  # type: ignore[attr-defined]

    def batch_masks(self, masks: Tensor, draws: Draws) -> Tensor:
        """Move masks (sample, channel, height, width), where nearest neighbours keep values whole.

        What comes in from outside is 0. By default each is moved by itself, by ``move``.
        """
        from torchvision.tv_tensors import Mask

        size = (masks.shape[-2], masks.shape[-1])
        moved = [self.move(Mask(each), size, draws.sample(n)) for n, each in enumerate(masks)]
        return torch.stack(moved)

    batch_masks.refuses = True  # type: ignore[attr-defined]

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

    def batch_masks(self, masks: Tensor, draws: Draws) -> Tensor:
        return self.batch(masks, draws)

    def move(self, target: Tensor, size: Size, draws: Draws) -> Tensor:
        from torchvision.transforms.v2 import functional

        top, left = draws.integers(2 * self.pixels + 1, 2)[0].tolist()
        padded = functional.pad(target, [self.pixels] * 4)
        moved: Tensor = functional.crop(padded, top, left, *size)
        return moved


class RandomFlip(KeyedTransform):
    """Mirror an image from left to right (`dim` -1) or from top to bottom (-2), in `p` of cases."""

    def __init__(self, p: float = 0.5, dim: int = -1) -> None:
        self.p = _checked("RandomFlip: p", p, 0 <= p <= 1, "from 0 to 1")
        self.dim = _checked("RandomFlip: dim", dim, dim in (-1, -2), "-1 or -2")

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        refuse_no_images(self, images)
        is_flipped = (draws.uniform()[:, 0] < self.p).view(-1, 1, 1, 1)
        return torch.where(is_flipped, images.flip(self.dim), images)

    def batch_masks(self, masks: Tensor, draws: Draws) -> Tensor:
        return self.batch(masks, draws)

    def move(self, target: Tensor, size: Size, draws: Draws) -> Tensor:
        from torchvision.transforms.v2 import functional

        flip = functional.horizontal_flip if self.dim == -1 else functional.vertical_flip
        return flip(target) if draws.uniform()[0, 0] < self.p else target


class RandomCutout(KeyedTransform):
    """Black out a square of `pixels`, its centre anywhere (DeVries and Taylor, 2017)."""

    keeps_places = True

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

    def __init__(
        self, size: Sequence[int], sides: list[int] | None, fill: Any = 0, mode: str = "constant"
    ) -> None:
        self.size, self.sides, self.fill, self.mode = (size[0], size[1]), sides, fill, mode

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        images = self._padded(images, self.fill)
        spare = self._spare(images.shape[-2], images.shape[-1])
        offsets = (draws.uniform(2) * (torch.tensor(spare, device=images.device) + 1)).long()
        return crop(images, offsets[:, 0], offsets[:, 1], self.size)

    def batch_masks(self, masks: Tensor, draws: Draws) -> Tensor:
        same = _Crop(self.size, self.sides, mode=self.mode)
        return same.batch(masks, draws)

    def move(self, target: Tensor, size: Size, draws: Draws) -> Tensor:
        from torchvision.transforms.v2 import functional

        left, top, right, bottom = self.sides or [0, 0, 0, 0]
        spare = self._spare(size[0] + top + bottom, size[1] + left + right)
        offsets = (draws.uniform(2) * (torch.tensor(spare, device=draws.device) + 1)).long()
        first_row, first_column = offsets[0].tolist()
        padded = self._padded(target, 0)
        moved: Tensor = functional.crop(padded, first_row, first_column, *self.size)
        return moved

    def _padded(self, images: Tensor, fill: Any) -> Tensor:
        if self.sides is None:
            return images
        from torchvision.transforms.v2 import functional

        padded: Tensor = functional.pad(images, self.sides, fill, self.mode)
        return padded

    def _spare(self, height: int, width: int) -> list[int]:
        spare = [height - self.size[0], width - self.size[1]]
        if min(spare) < 0:
            text = f"RandomCrop of {self.size[0]}x{self.size[1]} from images of {height}x{width}"
            raise ValueError(text)
        return spare


class _ResizedCrop(KeyedTransform):
    """Cut out a part of random area and shape and bring it to `size`: torchvision's, by key."""

    N_TRIES = 10
    takes_lists = True  # of unequal images, and is worth threads where the data are in memory

    def __init__(
        self,
        size: Sequence[int],
        scale: Sequence[float],
        ratio: Sequence[float],
        interpolation: Any,
        antialias: bool | None,
    ) -> None:
        self.size, self.scale, self.ratio = list(size), scale, ratio
        self.interpolation, self.antialias = interpolation, antialias

    def batch(self, images: Tensor | Sequence[Tensor], draws: Draws) -> Tensor:
        drawn = draws.numbers(4 * self.N_TRIES)
        pairs = zip(images, drawn, strict=True)
        return torch.stack([self._cut(image, image.shape[-2:], each) for image, each in pairs])

    def move(self, target: Tensor, size: Size, draws: Draws) -> Tensor:
        return self._cut(target, size, *draws.numbers(4 * self.N_TRIES))

    def _cut(self, image: Tensor, size: Sequence[int], numbers: list[float]) -> Tensor:
        """Cut the part that the numbers draw from an image of this size, or from its target."""
        from torchvision.transforms.v2 import functional

        tries = [numbers[i : i + 4] for i in range(0, 4 * self.N_TRIES, 4)]
        box = self._box(tries, size[0], size[1])
        how = self.size, self.interpolation, self.antialias
        part: Tensor = functional.resized_crop(image, *box, *how)
        return part

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


def batched_transform(transform: Any) -> KeyedTransform | None:
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
    if name == "RandomCrop" and not transform.pad_if_needed:
        if isinstance(transform.fill, dict):  # v2 keeps one fill a kind of input
            return None
        if transform.padding is None:
            return _Crop(transform.size, None)
        sides = _sides(transform.padding, is_parsed=".v2." in module)
        return _Crop(transform.size, sides, transform.fill, transform.padding_mode)
    if name == "RandomResizedCrop":
        shape = (transform.size, transform.scale, transform.ratio)
        return _ResizedCrop(*shape, transform.interpolation, transform.antialias)
    return None


def _sides(padding: int | Sequence[int], is_parsed: bool) -> list[int]:
    """Return the padding as (left, top, right, bottom).

    Args:
        is_parsed: it is (left, right, top, bottom), as torchvision's second version keeps it.
    """
    if isinstance(padding, int):
        return [padding] * 4
    if is_parsed:
        left, right, top, bottom = padding
        return [left, top, right, bottom]
    return [*padding, *padding] if len(padding) == 2 else list(padding)
