"""Random image transforms that process a whole batch, with separate random numbers per image.

They implement ``batch(images, draws)`` for images (sample, channel, height, width) and `Draws`,
which provide random numbers for each sample from (seed, epoch, index). Called on a single image
(channel, height, width), they draw from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from base.data.random_draws import Draws, as_integers
from base.errors import BatchError, DataError

Size = tuple[int, int]  # height, width
LARGE = 1 << 14  # values of an image from which one operation an image beats one of the batch


class KeyedTransform:
    """Base class of batch transforms with random numbers keyed by sample. Override ``batch``.

    If it moves pixels, also override ``move``, so that masks and boxes move with their image.
    Otherwise set ``keeps_places = True``.
    """

    keeps_places = False

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        """Return the transformed images (sample, channel, height, width)."""
        raise NotImplementedError

    def move(self, target: Tensor, size: Size, draws: Draws) -> Tensor:
        """Move one target as ``batch`` moves its image, using the same draws.

        Args:
            target: one of torchvision's tv_tensors: a Mask, BoundingBoxes or KeyPoints.
            size: the size of the image before the move.
            draws: the draws of this sample, in their state before ``batch`` drew from them.
        """
        raise NotImplementedError

    move.refuses = True  # type: ignore[attr-defined]

    def batch_masks(self, masks: Tensor, draws: Draws) -> Tensor:
        """Move masks (sample, channel, height, width) with nearest-neighbour interpolation.

        Pixels from outside are 0. By default, ``move`` moves each mask separately.
        """
        from torchvision.tv_tensors import Mask

        size = (masks.shape[-2], masks.shape[-1])
        moved = [self.move(Mask(each), size, draws.sample(n)) for n, each in enumerate(masks)]
        return torch.stack(moved)

    batch_masks.refuses = True  # type: ignore[attr-defined]

    def __call__(self, image: Tensor) -> Tensor:
        return self.batch(image[None], Draws.from_torch(1))[0]


class RandomShift(KeyedTransform):
    """Shifts an image by up to `pixels` in each direction and fills with black."""

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

        top, left = as_integers(draws.on_cpu(2), 2 * self.pixels + 1)[0].tolist()
        padded = functional.pad(target, [self.pixels] * 4)
        moved: Tensor = functional.crop(padded, top, left, *size)
        return moved


class RandomFlip(KeyedTransform):
    """Flips an image horizontally (`dim` -1) or vertically (-2) with probability `p`."""

    def __init__(self, p: float = 0.5, dim: int = -1) -> None:
        self.p = _checked("RandomFlip: p", p, 0 <= p <= 1, "from 0 to 1")
        self.dim = _checked("RandomFlip: dim", dim, dim in (-1, -2), "-1 or -2")

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        refuse_no_images(self, images)
        is_flipped = draws.uniform()[:, 0] < self.p
        if images.is_cpu and images[0].numel() > LARGE:
            flips = zip(images, is_flipped.tolist(), strict=True)
            chosen = [image.flip(self.dim) if flipped else image for image, flipped in flips]
            return torch.stack(chosen, out=torch.empty_like(images))  # keeps the memory layout
        if images.is_cpu and images.is_contiguous():  # `torch.where` is slow for uint8
            both = torch.stack([images, images.flip(self.dim)], dim=1).flatten(0, 1)
            return both.index_select(0, torch.arange(len(images)) * 2 + is_flipped)
        return torch.where(is_flipped.view(-1, 1, 1, 1), images.flip(self.dim), images)

    def batch_masks(self, masks: Tensor, draws: Draws) -> Tensor:
        return self.batch(masks, draws)

    def move(self, target: Tensor, size: Size, draws: Draws) -> Tensor:
        from torchvision.transforms.v2 import functional

        flip = functional.horizontal_flip if self.dim == -1 else functional.vertical_flip
        return flip(target) if draws.on_cpu()[0, 0] < self.p else target


class RandomCutout(KeyedTransform):
    """Blacks out a square of side `pixels` at a random centre (DeVries and Taylor, 2017)."""

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
    """Batched version of torchvision's RandomCrop to `size` (height, width), with padding."""

    def __init__(
        self, size: Sequence[int], sides: list[int] | None, fill: Any = 0, mode: str = "constant"
    ) -> None:
        self.size, self.sides, self.fill, self.mode = (size[0], size[1]), sides, fill, mode

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        images = self._padded(images, self.fill)
        spare = self._spare(images.shape[-2], images.shape[-1])
        top, left = _offsets(spare, draws.uniform(2))
        return crop(images, top, left, self.size)

    def batch_masks(self, masks: Tensor, draws: Draws) -> Tensor:
        same = _Crop(self.size, self.sides, mode=self.mode)
        return same.batch(masks, draws)

    def move(self, target: Tensor, size: Size, draws: Draws) -> Tensor:
        from torchvision.transforms.v2 import functional

        left, top, right, bottom = self.sides or [0, 0, 0, 0]
        spare = self._spare(size[0] + top + bottom, size[1] + left + right)
        first_row, first_column = map(int, _offsets(spare, draws.on_cpu(2)))
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


