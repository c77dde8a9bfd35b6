"""Reads a batch by its key, in this process or in a worker."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
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
    SupportsReadingTogether,
    name_of,
    offered,
    underlying,
)
from base.errors import BatchError, DataError, trace_of
from base.names.shipped import passed_own_code
from base.system.resources import is_out_of_memory
from base.system.seeding import cpu_streams, derive_seed, seed_cpu_streams, set_cpu_streams

SKIP_INSTEAD = "; `trainer.on_bad_sample: skip` replaces it by another sample"
MAX_ATTEMPTS = 30  # at finding readable samples for a batch
Key = tuple[int, int, Any]  # seed, epoch, indices into the data set (a tensor or a list)


class Failure:
    """An error passed from the reader, possibly in a worker, to the loop."""

    def __init__(self, what: str, error: Exception, is_of_many: bool = False) -> None:
        self.reason = str(error)
        if not isinstance(error, DataError):  # a DataError already says where and what
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            self.reason, is_of_many = f"{type(error).__name__}: {error} ({where})", False
        self.message = f"{self.reason} ({what})" if is_of_many else f"{what}: {self.reason}"
        self.may_be_skipped = not isinstance(error, BatchError) and not is_out_of_memory(error)
        self.is_of_file = isinstance(error, DataError | OSError)
        self.error, self.trace = error, trace_of(error)
        if not isinstance(error, DataError) and passed_own_code(error):
            self.trace = "".join(traceback.format_exception(error))
        if get_worker_info() is not None:  # not every error can be pickled; its text can
            self.error = RuntimeError("".join(traceback.format_exception(error)))

    def with_advice(self) -> Failure:
        """Say how to go on without a sample whose file, not whose code, is at fault."""
        if self.may_be_skipped and self.is_of_file:
            self.message += SKIP_INSTEAD
        return self

    def bad_sample(self, index: int, path: str) -> BadSample:
        return BadSample(index, path, self.reason.removeprefix(f"{path}: "))


class BadSample(NamedTuple):
    """An unreadable sample: its index in the data set, its file or location, and the reason."""

    sample: int
    path: str
    reason: str


class PartialBatch(NamedTuple):
    """A batch without its bad samples (None if no sample is left), and the bad samples."""

    batch: Batch | Failure | None
    bad: list[BadSample]


class IndexedBatch(NamedTuple):
    """A batch and the data set index of each of its samples."""

    batch: Batch
    ids: Any  # an array, which a worker sends faster than a tensor


NoteBad = Callable[[list[BadSample]], None]


@dataclass
class Skip:
    """Settings for skipping bad samples: `allowed` of them, and their replacements.

    stand_ins  indices of the samples that may replace a bad one; None: no replacement
    known      indices of the bad samples found in this process
    """

    allowed: int
    stand_ins: Tensor | None
    known: dict[int, BadSample] = field(default_factory=dict)

    def stand_in_for(self, index: int, seed: int, epoch: int) -> int:
        """Return a replacement: the first one drawn, by attempt, that is not known to be bad."""
        assert self.stand_ins is not None
        for attempt in range(MAX_ATTEMPTS):
            draw = derive_seed(seed, "stand-in", epoch, index, attempt)
            other = int(self.stand_ins[draw % len(self.stand_ins)])
            if other not in self.known:
                return other
        return index


class BatchReader:
    """Reads the batch of a key. It is the data set that torch's DataLoader sees.

    An index beyond the length reads sample ``index % length`` with other random numbers. A data
    set may read whole batches (`SupportsBatches`, `SupportsRandomBatches`).
    With `skip`, a batch that fails is read again without its unreadable samples. With `numbers`,
    the result is an `IndexedBatch`.
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
        self.together = offered(dataset, SupportsReadingTogether) if is_plain else None
        reads = getattr(dataset, "get_random_batches", None)
        if getattr(reads, "__self__", None) is not dataset:
            self.together = None  # a wrapper passes it on, and reads a batch in a way of its own
        self.takes_tensors = self.get_batch is not None or self.random is not None
        """Whether a key holds its indices as a tensor rather than a list."""

    @property
    def readers(self) -> str:
        """The fastest way to read: "none" (data in memory), "threads" or "processes"."""
        if self.get_batch is not None:
            return "none"
        return "processes" if self.random is None else self.random.readers

    def __getitems__(self, key: Key) -> Batch | Failure | PartialBatch:
        if self.skip is not None:
            return self._read_sound(key, self.skip)
        batch = self._read(key)
        if isinstance(batch, Failure) and batch.may_be_skipped:  # find the failing sample
            alone = (one for _, one in self._read_each(key) if isinstance(one, Failure))
            failure = next(alone, None)
            return batch if failure is None else failure.with_advice()
        return self._numbered(batch, key[2]) if self.numbers else batch

    def n_together(self, batch_size: int) -> int:
        """Return how many batches `read_together` should read at once; 1 for one at a time."""
        if self.together is None or self.skip is not None:
            return 1
        return self.together.n_together(batch_size)

    def read_together(self, keys: Iterator[Key], n: int) -> Iterator[Batch | Failure]:
        """Yield the batches of keys. Up to ``n`` of an epoch are read at once."""
        for (seed, epoch), same in groupby(keys, key=itemgetter(0, 1)):
            while group := deque(islice(same, n)):
                yield from self._read_group(group, seed, epoch)

    def _read_group(self, keys: deque[Key], seed: int, epoch: int) -> Iterator[Batch | Failure]:
        """Yield the batches of keys of one epoch. After an error the rest are read one by one."""
        assert self.together is not None
        parts = [indices for _, _, indices in keys]
        try:
            for batch in self.together.get_random_batches(parts, seed, epoch):
                numbered = self._numbered(batch, keys.popleft()[2])
                del batch
                yield numbered
                del numbered  # frees it before the next one is made
        except Exception:
            pass  # raised again by the batch that it is in
        yield from map(self.__getitems__, keys)

    def _numbered(self, batch: Batch | Failure, indices: Any) -> Batch | Failure:
        if not self.numbers or batch is None or isinstance(batch, Failure):
            return batch
        return IndexedBatch(batch, np.asarray(indices) % len(self.dataset))

    def _read_sound(self, key: Key, skip: Skip) -> Batch | Failure | PartialBatch:
        """Read a batch without its bad samples. Known bad samples are not tried again."""
        seed, epoch, indices = key
        batch: Batch | Failure | None = None
        bad: list[BadSample] = []
        for _ in range(MAX_ATTEMPTS):
            if skip.known:
                indices, bad = self._without_known(key, skip)
            if len(set(bad)) > skip.allowed:
                break
            batch = self._read((seed, epoch, indices)) if len(indices) else None
            if not isinstance(batch, Failure) or not batch.may_be_skipped:
                break
            if not self._find_bad((seed, epoch, indices), skip):
                break  # every sample can be read alone: the error lies elsewhere
        batch = self._numbered(batch, indices)
        return PartialBatch(batch, bad) if bad else batch

    def _without_known(self, key: Key, skip: Skip) -> tuple[list[int], list[BadSample]]:
        """Return the samples to read for a key, and the known bad samples of the key."""
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
        """Read samples one by one after an error. Yield the index and result of each."""
        seed, epoch, indices = key
        for index in _as_list(indices):
            yield index, self._read((seed, epoch, [index]))

    def _find_bad(self, key: Key, skip: Skip) -> bool:
        """Record the samples that fail when read alone. Return whether any do."""
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
        if self.get_batch is not None:
            return self._read_batch(self.get_batch, indices)
        if self.random is not None and not self.random.uses_streams:
            return self._read_batch(self.random.get_random_batch, indices, seed, epoch)
        if get_worker_info() is not None:
            return self._read_drawing(seed, epoch, indices)
        streams = cpu_streams()  # the trainer's: augmentation must not affect its dropout
        try:
            return self._read_drawing(seed, epoch, indices)
        finally:
            set_cpu_streams(streams)

    def _read_batch(self, read: Callable[..., Batch], indices: Any, *args: Any) -> Any:
        # A copy, as the loader keeps the order and a data set of yours may change its indices.
        # Other processes receive a list.
        indices = indices.clone() if isinstance(indices, Tensor) else torch.tensor(indices)
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
            return self.collate_fn(samples)  # its draws continue the last sample's streams
        except Exception as error:
            return Failure(what, error)


