"""Views of images for test-time augmentation: the predictions for them are averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from base.errors import UsageError

Change = Callable[[Tensor], Tensor]


class View(NamedTuple):
    """A change of images (sample, channel, height, width), and the one that undoes it in masks."""

    change: Change
    undo: Change | None = None


def views_named(name: str) -> list[View]:
    """Return the views of ``--tta``.

    - ``flip``: the image, and its mirror image
    - ``five_crop``: the corners and the centre, seven eighths of each side, enlarged to the size
      of the image
    - ``multi_crop``: the image and these five crops, each with its mirror image
    """
    return VIEWS[name]


def each_view(batch: Any, views: Sequence[View]) -> list[Any]:
    """Return the batch once for each view, with its images changed.

    Raises:
        UsageError: it has no images.
    """
    items = batch.values() if isinstance(batch, Mapping) else batch
    if not any(map(_is_images, items)):
        raise UsageError("--tta: the inputs are not images")
    return [_changed(batch, view.change) for view in views]


def _changed(batch: Any, change: Change) -> Any:
    if isinstance(batch, Mapping):
        return {k: change(item) if _is_images(item) else item for k, item in batch.items()}
    return [change(item) if _is_images(item) else item for item in batch]


def _is_images(item: Any) -> bool:
    return isinstance(item, Tensor) and item.dim() == 4 and item.is_floating_point()


def _same(images: Tensor) -> Tensor:
    return images


def _mirrored(images: Tensor) -> Tensor:
    return images.flip(-1)


def _crop(down: float, right: float, change: Change = _same) -> Change:
    """Return the function that crops and enlarges.

    Args:
        down, right: the place of the crop, from 0 (top, left) to 1.
    """

    def cropped(images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        tall, wide = max(1, round(height * SHARE)), max(1, round(width * SHARE))
        top, left = round((height - tall) * down), round((width - wide) * right)
        part = images[..., top : top + tall, left : left + wide]
        return change(F.interpolate(part, (height, width), mode="bilinear", align_corners=False))

    return cropped


SHARE = 7 / 8  # of each side: a crop of 224 from 256
PLACES = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)]
WHOLE = [View(_same, _same), View(_mirrored, _mirrored)]
VIEWS = {
    "flip": WHOLE,
    "five_crop": [View(_crop(*place)) for place in PLACES],
    "multi_crop": [
        *WHOLE, *(View(_crop(*place, each)) for each, place in product((_same, _mirrored), PLACES)),
    ],
}  # fmt: skip
