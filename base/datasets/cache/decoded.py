"""Data sets of cached images, decoded once into memory or into a file."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.data.protocols import Cacheable, members
from base.data.sample_items import sample_numbers
from base.data.threads import read_ahead
from base.datasets.cache.pixels import Layout, SharedPixels, decode_each, read_layout, write_at
from base.errors import ConfigError, DataError, Problem
from base.system.cores import usable_cores
from base.system.deferred_files import waiting_files, write_when_running
from base.system.resources import free_memory

log = logging.getLogger("kindling")

PASSED_ON = (
    "targets", "ids", "classes", "mode", "record", "use_record", "ignore_index", "target_hash",
)  # fmt: skip


def cached(
    dataset: Any, where: str, folder: Path = Path(".cache"), n_threads: int | None = None
) -> CachedImages:
    """Decode the images of a data set such as `ImageFiles` once, in threads.

    Args:
        where: ``memory`` for this run, with one copy for all workers, forked or spawned; or
            ``disk`` for a file in `folder`, which other processes and later runs share. An
            interrupted cache is completed later. If a file of the data set, or the way it is
            decoded, changes, a new cache file is written.
        n_threads: by default the number of free cores.

    Raises:
        ConfigError: `where` has another value.
        DataError: there is not enough memory or disk space, which is checked before decoding; the
            folder is not writable; or an image cannot be read.
    """
    if where not in ("memory", "disk"):
        raise ConfigError([Problem("cache", f"{where!r} is not one of none, memory, disk")])
    name = type(dataset).__name__
    missing = [each for each in members(Cacheable) if not hasattr(dataset, each)]
    if missing or not (hasattr(dataset, "targets") or hasattr(dataset, "mask_files")):
        missing = missing or ["targets"]
        raise DataError(f"{name} cannot be cached: it has no {', '.join(missing)}; use cache: none")
    if not hasattr(os, "pwrite"):
        raise DataError("caching is not supported on Windows; use cache: none")
    n_threads = n_threads or usable_cores()
    masks = None
    if hasattr(dataset, "mask_files"):
        masks = _cached_images(CachedPixels, dataset.mask_files, where, Path(folder), n_threads)
    kind = CachedImages if masks is not None else _images_or_batches
    kept: CachedImages = _cached_images(kind, dataset, where, Path(folder), n_threads)
    kept.mask_files = masks
    if where == "memory":
        what = "images" if masks is None else "images and masks"
        place = f" of {dataset.root}" if getattr(dataset, "root", "") else ""
        n_bytes = kept.layout.n_bytes + (0 if masks is None else masks.layout.n_bytes)
        log.info(f"cache: {len(kept):,} {what}{place} in memory ({_size(n_bytes)})")
    return kept


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.0f} kB"


def _images_or_batches(source: Any, pixels: SharedPixels | None, layout: Layout) -> CachedImages:
    return (CachedBatches if layout.is_uniform else CachedImages)(source, pixels, layout)


def _cached_images(
    kind: Callable[[Any, SharedPixels | None, Layout], Any],
    source: Any,
    where: str,
    folder: Path,
    n_threads: int,
) -> Any:
    """Return the cached images of a source, in memory or in a file.

    Until the run starts and fills the file, images are read from the source.
    """
    if where == "memory":
        return kind(source, *_in_memory(source, n_threads))
    from base.datasets.cache.file import CacheFile  # needs Unix

    file = CacheFile(source, folder, n_threads)
    if waiting_files() is None or file.exists():
        return kind(source, *file.open())
    file.layout = read_layout(source, n_threads)
    kept = kind(source, None, file.layout)

    def fill() -> None:
        kept.pixels = file.open()[0]

    log.info(f"cache: {file.path} is filled when the run begins")
    write_when_running(fill)
    return kept


class CachedPixels:
    """Decoded images of a data set, as views of the cache.

    Args:
        pixels: None until the cache is filled; images are then decoded on access.
    """

    def __init__(self, source: Any, pixels: SharedPixels | None, layout: Layout) -> None:
        self.source, self.pixels, self.layout = source, pixels, layout
        for name in PASSED_ON:
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))

    def __len__(self) -> int:
        return len(self.layout.shapes)

    def sample_numbers(self, name: str) -> Any:
        """Return the values of that name in the source, one per sample, or None."""
        return sample_numbers(self.source, name)

    def image(self, index: int) -> Tensor:
        """Return an image: uint8 (channel, height, width)."""
        index = range(len(self))[index]  # its IndexError ends a loop over the data set
        if self.pixels is None:
            image: Tensor = self.source.image(index)
            return image
        first, end = self.layout.offsets[index : index + 2].tolist()
        n_channels, height, width = self.image_shape(index)
        return self.pixels.values[first:end].view(height, width, n_channels).permute(2, 0, 1)

    def image_shape(self, index: int) -> tuple[int, int, int]:
        """Return the shape of an image."""
        n_channels, height, width = self.layout.shapes[index].tolist()
        return n_channels, height, width


class CachedImages(CachedPixels, Dataset[tuple[Tensor, Tensor]]):
    """A data set of cached images with the same samples as its source.

    Images are views of the cache: copy them before changing them. Created by `cached`.
    """

    mask_files: CachedPixels | None = None

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image(index), self.target(index)

    def target(self, index: int) -> Tensor:
        """Return a target: the source's, or a cached mask."""
        target: Tensor = (
            self.source.targets[index]
            if self.mask_files is None
            else self.source.classes_in(self.mask_files.image(index))
        )
        return target

    def place(self, index: int) -> str:
        """Return the location of an image in its list, and its path."""
        return str(self.source.place(index))

    def fingerprint(self) -> str:
        """Return the source's hash of the files and the decoding settings."""
        return str(self.source.fingerprint())