def _as_list(indices: Tensor | list[int]) -> list[int]:
    return indices.tolist() if isinstance(indices, Tensor) else indices


def _few(indices: list[int]) -> str:
    """Return the indices of a batch, or the first of them."""
    return str(indices) if len(indices) <= 8 else f"{str(indices[:8])[:-1]}, ...]"


def find_get_batch(dataset: Any) -> Callable[[Tensor], Batch] | None:
    """Return the data set's function that reads many samples at once, or None."""
    if (whole := offered(dataset, SupportsBatches)) is not None:
        return whole.get_batch
    if type(dataset) is TensorDataset:
        return lambda indices: [tensor.index_select(0, indices) for tensor in dataset.tensors]
    if type(dataset) is Subset and (inner := find_get_batch(dataset.dataset)) is not None:
        positions = torch.as_tensor(dataset.indices)
        return lambda indices: inner(positions[indices])
    return None


def without_bad_samples(batches: Iterator[Batch], note: NoteBad) -> Iterator[Batch]:
    """Pass the bad samples of batches to `note` and yield the remaining batches."""
    for batch in batches:
        if isinstance(batch, PartialBatch):
            note(batch.bad)
            batch = raise_failure(batch.batch)
        if batch is not None:
            yield batch
        del batch  # frees it before the next one is read


def raise_failure(batch: Batch | Failure) -> Batch:
    if isinstance(batch, Failure):
        error = DataError(batch.message)
        error.trace = batch.trace
        raise error from batch.error
    return batch
