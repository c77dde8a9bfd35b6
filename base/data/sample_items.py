"""Sample ids and sample weights as items of a batch.

The config requests them with ``batch: {ids: true, weight: NAME}``. An id is a sample's index in
the loader's data set, the same in training and validation; for a torch `Subset` it is the index in
the full data set. A dict batch holds the ids as ``ids``; a list or tuple has them appended. A
weight is an item of the batch, or a number that the data set has for each sample. The latter is
looked up by id and added as ``sample_weight``, or appended after the ids.
"""

from __future__ import annotations

import copy
import functools
from collections import deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from base.data.batch import (
    DEFAULT_RULES,
    IDS,
    WEIGHT,
    Rules,
    count_samples,
    ids_of,
    is_sequence,
    sample_weight_of,
)
from base.data.protocols import Batch, HasPlaces, HasSampleNumbers, name_of, offered, underlying
from base.data.shares import WHOLE
from base.errors import ConfigError, DataError, Problem
from base.system.seeding import derive_seed, seed_cpu_streams


class SampleItems:
    """Adds sample ids and weights to the batches of a loader.

    Args:
        rules: the config's ``batch:`` section.
        dataset: the loader's data set.
        is_plain: whether batches are known to hold one sample per drawn index.
        gives_ids: whether batches already hold the ids.

    Raises:
        ConfigError: ``weight`` names values of the data set that are not valid weights.
    """

    def __init__(
        self,
        rules: Rules,
        dataset: Any,
        is_plain: bool = True,
        pin_memory: bool = False,
        gives_ids: bool = False,
    ) -> None:
        self.rules, self.is_plain = rules, is_plain
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.gives_ids = gives_ids
        name = rules["weight"]
        self.dataset, self.places = source_ids(dataset)
        self.weights = sample_weights_of(self.dataset, name) if isinstance(name, str) else None

    def added(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield indexed batches as training steps expect them."""
        for batch in batches:
            yield self.add(*batch)
            del batch

    def add(self, batch: Batch, drawn: Any) -> Batch:
        """Return a batch with the requested items. ``drawn`` holds the indices of its samples."""
        ids = self._given_ids(batch) if self.gives_ids else self._ids(batch, drawn)
        items = {IDS: ids} if self.rules["ids"] and not self.gives_ids else {}
        if isinstance(self.rules["weight"], str) and not _has(batch, self.rules["weight"]):
            items[WEIGHT] = self._weights(batch, ids)
        if self.pin_memory:
            items = {key: item.pin_memory() for key, item in items.items()}
        return with_items(batch, items)

    def _ids(self, batch: Batch, drawn: Any) -> Tensor:
        ids = torch.as_tensor(drawn, dtype=torch.int64).reshape(-1)
        if not self.is_plain:
            refuse_other_size(batch, len(ids))
        return ids if self.places is None else self.places[ids]

    def _given_ids(self, batch: Batch) -> Tensor:
        """Return the ids that the loader itself added to a batch."""
        ids = ids_of(batch, {**self.rules, "weight": None})
        if isinstance(ids, Tensor) and ids.dim() == 1 and ids.dtype == torch.int64:
            return ids
        found = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else repr(ids)[:60]
        text = "with `gives_ids`, the item 'ids' of a dict or the last item of a sequence must hold"
        text += f" integers of shape (sample,), not {found}"
        raise ConfigError([Problem("batch.ids", text)])

    def _weights(self, batch: Batch, ids: Tensor) -> Tensor:
        if self.weights is None:
            name = self.rules["weight"]
            keys = f" and its batches have {', '.join(map(repr, batch))}" if _is_dict(batch) else ""
            text = f"{name_of(self.dataset)} has no {name!r} with one number per sample{keys}"
            text += "; name such an attribute, a column, a key of the batch or a position in it"
            raise ConfigError([Problem("batch.weight", text)])
        return self.weights[ids]


def _is_dict(batch: Batch) -> bool:
    return isinstance(batch, Mapping)


def _has(batch: Batch, name: str) -> bool:
    """Return whether the weights are already an item of the batch."""
    if _is_dict(batch):
        return name in batch
    return not (is_sequence(batch) and not hasattr(batch, "_fields")) and hasattr(batch, name)


def with_items(batch: Batch, items: Mapping[str, Any]) -> Batch:
    """Return a batch with added items: by key in a dict or object, appended otherwise."""
    if not items:
        return batch
    names = getattr(batch, "_fields", ())
    if taken := [key for key in items if key in (batch if _is_dict(batch) else names)]:
        text = f"a batch already has an item {taken[0]!r}: rename it, or remove this setting"
        raise ConfigError([Problem("batch.ids" if taken[0] == IDS else "batch.weight", text)])
    if isinstance(batch, MutableMapping):
        batch = copy.copy(batch)  # the data set may hold a reference
        batch.update(items)
        return batch
    if _is_dict(batch):
        return {**batch, **items}
    if isinstance(batch, Tensor) or hasattr(batch, "batch_sizes"):
        return [batch, *items.values()]
    if is_sequence(batch):
        longer = (*batch, *items.values())
        if names:
            return _longer_type(type(batch).__name__, (*names, *items))(*longer)
        return list(longer) if isinstance(batch, list) else longer
    try:
        for key, item in items.items():
            setattr(batch, key, item)
    except AttributeError as error:
        text = f"items cannot be added to a batch of type {type(batch).__name__} ({error}): return"
        text += " a dict or a tuple from `collate_fn`"
        raise ConfigError([Problem("batch", text)]) from error
    return batch


@functools.lru_cache(maxsize=64)
def _longer_type(name: str, fields: tuple[str, ...]) -> Any:
    """Return a named tuple class with more fields. Equal fields give the same class."""
    return namedtuple(name, fields)


def refuse_other_size(batch: Batch, n_drawn: int) -> None:
    """Check that `collate_fn` kept all samples, so that ids match samples.

    Raises:
        DataError: it dropped or added samples.
    """
    try:
        n_samples = count_samples(batch, DEFAULT_RULES, n_drawn)
    except ConfigError:
        return  # the number of samples is not known
    if n_samples != n_drawn:
        text = f"a batch has {n_samples} samples, but {n_drawn} were drawn, so ids cannot be"
        text += " matched to samples: keep all of them in `collate_fn`"
        raise DataError(f"batch.ids: {text}, or skip unreadable ones with `on_bad_sample: skip`")


def source_ids(dataset: Any) -> tuple[Any, Tensor | None]:
    """Return the data set whose indices are the ids, and the id at each index (None: equal)."""
    places: Tensor | None = None
    while type(dataset) is Subset:
        own = torch.as_tensor(dataset.indices, dtype=torch.int64)
        places = own if places is None else own[places]
        dataset = dataset.dataset
    return dataset, places


# --- Other loaders --------------------------------------------------------------------------------


class DrawnIndices:
    """Wraps a sampler of torch's DataLoader and records the indices that it yields.

    torch's loader yields batches in the order in which it drew their indices. With `is_at_once`
    it draws those of a whole pass at once, so that the state of a stateful sampler does not depend
    on how far ahead workers read. With a `share`, it yields a rank's part of each batch.
    """

    def __init__(self, wrapped: Any, is_at_once: bool = False) -> None:
        self.wrapped, self._is_at_once = wrapped, is_at_once
        self.share = WHOLE
        self.n_own = 0
        """The number of samples of the batch of `next_indices` that belong to the rank."""
        self._noted: deque[tuple[Any, int]] = deque()

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __iter__(self) -> Iterator[Any]:
        self._noted.clear()
        if self.share.size > 1:
            yield from self._shared(list(self.wrapped))
            return
        for indices in list(self.wrapped) if self._is_at_once else self.wrapped:
            self._noted.append((indices, 0))
            yield indices

    def _shared(self, order: list[Any]) -> Iterator[Any]:
        """Yield the rank's part of each batch of a pass, whose order is the same on all ranks.

        Reading without workers continues the streams that draw the order, on each rank from a
        state of its own: otherwise different samples would get the same random numbers.
        """
        seed_cpu_streams(derive_seed(int(torch.randint(2**62, ())), "rank", self.share.rank))
        for each in order:
            indices = each if hasattr(each, "__getitem__") else list(each)
            part = self.share.of(indices)
            self._noted.append((part, self.share.count_own(len(indices))))
            yield part

    def next_indices(self) -> Any:
        """Return the indices of the loader's next batch."""
        indices, self.n_own = self._noted.popleft()
        return indices


def recording_indices(loader: Any, is_at_once: bool) -> tuple[Any, DrawnIndices]:
    """Return torch's loader with a recording sampler, and that sampler."""
    key = "sampler" if loader.batch_sampler is None else "batch_sampler"
    noting = DrawnIndices(getattr(loader, key), is_at_once)
    loader = copy.copy(loader)
    vars(loader)[key] = noting  # torch's loader forbids assignment
    return loader, noting


def refuse_unknown_ids(loader: Any) -> None:
    """Check that the samples of a loader's batches can be identified.

    Raises:
        ConfigError: they cannot. The message says how a loader can provide ids itself.
    """
    name = type(loader).__name__
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        name = type(loader.dataset).__name__
        text = f"{name} is an IterableDataset, whose samples have no index"
    elif getattr(loader, "has_own_loop", False) or (
        isinstance(loader, DataLoader) and type(loader).__iter__ is not DataLoader.__iter__
    ):
        text = f"{name} overrides __iter__"
    elif not isinstance(loader, DataLoader):
        text = f"{name} is neither torch's DataLoader nor a BaseDataLoader"
    elif not getattr(loader, "in_order", True):
        text = "in_order=False gives batches in any order"
    else:
        return
    text = f"{text}, so the ids of a batch are not known: return them as {IDS!r} in a dict or as"
    text += " the last item of a tuple, and set the attribute gives_ids = True on the loader"
    raise ConfigError([Problem("batch.ids", text)])


# --- Numeric columns of a data set ----------------------------------------------------------------


def sample_weights_of(dataset: Any, name: str) -> Tensor | None:
    """Return the weights of that name in a data set, (sample,) float32, or None.

    Raises:
        ConfigError: a weight is negative or not finite, or there is not one per sample.
    """
    try:
        values = sample_numbers(dataset, name)
        if values is None:
            return None
        weights = torch.as_tensor(np.asarray(values) if not _is_tensor(values) else values)
        weights = weights.detach().cpu().to(torch.float32)
    except (TypeError, ValueError, DataError) as error:
        raise ConfigError([Problem("batch.weight", f"{name}: {error}")]) from error
    if weights.shape == (len(dataset), 1):
        weights = weights[:, 0]
    if weights.shape != (len(dataset),):
        text = f"{name} of {name_of(dataset)} has shape {tuple(weights.shape)}, not one number"
        text += f" for each of its {len(dataset)} samples"
        raise ConfigError([Problem("batch.weight", text)])
    placed = offered(underlying(dataset), HasPlaces)
    if text := fault_of(weights, None if placed is None else placed.place):
        text = f"{name} of {name_of(dataset)}: {text}"
        raise ConfigError([Problem("batch.weight", text)])
    return weights


def sample_numbers(dataset: Any, name: str) -> Any:
    """Return the values of that name in a data set, one per sample, or None.

    They are an attribute, or a column that its method ``sample_numbers(name)`` returns.
    """
    if type(dataset) is ConcatDataset:
        parts = [sample_numbers(part, name) for part in dataset.datasets]
        has_all = all(part is not None for part in parts)
        return torch.cat(list(map(torch.as_tensor, parts))) if has_all else None
    if type(dataset) is Subset:
        found = sample_numbers(dataset.dataset, name)
        places = torch.as_tensor(dataset.indices)
        return None if found is None else torch.as_tensor(found)[places]
    columns = offered(dataset, HasSampleNumbers)
    if columns is not None and (found := columns.sample_numbers(name)) is not None:
        return found
    found = getattr(dataset, name, None)
    if found is None:
        inner = getattr(dataset, "reads_from", getattr(dataset, "made_from", None))
        return None if inner is None else sample_numbers(inner, name)
    is_list = isinstance(found, Tensor | np.ndarray | Sequence) and not isinstance(found, str)
    if not is_list and not hasattr(found, "__array__"):
        kind = type(found).__name__
        raise DataError(f"expected one number per sample, found a value of type {kind}")
    return found


def _is_tensor(values: Any) -> bool:
    return isinstance(values, Tensor)


def fault_of(weights: Tensor, place: Callable[[int], str] | None = None) -> str:
    """Return a message about the first invalid weight, or an empty string.

    Args:
        place: returns the location of a sample.
    """
    wrong = ~weights.isfinite() | (weights < 0)
    if not bool(wrong.any()):
        return ""
    first, more = int(wrong.nonzero()[0]), int(wrong.sum()) - 1
    sample = f"sample {first}" if place is None else place(first)
    text = f"{sample} has weight {weights[first].item():g}"
    text += f" (and {more} more are wrong)" if more else ""
    return f"{text}: weights are finite numbers of at least 0"


def checked_weights(batches: Iterator[Batch], rules: Rules) -> Iterator[Batch]:
    """Yield batches after checking their weights while they are still on the CPU.

    Raises:
        DataError: a weight is negative or not finite.
    """
    for batch in batches:
        weights = sample_weight_of(batch, rules)
        if isinstance(weights, Tensor) and weights.is_cpu and (text := fault_of(weights.flatten())):
            raise DataError(f"batch.weight: {text} (counted within its batch)")
        yield batch
        del batch
