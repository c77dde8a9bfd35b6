"""Data sets: images in memory, read by the batch or, where they are augmented, one by one."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.errors import DataError

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class ArrayDataset(Dataset[list[Tensor]]):
    """Images kept as they are, uint8 mostly, and made into model input as they are read.

    images  (sample, channel, height, width); white is `white`
    labels  (sample,)
    The input is ``(image / white - mean) / std``, float32, with `mean` and `std` for each channel.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        white: float = 255.0,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        if len(images) != len(labels):
            raise DataError(f"{len(images)} images, but {len(labels)} labels")
        self.images, self.labels = images, labels.long()
        self._factor = 1 / (white * torch.tensor(std).view(-1, 1, 1))
        self._offset = -torch.tensor(mean).view(-1, 1, 1) / torch.tensor(std).view(-1, 1, 1)
        self._is_shifted = bool(self._offset.any())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return [self.as_input(self.images[index]), self.labels[index]]

    def get_batch(self, indices: Tensor) -> list[Tensor]:
        """Read many samples at once: what collating them one by one would give."""
        images = self.images.index_select(0, indices)
        return [self.as_input(images), self.labels.index_select(0, indices)]

    def as_input(self, images: Tensor) -> Tensor:
        """Scale and normalise one image or many."""
        scaled = images.to(torch.float32, copy=True).mul_(self._factor)
        return scaled.add_(self._offset) if self._is_shifted else scaled


class AugmentedDataset(Dataset[list[Tensor]]):
    """The images of an `ArrayDataset`, each changed by a random transform before it is scaled."""

    def __init__(self, arrays: ArrayDataset, transform: Callable[[Tensor], Tensor]) -> None:
        self.arrays, self.transform = arrays, transform

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> list[Tensor]:
        image = self.transform(self.arrays.images[index])
        return [self.arrays.as_input(image), self.arrays.labels[index]]


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read the arrays of an npz file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; data_dir is relative to the current folder, {Path.cwd()}"
        ) from error
    except Exception as error:  # numpy and zipfile raise a dozen kinds
        raise DataError(f"{path}: not a readable npz file: {error}") from error


def read_idx(path: Path) -> Tensor:
    """Read an IDX file, as MNIST has them, gzipped or not: a tensor of its shape, uint8 mostly."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError as error:
        text = f"no such file; it is looked for from {Path.cwd()}"
        raise DataError(f"{path}: {text}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    is_idx = len(content) > 3 and content[:2] == b"\0\0" and content[2] in IDX_TYPES
    dtype = np.dtype(IDX_TYPES[content[2]] if is_idx else "u1")
    start = 4 + 4 * content[3] if is_idx else 4
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if not shape or not 0 < math.prod(shape) * dtype.itemsize == len(content) - start:
        raise DataError(f"{path}: not a whole IDX file of numbers; fetch it again")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("=")))
