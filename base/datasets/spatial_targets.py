"""Detects, transforms and collates spatial targets: masks, boxes and keypoints.

An integer target with the height and width of its image is a mask of class numbers. Pixels that a
transform moves into a mask from outside of the image get the class number that losses ignore.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from base.data.batch import CONTAINERS, leaves, map_leaves, tensors_in
from base.errors import BatchError, DataError

IGNORED = -100  # the class number that torch's losses ignore by default
# Masks are transformed as class number + OFFSET, so that 0 marks pixels from outside. All sums
# are integers that float32 represents exactly, in which torchvision rotates and warps.
OFFSET = 1 << 16
LARGEST = 1 << 23
LEAST_SIDE = 8  # of a map that differs in size from its image; a smaller one may be a matrix
BOX_NAMES = frozenset(("boxes", "box", "bbox", "bboxes", "bndbox", "keypoints", "landmarks"))

Column = Any  # one target of all samples of a batch: a tensor or a list


class SpatialTargets:
    """The targets of a batch, some of which may be spatial.

    Args:
        columns: the targets of all samples, as tensors or lists.
        ignored: the class number of pixels from outside of the image.
        ids: the names of the samples in error messages.

    Raises:
        DataError: a spatial target differs in size from its image, or is a colour image.
    """

    def __init__(
        self,
        images: Tensor | list[Tensor],
        columns: Sequence[Column],
        ignored: int = IGNORED,
        ids: Sequence[Any] = (),
    ) -> None:
        self.columns, self.ignored, self.ids = list(columns), ignored, ids
        self.kinds: dict[int, list[Any]] = {}  # the kind of each entry, by column
        self.moving: dict[int, Column] = {}
        size = tuple(images[0].shape[-2:])
        for number, column in enumerate(columns if images[0].dim() == 3 else ()):
            if isinstance(column, Tensor | list) and lies_on(column[0], size):
                self.moving[number] = self._prepare_column(number, column, images)

    def __bool__(self) -> bool:
        return bool(self.moving)

    @property
    def has_boxes(self) -> bool:
        """Whether some targets are not masks of whole images."""
        found = (kind for kinds in self.kinds.values() for kind in kinds[0])
        return any(isinstance(kind, str) and kind for kind in found)

    def collated(self) -> list[Any]:
        """Return the collated targets; targets with boxes are a list with an entry per sample.

        Lists with an entry per sample are stacked. Other values are already batched.

        Raises:
            BatchError: targets cannot be stacked.
        """
        columns = []
        for number, column in enumerate(self.columns):
            if number not in self.moving:
                columns.append(collate(column) if isinstance(column, list) else column)
                continue
            column, kinds = self.moving[number], self.kinds[number]
            if isinstance(column, Tensor):
                columns.append(_moved_back(column, kinds[0][0], self.ignored, is_batch=True))
                continue
            entries = [self._restore(*pair) for pair in zip(column, kinds, strict=True)]
            is_alone = isinstance(entries[0], Tensor)
            stays = "boxes" in kinds[0] or ("own" in kinds[0] and not is_alone)
            columns.append(entries if stays else collate(entries))
        return columns

    def _prepare_column(self, number: int, column: Column, images: Tensor | list[Tensor]) -> Column:
        """Convert a target of all samples to tensors that can be moved, and store their kinds."""
        size = tuple(images[0].shape[-2:])
        if isinstance(column, Tensor):
            self.kinds[number] = [[_kind(column[0], size, is_inner=False)]] * len(column)
            return _movable(column, self.kinds[number][0][0], is_batch=True)
        entries, all_kinds = [], []
        for sample, (entry, image) in enumerate(zip(column, images, strict=True)):
            kinds: list[Any] = []
            size = tuple(image.shape[-2:])
            try:
                if not lies_on(entry, size):
                    shape = getattr(entry, "shape", type(entry).__name__)
                    raise DataError(f"target {shape} does not lie on its image {size}")
                entries.append(_prepare(entry, size, kinds))
            except DataError as error:
                raise DataError(f"sample {self.ids[sample]}: {error}") from error
            all_kinds.append(kinds)
        self.kinds[number] = all_kinds
        are_alike = all(isinstance(entry, Tensor) for entry in entries) and all(
            (kinds, entry.shape) == (all_kinds[0], entries[0].shape)
            for kinds, entry in zip(all_kinds, entries, strict=True)
        )
        if are_alike and isinstance(images, Tensor) and isinstance(all_kinds[0][0], tuple):
            return torch.stack([entry.as_subclass(Tensor) for entry in entries])
        return entries

    def _restore(self, entry: Any, kinds: list[Any]) -> Any:
        """Convert a moved target back to its original form."""
        left = iter(kinds)

        def give(value: Any) -> Any:
            kind = next(left)
            if isinstance(kind, tuple):
                return _moved_back(value, kind, self.ignored)
            return value.as_subclass(Tensor) if kind else value

        return map_leaves(entry, give)

    def as_lists(self) -> dict[int, list[Any]]:
        """Return the spatial targets as lists with an entry per sample."""
        from torchvision.tv_tensors import Mask

        return {
            number: [Mask(each) for each in column] if isinstance(column, Tensor) else column
            for number, column in self.moving.items()
        }


def lies_on(entry: Any, size: Sequence[int]) -> bool:
    """Return whether a target is spatial for an image of this size, or contains such a target."""
    if isinstance(entry, CONTAINERS):
        return any(lies_on(each, size) for each in leaves(entry))
    if isinstance(entry, Image.Image):
        return True
    if isinstance(entry, np.ndarray) and entry.ndim in (2, 3) and entry.dtype.kind in "uibf":
        return tuple(entry.shape[-2:]) == tuple(size)
    return isinstance(entry, Tensor) and bool(_kind(entry, size, is_inner=False))


def change_each(change: Callable[[Any], Any], entry: Any) -> Any:
    """Apply ``change`` to each of torchvision's tensors in a nested target."""
    return map_leaves(entry, lambda leaf: change(leaf) if _is_torchvisions(leaf) else leaf)


