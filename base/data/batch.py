"""Inputs, targets and sizes of a batch, which is a pair, a longer tuple, a dict or one tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from base.data.protocols import HasCounts, offered
from base.data.shares import WHOLE, Share
from base.errors import ConfigError, Problem, TrainingError, nearest

CONTAINERS = (list, tuple, Mapping)
PAIRS = (list, tuple)
TARGET_NAMES = ("target", "targets", "label", "labels", "y")

STAGED_BYTES = 64 << 10
"""CUDA takes a smaller copy from any memory into its queue, and returns at once."""

Rules = Mapping[str, Any]
DEFAULT_RULES: Rules = {"inputs": None, "target": None, "size": None, "ids": False, "weight": None}
"""The default ``batch:`` section of a config."""

IDS, WEIGHT = "ids", "sample_weight"
"""The keys of the items that Kindling adds to a dict batch. A sequence has them appended."""


class Targets(dict[str, Any]):
    """The targets of a batch by name, if ``batch.target`` names several."""


def inputs_of(batch: Any, rules: Rules) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and keyword arguments for the model.

    Args:
        batch: a tensor (also its target), a sequence whose last item is the target, or a dict
            whose other items are passed to the model by name.
        rules: the config's ``batch:`` section. ``inputs`` lists the items passed to the model, by
            key or position. By default, sample ids and weights are not passed.
    """
    if rules == DEFAULT_RULES and type(batch) in PAIRS and len(batch) == 2:
        return [batch[0]], {}  # the common case
    if rules["inputs"] is not None:
        batch = given_part(batch, rules)
        return [_item(batch, key, "batch.inputs") for key in rules["inputs"]], {}
    if isinstance(rules["target"], Mapping):
        items = [*rules["target"].values(), *_weight_places(batch, rules)]
        is_dict = isinstance(batch, Mapping)
        part = _without_extras(batch, rules) if is_dict else given_part(batch, rules)
        return _no_targets(part, items)
    batch = _without_extras(batch, rules)
    if isinstance(batch, (list, tuple)) and len(batch) > 1:
        return list(batch[:-1]), {}
    if isinstance(batch, Mapping):
        target = _target_name(batch, rules)
        return [], {name: value for name, value in batch.items() if name != target}
    return [batch[0] if isinstance(batch, (list, tuple)) else batch], {}


