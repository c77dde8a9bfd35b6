"""What batches carry beside their inputs and targets: ids and weights of their samples.

The config's ``batch: {ids: true, weight: NAME}`` asks for them. An id is a sample's index in the
loader's data set, the same in training and in validation; the indices of a torch `Subset` are those
of the data set that it is a part of. A dict gets the ids as ``ids``; to a list or a tuple they are
appended. A weight is an item of the batch, or else a number that the data set has for each sample:
it is then looked up by id and added as ``sample_weight``, or appended after the ids.
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
from base.errors import ConfigError, DataError, Problem


class SampleItems:
    """Adds ids and weights to the batches of a loader.

    Args:
        rules: the config's ``batch:`` section.
        dataset: what the loader reads.
        is_plain: its batches are known to have a sample for each index that was drawn.
        gives_ids: its batches have the ids already.

    Raises:
        ConfigError: ``weight`` names numbers of the data set that are not valid weights.
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
        """Yield indexed batches as a step takes them."""
        for batch in batches:
            yield self.add(*batch)
            del batch

    def add(self, batch: Batch, drawn: Any) -> Batch:
        """Return a batch with what was asked for; ``drawn`` are the indices of its samples."""
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
        """Return the ids that the loader itself has put into a batch."""
        ids = ids_of(batch, {**self.rules, "weight": None})
        if isinstance(ids, Tensor) and ids.dim() == 1 and ids.dtype == torch.int64:
            return ids
        found = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else repr(ids)[:60]
        text = "with `gives_ids` the item 'ids' of a dict, or the last one of a sequence, holds"
        text += f" whole numbers (sample,) int64, not {found}"
        raise ConfigError([Problem("batch.ids", text)])

    def _weights(self, batch: Batch, ids: Tensor) -> Tensor:
        if self.weights is None:
            name = self.rules["weight"]
            keys = f" and its batches have {', '.join(map(repr, batch))}" if _is_dict(batch) else ""
            text = f"{name_of(self.dataset)} has no {name!r} with one number a sample{keys}"
            text += "; name such an attribute, a column, a key of the batch or a position in it"
            raise ConfigError([Problem("batch.weight", text)])
        return self.weights[ids]


def _is_dict(batch: Batch) -> bool:
    return isinstance(batch, Mapping)


def _has(batch: Batch, name: str) -> bool:
    """Return whether the weights are an item of the batch already."""
    if _is_dict(batch):
        return name in batch
    return not (is_sequence(batch) and not hasattr(batch, "_fields")) and hasattr(batch, name)


def with_items(batch: Batch, items: Mapping[str, Any]) -> Batch:
    """Return a batch with more items: by their keys in a dict or an object, else appended."""
    if not items:
        return batch
    names = getattr(batch, "_fields", ())
    if taken := [key for key in items if key in (batch if _is_dict(batch) else names)]:
        text = f"a batch has an item {taken[0]!r} already: give it another name, or leave this out"
        raise ConfigError([Problem("batch.ids" if taken[0] == IDS else "batch.weight", text)])
    if isinstance(batch, MutableMapping):
        batch = copy.copy(batch)  # the data set may keep it
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
        text = f"a batch that is a {type(batch).__name__} can hold nothing more ({error}): have"
        text += " `collate_fn` give a dict or a tuple"
        raise ConfigError([Problem("batch", text)]) from error
    return batch


@functools.lru_cache(maxsize=64)
def _longer_type(name: str, fields: tuple[str, ...]) -> Any:
    """Return the class of named tuples with more fields; the same one for the same fields."""
    return namedtuple(name, fields)


def refuse_other_size(batch: Batch, n_drawn: int) -> None:
    """Make sure that a `collate_fn` has kept all samples, so that it is known which is which.

    Raises:
        DataError: it has not.
    """
    try:
        n_samples = count_samples(batch, DEFAULT_RULES, n_drawn)
    except ConfigError:
        return  # it does not show how many there are
    if n_samples != n_drawn:
        text = f"a batch of {n_samples} samples was made of the {n_drawn} that were drawn, so"
        text += " which id belongs to which is not known: have `collate_fn` keep them all"
        raise DataError(f"batch.ids: {text}, or skip what cannot be read (`on_bad_sample: skip`)")


