"""Images in tar files: for sets larger than memory, read in one pass over each file.

    python -m base.shards write images/train data/train --size 500MB --shuffle
    python -m base.shards check "data/train-*.tar"

Nothing is kept in Python but the index. Each sample is read at its own place in its tar, so a start
in the middle of an epoch reads nothing that came before it; the page cache, which the system
bounds, holds what the shuffle buffer is soon to give.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from base.datasets.images import Resize, check_resize, decode_image, find_mode, image_shape
from base.datasets.shards.index import find_faults, find_shards, open_index, read_classes
from base.errors import DataError
from logger.files import open_descriptor

STRETCH = 4 << 20  # bytes that are read ahead of the samples
PIECE = 128 << 10  # bytes: Linux shortens a longer piece of advice, in the worst case to this


class ShardDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and class numbers in shards: tars of ``000123.jpg`` beside ``000123.cls``.

    shards  a pattern such as ``data/train-{000..012}.tar``, a glob, or a list of either
    mode    RGB or L (grey); `resize` as `decode_image` takes it
    buffer  samples in the shuffle buffer: a sample comes at most so many places too early
    The names of the classes are those of classes.txt or classes.json beside the first shard.
    """

    classes: list[str]  # only where they are named

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        mode: str = "RGB",
        resize: Resize = None,
        buffer: int = 1000,
    ) -> None:
        find_mode(mode)
        check_resize(resize)
        if buffer < 1:
            raise DataError(f"buffer must be at least 1 sample, not {buffer}")
        if not hasattr(os, "pread"):
            raise DataError("shards are read with pread, which this system does not have")
        self.shards, self.mode, self.resize, self.buffer = find_shards(shards), mode, resize, buffer
        paths = tqdm(self.shards, "indexes of shards", delay=1, leave=False, disable=None)
        self._indexes = [open_index(path) for path in paths]
        if classes := read_classes(self.shards[0].parent):
            self.classes = classes
        if fault := next(find_faults(self.shards, self._indexes, len(classes)), None):
            raise DataError(fault)
        self.targets = torch.from_numpy(np.concatenate([index.labels for index in self._indexes]))
        if not len(self.targets):
            raise DataError(f"{self.shards[0]}: no sample in {len(self.shards)} shards")
        self._starts = torch.tensor([0, *(len(index.names) for index in self._indexes)]).cumsum(0)
        self._sizes = torch.tensor([int(index.stamp[0]) for index in self._indexes])
        # How far each shard was announced to the system: one count for all workers.
        self._advised = self._sizes.clone().share_memory_()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index = range(len(self))[index]
        return self.image(index), self.targets[index]

    def image(self, index: int) -> Tensor:
        """Decode an image: uint8 (channel, height, width)."""
        return decode_image(self.read(index), self.mode, self.resize, where=self.place(index))

    def image_shape(self, index: int) -> tuple[int, int, int]:
        """Return the shape of an image from its header alone."""
        return image_shape(self.read(index), self.mode, self.resize, where=self.place(index))

    def extra(self, index: int) -> Any:
        """Return what the .json of a sample holds, or None where it has none."""
        content = self._read(index, slice(2, 4))
        return json.loads(content) if content else None

    @functools.cached_property
    def ids(self) -> list[str]:
        """The name of each image in its tar."""
        return [name.decode() for index in self._indexes for name in index.names.tolist()]

    @property
    def files(self) -> list[str]:
        """The path of each image: that of its shard, and its name in it."""
        pairs = zip(self.shards, self._indexes, strict=True)
        return [
            f"{shard}/{name.decode()}" for shard, index in pairs for name in index.names.tolist()
        ]

    def place(self, index: int) -> str:
        """Return the place of a sample: ``train-000003.tar: 000123.jpg``."""
        shard, sample = self._locate(index)
        return f"{self.shards[shard].name}: {self._indexes[shard].name(sample)}"

    def fingerprint(self) -> str:
        """Return a hash of the shards, their sizes and times, and of how they are decoded."""
        stamps = [index.stamp.tolist() for index in self._indexes]
        facts = [[path.name for path in self.shards], stamps, self.mode, self.resize]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def shuffled_order(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order in which an epoch reads these samples.

        The shards follow one another in random order, and their samples go through a shuffle
        buffer. Each shard of which at least a half is needed is read ahead as a whole.
        """
        indices = indices.sort().values
        bounds = torch.searchsorted(indices, self._starts)
        parts = [indices[a:b] for a, b in itertools.pairwise(bounds.tolist())]
        shards = torch.randperm(len(parts), generator=generator).tolist()
        sequence = torch.cat([parts[shard] for shard in shards])

        is_wanted = 2 * bounds.diff() >= self._starts.diff()
        self._advised.copy_(self._sizes).masked_fill_(is_wanted, -1)
        return sequence[buffered_order(len(sequence), self.buffer, generator)]

    def read(self, index: int) -> bytes:
        """Return an image's file."""
        return self._read(index, slice(2))

    def _read(self, index: int, columns: slice) -> bytes:
        shard, sample = self._locate(index)
        offset, size = self._indexes[shard].places[sample, columns].tolist()
        try:
            file = _open(self.shards[shard], *self._indexes[shard].stamp[:2].tolist(), os.getpid())
            self._advise(shard, sample, file.descriptor, offset + size)
            content = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise DataError(f"{self.place(index)}: cannot be read: {error}") from error
        if len(content) < size:
            raise DataError(
                f"{self.place(index)}: {self.shards[shard]} was truncated while it was read"
            )
        return content

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of a sample's shard, and its own number there."""
        shard = int(torch.searchsorted(self._starts, index, right=True)) - 1
        return shard, index - int(self._starts[shard])

    def _advise(self, shard: int, sample: int, descriptor: int, end: int) -> None:
        """Advise the system of what is read next, so that the disk sees one pass over the file.

        A pass that begins in the middle of a shard, as after a resume, goes back by two buffers:
        what may still be in one, where half of the samples are not needed.
        """
        begun = int(self._advised[shard])
        until = min(int(self._sizes[shard]), (end // STRETCH + 2) * STRETCH)
        if until <= begun or not hasattr(os, "posix_fadvise"):
            return
        if begun < 0:
            first = sample - 2 * self.buffer
            begun = int(self._indexes[shard].places[first, 0]) if first > 0 else 0
        self._advised[shard] = until
        with suppress(OSError):  # a file system that takes no advice
            for start in range(begun, until, PIECE):
                length = min(PIECE, until - start)
                os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)


def buffered_order(n_samples: int, size: int, generator: torch.Generator) -> Tensor:
    """Return the order in which a shuffle buffer of this size gives the samples 0, 1, 2, ...

    The same as: fill the buffer; for each further sample draw a slot, give what is in it and
    put the sample in its place; at the end give the rest in random order. What a slot gives is
    what the draw before it of the same slot put there, so one stable sort by slot gives the order.
    """
    size = min(size, n_samples)
    drawn = torch.randint(max(size, 1), (n_samples - size,), generator=generator)
    slots = torch.cat([torch.arange(size), drawn])  # (sample,) into which each is put
    narrow = slots.numpy().astype(np.uint16 if size <= 1 << 16 else np.int64)  # quicker to sort
    samples = torch.from_numpy(np.argsort(narrow, kind="stable"))  # by slot, then by time
    is_replaced = slots[samples].diff(append=torch.tensor([-1])) == 0

    order = torch.empty(n_samples, dtype=torch.int64)
    replacing = samples.roll(-1)[is_replaced]
    order[replacing - size] = samples[is_replaced]
    order[n_samples - size :] = samples[~is_replaced][torch.randperm(size, generator=generator)]
    return order


class _OpenShard:
    """A file that closes itself when nobody reads it any more."""

    def __init__(self, path: Path, size: int, mtime_ns: int) -> None:
        self.descriptor = open_descriptor(path, os.O_RDONLY)
        facts = os.fstat(self.descriptor)
        if (facts.st_size, facts.st_mtime_ns) != (size, mtime_ns):
            raise OSError(f"{path} has changed since it was opened; start again")

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@functools.lru_cache(maxsize=64)
def _open(path: Path, size: int, mtime_ns: int, process: int) -> _OpenShard:
    """Return the open shard of this process: a forked worker does not share its parent's."""
    return _OpenShard(path, size, mtime_ns)
