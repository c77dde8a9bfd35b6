"""What a batch may look like: a pair, a longer tuple, a dict, or one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from base.errors import ConfigError, Problem, nearest

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
    if isinstance(batch, Mapping):
        target = _target_name(batch, rules)
        return [], {name: value for name, value in batch.items() if name != target}
    if isinstance(batch, (list, tuple)) and len(batch) > 1:
        return list(batch[:-1]), {}
    return [batch[0] if isinstance(batch, (list, tuple)) else batch], {}


def target_of(batch: Any, rules: Rules) -> Any:
    """Return the target of a batch; a lone tensor is its own (an autoencoder)."""
    if rules["target"] is not None:
        return _item(batch, rules["target"], "batch.target")
    if isinstance(batch, Mapping):
        return batch[_target_name(batch, rules)]
    return batch[-1] if isinstance(batch, (list, tuple)) else batch


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
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch.to(device) if hasattr(batch, "to") else batch


def count_samples(batch: Any) -> int:
    """Return the size of the first dimension of the first tensor in a batch, or 1."""
    first = next(tensors(batch), None)
    return 1 if first is None else len(first)


def tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, however nested, that have a dimension."""
    if isinstance(batch, Tensor):
        if batch.dim():
            yield batch
    elif isinstance(batch, (list, tuple, Mapping)):
        for item in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors(item)
