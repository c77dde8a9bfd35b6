"""Plain values, small arrays and tensors to JSON and back, with their types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_NUMBERS = 10_000  # of a tensor
MOST_CHARACTERS = 100_000  # of all as JSON, or nearly so
_KINDS = ("f", "i", "u", "b")  # of numpy's: floating point, integers, truth values


class NotPlainError(ValueError):
    """A value that JSON cannot hold, or that is too large."""


def to_json(value: Any) -> Any:
    """Return a value as JSON data, from which `from_json` makes an equal one.

    Raises:
        NotPlainError: it holds something else, or non-finite numbers, or is too large.
    """
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is str and len(value) <= MOST_CHARACTERS:
        return value
    if type(value) in (list, tuple) and len(value) <= MOST_NUMBERS:
        items = [to_json(item) for item in value]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict and len(value) <= MOST_NUMBERS:
        return {"dict": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if type(value) is Tensor and value.layout is torch.strided and not value.is_complex():
        return _numbers("tensor", value.detach().cpu(), str(value.dtype).removeprefix("torch."))
    if type(value) is np.ndarray and value.dtype.kind in _KINDS:
        return _numbers("array", value, value.dtype.name)
    raise NotPlainError(f"a {type(value).__name__} cannot be kept as JSON")


def from_json(data: Any) -> Any:
    """Return the value that `to_json` was given."""
    if isinstance(data, list):
        return [from_json(item) for item in data]
    if not isinstance(data, Mapping):
        return data
    if "tuple" in data:
        return tuple(from_json(item) for item in data["tuple"])
    if "dict" in data:
        return {from_json(key): from_json(item) for key, item in data["dict"]}
    if "tensor" in data:
        dtype = getattr(torch, data["dtype"])
        return torch.tensor(data["tensor"], dtype=dtype).reshape(data["shape"])
    return np.array(data["array"], dtype=data["dtype"]).reshape(data["shape"])


def _numbers(kind: str, values: Any, dtype: str) -> dict[str, Any]:
    n_values = math.prod(values.shape)
    numbers = values.reshape(-1).tolist()
    if n_values > MOST_NUMBERS or not all(map(math.isfinite, numbers)):
        raise NotPlainError(f"a {kind} of {n_values} numbers cannot be kept as JSON")
    return {kind: numbers, "dtype": dtype, "shape": list(values.shape)}
