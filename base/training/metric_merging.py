"""Merging of metric objects: each process has updated its own with a share of the samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from base.checkpoint.object_state import set_object_state

HOW_TO_MERGE = """{} has no `merge`, and each process measures a share of the samples. Add a \
method that combines the attributes of all processes, for sums such as

    def merge(self, states):
        self.total = sum(state["total"] for state in states)
        self.count = sum(state["count"] for state in states)"""


def can_merge(instance: Any) -> bool:
    """Return whether an object has ``merge``, or declares its reductions as torchmetrics does.

    Nothing is guessed: an attribute may be a sum, a mean, a maximum or a setting.
    """
    # The parts of a collection of torchmetrics declare them.
    is_of_torchmetrics = type(instance).__module__.partition(".")[0] == "torchmetrics"
    declares = is_of_torchmetrics or hasattr(instance, "_reductions")
    return declares or callable(getattr(instance, "merge", None))


def merge_states(instance: Any, states: Sequence[Mapping[str, Any]]) -> Any:
    """Return a copy of an object, on the CPU, that holds the values of all processes.

    Args:
        states: what `get_object_state` returns in each process that has samples, in rank order.

    Raises:
        TypeError: the object cannot be merged.
    """
    if not can_merge(instance):
        raise TypeError(HOW_TO_MERGE.format(type(instance).__name__))
    whole = copy.deepcopy(instance)
    whole.reset()
    if isinstance(whole, nn.Module):
        whole.cpu()
    parts = [copy.deepcopy(whole) for _ in states]
    for part, state in zip(parts, states, strict=True):
        set_object_state(part, state)
    if callable(getattr(whole, "merge", None)):
        whole.merge([vars(part) for part in parts])
        return whole
    set_object_state(whole, states[0])  # and what an update sets besides the sums
    for name, metric in _reduced(whole):
        same = [dict(_reduced(part))[name] for part in parts]
        _reduce(metric, [one for one in same if one._update_count])
    return whole


def disable_sync(instance: Any) -> None:
    """Prevent an object of torchmetrics from waiting for other processes in ``compute``."""
    for _, metric in _reduced(instance):
        metric._to_sync = False


def _reduced(instance: Any) -> Iterator[tuple[str, Any]]:
    """Yield an object and those inside it that declare reductions, with their names."""
    inside = instance.named_modules() if isinstance(instance, nn.Module) else [("", instance)]
    return ((name, one) for name, one in inside if hasattr(one, "_reductions"))


def _reduce(metric: Any, parts: Sequence[Any]) -> None:
    """Set the attributes of a metric of torchmetrics to those of all its parts.

    It does what ``sync`` of torchmetrics does, except that parts without updates are left out, and
    that a mean is over the updates.
    """
    metric._computed = None
    metric._update_count = sum(part._update_count for part in parts)
    for name, reduction in metric._reductions.items() if parts else ():
        values = [getattr(part, name) for part in parts]
        setattr(metric, name, _reduced_value(reduction, values, parts))


def _reduced_value(
    reduction: Callable[..., Any] | None, values: Sequence[Any], parts: Sequence[Any]
) -> Any:
    kind = getattr(reduction, "__name__", "")
    if len(values) == 1:
        return values[0]
    if isinstance(values[0], list):
        items = [item for value in values for item in value]
        return items if reduction is None or kind == "dim_zero_cat" else reduction(items)
    if kind == "dim_zero_cat":
        return torch.cat([torch.atleast_1d(value) for value in values])
    stacked = torch.stack([*values])
    if kind == "dim_zero_mean":
        counts = torch.tensor([part._update_count for part in parts], dtype=stacked.dtype)
        return torch.tensordot(counts, stacked, dims=1) / counts.sum()
    return stacked if reduction is None else reduction(stacked)