class CachedBatches(CachedImages):
    """Cached images of equal shape, which are read a batch at a time."""

    @property
    def images(self) -> Tensor:
        """All images: uint8 (image, channel, height, width)."""
        if self.pixels is None:
            return self._decoded(torch.arange(len(self)))
        return _as_channels_last(self.pixels.values.view(len(self), -1), self.image_shape(0))

    def image(self, index: int) -> Tensor:
        """Return an image: uint8 (channel, height, width)."""
        return super().image(index) if self.pixels is None else self.images[index]

    def get_batch(self, indices: Tensor) -> list[Tensor]:
        """Read many samples at once."""
        if self.pixels is None:
            images = self._decoded(indices)
        else:
            rows = self.pixels.values.view(len(self), -1).index_select(0, indices)
            images = _as_channels_last(rows, self.image_shape(0))
        return [images, self.source.targets.index_select(0, indices)]

    def _decoded(self, indices: Tensor) -> Tensor:
        """Decode images before the cache is filled, in the memory layout of the cache."""
        n_threads = usable_cores()
        images = read_ahead(self.source.image, iter(indices.tolist()), n_threads, 4 * n_threads, 0)
        return torch.stack(list(images)).contiguous(memory_format=torch.channels_last)


def _as_channels_last(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    n_channels, height, width = shape
    return rows.view(-1, height, width, n_channels).permute(0, 3, 1, 2)


def _in_memory(source: Cacheable, n_threads: int) -> tuple[SharedPixels, Layout]:
    layout = read_layout(source, n_threads)
    needed, free = layout.n_bytes, free_memory()
    sizes = _size(needed)
    if needed > 0.9 * free:
        raise DataError(
            f"cache: memory: {len(source):,} images need {sizes} decoded, {free / 1e6:,.0f} MB are "
            "free, and a tenth of that is reserved; use cache: disk, or a smaller `resize`"
        )
    descriptor = _file_in_memory()
    try:
        try:
            os.ftruncate(descriptor, needed)
        except OSError as error:  # a limit of the process (ulimit -f) or of the temporary folder
            text = f"cache: memory: {sizes} cannot be allocated: {error.strerror}"
            raise DataError(f"{text}; use cache: disk, or raise the limit") from error
        with closing(decode_each(source, layout, 0, n_threads)) as decoded:
            for index, data in decoded:
                write_at(descriptor, data, int(layout.offsets[index]))
    except BaseException:
        os.close(descriptor)
        raise
    return SharedPixels(descriptor, start=0), layout


def _file_in_memory() -> int:
    """Open an anonymous file, in memory if the system supports it (Linux)."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pixels")  # not in /dev/shm, which is small in containers
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
