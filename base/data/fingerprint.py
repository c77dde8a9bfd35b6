"""A reproducible hash of the samples and targets of a part of the data.

The hash covers the ids and targets of all samples. If ids are only numbers, as in tables and
arrays, it covers the inputs too: all of them up to LIMIT bytes, evenly spaced rows beyond that.
Files are identified by name: a repaired image is still the same sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, default_collate

from base.data.batch import tensors_in
from base.data.protocols import HasIds, HasSamples, HasTargetHash, ids_at, offered, underlying
from base.data.random_draws import STEP, mix
from base.data.reading import BatchReader, Failure
from base.data.threads import read_each
from base.system.cores import usable_cores

LIMIT = 1 << 28  # bytes of inputs to hash
CHUNK = 1 << 20  # bytes to hash at once
N_NAMES = 100_000  # to hash at once
N_ROWS = 1 << 15  # to hash at once: with little memory, which the processor's cache holds
MAX_NUMBERS = 8  # longer targets are written as a hash


@dataclass(frozen=True)
class Samples:
    """A selection of samples of a data set, ordered by index."""

    dataset: Any
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def has_names(self) -> bool:
        """Whether the data set has ids other than running numbers."""
        are_numbers = getattr(self.dataset, "ids_are_numbers", False)
        return not are_numbers and offered(self.dataset, HasIds) is not None

    @property
    def ids(self) -> Sequence[str]:
        """The ids of the whole data set, which has names."""
        ids: Sequence[str] = self.dataset.ids
        return ids

    @property
    def names(self) -> list[str] | None:
        """The id of each sample; None if the data set has no ids, or only numbers."""
        if not self.has_names:
            return None
        return ids_at(self.ids, self.indices)

    def place(self, index: int) -> str:
        """Return the id of a sample of the data set or, without one, its place or number.

        A sample beyond the end, which the data set had earlier, has only a number.
        """
        if hasattr(self.dataset, "__len__") and index >= len(self.dataset):
            return str(int(index))
        if self.has_names:
            return str(self.ids[index])
        if hasattr(self.dataset, "place"):
            return str(self.dataset.place(int(index)))
        return str(int(index))

    @cached_property
    def targets(self) -> Tensor | None:
        """The target of each sample, (sample, ...); None if only reading samples would give them.

        Targets stored in separate files, such as masks, are hashed.
        """
        targets: Any = getattr(self.dataset, "targets", None)
        hashed = offered(self.dataset, HasTargetHash)
        if targets is None and hashed is not None:
            read, places = hashed.target_hash, self.indices.tolist()
            return torch.tensor(list(read_each(read, places, usable_cores(), "hashing targets")))
        if targets is None:
            return None
        try:
            if len(targets) != len(self.dataset):
                return None
            values = torch.as_tensor(targets)
        except (TypeError, ValueError, RuntimeError):  # strings, or lists of different lengths
            values = torch.cat([_hash_text(repr(each)) for each in targets])
        values = values.detach().cpu().index_select(0, self.indices)
        return values if values.is_floating_point() or values.is_complex() else values.long()

    @cached_property
    def target_hashes(self) -> Tensor | None:
        """A hash of each sample's target, (sample,) int64; None if only reading would give it."""
        return None if self.targets is None else hash_rows(self.targets)

    @cached_property
    def contents(self) -> Tensor | None:
        """A hash of each sample's inputs, (sample,) int64, 0 if not hashed; None if not needed."""
        if not is_unnamed(self.dataset) or not len(self):
            return None
        first = self._inputs(self.indices[:1])
        n_bytes = sum(values.nbytes for values in first)
        if not n_bytes:
            return None
        step = -(-n_bytes * len(self) // LIMIT)
        found = torch.zeros(len(self), dtype=torch.int64)
        n_places = step * max(1, CHUNK // n_bytes)
        for begin in range(0, len(self), n_places):
            places = slice(begin, begin + n_places, step)
            inputs = self._inputs(self.indices[places])
            if len(inputs) != len(first):
                return None  # a sample cannot be read
            hashes = [hash_rows(values) + number for number, values in enumerate(inputs)]
            found[places] = torch.stack([mix(words) for words in hashes]).sum(0)
        return found

    @cached_property
    def digests(self) -> dict[str, Any]:
        """Return the number of samples and one hash each of their ids, targets and contents."""
        return self._digests(self.target_hashes)

    @property
    def digests_in_memory(self) -> dict[str, Any]:
        """The `digests` without a hash of targets that are stored in separate files."""
        has_targets = getattr(self.dataset, "targets", None) is not None
        return self._digests(self.target_hashes if has_targets else None)

    def _digests(self, target_hashes: Tensor | None) -> dict[str, Any]:
        ids = hashlib.sha256(self.indices.contiguous().numpy().data)
        if self.has_names:
            self._add_names(ids)
        contents_digest, targets_digest = (
            None if rows is None else hashlib.sha256(rows.numpy().data).hexdigest()[:32]
            for rows in (self.contents, target_hashes)
        )
        return {
            "n_samples": len(self),
            "ids": ids.hexdigest()[:32],
            "targets": targets_digest,
            "contents": contents_digest,
        }

    def _add_names(self, digest: hashlib._Hash) -> None:
        """Add the names, joined by zero bytes, without holding all of them at once."""
        ids, separator = self.ids, ""
        for places in self.indices.split(N_NAMES):
            text = separator + "\0".join(ids_at(ids, places))
            digest.update(text.encode(errors="surrogateescape"))
            separator = "\0"

    def target_texts(self) -> list[str]:
        """Return the target of each sample as text. Long targets are hashed."""
        if self.targets is None:
            return [""] * len(self)
        rows = self.targets.flatten(1) if self.targets.dim() > 1 else self.targets
        if getattr(self.dataset, "targets", None) is None:
            return hex_texts(rows)
        if rows.dim() == 1:
            return list(map(str, rows.tolist()))
        if rows.shape[1] > MAX_NUMBERS:
            return hex_texts(hash_rows(rows))
        return [" ".join(map(str, row)) for row in rows.tolist()]

    def _inputs(self, places: Tensor) -> list[Tensor]:
        """Read samples and return all items but the target, (sample, ...) each."""
        data = getattr(self.dataset, "data", None)  # set by torchvision's in-memory data sets
        if isinstance(data, Tensor | np.ndarray) and len(data) == len(self.dataset):
            return [torch.as_tensor(data[places.numpy()])]
        reader = BatchReader(self.dataset, default_collate)
        batch = None if reader.get_batch is None else reader.__getitems__((0, 0, places))
        if batch is None or isinstance(batch, Failure):
            return []
        if self.targets is not None and isinstance(batch, list | tuple):
            batch = [*batch[:1], *batch[2:]]
        return [each for each in tensors_in(batch) if each.dim() and len(each) == len(places)]


def samples_of(loader: Any) -> Samples | None:
    """Return the samples of an epoch of a loader if they are known; None for a stream."""
    dataset: Any = getattr(loader, "dataset", None)
    known = offered(loader, HasSamples)
    if isinstance(dataset, IterableDataset) or (known is None and not isinstance(dataset, Dataset)):
        return None
    indices = None if known is None else known.sample_indices()
    if indices is None:
        chosen = getattr(getattr(loader, "sampler", None), "indices", None)
        is_known = isinstance(chosen, Sequence | Tensor | np.ndarray)
        indices = torch.as_tensor(chosen if is_known else range(len(dataset))).sort().values
    dataset = underlying(dataset)
    while isinstance(dataset, Subset):
        dataset, indices = dataset.dataset, torch.as_tensor(dataset.indices)[indices]
    return Samples(dataset, indices)


def is_unnamed(dataset: Any) -> bool:
    """Return whether the ids of all or some samples are missing or mere numbers."""
    marks = ("ids_are_numbers", "has_unnamed_parts")
    # Checked last: numeric `ids` are converted to strings on access.
    return any(getattr(dataset, mark, False) for mark in marks) or not hasattr(dataset, "ids")


def hash_rows(rows: Tensor) -> Tensor:
    """Return a hash of the bytes of each row: (sample, ...) gives (sample,) int64."""
    if len(rows) > N_ROWS:
        return torch.cat(list(map(hash_rows, rows.split(N_ROWS))))
    if not len(rows):
        return torch.zeros(0, dtype=torch.int64)
    values = rows.detach().cpu().reshape(len(rows), -1).contiguous()
    data = values.view(torch.uint8)
    if data.shape[1] % 8 == 0 and data.storage_offset() % 8 == 0:
        words = data.view(torch.int64)
    else:
        words = torch.zeros(len(rows), -(-data.shape[1] // 8), dtype=torch.int64)
        words.view(torch.uint8)[:, : data.shape[1]] = data
    return mix(words + torch.arange(1, words.shape[1] + 1) * STEP).sum(1)


def hex_texts(hashes: Tensor) -> list[str]:
    """Return 64-bit numbers as 16 hexadecimal digits each."""
    text = hashes.numpy().astype(">i8").tobytes().hex()
    return [text[place : place + 16] for place in range(0, len(text), 16)]


def _hash_text(text: str) -> Tensor:
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
    return torch.tensor([int.from_bytes(digest[:8], "big", signed=True)])
