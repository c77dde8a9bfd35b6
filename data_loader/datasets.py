"""Data sets: images in memory, read by the batch or, where they are augmented, one by one."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.errors import DataError

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


class ArrayDataset(Dataset[list[Tensor]]):
    """Images, or rows of numbers, in memory, as they are.

    inputs   (sample, channel, height, width), uint8 mostly, of which `white` is white; or
             (sample, column)
    targets  (sample,) or (sample, target)
    """

    def __init__(self, inputs: Tensor, targets: Tensor, white: float = 255.0) -> None:
        if len(inputs) != len(targets):
            raise DataError(f"{len(inputs)} images, but {len(targets)} labels")
        self.images, self.white = inputs, white
        self.targets = targets if targets.is_floating_point() else targets.long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> list[Tensor]:
        return [self.images[index], self.targets[index]]

    def get_batch(self, indices: Tensor) -> list[Tensor]:
        """Read many samples at once: what collating them one by one would give."""
        return [self.images.index_select(0, indices), self.targets.index_select(0, indices)]


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