def _offsets(spare: Sequence[int], drawn: Tensor) -> list[Tensor]:
    """Return the first row and column of each image, from 0 to the spare ones: (sample,)."""
    return [(drawn[:, side] * (n + 1)).long() for side, n in enumerate(spare)]


class _ResizedCrop(KeyedTransform):
    """Keyed version of torchvision's RandomResizedCrop to `size`."""

    N_TRIES = 10
    takes_lists = True  # images of different sizes; worth threads for data in memory

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
        # torchvision takes None for False.
        is_plain = (
            antialias is True and getattr(interpolation, "value", interpolation) == "bilinear"
        )
        # On other processors torchvision resizes uint8 in another way.
        has_avx2 = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        self._is_native = is_plain and has_avx2

    def batch(self, images: Tensor | Sequence[Tensor], draws: Draws) -> Tensor:
        drawn = draws.numbers(4 * self.N_TRIES)
        pairs = zip(images, drawn, strict=True)
        return torch.stack([self._cut(image, image.shape[-2:], each) for image, each in pairs])

    def move(self, target: Tensor, size: Size, draws: Draws) -> Tensor:
        return self._cut(target, size, *draws.numbers(4 * self.N_TRIES))

    def _cut(self, image: Tensor, size: Sequence[int], numbers: list[float]) -> Tensor:
        """Crop an image of this size, or its target, at the position given by random numbers."""
        tries = [numbers[i : i + 4] for i in range(0, 4 * self.N_TRIES, 4)]
        box = self._box(tries, size[0], size[1])
        if (
            self._is_native
            and type(image) is Tensor
            and image.is_cpu
            and image.dtype == torch.uint8
        ):
            # What torchvision's function comes to, without its 80 us of dispatch.
            top, left, height, width = box
            inside = image[None, :, top : top + height, left : left + width]
            return F.interpolate(inside, self.size, mode="bilinear", antialias=True)[0]
        from torchvision.transforms.v2 import functional

        how = self.size, self.interpolation, self.antialias
        part: Tensor = functional.resized_crop(image, *box, *how)
        return part

    def _box(self, tries: list[list[float]], height: int, width: int) -> tuple[int, int, int, int]:
        """Return top, left, height and width of the first fitting try, else of the largest crop."""
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
    """Check that a transform receives images.

    Raises:
        BatchError: it receives other data, such as the rows of a table.
    """
    if images.dim() != 4:
        text = "supports images (sample, channel, height, width)"
        raise BatchError(f"{type(transform).__name__} {text}, not data {tuple(images.shape)}")


def _checked(what: str, value: Any, is_good: bool, wanted: str) -> Any:
    if not is_good:
        raise DataError(f"{what} must be {wanted}, not {value!r}")
    return value


def crop(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop each image to `size` at its position: ``top``, ``left`` (sample,)."""
    height, width = size
    images = images.contiguous()
    n_samples, n_channels, n_rows, n_columns = images.shape
    # A view of the window that begins at each pixel; only the chosen ones are read.
    n_windows = images.numel() - (height - 1) * n_columns - width + 1
    windows = images.as_strided((n_windows, height, width), (1, n_columns, 1))
    channels = torch.arange(n_samples * n_channels, device=images.device) * (n_rows * n_columns)
    first = channels.view(n_samples, n_channels) + (top * n_columns + left)[:, None]
    return windows.index_select(0, first.flatten()).view(n_samples, n_channels, height, width)


def batched_transform(transform: Any) -> KeyedTransform | None:
    """Return the keyed version of one of torchvision's random transforms, or None.

    The distribution is the same, but the random numbers differ.
    """
    module, name = type(transform).__module__, type(transform).__name__
    if not module.startswith("torchvision.transforms"):
        return None
    if name == "RandomHorizontalFlip":
        return RandomFlip(transform.p)
    if name == "RandomVerticalFlip":
        return RandomFlip(transform.p, dim=-2)
    if name == "RandomCrop" and not transform.pad_if_needed:
        if isinstance(transform.fill, dict):  # v2 has one fill per kind of input
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
        is_parsed: whether it is (left, right, top, bottom), as in torchvision.transforms.v2.
    """
    if isinstance(padding, int):
        return [padding] * 4
    if is_parsed:
        left, right, top, bottom = padding
        return [left, top, right, bottom]
    return [*padding, *padding] if len(padding) == 2 else list(padding)
