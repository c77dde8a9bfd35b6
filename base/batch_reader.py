"""Reading one batch by its key, here or in a worker."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate, get_worker_info

from base.errors import DataError
from base.seeding import cpu_streams, derive_seed, seed_cpu_streams, set_cpu_streams

Batch = Any  # whatever the data set and collate_fn make of some samples
Key = tuple[int, int, Any]  # seed, epoch, indices into the data set (a tensor or a list)


class Failure:
    """An error on its way from the reader, which may be in a worker, to the loop."""

    def __init__(self, what: str, error: Exception, is_of_many: bool = False) -> None:
        self.message = f"{error} ({what})" if is_of_many else f"{what}: {error}"
        if not isinstance(error, DataError):  # which says itself where and what
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            self.message = f"{what}: {type(error).__name__}: {error} ({where})"
        self.error = error
        if get_worker_info() is not None:  # not every error can be sent; its text can
            self.error = RuntimeError("".join(traceback.format_exception(error)))


class BatchReader:
    """Read the batch that a key names; what torch's DataLoader takes for a data set.

    Indices of the length and more ask for sample ``index % length`` in another random form. A data
    set may read whole batches: by ``get_batch(indices)`` where nothing is random, by
    ``get_keyed_batch(indices, seed, epoch)`` where all that is random follows from these.
    """

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Batch]) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn
        self.name = getattr(dataset, "name", type(dataset).__name__)
        is_plain = collate_fn is default_collate
        self.get_batch = find_get_batch(dataset) if is_plain else None
        self.get_keyed_batch = getattr(dataset, "get_keyed_batch", None) if is_plain else None

    @property
    def readers(self) -> str:
        """What reads faster than this thread: "none" (it is in memory), "threads", "processes"."""
        if self.get_batch is not None:
            return "none"
        return "processes" if self.get_keyed_batch is None else str(self.dataset.readers)

    @property
    def takes_tensors(self) -> bool:
        """Whether a key holds its indices as a tensor; else as a list."""
        return self.get_batch is not None or self.get_keyed_batch is not None

    def __getitems__(self, key: Key) -> Batch | Failure:
        seed, epoch, indices = key
        if self.takes_tensors and not isinstance(indices, Tensor):
            indices = torch.as_tensor(indices)  # a list came to another process
        if self.get_batch is not None:
            return self._read_batch(self.get_batch, indices)
        if self.get_keyed_batch is not None and not self.dataset.uses_streams:
            return self._read_batch(self.get_keyed_batch, indices, seed, epoch)
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
        if self.get_keyed_batch is not None:
            return self._read_batch(self.get_keyed_batch, indices, seed, epoch)
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
            return self.collate_fn(samples)  # its own draws go on in the last sample's streams
        except Exception as error:
            return Failure(what, error)


def _few(indices: list[int]) -> str:
    """Return the indices of a batch, or how it begins."""
    return str(indices) if len(indices) <= 8 else f"{str(indices[:8])[:-1]}, ...]"


def find_get_batch(dataset: Any) -> Callable[[Tensor], Batch] | None:
    """Return the function that reads many samples at once, or None where there is none."""
    if hasattr(dataset, "get_batch"):
        return dataset.get_batch  # type: ignore[no-any-return]
    if type(dataset) is TensorDataset:
        return lambda indices: [tensor.index_select(0, indices) for tensor in dataset.tensors]
    if type(dataset) is Subset and (inner := find_get_batch(dataset.dataset)) is not None:
        positions = torch.as_tensor(dataset.indices)
        return lambda indices: inner(positions[indices])
    return None


def raise_failure(batch: Batch | Failure) -> Batch:
    if isinstance(batch, Failure):
        raise DataError(batch.message) from batch.error
    return batch