def source_ids(dataset: Any) -> tuple[Any, Tensor | None]:
    """Return the data set whose indices are the ids, and the id at each index; None: the same."""
    places: Tensor | None = None
    while type(dataset) is Subset:
        own = torch.as_tensor(dataset.indices, dtype=torch.int64)
        places = own if places is None else own[places]
        dataset = dataset.dataset
    return dataset, places


# --- Loaders that are not Kindling's --------------------------------------------------------------


class DrawnIndices:
    """A sampler of torch's DataLoader that records what it gives, until it is asked for it.

    torch's loader gives batches in the order in which it has drawn their indices. Here it draws
    those of a pass at once where `is_at_once`, so that a sampler with state is left in the same one
    however far ahead workers read.
    """

    def __init__(self, wrapped: Any, is_at_once: bool = False) -> None:
        self.wrapped, self._is_at_once = wrapped, is_at_once
        self._noted: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __iter__(self) -> Iterator[Any]:
        self._noted.clear()
        for indices in list(self.wrapped) if self._is_at_once else self.wrapped:
            self._noted.append(indices)
            yield indices

    def next_indices(self) -> Any:
        """Return the indices of the next batch in the order of the loader."""
        return self._noted.popleft()


def recording_indices(loader: Any, is_at_once: bool) -> tuple[Any, DrawnIndices]:
    """Return torch's loader with a sampler that records what was drawn, and that sampler."""
    key = "sampler" if loader.batch_sampler is None else "batch_sampler"
    noting = DrawnIndices(getattr(loader, key), is_at_once)
    loader = copy.copy(loader)
    vars(loader)[key] = noting  # torch's loader lets nobody set it
    return loader, noting


def refuse_unknown_ids(loader: Any) -> None:
    """Make sure that it can be known which samples the batches of a loader have.

    Raises:
        ConfigError: it cannot; it says how a loader gives them itself.
    """
    name = type(loader).__name__
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        name = type(loader.dataset).__name__
        text = f"{name} is an IterableDataset, whose samples have no index"
    elif getattr(loader, "has_own_loop", False) or (
        isinstance(loader, DataLoader) and type(loader).__iter__ is not DataLoader.__iter__
    ):
        text = f"{name} has an __iter__ of its own"
    elif not isinstance(loader, DataLoader):
        text = f"{name} is neither torch's DataLoader nor a BaseDataLoader"
    elif not getattr(loader, "in_order", True):
        text = "in_order=False gives batches in any order"
    else:
        return
    text = f"{text}, so the ids of a batch are not known: have it give them itself, as {IDS!r} in a"
    text += " dict or as the last item of a tuple, and say so by an attribute: gives_ids = True"
    raise ConfigError([Problem("batch.ids", text)])


# --- The numbers of a data set --------------------------------------------------------------------


def sample_weights_of(dataset: Any, name: str) -> Tensor | None:
    """Return the weights that a data set has under a name, (sample,) float32; None: no such name.

    Raises:
        ConfigError: a weight is negative or not finite, or there is not one for each sample.
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
    """Return the numbers that a data set has under a name, one for each sample, or None.

    That is an attribute, or what its method ``sample_numbers(name)`` returns, as a table's columns.
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
        raise DataError(f"expected one number a sample, found a value of type {kind}")
    return found


def _is_tensor(values: Any) -> bool:
    return isinstance(values, Tensor)


def fault_of(weights: Tensor, place: Callable[[int], str] | None = None) -> str:
    """Return which weight is not valid, or an empty text.

    Args:
        place: says where a sample is listed.
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
    """Yield batches after their own weights were checked, while they are still on the CPU.

    Raises:
        DataError: one is negative or not finite.
    """
    for batch in batches:
        weights = sample_weight_of(batch, rules)
        if isinstance(weights, Tensor) and weights.is_cpu and (text := fault_of(weights.flatten())):
            raise DataError(f"batch.weight: {text} (counted within its batch)")
        yield batch
        del batch
