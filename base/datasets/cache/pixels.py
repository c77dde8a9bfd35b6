"""Pixels of many images in one memory-mapped file that all processes share.

The order is row, column, channel: that of decoders, and the fastest one for resizing.
"""

from __future__ import annotations

import mmap
import os
import sys
import weakref
from collections.abc import Callable, Generator
from multiprocessing.context import get_spawning_popen
from typing import Any, TypeVar

import numpy as np
import torch

from base.data.protocols import Cacheable
from base.data.threads import read_each
from base.errors import DataError, KindlingError

Value = TypeVar("Value")
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # named in Python since 3.11


class Layout:
    """The position of each image: image i is at bytes ``offsets[i]`` to ``offsets[i + 1]``.

    shapes  (image, 3) int32: channel, height, width
    """

    def __init__(self, shapes: np.ndarray) -> None:
        self.shapes = shapes
        self.offsets = np.zeros(len(shapes) + 1, dtype=np.int64)
        shapes.prod(axis=1, dtype=np.int64).cumsum(out=self.offsets[1:])
        self.n_bytes = int(self.offsets[-1])
        self.is_uniform = bool((shapes == shapes[0]).all())


def read_layout(source: Cacheable, n_threads: int) -> Layout:
    """Read the shapes of all images from their headers, which gives the total size."""

    def shape(index: int) -> tuple[int, int, int]:
        return _read_at(source, source.image_shape, index)

    shapes = list(read_each(shape, range(len(source)), n_threads, "reading the sizes of images"))
    return Layout(np.array(shapes, dtype="<i4"))


def decode_each(
    source: Cacheable, layout: Layout, first: int, n_threads: int
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Decode the images from number `first` on, in threads; yield (number, bytes).

    Raises:
        DataError: an image cannot be read, or does not match its header.
    """

    def decode(index: int) -> tuple[int, np.ndarray]:
        image = _read_at(source, source.image, index)
        expected = tuple(layout.shapes[index].tolist())
        if image.dtype != torch.uint8 or tuple(image.shape) != expected:
            found = f"{image.dtype} {tuple(image.shape)}, not uint8 {expected} as its header says"
            raise DataError(f"{source.place(index)}: decodes to {found}; it cannot be cached")
        return index, image.permute(1, 2, 0).contiguous().flatten().numpy()

    return read_each(decode, range(first, len(source)), n_threads, "caching images")


def write_at(descriptor: int, data: Any, place: int) -> None:
    """Write all bytes of an array at offset `place`."""
    view = memoryview(data).cast("B")
    while view:
        n_written = os.pwrite(descriptor, view, place)
        view, place = view[n_written:], place + n_written


def _read_at(source: Cacheable, read: Callable[[int], Value], index: int) -> Value:
    try:
        return read(index)
    except KindlingError as error:
        text = f"{error}; a cache holds every image: repair it, leave it out, or use cache: none"
        raise DataError(text) from error
    except Exception as error:  # a user's data set may raise anything
        raise DataError(f"{source.place(index)}: cannot be read: {error}") from error


class SharedPixels:
    """The memory-mapped bytes of a file from `start` on, shared by forked and spawned processes.

    The mapping is private: accidental writes reach neither the file nor other processes.
    """

    def __init__(self, descriptor: int, start: int) -> None:
        self.descriptor, self.start = descriptor, start
        weakref.finalize(self, os.close, descriptor)
        # Without NORESERVE Linux reserves memory for a full copy, in case all is written to.
        flags = mmap.MAP_PRIVATE | MAP_NORESERVE
        try:
            mapped = mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError as error:  # a limit of the process (ulimit -v)
            size = os.fstat(descriptor).st_size / 1e6
            text = f"cached pixels cannot be mapped ({size:,.0f} MB): {error.strerror}"
            raise DataError(f"{text}; raise the limit, or use a smaller `resize`") from error
        self.values = torch.frombuffer(mapped, dtype=torch.uint8, offset=start)

    def __reduce__(self) -> tuple[Any, ...]:
        if get_spawning_popen() is None:
            raise DataError(
                "cached pixels can only be passed to a process that is starting; pickle the "
                "original data set instead"
            )
        from multiprocessing.reduction import DupFd

        return _receive, (DupFd(self.descriptor), self.start)


def _receive(sent: Any, start: int) -> SharedPixels:
    return SharedPixels(sent.detach(), start)