def check_movable(columns: Sequence[Column], size: Sequence[int]) -> None:
    """Check that all spatial targets can be moved.

    Raises:
        BatchError: boxes are plain numbers, or a map differs in size from the image.
    """
    for column in columns:
        if not isinstance(column, Tensor | list):  # a whole batch of another type
            if any(each.dim() > 2 and each.shape[-2:] == size for each in tensors_in(column)):
                text = f"a spatial target is in a {type(column).__name__}"
                raise BatchError(f"{text}, so that no transform can move it: return it as a tensor")
            continue
        entry = column[0]
        for name in _names_of_boxes(entry):
            text = f"targets[{name!r}] are plain numbers, which no transform moves"
            kinds = "BoundingBoxes or torchvision.tv_tensors.KeyPoints"
            raise BatchError(f"{text}: give torchvision.tv_tensors.{kinds}")
        shape, size = tuple(getattr(entry, "shape", ())), tuple(size)
        if len(shape) not in (2, 3) or shape[-2:] == size or _is_torchvisions(entry):
            continue
        if len(shape) == 3 and shape[:2] == size:
            text = f"a target {shape} has its channels last, so that no transform can move it"
            raise BatchError(f"{text}: give (channel, height, width)")
        height, width = shape[-2:]
        if min(height, width) >= LEAST_SIDE and height * size[1] == width * size[0]:
            text = (
                f"a target {shape} seems to be spatial, but differs in size from the image {size}"
            )
            raise BatchError(f"{text}, so that no transform can move it: resize it to the image")


def collate(entries: list[Any]) -> Any:
    """Stack one target of all samples.

    Raises:
        BatchError: the shapes differ.
    """
    try:
        return default_collate(entries)
    except (RuntimeError, TypeError) as error:
        shapes = list(dict.fromkeys(map(str, (_shapes(entry) for entry in entries))))
        if len(shapes) < 2:
            raise
        text = f"targets of different shapes, {shapes[0]} and {shapes[1]}, cannot be stacked"
        advice = (
            "return boxes and keypoints in a dict, as torchvision.tv_tensors: a batch then has a "
            "list of such dicts; bring masks to one size with a transform such as Resize"
        )
        raise BatchError(f"{text}: {advice}") from error


