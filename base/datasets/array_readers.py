"""Reading files of arrays: npz and IDX."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from base.errors import DataError
from logger.files import open_file, read_file

IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read the arrays of an npz file."""
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except FileNotFoundError as error:
        text = f"no such file; data_dir is relative to the current folder, {Path.cwd()}"
        raise DataError(f"{path}: {text}") from error
    except Exception as error:  # numpy and zipfile raise a dozen kinds
        raise DataError(f"{path}: not a readable npz file: {error}") from error


def read_idx(path: Path) -> Tensor:
    """Read an IDX file, as MNIST has them, gzipped or not: a tensor of its shape, uint8 mostly."""
    try:
        content = read_file(path)
        content = gzip.decompress(content) if path.suffix == ".gz" else content
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
