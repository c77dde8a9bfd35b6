"""Data sets held in memory, which read many samples at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.datasets.labels import Classes, class_names
from base.datasets.spatial_targets import IGNORED
from base.errors import DataError
from base.system.seeding import derive_generator


class InMemoryDataset(Dataset[list[Tensor]]):
    """Inputs and targets as two tensors, returned unchanged.

    inputs   (sample, ...); images uint8 (sample, channel, height, width)
    targets  (sample,) class numbers, or (sample, k); masks (sample, height, width), where -100
             or `ignore_index` marks pixels without a class

    Raises:
        DataError: their lengths differ, or a target is not a number or not a class.
    """

    ids_are_numbers = True
    made_from: Any = None

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        classes: Classes = None,
        *,
        ignore_index: int | None = None,
        source: str = "",
    ) -> None:
        names = class_names(classes)
        self.source = source or type(self).__name__
        self.images = inputs
        self.targets = _checked_targets(targets, names, ignore_index, self.source)
        if ignore_index is not None:
            self.ignore_index = ignore_index
        if len(inputs) != len(targets):
            raise DataError(f"{self.source}: {len(inputs)} inputs, but {len(targets)} targets")
        self.white = 255.0 if inputs.dtype == torch.uint8 else 1.0  # floats are not scaled
        self._given: list[Tensor] | None = None
        self.placed: InMemoryDataset | None = None  # a copy on a GPU
        if names is not None:
            self.classes = names

    @property
    def tensors_given(self) -> list[Tensor]:
        """The tensors of batches: inputs and targets, unless others were set."""
        return [self.images, self.targets] if self._given is None else self._given

    @tensors_given.setter
    def tensors_given(self, tensors: list[Tensor]) -> None:
        self._given = tensors

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        inputs, *others = self.tensors_given
        return [_as_input(inputs[index].clone(), self.source), *(each[index] for each in others)]

    def get_batch(self, indices: Tensor) -> list[Tensor]:
        """Read many samples at once. The result equals collated single samples."""
        inputs, *others = self.tensors_given
        chosen = [each.index_select(0, indices) for each in others]
        return [_as_input(inputs.index_select(0, indices), self.source), *chosen]

    def placed_on(self, device: torch.device) -> InMemoryDataset:
        """Return a copy whose batch tensors are on a device."""
        placed, (inputs, *others) = copy.copy(self), self.tensors_given
        ready = _as_input(inputs, self.source)
        placed.tensors_given = [each.to(device) for each in (ready, *others)]
        return placed

    @property
    def ids(self) -> Sequence[str]:
        """The number of each sample, as a string."""
        return RunningNumbers(len(self))

    def place(self, index: int) -> str:
        """Return the location of a sample: its file and number."""
        return f"{self.source}: sample {index}"


class RunningNumbers(Sequence[str]):
    """The numbers below `n` as text, made on demand: a list would take 60 bytes for each."""

    def __init__(self, n: int) -> None:
        self._numbers = range(n)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        found = self._numbers[index]
        return str(found) if isinstance(found, int) else list(map(str, found))

    def texts_at(self, places: Tensor) -> list[str]:
        """Return the texts at some places."""
        return list(map(str, places.tolist()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


class SyntheticDataset(InMemoryDataset):
    """Images generated from a seed, uint8 in memory: one pattern per class, plus noise.

    Args:
        part: selects the noise and the classes; the patterns depend only on the seed.
    """

    def __init__(
        self,
        n_samples: int = 512,
        shape: Sequence[int] = (3, 32, 32),
        n_classes: int = 10,
        noise: float = 1.0,
        data_seed: int = 0,
        part: str = "train",
    ) -> None:
        if min(n_samples, n_classes, *shape) < 1:
            raise DataError("SyntheticDataset: n_samples, n_classes and shape must be at least 1")
        images, labels = synthetic_images(n_samples, shape, n_classes, noise, data_seed, part)
        pixels = images.mul_(255 / 8).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        super().__init__(pixels, labels, n_classes)


def synthetic_images(
    n_samples: int, shape: Sequence[int], n_classes: int, noise: float, data_seed: int, part: str
) -> tuple[Tensor, Tensor]:
    """Generate float images (sample, *shape), mean 0 and variance 1 + noise², and their classes."""
    patterns = torch.randn((n_classes, *shape), generator=derive_generator(data_seed, "class"))
    generator = derive_generator(data_seed, part)
    labels = torch.randint(n_classes, (n_samples,), generator=generator)
    images = torch.randn((n_samples, *shape), generator=generator).mul_(noise)
    return images.add_(patterns[labels]), labels


def in_memory(dataset: Any) -> InMemoryDataset | None:
    """Convert a torchvision data set held in memory; None if it is not, or has transforms."""
    arrays = in_memory_arrays(dataset)
    changes = [getattr(dataset, f"{kind}transform", None) for kind in ("", "target_")]
    if arrays is None or any(changes):
        return None
    classes = getattr(dataset, "classes", None)
    made = InMemoryDataset(*arrays, classes, source=type(dataset).__name__)
    if not type(dataset).__module__.startswith("torchvision."):
        made.made_from = dataset  # it may have more information on its samples
    return made


def in_memory_arrays(dataset: Any) -> tuple[Tensor, Tensor] | None:
    """Return the images and targets of a torchvision data set held in memory, else None.

    Supports the MNIST family, CIFAR and SVHN: images uint8 (sample, channel, height, width).
    """
    pixels, targets = getattr(dataset, "data", None), getattr(dataset, "targets", None)
    targets = getattr(dataset, "labels", None) if targets is None else targets
    if not isinstance(pixels, Tensor | np.ndarray) or targets is None:
        return None
    images = torch.as_tensor(pixels)
    if images.dtype != torch.uint8 or images.dim() not in (3, 4):
        return None
    if images.dim() == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(targets)


def _as_input(values: Tensor, source: str) -> Tensor:
    """Convert inputs for a model: uint8 unchanged, floats to float32, integers to int64.

    Raises:
        DataError: a number overflows float32.
    """
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        return values.long()
    inputs = values.float()
    if values.dtype == torch.float64:
        are_beyond = inputs.isinf() & ~values.isinf()
        if are_beyond.any():
            text = f"an input is {values[are_beyond][0].item():.6g}, which overflows float32"
            raise DataError(f"{source}: {text} (the maximum is 3.4e38): scale it")
    return inputs


def _checked_targets(
    targets: Tensor, names: list[str] | None, ignore_index: int | None, source: str
) -> Tensor:
    """Convert class numbers to int64 and other targets to float32."""
    if targets.is_floating_point() or targets.dtype == torch.bool:
        targets = targets.float()
        _refuse(~targets.isfinite(), targets, source, "not a number")
        return targets
    targets = targets.long()
    highest = None if names is None or targets.dim() == 2 else len(names) - 1
    if targets.numel():
        least, most = (int(each) for each in targets.aminmax())
        if least >= 0 and (highest is None or most <= highest):
            return targets  # the usual case, in a tenth of the time
    is_class = targets != (IGNORED if ignore_index is None else ignore_index)
    _refuse((targets < 0) & is_class, targets, source, "not a class: it is below 0")
    if highest is not None:
        is_wrong = (targets > highest) & is_class
        _refuse(is_wrong, targets, source, f"not a class: classes are 0 to {highest}")
    return targets


def _refuse(are_wrong: Tensor, targets: Tensor, source: str, text: str) -> None:
    places = are_wrong.nonzero()
    if len(places):
        first = places[0].tolist()
        more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        value = targets[tuple(first)].item()
        raise DataError(f"{source}: sample {first[0]}: target {value} is {text}{more}")
