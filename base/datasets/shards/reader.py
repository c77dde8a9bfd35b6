"""Images in tar files, for data sets larger than memory, read in one pass over each file.

    python -m base.shards write images/train data/train --size 500MB --shuffle
    python -m base.shards check "data/train-*.tar"

Python holds only the index. Each sample is read at its position in its tar, so starting in the
middle of an epoch reads nothing that came before. The operating system's page cache holds the
samples in the shuffle buffer.
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

from base.datasets.image_files import may_hold_jpegs
from base.datasets.images import (
    Resize,
    check_resize,
    decode_image,
    decoder_name,
    find_mode,
    image_shape,
)
from base.datasets.shards.index import find_faults, find_shards, open_index, read_classes
from base.errors import DataError
from logger.files import open_descriptor

STRETCH = 4 << 20  # bytes to read ahead
PIECE = 128 << 10  # bytes: Linux may truncate longer advice to this length


class ShardDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and class numbers in shards: tars of ``000123.jpg`` beside ``000123.cls``.

    shards  a pattern such as ``data/train-{000..012}.tar``, a glob, or a list of either
    mode    RGB or L (grey); `resize` as in `decode_image`
    buffer  size of the shuffle buffer: a sample moves forward by at most that many positions
    The class names are read from classes.txt or classes.json beside the first shard.
    """

    classes: list[str]  # only if they have names

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
            raise DataError("reading shards requires pread, which this system lacks")
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
        # The end of each shard's read-ahead advice, shared by all workers.
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
        """Return the content of a sample's .json, or None."""
        content = self._read(index, slice(2, 4))
        return json.loads(content) if content else None

    @functools.cached_property
    def ids(self) -> list[str]:
        """The name of each image in its tar."""
        return [name.decode() for index in self._indexes for name in index.names.tolist()]

    @property
    def files(self) -> list[str]:
        """The path of each image: the path of its shard, and its name there."""
        pairs = zip(self.shards, self._indexes, strict=True)
        return [
            f"{shard}/{name.decode()}" for shard, index in pairs for name in index.names.tolist()
        ]

    def place(self, index: int) -> str:
        """Return the location of a sample: ``train-000003.tar: 000123.jpg``."""
        shard, sample = self._locate(index)
        return f"{self.shards[shard].name}: {self._indexes[shard].name(sample)}"

    def fingerprint(self) -> str:
        """Return a hash of the shards' names, sizes and times, and of the decoding settings."""
        stamps = [index.stamp.tolist() for index in self._indexes]
        facts = [[path.name for path in self.shards], stamps, self.mode, self.resize]
        if may_hold_jpegs(name.decode() for index in self._indexes for name in index.names):
            facts.append(decoder_name())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def shuffled_order(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order in which an epoch reads these samples.

        Shards are read in random order, and their samples pass through a shuffle buffer. A shard
        is read ahead as a whole if at least half of it is needed.
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
        """Return the encoded bytes of an image."""
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
        """Return the number of a sample's shard, and its index in the shard."""
        shard = int(torch.searchsorted(self._starts, index, right=True)) - 1
        return shard, index - int(self._starts[shard])

    def _advise(self, shard: int, sample: int, descriptor: int, end: int) -> None:
        """Advise the system to read ahead, so that the disk is read in one pass.

        A pass that starts in the middle of a shard, as after a resume, goes back by two buffers,
        which covers the samples still in the buffer if half of the shard is not needed.
        """
        begun = int(self._advised[shard])
        until = min(int(self._sizes[shard]), (end // STRETCH + 2) * STRETCH)
        if until <= begun or not hasattr(os, "posix_fadvise"):
            return
        if begun < 0:
            first = sample - 2 * self.buffer
            begun = int(self._indexes[shard].places[first, 0]) if first > 0 else 0
        self._advised[shard] = until
        with suppress(OSError):  # the file system does not support advice
            for start in range(begun, until, PIECE):
                length = min(PIECE, until - start)
                os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)


def buffered_order(n_samples: int, size: int, generator: torch.Generator) -> Tensor:
    """Return the order in which a shuffle buffer of this size yields the samples 0, 1, 2, ...

    It is equivalent to this: fill the buffer; for each further sample, draw a slot, yield its
    content and store the sample there; finally, yield the rest in random order. A slot yields
    what the previous draw of the same slot stored, so a stable sort by slot gives the order.
    """
    size = min(size, n_samples)
    drawn = torch.randint(max(size, 1), (n_samples - size,), generator=generator)
    slots = torch.cat([torch.arange(size), drawn])  # (sample,) the slot of each
    narrow = slots.numpy().astype(np.uint16 if size <= 1 << 16 else np.int64)  # faster to sort
    samples = torch.from_numpy(np.argsort(narrow, kind="stable"))  # by slot, then by time
    is_replaced = slots[samples].diff(append=torch.tensor([-1])) == 0

    order = torch.empty(n_samples, dtype=torch.int64)
    replacing = samples.roll(-1)[is_replaced]
    order[replacing - size] = samples[is_replaced]
    order[n_samples - size :] = samples[~is_replaced][torch.randperm(size, generator=generator)]
    return order


class _OpenShard:
    """A file that is closed when it is no longer referenced."""

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
    """Return this process's open shard. A forked worker does not share its parent's."""
    return _OpenShard(path, size, mtime_ns)
