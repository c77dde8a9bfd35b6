"""The state of an object without a ``state_dict``: its plain attributes.

Custom metrics keep numbers, lists, tensors, arrays and other small objects. `get_object_state`
returns these in a form that a checkpoint may hold, and `set_object_state` loads them into an object
that was constructed the same way: a checkpoint never says what to construct. Functions, generators
and open files are left out.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_KIND = "kindling:kind"  # marks encoded values


class _NotPlainError(Exception):
    """A value that a checkpoint cannot hold."""


def get_object_state(thing: Any, parents: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return the plain attributes of an object, with tensors and arrays copied to the CPU."""
    if id(thing) in parents:
        raise _NotPlainError("it refers to itself")
    state = {}
    for name, value in vars(thing).items():
        try:
            state[name] = _encode(value, (*parents, id(thing)))
        except _NotPlainError:
            continue
    return state


def set_object_state(
    thing: Any, state: Mapping[str, Any], device: torch.device | str = "cpu"
) -> None:
    """Set the attributes of an object; tensors that were not on the CPU go to ``device``."""
    for name, value in state.items():
        object.__setattr__(thing, name, _decode(value, vars(thing).get(name), device))


def _encode(value: Any, parents: tuple[int, ...]) -> Any:
    if isinstance(value, Tensor):
        copy = value.detach().to("cpu", copy=True)
        return copy if value.device.type == "cpu" else {_KIND: "moved", "tensor": copy}
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        content = {"values": value.tolist(), "dtype": value.dtype.str, "shape": value.shape}
        return {_KIND: "array", **content}
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping) and all(type(key) in _PLAIN for key in value):
        return {key: _encode(item, parents) for key, item in value.items()}
    if isinstance(value, list | tuple | set | deque):
        items = [_encode(item, parents) for item in value]
        return type(value)(items) if type(value) in (tuple, set) else items
    if hasattr(value, "__dict__") and not isinstance(value, type) and _is_third_party(type(value)):
        return {_KIND: "object", "attributes": get_object_state(value, parents)}
    raise _NotPlainError(type(value).__name__)


def _is_third_party(cls: type) -> bool:
    """Return whether a class is from a project or a package, not from the standard library."""
    return cls.__module__.partition(".")[0] not in sys.stdlib_module_names


def _decode(value: Any, old: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list | tuple | set):
        items = type(value)(_decode(item, None, device) for item in value)
        return deque(items, old.maxlen) if isinstance(old, deque) else items
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind == "moved":
        return value["tensor"].to(device)
    if kind == "array":
        return np.array(value["values"], dtype=value["dtype"]).reshape(value["shape"])[()]
    if kind == "object":
        if hasattr(old, "__dict__"):
            set_object_state(old, value["attributes"], device)
        return old
    return _fill(old if isinstance(old, MutableMapping) else {}, value, device)


def _fill(
    old: MutableMapping[Any, Any], value: dict[Any, Any], device: torch.device | str
) -> MutableMapping[Any, Any]:
    """Fill a mapping, which keeps its class (``defaultdict``, ``Counter``) and its objects."""
    items = {key: _decode(item, old.get(key), device) for key, item in value.items()}
    old.clear()
    old.update(items)
    return old
