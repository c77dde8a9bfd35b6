"""Inputs and results of metrics: nested outputs, numbers, numbers by name, tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.data.batch import CONTAINERS, Targets, tensors_in, with_entries


def detached(value: Any) -> Any:
    """Detach all tensors of a nested value."""
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    return with_entries(value, detached) if isinstance(value, CONTAINERS) else value


def on_cpu(value: Any) -> Any:
    """Copy all tensors to the CPU, in a dtype that numpy supports."""
    if isinstance(value, Tensor):
        copy = value.detach().cpu()
        return copy.float() if copy.dtype == torch.bfloat16 else copy
    return with_entries(value, on_cpu) if isinstance(value, CONTAINERS) else value


def get_device(value: Any) -> torch.device:
    """Return the device of the first tensor in a nested value; the CPU if there is none."""
    if isinstance(value, Tensor):
        return value.device
    first = next(tensors_in(value), None)
    return torch.device("cpu") if first is None else first.device


def join(batches: list[Any]) -> Any:
    """Concatenate the batches of an epoch along the first dimension, item by item."""
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches) if first.dim() else torch.stack(batches)
    if isinstance(first, np.ndarray):
        return np.concatenate(batches)
    if isinstance(first, Mapping):
        return {key: join([batch[key] for batch in batches]) for key in first}
    if isinstance(first, tuple) and first and isinstance(first[0], str | bytes):
        return [text for batch in batches for text in batch]  # one for each sample
    if isinstance(first, tuple) or (isinstance(first, list) and isinstance(first[0], Tensor)):
        return type(first)(join(list(items)) for items in zip(*batches, strict=True))
    if isinstance(first, list):
        return [item for batch in batches for item in batch]
    return batches


class _UnevenError(Exception):
    """The rows of a batch are not the same number for each sample."""


def interleave(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Join what several processes hold of a batch: the rank r of R holds its samples ``[r::R]``.

    Arrays and lists are joined in the order of the samples, each of which may have several rows.
    If the number of rows differs between samples, those of rank 0 come first.

    Args:
        parts: outputs, targets or nested values of each rank with samples, in one structure.
        sizes: how many samples each of these ranks has.

    Raises:
        ValueError: a value that is not one for each sample differs between ranks.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        return _interleaved(parts, sizes)
    except _UnevenError:
        return _interleaved(parts, [1] * len(parts))


def _interleaved(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = parts[0]
    if isinstance(first, Mapping):
        return {key: _interleaved([part[key] for part in parts], sizes) for key in first}
    if isinstance(first, Tensor) and first.dim():
        return torch.cat([*parts])[_order(parts, sizes)]
    if isinstance(first, np.ndarray) and first.ndim:
        return np.concatenate(parts)[_order(parts, sizes).numpy()]
    if isinstance(first, list | tuple):
        if not _has_items(first, sizes[0]):
            return type(first)(_interleaved(items, sizes) for items in zip(*parts, strict=True))
        items = [item for part in parts for item in part]
        return type(first)(items[place] for place in _order(parts, sizes).tolist())
    if not all(_are_equal(first, part) for part in parts):
        text = f"it keeps one value for a batch ({describe(first)}), and the processes have"
        raise ValueError(f"{text} different ones: it needs a value for each sample")
    return first


def _has_items(values: list[Any] | tuple[Any, ...], size: int) -> bool:
    """Return whether a sequence has an item for each sample, not an array for all of them."""
    if isinstance(values, tuple):
        return bool(values) and isinstance(values[0], str | bytes)
    if not all(isinstance(value, Tensor) for value in values):
        return True
    return len(values) == size and any(not each.dim() or len(each) != size for each in values)


def _order(parts: Sequence[Any], sizes: Sequence[int]) -> Tensor:
    """Return for each row of the batch its place among the rows of all ranks, one after another."""
    samples = []
    for rank, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        n_rows, rest = divmod(len(part), size)  # of a sample
        if rest:
            raise _UnevenError
        number = torch.arange(size) * len(parts) + rank
        samples.append(number.repeat_interleave(n_rows))
    return torch.cat(samples).argsort(stable=True)


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor | np.ndarray):
        return bool((torch.as_tensor(one) == torch.as_tensor(other)).all())
    return bool(one == other)


def as_result(value: Any) -> float | dict[str, float] | Tensor:
    """Convert the result of a metric to a number, numbers by name, or a table on the CPU."""
    if isinstance(value, Mapping):
        return {str(key): float(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        value = torch.as_tensor(np.asarray(value))
    if not isinstance(value, Tensor):
        return float(value)
    if value.numel() == 1 and value.dim() < 2:
        return float(value.item())  # synchronizes with the device
    if value.dim() == 1:
        return {str(index): number for index, number in enumerate(value.tolist())}
    if value.dim() == 2:
        return value.detach().cpu()
    raise ValueError(f"it returns shape {tuple(value.shape)}: return a number, a list or a table")


def with_class_names(result: Any, classes: Sequence[str]) -> Any:
    """Return numbers by class name, instead of by class number, if there is one for each class.

    Args:
        result: numbers by name; any other result is returned as it is.
        classes: the names in the order of their numbers.
    """
    if not isinstance(result, Mapping):
        return result
    numbers = dict.fromkeys(str(number) for number in range(len(classes)))
    others = [key for key in result if key not in numbers]
    if not numbers or len(result) - len(others) != len(numbers) or any(map(str.isdigit, others)):
        return result
    names = [" ".join(name.split()) for name in classes]  # without line ends
    taken = {*others, "", *(name for name, n_uses in Counter(names).items() if n_uses > 1)}
    named = {
        number: name if name not in taken else number
        for number, name in zip(numbers, names, strict=True)
    }
    return {named.get(key, key): value for key, value in result.items()}


def describe(value: Any) -> str:
    """Describe an argument of a loss or metric: its shape or type."""
    if isinstance(value, Tensor | np.ndarray):
        return str(tuple(value.shape))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(describe, value))})"
    return type(value).__name__


def describe_call(output: Any, after: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
    """Describe the arguments of a loss or metric, and how it can take one of several targets."""
    text = f"output {describe(output)}"
    target = after[0] if after else None
    text += f" and target {describe(target)}" if after else ""
    text += "".join(f", {name} {describe(value)}" for name, value in keywords.items())
    if isinstance(target, Targets):
        names = ", ".join(target)
        text += f" (several targets: name one, as in `target: {next(iter(target))}`, or have "
        text += f"parameters of their names, {names})"
    return text
