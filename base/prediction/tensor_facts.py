"""Facts of the inputs and outputs of a network as plain data: names, dtypes, shapes, the task."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from base.prediction.graph_files import tensors_of
from base.training.task import Task


def names_of(network: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> list[str]:
    """Return a name for each input tensor."""
    parameters = [*inspect.signature(network.forward).parameters]
    names = [*parameters[: len(args)], *kwargs]
    n_tensors = len(tensors_of((args, kwargs)))
    return names if len(names) == n_tensors else [f"input_{n}" for n in range(n_tensors)]


def output_names(outputs: Any, task: Task | None) -> list[str]:
    """Return a name for each output tensor."""
    tensors = tensors_of(outputs)
    if isinstance(outputs, dict) and len(outputs) == len(tensors):
        return list(map(str, outputs))
    if len(tensors) > 1:
        return [f"output_{number}" for number in range(len(tensors))]
    return ["probabilities" if task is not None and task.has_probabilities else "output"]


def described(
    tensors: Sequence[Tensor], names: Sequence[str], shapes: Sequence[Sequence[Any]] | None = None
) -> list[Any]:
    """Return name, dtype and shape of each tensor, and the shape of one sample.

    Args:
        shapes: with the names of sizes that vary; by default only the number of samples does.
    """
    found = []
    for number, (tensor, name) in enumerate(zip(tensors, names, strict=True)):
        shape = ["batch", *tensor.shape[1:]] if shapes is None else list(shapes[number])
        dtype = str(tensor.dtype).removeprefix("torch.")
        example = [1, *tensor.shape[1:]]
        found.append({"name": name, "dtype": dtype, "shape": shape, "example": example})
    return found


def describe(tensors: Sequence[Any]) -> str:
    """Return tensors in words: ``images float32 (batch, 1, 8, 8)``."""
    shown = [f"{x['name']} {x['dtype']} ({', '.join(map(str, x['shape']))})" for x in tensors]
    return ", ".join(shown)


def task_facts(task: Task) -> dict[str, Any]:
    """Return a task as plain data."""
    return {
        "name": task.name,
        "activation": task.activation,
        "has_probabilities": task.has_probabilities,
        "classes": list(task.classes),
    }