def _prepare(entry: Any, size: Sequence[int], kinds: list[Any], is_inner: bool = False) -> Any:
    """Convert the spatial parts of a target to torchvision's tensors and store their kinds."""
    if isinstance(entry, CONTAINERS):
        return map_leaves(entry, lambda leaf: _prepare(leaf, size, kinds, is_inner=True))
    if isinstance(entry, Image.Image):
        entry = _class_numbers(entry)
    if isinstance(entry, np.ndarray) and entry.dtype.kind in "uibf":
        entry = torch.from_numpy(np.ascontiguousarray(entry))
    if not isinstance(entry, Tensor):
        kinds.append("")
        return entry
    kind = _kind(entry, size, is_inner)
    kinds.append(kind)
    own_size = getattr(entry, "canvas_size", None) or tuple(entry.shape[-2:])
    is_placed = _is_torchvisions(entry) or (not is_inner and kind == "")
    if is_placed and tuple(own_size) != tuple(size):
        text = f"{type(entry).__name__} for an image {tuple(own_size)}, but the image is"
        raise DataError(f"{text} {tuple(size)}")
    if not isinstance(kind, tuple):
        return entry
    from torchvision.tv_tensors import Mask

    return Mask(_movable(entry.as_subclass(Tensor), kind))


def _kind(entry: Tensor, size: Sequence[int], is_inner: bool) -> Any:
    """Return the kind of a spatial target for an image of this size, or "" for other tensors.

    Returns:
        "boxes" or "own": one of torchvision's tensors, unchanged; ("classes", dims, dtype): a
        mask of class numbers; ("numbers", dims, dtype): a map of other numbers.
    """
    shape, is_own = tuple(entry.shape), _is_torchvisions(entry)
    if len(shape) in (2, 3) and shape[-2:] == tuple(size):
        is_one = len(shape) == 2 or (shape[0] == 1 and not is_inner)
        may_be_mask = not is_own or type(entry).__name__ == "Mask"
        if is_one and may_be_mask and _is_whole(entry):
            return ("classes", len(shape), entry.dtype)
        if not is_own:
            return ("numbers", len(shape), entry.dtype)
    if not is_own:
        return ""
    return "boxes" if hasattr(entry, "canvas_size") else "own"


def _movable(values: Tensor, kind: Any, is_batch: bool = False) -> Tensor:
    """Convert a mask, or a batch of masks, to (channel, height, width) with 0 for outside."""
    name, n_dims, _ = kind
    values = values.unsqueeze(1 if is_batch else 0) if n_dims == 2 else values
    if name == "numbers":
        return values
    values = values.to(torch.int64)
    if values.device.type == "cpu":  # a check on a GPU would synchronize
        low, high = torch.aminmax(values)
        if low <= -OFFSET // 2 or high >= LARGEST:
            raise DataError(f"a mask has values {int(low)} to {int(high)}, which are not classes")
    return values.to(torch.int32).add_(OFFSET)


def _moved_back(values: Tensor, kind: Any, ignored: int, is_batch: bool = False) -> Tensor:
    """Convert a moved mask back to its shape, with class numbers in int64."""
    name, n_dims, dtype = kind
    values = values.as_subclass(Tensor)
    values = values.squeeze(1 if is_batch else 0) if n_dims == 2 else values
    if name == "numbers":
        return values.to(dtype)
    values = values.to(torch.int64)
    return torch.where(values < OFFSET // 2, ignored, values - OFFSET)


def _class_numbers(image: Image.Image) -> np.ndarray[Any, Any]:
    """Return the class numbers of a mask image: grey levels or palette indices."""
    if image.mode not in ("1", "L", "P", "I", "I;16"):
        text = f"a target is an image of mode {image.mode}: return class numbers (mode L or P)"
        raise DataError(f"{text}, or a float tensor (channel, height, width)")
    return np.array(image).astype(np.int64)


def _names_of_boxes(entry: Any) -> Iterator[str]:
    """Yield the names of boxes and keypoints that are not torchvision's tensors."""
    if isinstance(entry, Mapping):
        for name, value in entry.items():
            if str(name).lower() in BOX_NAMES and not _is_torchvisions(value):
                yield name
            else:
                yield from _names_of_boxes(value)
    elif isinstance(entry, (list, tuple)) and not isinstance(entry, Tensor):
        for value in entry[:1]:
            yield from _names_of_boxes(value)


def _is_torchvisions(value: Any) -> bool:
    module = "torchvision.tv_tensors"
    return isinstance(value, Tensor) and any(
        each.__module__.startswith(module) for each in type(value).__mro__
    )


def _is_whole(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "uib"
    is_tensor = isinstance(value, Tensor)
    return is_tensor and not value.is_floating_point() and not value.is_complex()


def _shapes(entry: Any) -> Any:
    if isinstance(entry, Mapping):
        return {name: _shapes(value) for name, value in entry.items()}
    if isinstance(entry, (list, tuple)):
        return [_shapes(value) for value in entry]
    return tuple(entry.shape) if hasattr(entry, "shape") else type(entry).__name__
