"""Reading one batch by its key, here or in a worker."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate, get_worker_info

from base.data.protocols import (
    Batch,
    HasPlaces,
    SupportsBatches,
    SupportsRandomBatches,
    name_of,
    offered,
    underlying,
)
from base.errors import BatchError, DataError, trace_of
from base.names.shipped import passed_own_code
from base.system.resources import is_out_of_memory
from base.system.seeding import cpu_streams, derive_seed, seed_cpu_streams, set_cpu_streams

TRIES = 30  # to find sound samples for a batch
Key = tuple[int, int, Any]  # seed, epoch, indices into the data set (a tensor or a list)


class Failure:
    """An error on its way from the reader, which may be in a worker, to the loop."""

    def __init__(self, what: str, error: Exception, is_of_many: bool = False) -> None:
        self.reason = str(error)
        if not isinstance(error, DataError):  # which says itself where and what
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            self.reason, is_of_many = f"{type(error).__name__}: {error} ({where})", False
        self.message = f"{self.reason} ({what})" if is_of_many else f"{what}: {self.reason}"
        self.may_be_skipped = not isinstance(error, BatchError) and not is_out_of_memory(error)
        self.error, self.trace = error, trace_of(error)
        if not isinstance(error, DataError) and passed_own_code(error):
            self.trace = "".join(traceback.format_exception(error))
        if get_worker_info() is not None:  # not every error can be sent; its text can
            self.error = RuntimeError("".join(traceback.format_exception(error)))

    def bad_sample(self, index: int, path: str) -> BadSample:
        return BadSample(index, path, self.reason.removeprefix(f"{path}: "))


class BadSample(NamedTuple):
    """A sample that cannot be read: its index in the data set, its file or place there, and why."""

    sample: int
    path: str
    reason: str


class PartialBatch(NamedTuple):
    """A batch without its bad samples, None where no sample is left, and those samples."""

    batch: Batch | Failure | None
    bad: list[BadSample]


class IndexedBatch(NamedTuple):
    """A batch, and the index in the data set of each of its samples."""

    batch: Batch
    ids: Any  # an array, which a worker sends faster than a tensor


NoteBad = Callable[[list[BadSample]], None]


@dataclass
class Skip:
    """How batches are read without bad samples: `allowed` of them, and what replaces them.

    stand_ins  the samples (index,) of which another is taken in place of a bad one; None: none is
    known      the bad ones that were met in this process
    """

    allowed: int
    stand_ins: Tensor | None
    known: dict[int, BadSample] = field(default_factory=dict)

    def stand_in_for(self, index: int, seed: int, epoch: int) -> int:
        """Return the first sample that is not known as bad, of those drawn by (..., attempt)."""
        assert self.stand_ins is not None
        for attempt in range(TRIES):
            draw = derive_seed(seed, "stand-in", epoch, index, attempt)
            other = int(self.stand_ins[draw % len(self.stand_ins)])
            if other not in self.known:
                return other
        return index


class BatchReader:
    """Read the batch that a key names; what torch's DataLoader takes for a data set.

    Indices of the length and more ask for sample ``index % length`` in another random form. A data
    set may read whole batches (`SupportsBatches`, `SupportsRandomBatches`).
    With `skip` a batch is read without the samples that cannot be, after a fault only. With
    `numbers` it comes as a `IndexedBatch` one.
    """

    def __init__(
        self,
        dataset: Any,
        collate_fn: Callable[[list[Any]], Batch],
        skip: Skip | None = None,
        numbers: bool = False,
    ) -> None:
        self.dataset, self.collate_fn, self.skip = dataset, collate_fn, skip
        self.numbers = numbers
        self.name = name_of(dataset)
        is_plain = collate_fn is default_collate
        self.get_batch = find_get_batch(dataset) if is_plain else None
        self.random = offered(dataset, SupportsRandomBatches) if is_plain else None

    @property
    def readers(self) -> str:
        """What reads faster than this thread: "none" (it is in memory), "threads", "processes"."""
        if self.get_batch is not None:
            return "none"
        return "processes" if self.random is None else self.random.readers

    @property
    def takes_tensors(self) -> bool:
        """Whether a key holds its indices as a tensor; else as a list."""
        return self.get_batch is not None or self.random is not None

    def __getitems__(self, key: Key) -> Batch | Failure | PartialBatch:
        if self.skip is not None:
            return self._read_sound(key, self.skip)
        batch = self._read(key)
        if isinstance(batch, Failure) and batch.may_be_skipped:  # name the very sample
            alone = (one for _, one in self._read_each(key) if isinstance(one, Failure))
            return next(alone, batch)
        return self._numbered(batch, key[2])

    def _numbered(self, batch: Batch | Failure, indices: Any) -> Batch | Failure:
        if not self.numbers or batch is None or isinstance(batch, Failure):
            return batch
        return IndexedBatch(batch, np.asarray(indices) % len(self.dataset))

    def _read_sound(self, key: Key, skip: Skip) -> Batch | Failure | PartialBatch:
        """Read a batch without its bad samples; those that are known are not tried again."""
        seed, epoch, indices = key
        batch: Batch | Failure | None = None
        bad: list[BadSample] = []
        for _ in range(TRIES):
            if skip.known:
                indices, bad = self._without_known(key, skip)
            if len(set(bad)) > skip.allowed:
                break
            batch = self._read((seed, epoch, indices)) if len(indices) else None
            if not isinstance(batch, Failure) or not batch.may_be_skipped:
                break
            if not self._find_bad((seed, epoch, indices), skip):
                break  # each can be read by itself: the fault lies elsewhere
        batch = self._numbered(batch, indices)
        return PartialBatch(batch, bad) if bad else batch

    def _without_known(self, key: Key, skip: Skip) -> tuple[list[int], list[BadSample]]:
        """Return which samples to read for those of a key, and which of these are bad."""
        seed, epoch, indices = key
        wanted, sound = _as_list(indices), []
        places = [index % len(self.dataset) for index in wanted]
        for index, place in zip(wanted, places, strict=True):
            if place not in skip.known:
                sound.append(index)
            elif skip.stand_ins is not None:
                sound.append(skip.stand_in_for(index, seed, epoch))
        return sound, [skip.known[place] for place in places if place in skip.known]

    def _read_each(self, key: Key) -> Iterator[tuple[int, Batch | Failure]]:
        """Read samples one by one, after a fault; yield the index and the result of each."""
        seed, epoch, indices = key
        for index in _as_list(indices):
            yield index, self._read((seed, epoch, [index]))

    def _find_bad(self, key: Key, skip: Skip) -> bool:
        """Record the samples that fail by themselves; return whether there are any."""
        placed = offered(underlying(self.dataset), HasPlaces)
        is_any = False
        for index, one in self._read_each(key):
            if isinstance(one, Failure) and one.may_be_skipped:
                place, is_any = index % len(self.dataset), True
                path = f"sample {place} of {self.name}" if placed is None else placed.place(place)
                skip.known.setdefault(place, one.bad_sample(place, path))
        return is_any

    def _read(self, key: Key) -> Batch | Failure:
        seed, epoch, indices = key
        if self.takes_tensors and not isinstance(indices, Tensor):
            indices = torch.as_tensor(indices)  # a list came to another process
        if self.get_batch is not None:
            return self._read_batch(self.get_batch, indices)
        if self.random is not None and not self.random.uses_streams:
            return self._read_batch(self.random.get_random_batch, indices, seed, epoch)
        if get_worker_info() is not None:
            return self._read_drawing(seed, epoch, indices)
        streams = cpu_streams()  # the trainer's: its dropout must not notice the augmentation
        try:
            return self._read_drawing(seed, epoch, indices)
        finally:
            set_cpu_streams(streams)

    def _read_batch(self, read: Callable[..., Batch], indices: Tensor, *args: Any) -> Any:
        try:
            return read(indices, *args)
        except Exception as error:
            few = _few(indices.tolist())
            return Failure(f"cannot read samples {few} of {self.name}", error, is_of_many=True)

    def _read_drawing(self, seed: int, epoch: int, indices: Any) -> Batch | Failure:
        if self.random is not None:
            return self._read_batch(self.random.get_random_batch, indices, seed, epoch)
        return self._read_samples(seed, epoch, indices)

    def _read_samples(self, seed: int, epoch: int, indices: list[int]) -> Batch | Failure:
        what = ""
        try:
            samples, n_samples = [], len(self.dataset)
            for index in indices:
                what = f"cannot read sample {index % n_samples} of {self.name}"
                seed_cpu_streams(derive_seed(seed, "sample", epoch, index))
                samples.append(self.dataset[index % n_samples])
            what = f"cannot collate samples {indices} of {self.name}"
            return self.collate_fn(samples)  # its own draws continue the last sample's streams
        except Exception as error:
            return Failure(what, error)


def _as_list(indices: Tensor | list[int]) -> list[int]:
    return indices.tolist() if isinstance(indices, Tensor) else indices


def _few(indices: list[int]) -> str:
    """Return the indices of a batch, or how it begins."""
    return str(indices) if len(indices) <= 8 else f"{str(indices[:8])[:-1]}, ...]"


def find_get_batch(dataset: Any) -> Callable[[Tensor], Batch] | None:
    """Return the function that reads many samples at once, or None where there is none."""
    if (whole := offered(dataset, SupportsBatches)) is not None:
        return whole.get_batch
    if type(dataset) is TensorDataset:
        return lambda indices: [tensor.index_select(0, indices) for tensor in dataset.tensors]
    if type(dataset) is Subset and (inner := find_get_batch(dataset.dataset)) is not None:
        positions = torch.as_tensor(dataset.indices)
        return lambda indices: inner(positions[indices])
    return None


def without_bad_samples(batches: Iterator[Batch], note: NoteBad) -> Iterator[Batch]:
    """Pass the bad samples of batches to `note`; yield what is left, if anything is."""
    for batch in batches:
        if isinstance(batch, PartialBatch):
            note(batch.bad)
            batch = raise_failure(batch.batch)
        if batch is not None:
            yield batch
        del batch  # it is freed before the next one is read


def raise_failure(batch: Batch | Failure) -> Batch:
    if isinstance(batch, Failure):
        error = DataError(batch.message)
        error.trace = batch.trace
        raise error from batch.error
    return batch