def _no_targets(batch: Any, items: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return the model's inputs if several items of the batch are targets."""
    if isinstance(batch, Mapping):
        found: Any = {key: value for key, value in batch.items() if key not in items}
    elif isinstance(batch, (list, tuple)):
        places = range(-len(batch), 0)
        found = [batch[n] for n in places if n not in items and n + len(batch) not in items]
    else:
        found = [batch]
    if not found:
        text = "all items of a batch are targets: name what the model takes, `batch: {inputs: ...}`"
        raise ConfigError([Problem("batch.inputs", text)])
    return ([], found) if isinstance(batch, Mapping) else (found, {})


def target_of(batch: Any, rules: Rules) -> Any:
    """Return the target of a batch. A lone tensor is its own target, as for an autoencoder.

    If ``batch.target`` names several items, they are returned as `Targets`.
    """
    if rules == DEFAULT_RULES and type(batch) in PAIRS:
        return batch[-1]  # the common case
    if (named := rules["target"]) is not None:
        given = given_part(batch, rules)
        if not isinstance(named, Mapping):
            return _item(given, named, "batch.target")
        items = named.items()
        return Targets({name: _item(given, key, f"batch.target.{name}") for name, key in items})
    batch = _without_extras(batch, rules)
    if isinstance(batch, (list, tuple)):
        return batch[-1]
    return batch[_target_name(batch, rules)] if isinstance(batch, Mapping) else batch


def ids_of(batch: Any, rules: Rules) -> Any:
    """Return the sample ids, (sample,) int64, that ``ids: true`` added to a batch."""
    if isinstance(batch, Mapping):
        return _item(batch, IDS, "batch.ids")
    if is_sequence(batch):
        return batch[-1 - _has_appended_weight(batch, rules)]
    return getattr(batch, IDS)


def sample_weight_of(batch: Any, rules: Rules) -> Any:
    """Return the sample weights of a batch: the item that ``weight`` names, or the added one."""
    name = rules["weight"]
    if isinstance(batch, Mapping):
        return batch[name] if name in batch else _item(batch, WEIGHT, "batch.weight")
    if not is_sequence(batch):
        return getattr(batch, name if hasattr(batch, str(name)) else WEIGHT)
    if isinstance(name, str):
        return getattr(batch, name) if name in _fields(batch) else batch[-1]
    return _item(given_part(batch, rules), name, "batch.weight")


def extras_of(batch: Any, rules: Rules, names: Collection[str]) -> dict[str, Any]:
    """Return the available sample ids and weights whose names are in ``names``."""
    found: dict[str, Any] = {}
    if batch is None or not names:
        return found
    if IDS in names and rules.get("ids"):
        found[IDS] = ids_of(batch, rules)
    if WEIGHT in names and rules.get("weight") is not None:
        found[WEIGHT] = sample_weight_of(batch, rules)
    return found


def given_part(batch: Any, rules: Rules) -> Any:
    """Return a sequence without added items, so that positions refer to the data set's items."""
    if not is_sequence(batch):
        return batch
    n_added = bool(rules.get("ids")) + _has_appended_weight(batch, rules)
    return batch[: len(batch) - n_added] if n_added else batch


def is_sequence(batch: Any) -> bool:
    """Return whether a batch is a list or tuple of items. A packed sequence is a single item."""
    return isinstance(batch, (list, tuple)) and not isinstance(batch, PackedSequence)


def _has_appended_weight(batch: Any, rules: Rules) -> bool:
    name = rules.get("weight")
    return isinstance(name, str) and name not in _fields(batch)


def _fields(batch: Any) -> tuple[str, ...]:
    return getattr(batch, "_fields", ())


def _without_extras(batch: Any, rules: Rules) -> Any:
    """Return a batch without its sample ids and weights."""
    name = rules.get("weight")
    if not rules.get("ids") and name is None:
        return batch
    if isinstance(batch, Mapping):
        extras = {IDS} if rules.get("ids") else set()
        extras |= {name, WEIGHT} if name is not None else set()
        return {key: value for key, value in batch.items() if key not in extras}
    given = given_part(batch, rules)
    for place in _weight_places(batch, rules) if is_sequence(batch) else ():
        weight = _item(given, place, "batch.weight")
        return [item for item in given if item is not weight]
    return given


def _weight_places(batch: Any, rules: Rules) -> list[int]:
    """Return the position of the weight if it is an item of the batch."""
    name = rules.get("weight")
    if name in _fields(batch):
        return [_fields(batch).index(name)]
    return [name] if isinstance(name, int) else []


def _target_name(batch: Mapping[str, Any], rules: Rules) -> str:
    if rules["target"] is not None:
        return str(rules["target"])
    for name in TARGET_NAMES:
        if name in batch:
            return name
    text = (
        f"which of {', '.join(map(repr, batch))} is the target? Name it: `batch: {{target: ...}}`"
    )
    raise ConfigError([Problem("batch.target", text)])


def _item(batch: Any, key: Any, where: str) -> Any:
    try:
        return batch[key]
    except (KeyError, IndexError, TypeError):
        if isinstance(batch, Mapping):
            there = f"it has {', '.join(map(repr, batch))}{nearest(str(key), map(str, batch))}"
        elif isinstance(batch, (list, tuple)):
            there = f"it is a sequence of {len(batch)}"
        else:
            there = f"it is one {type(batch).__name__}"
        message = f"a batch has no item {key!r}: {there}"
        raise ConfigError([Problem(where, message)]) from None


def to_device(batch: Any, device: torch.device) -> Any:
    """Move all tensors of a nested batch to the device. A copy to CUDA does not block the CPU.

    Copies to the CPU do, as it could read a tensor before its values have arrived; and so do those
    to MPS, which reads the memory of a batch that may be freed by then.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=device.type == "cuda")
    is_packed = isinstance(batch, PackedSequence)  # a tuple too, but it moves itself
    if is_packed:
        return batch.to(device, non_blocking=device.type == "cuda")
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, CONTAINERS):
        return with_entries(batch, lambda entry: to_device(entry, device))
    return batch


def in_pinned_memory(batch: Any) -> Any:
    """Return a nested batch with its large tensors in pinned memory, as most loaders yield it.

    A copy from other memory is made in parts, each after what was queued before it: the host would
    wait for the GPU.
    """
    if isinstance(batch, Tensor):
        is_plain = type(batch) is Tensor and batch.is_cpu and batch.layout is torch.strided
        return batch.pin_memory() if is_plain and batch.nbytes > STAGED_BYTES else batch
    return with_entries(batch, in_pinned_memory) if isinstance(batch, CONTAINERS) else batch


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; the host does not wait for a copy to a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    sent: Tensor = in_pinned_memory(tensor).to(device, non_blocking=True)
    return sent


def with_entries(container: Any, change: Callable[[Any], Any]) -> Any:
    """Return a container of the same type with ``change`` applied to each entry."""
    if isinstance(container, Mapping):
        return {key: change(entry) for key, entry in container.items()}
    entries = map(change, container)
    is_named = hasattr(container, "_fields")
    return type(container)(*entries) if is_named else type(container)(entries)


def leaves(value: Any) -> Iterator[Any]:
    """Yield the leaves of nested dicts, lists and tuples."""
    if isinstance(value, CONTAINERS):
        for entry in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(entry)
    else:
        yield value


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to each leaf of nested dicts, lists and tuples."""
    if isinstance(value, CONTAINERS):
        return with_entries(value, lambda entry: map_leaves(entry, change))
    return change(value)


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``change`` to each floating-point tensor of a nested value."""

    def changed(leaf: Any) -> Any:
        is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return change(leaf) if is_float else leaf

    return map_leaves(value, changed)


def in_full_precision(value: Any) -> Any:
    """Convert half-precision tensors of a nested value to float32, keeping their graph."""
    return map_tensors(value, lambda x: x.to(torch.promote_types(x.dtype, torch.float32)))


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested batch that have at least one dimension."""
    return (leaf for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim())


class SampleCount:
    """Counts the samples of a loader's batches by the config's ``batch:`` section.

    Args:
        loader: may count the samples itself with ``count_samples(batch)``, or report with
            ``n_drawn(position)`` how many samples it drew for a batch.
        is_whole: whether the batches are global ones although the loader yields a rank's part.
    """

    def __init__(self, rules: Rules, loader: Any = None, is_whole: bool = False) -> None:
        self.rules = rules
        self._loader, self._is_whole = loader, is_whole
        self._is_time_first: bool | None = None  # None: not known yet

    @cached_property
    def _own(self) -> HasCounts | None:
        return offered(self._loader, HasCounts)

    @cached_property
    def _counts_pairs(self) -> bool:
        is_plain = self.rules["size"] is None and self.rules["target"] is None
        return self._own is None and is_plain and not self.rules.get("ids")

    @cached_property
    def _share(self) -> Share:
        share = WHOLE if self._is_whole else getattr(self._loader, "batch_share", WHOLE)
        return share if isinstance(share, Share) else WHOLE

    @cached_property
    def _n_drawn(self) -> Any:
        return getattr(self._loader, "n_drawn", lambda position: None)

    @cached_property
    def _batch_size(self) -> Any:
        size = getattr(self._loader, "batch_size", None)
        return self._share.count_read(size) if isinstance(size, int) else size

    def __call__(self, batch: Any, position: int | None = None) -> int:
        """Return the number of samples of a batch, which is the loader's ``position``-th."""
        if self._counts_pairs and type(batch) is list and len(batch) == 2:
            inputs, target = batch
            if isinstance(target, Tensor) and isinstance(inputs, Tensor):
                shape = target.shape
                if shape and inputs.shape[:1] == shape:
                    return shape[0]  # the common case, needed at every step
        if self._own is not None:
            return int(self._own.count_samples(batch))
        if self.rules.get("ids") and self.rules["size"] is None:
            return len(ids_of(batch, self.rules))
        n_drawn = None if position is None else self._n_drawn(position)
        n_drawn = None if n_drawn is None else self._share.count_read(n_drawn)
        if n_drawn is None and self._batch_size is not None:
            n_drawn = self._second_dimension(batch)
        return count_samples(batch, self.rules, n_drawn)

    def of_rank(self, batch: Any, position: int | None = None) -> int:
        """Return how many samples of the batch that was just read are this rank's; 0 if borrowed.

        A rank borrows a sample if the batch of all ranks has fewer samples than there are ranks.
        """
        is_borrowed = getattr(self._loader, "n_own", None) == 0
        return 0 if is_borrowed else self(batch, position)

    def _second_dimension(self, batch: Any) -> int | None:
        """Return the size of the second dimension of all tensors if it is the sample dimension.

        The first full batch decides; later only a longer one does. A short last batch whose
        sequences are as long as the batch size would otherwise look as if time came first.
        """
        shapes = {part.shape[:2] for part in _parts_of(batch) if isinstance(part, Tensor)}
        if len(shapes) != 1 or len(shape := shapes.pop()) < 2:
            return None
        first, second = shape
        if self._is_time_first is None and self._batch_size in shape:
            self._is_time_first = first != self._batch_size
        elif second == self._batch_size < first:
            self._is_time_first = True
        return second if self._is_time_first else None


def count_samples(batch: Any, rules: Rules = DEFAULT_RULES, n_drawn: int | None = None) -> int:
    """Return the number of samples of a batch.

    ``rules["size"]`` determines it if set. Otherwise it is the number of targets: the length of
    a list, or the first dimension of a tensor. If the target does not determine it, the other
    items of the batch do, provided that they agree.

    Args:
        n_drawn: how many samples were drawn for the batch, if known. It resolves ambiguous
            batches: a list of tensors, or sequences whose first dimension is time.

    Raises:
        ConfigError: the number cannot be determined.
    """
    if rules["size"] is not None:
        return _declared_size(batch, rules["size"])
    try:
        target = target_of(batch, rules)
    except ConfigError:
        target = None
    if isinstance(target, Tensor) and target.dim() and n_drawn in (None, len(target)):
        return target.shape[0]
    candidates = _agreed_sizes(target) if isinstance(target, Targets) else _sizes(target)
    agreed = _agreed_sizes(batch)
    everywhere = [n for n in candidates if n in agreed]
    plausible = everywhere + candidates + agreed + _other_readings(batch, n_drawn)
    if n_drawn is not None and (n_drawn in plausible or not plausible):
        return n_drawn
    if plausible:
        return plausible[0]
    text = "the number of samples of a batch cannot be determined; name the item that has one "
    text += "entry for each: `batch: {size: ITEM}`"
    raise ConfigError([Problem("batch.size", text)])


def _declared_size(batch: Any, size: Any) -> int:
    """Return the size that ``batch.size`` names: an item's length along ``dim``, or its value."""
    key, dim = (size["item"], size["dim"]) if isinstance(size, Mapping) else (size, 0)
    item = _item(batch, key, "batch.size")
    if isinstance(item, Tensor | np.ndarray) and item.ndim > dim:
        return int(item.shape[dim])
    if isinstance(item, Tensor | np.ndarray | int | float):
        return int(item)
    return len(item)


def _sizes(value: Any) -> list[int]:
    """Return the possible numbers of samples of a batch item, most likely first."""
    if isinstance(value, PackedSequence):
        return [int(value.batch_sizes[0])]
    if isinstance(value, Tensor | np.ndarray):
        return [len(value)] if value.ndim else []
    if isinstance(value, CONTAINERS):
        entries = list(value.values()) if isinstance(value, Mapping) else list(value)
        is_list = not isinstance(value, Mapping) and not hasattr(value, "_fields")
        return [len(entries)] * (is_list and bool(entries)) + _common(map(_sizes, entries))
    n_graphs = getattr(value, "num_graphs", None)  # PyTorch Geometric
    return [] if n_graphs is None else [int(n_graphs)]


def _common(sizes: Iterable[list[int]]) -> list[int]:
    """Return the sizes that all lists contain."""
    first, *others = list(sizes) or [[]]
    return [n for n in first if all(n in other for other in others)]


def _agreed_sizes(batch: Any) -> list[int]:
    """Return the sizes on which all items of a batch agree."""
    return _common(sizes for part in _parts_of(batch) if (sizes := _sizes(part)))


def _other_readings(batch: Any, n_drawn: int | None) -> list[int]:
    """Return ``n_drawn`` if the batch is a list of that many samples, or has time first."""
    tensors = [part for part in _parts_of(batch) if isinstance(part, Tensor)]
    is_time_first = tensors and all(x.dim() > 1 and x.shape[1] == n_drawn for x in tensors)
    is_list = isinstance(batch, list | tuple) and len(batch) == n_drawn
    return [n_drawn] if n_drawn is not None and (is_time_first or is_list) else []


def _parts_of(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    is_sequence = isinstance(batch, list | tuple) and not isinstance(batch, PackedSequence)
    return list(batch) if is_sequence else [batch]


def cut(batch: Any, begin: int, end: int, n_samples: int) -> Any:
    """Return a slice of the samples of a batch in the same structure. Tensors are views.

    Tensors and arrays are sliced along their first dimension, and so are lists with one entry
    per sample. Numbers and strings are kept as they are.

    Raises:
        TrainingError: an item of the batch does not have one entry per sample.
    """
    return cut_rows(batch, slice(begin, end), n_samples, "leave memory.micro_batch out")


def cut_rows(batch: Any, rows: slice, n_samples: int, remedy: str) -> Any:
    """Return some rows of a batch, as `cut` does. An error ends with the remedy."""
    return _cut_entry(batch, rows, n_samples, remedy, is_outer=True)


def _cut_entry(value: Any, rows: slice, n_samples: int, remedy: str, is_outer: bool = False) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        if not value.ndim:
            return value
        if len(value) != n_samples:
            text = f"a batch that holds {tuple(value.shape)} cannot be cut"
            text += f", as the first dimension is not that of its {n_samples} samples"
            raise TrainingError(f"{text}: {remedy}")
        return value[rows]
    if isinstance(value, CONTAINERS) and not isinstance(value, PackedSequence):
        if not (is_outer or isinstance(value, Mapping)) and _has_one_a_sample(value, n_samples):
            return value[rows]
        return with_entries(value, lambda entry: _cut_entry(entry, rows, n_samples, remedy))
    if hasattr(value, "to"):
        text = f"a {type(value).__name__} cannot be cut"
        raise TrainingError(f"{text}: {remedy}, or give tensors")
    return value


def _has_one_a_sample(items: Sequence[Any], n_samples: int) -> bool:
    """Return whether a list holds one entry per sample, not tensors that each hold all samples."""
    tensors = [item for item in items if isinstance(item, Tensor) and item.dim()]
    return len(items) == n_samples and not (
        tensors and all(len(tensor) == n_samples for tensor in tensors)
    )
