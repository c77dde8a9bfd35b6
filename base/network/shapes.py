"""Formats shapes for tables and messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def shape_text(value: Any) -> str:
    """Return the shapes in nested values: ``8x3x28x28``, ``(8x5, 8x2)``, ``{scores: 8x10}``."""
    if isinstance(value, Tensor):
        return "nested" if value.is_nested else "x".join(map(str, value.shape)) or "scalar"
    if isinstance(value, Mapping):
        parts = [f"{name}: {shape_text(item)}" for name, item in value.items()]
        return f"{{{_joined(parts)}}}"
    if isinstance(value, tuple | list):
        return f"({_joined([shape_text(item) for item in value])})"
    return "-" if value is None else type(value).__name__


def inputs_text(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the shapes of a call's inputs, without arguments that cannot contain a tensor."""
    kinds = (Tensor, Mapping, tuple, list)
    parts = [shape_text(value) for value in args if isinstance(value, kinds)]
    named = {name: value for name, value in kwargs.items() if isinstance(value, kinds)}
    return _joined(parts + [f"{name}: {shape_text(value)}" for name, value in named.items()])


def _joined(parts: list[str]) -> str:
    return ", ".join(parts if len(parts) <= 4 else [*parts[:3], f"... {len(parts)} in all"])
