"""What a batch may look like: a pair, a longer tuple, a dict, or one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.errors import ConfigError, Problem, TrainingError, nearest

CONTAINERS = (list, tuple, Mapping)
TARGET_NAMES = ("target", "targets", "label", "labels", "y")

Rules = Mapping[str, Any]


def inputs_of(batch: Any, rules: Rules) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and the keyword arguments for the model.

    Args:
        batch: a tensor (its own target), a sequence whose last item is the target, or a dict,
            whose items other than the target go to the model by name.
        rules: the config's ``batch:`` section. ``inputs`` names the items, by key or position, that
            go to the model in that order.
    """
    if rules["inputs"] is not None:
        return [_item(batch, key, "batch.inputs") for key in rules["inputs"]], {}
    if isinstance(batch, (list, tuple)) and len(batch) > 1:
        return list(batch[:-1]), {}
    if isinstance(batch, Mapping):
        target = _target_name(batch, rules)
        return [], {name: value for name, value in batch.items() if name != target}
    return [batch[0] if isinstance(batch, (list, tuple)) else batch], {}


def target_of(batch: Any, rules: Rules) -> Any:
    """Return the target of a batch; a lone tensor is its own (an autoencoder)."""
    if rules["target"] is not None:
        return _item(batch, rules["target"], "batch.target")
    if isinstance(batch, (list, tuple)):
        return batch[-1]
    return batch[_target_name(batch, rules)] if isinstance(batch, Mapping) else batch


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
    """Move all tensors of a batch, however nested; copies do not make the CPU wait."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, CONTAINERS):
        return with_entries(batch, lambda entry: to_device(entry, device))
    return batch.to(device) if hasattr(batch, "to") else batch


def with_entries(container: Any, change: Callable[[Any], Any]) -> Any:
    """Return a dict, list, tuple or named tuple like this one, each of its entries changed."""
    if isinstance(container, Mapping):
        return {key: change(entry) for key, entry in container.items()}
    entries = map(change, container)
    is_named = hasattr(container, "_fields")
    return type(container)(*entries) if is_named else type(container)(entries)


def in_full_precision(value: Any) -> Any:
    """Return tensors of half precision in float32, with their graph, however nested."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.promote_types(value.dtype, torch.float32))
    return with_entries(value, in_full_precision) if isinstance(value, CONTAINERS) else value


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return tensors of floats changed, however nested; all else stays."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, CONTAINERS):
        return with_entries(value, lambda entry: map_tensors(entry, change))
    return value


def count_samples(batch: Any) -> int:
    """Return the size of the first dimension of the first tensor in a batch, or 1."""
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], Tensor):
        first: Tensor | None = batch[0]  # by far the most common, and asked for at each step
    else:
        first = batch if isinstance(batch, Tensor) else None
    if first is None or not first.dim():
        first = next(tensors_in(batch), None)
    return 1 if first is None else first.shape[0]


def cut(batch: Any, begin: int, end: int, n_samples: int) -> Any:
    """Return some of the samples of a batch, in the form that it has; tensors are views.

    Cut is whatever has as many entries as there are samples: tensors and arrays along their first
    dimension, and lists of one thing for each sample. The rest is the same for all.

    Raises:
        TrainingError: a part of the batch is of a class that says nothing of its samples.
    """
    return _cut_entry(batch, begin, end, n_samples, is_outer=True)


def _cut_entry(value: Any, begin: int, end: int, n_samples: int, is_outer: bool = False) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return value[begin:end] if value.ndim and len(value) == n_samples else value
    if isinstance(value, CONTAINERS):
        if not (is_outer or isinstance(value, Mapping)) and _has_one_a_sample(value, n_samples):
            return value[begin:end]
        return with_entries(value, lambda entry: _cut_entry(entry, begin, end, n_samples))
    if hasattr(value, "to"):
        text = f"memory.micro_batch cannot cut a {type(value).__name__}"
        raise TrainingError(f"{text}: leave it out, or give tensors")
    return value


def _has_one_a_sample(items: Sequence[Any], n_samples: int) -> bool:
    """Tell a list of samples from a few tensors of all samples, where there are as many."""
    tensors = [item for item in items if isinstance(item, Tensor) and item.dim()]
    return len(items) == n_samples and not (
        tensors and all(len(tensor) == n_samples for tensor in tensors)
    )


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, however nested, that have a dimension."""
    if isinstance(batch, Tensor):
        if batch.dim():
            yield batch
    elif isinstance(batch, CONTAINERS):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(item)
