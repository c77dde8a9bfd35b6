"""Data sets from array files: NumPy's npy and npz, and MNIST's IDX."""

from __future__ import annotations

import gzip
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.datasets.images import as_image
from base.datasets.in_memory import InMemoryDataset
from base.datasets.labels import Classes
from base.errors import DataError, nearest
from logger.files import open_file, read_file

LAYOUTS = ("NCHW", "NHWC", "NHW")
MOST_CHANNELS = 16  # a larger dimension is a height or width
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}

Array = np.ndarray[Any, Any]


class ArrayFileDataset(InMemoryDataset):
    """Inputs and targets from two npy files, or from two arrays of an npz file.

    Uncompressed arrays are memory-mapped and read on demand. Images of uint8 keep their dtype.
    Other inputs are converted to float32, or int64 for integers.

    Args:
        inputs, targets: the paths of npy files or, with `file`, the names of its arrays.
        layout: the layout of images: NCHW, NHWC or NHW (grey). Samples are (channel, height,
            width). Without it, inputs may have any shape and keep it.
        ignore_index: for masks (sample, height, width), the number of pixels without a class.

    Raises:
        DataError: a file or array is missing, or the arrays do not match each other.
    """

    def __init__(
        self,
        inputs: str,
        targets: str,
        file: str | None = None,
        layout: str | None = None,
        classes: Classes = None,
        ignore_index: int | None = None,
    ) -> None:
        arrays = [read_array(name, file) for name in (inputs, targets)]
        where = f"{file}: {inputs}" if file else inputs
        super().__init__(
            as_nchw(as_tensor(arrays[0], where), layout, where),
            as_tensor(arrays[1], f"{file}: {targets}" if file else targets),
            classes,
            ignore_index=ignore_index,
            source=file or inputs,
        )


class IdxDataset(InMemoryDataset):
    """Images and labels from two IDX files, MNIST's format, gzipped or not.

    Samples are images of shape (1, height, width).
    """

    def __init__(self, images: str, labels: str, classes: Classes = None) -> None:
        pixels, numbers = read_idx(Path(images)), read_idx(Path(labels))
        for file, values, is_right in ((images, pixels, pixels.dim() > 1),
                                       (labels, numbers, numbers.dim() == 1)):  # fmt: skip
            if not is_right:
                wanted = "images" if file == images else "labels"
                text = f"{file}: found shape {tuple(values.shape)}, which is not {wanted}"
                raise DataError(f"{text}; are `images` and `labels` exchanged?")
        pixels = pixels[:, None] if pixels.dim() == 3 else pixels
        super().__init__(pixels, numbers, classes, source=images)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read the arrays of an npz file."""
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except FileNotFoundError as error:
        text = f"no such file; the current folder is {Path.cwd()}"
        raise DataError(f"{path}: {text}") from error
    except Exception as error:  # numpy and zipfile raise many types
        raise DataError(f"{path}: not a readable npz file: {error}") from error


def read_idx(path: Path) -> Tensor:
    """Read an IDX file, MNIST's format, gzipped or not, as a tensor of its shape and dtype."""
    try:
        if path.suffix == ".gz":
            content = bytearray(gzip.decompress(read_file(path)))
        else:  # into memory that the tensor keeps, without a copy
            with open_file(path) as file:
                content = bytearray(os.fstat(file.fileno()).st_size)
                del content[file.readinto(content) :]  # type: ignore[attr-defined]
    except FileNotFoundError as error:
        text = f"no such file; the current folder is {Path.cwd()}"
        raise DataError(f"{path}: {text}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    is_idx = len(content) > 3 and content[:2] == b"\0\0" and content[2] in IDX_TYPES
    dtype = np.dtype(IDX_TYPES[content[2]] if is_idx else "u1")
    start = 4 + 4 * content[3] if is_idx else 4
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if not shape or not 0 < math.prod(shape) * dtype.itemsize == len(content) - start:
        raise DataError(f"{path}: not a complete IDX file of numbers; download it again")
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))


def read_array(name: str, file: str | None = None) -> Array:
    """Return an npy file, or an array of an npz file, memory-mapped if possible."""
    try:
        with open_file(file or name):
            pass  # not a FIFO or a device, on which numpy would block
        if file is None:
            whole: Array = np.load(name, mmap_mode="c", allow_pickle=False)
            return whole
        members = array_names(file)
        with zipfile.ZipFile(file) as archive:
            if name not in members:
                known = nearest(name, members) or f"; it has {', '.join(members) or 'none'}"
                raise DataError(f"{file}: no array {name!r}{known}")
            mapped = _mapped_member(archive, f"{name}.npy", file)
        if mapped is not None:
            return mapped
        with np.load(file, allow_pickle=False) as arrays:
            member: Array = arrays[name]
            return member
    except FileNotFoundError as error:
        text = f"no such file; the current folder is {Path.cwd()}"
        raise DataError(f"{file or name}: {text}") from error
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise many types
        kind = "npz" if file else "npy"
        raise DataError(f"{file or name}: not a readable {kind} file: {error}") from error


def array_names(file: str) -> list[str]:
    """Return the names of the arrays in an npz file."""
    try:
        with zipfile.ZipFile(file) as archive:
            return [each.removesuffix(".npy") for each in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{file}: not a readable npz file: {error}") from error


def _mapped_member(archive: zipfile.ZipFile, member: str, file: str) -> Array | None:
    """Memory-map an uncompressed array; return None for a compressed one."""
    facts = archive.getinfo(member)
    if facts.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(member) as content:
        version = np.lib.format.read_magic(content)
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
        shape, is_fortran, dtype = read_header(content)
        n_header_bytes = content.tell()
    with Path(file).open("rb") as raw:
        raw.seek(facts.header_offset + 26)  # lengths of the member's name and extra field
        lengths = np.frombuffer(raw.read(4), "<u2").tolist()
    start = facts.header_offset + 30 + sum(lengths) + n_header_bytes
    if dtype.hasobject or 0 in shape:
        return None
    return np.memmap(file, dtype, "c", start, shape, "F" if is_fortran else "C")


def as_tensor(array: Array, where: str) -> Tensor:
    """Return an array of numbers as a tensor of a dtype that torch supports."""
    if array.dtype.kind not in "uifb" or array.ndim == 0 or len(array) == 0:
        text = f"an array {array.shape} of {array.dtype}; numbers are expected, at least one"
        raise DataError(f"{where}: {text}")
    if not array.dtype.isnative:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch hardly supports these
        array = array.astype(np.int64)
    return torch.from_numpy(array)


def as_nchw(inputs: Tensor, layout: str | None, where: str) -> Tensor:
    """Return images as (sample, channel, height, width)."""
    shape = tuple(inputs.shape)
    if layout is None:
        if inputs.dim() == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
            raise DataError(f"{where}: {shape} looks like images; say so with layout: NHWC")
        return inputs
    if layout not in LAYOUTS:
        known = f"{nearest(str(layout), LAYOUTS)} ({', '.join(LAYOUTS)})"
        raise DataError(f"there is no layout {layout!r}{known}")
    if inputs.dim() != len(layout) or ("C" in layout and shape[layout.index("C")] > MOST_CHANNELS):
        raise DataError(f"{where}: its shape {shape} is not that of images in layout {layout}")
    images = inputs[:, None] if layout == "NHW" else inputs
    images = inputs.permute(0, 3, 1, 2) if layout == "NHWC" else images
    as_image(images[0], where=f"{where}: sample 0")  # reports errors common to all early
    return images
