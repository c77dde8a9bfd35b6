"""Notes what the model takes and returns: shapes and dtypes, from its first call before training.

The note is saved with the record of the data, so that the model can be exported without any data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from base.training.experiment import Experiment


@contextmanager
def note_example(experiment: Experiment) -> Iterator[None]:
    """Note the first call of the model inside the block as ``experiment.example``.

    ``{"args": [...], "kwargs": {...}, "outputs": ...}``, in which each tensor is
    ``{"shape": [...], "dtype": "float32"}`` without its first dimension, that of the samples. It
    stays empty if the model is a container whose parts are called one by one.
    """

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        if not experiment.example:
            found = {"args": list(args), "kwargs": kwargs, "outputs": outputs}
            experiment.example = {name: _described(value) for name, value in found.items()}

    handle = experiment.model.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def example_tensors(described: Any, n_samples: int = 2) -> Any:
    """Return tensors of zeros with the noted shapes and dtypes.

    Raises:
        ValueError: it holds anything but tensors.
    """
    if isinstance(described, Mapping) and set(described) == {"shape", "dtype"}:
        dtype = getattr(torch, described["dtype"])
        return torch.zeros(n_samples, *described["shape"], dtype=dtype)
    if isinstance(described, Mapping) and "other" not in described:
        return {name: example_tensors(each, n_samples) for name, each in described.items()}
    if isinstance(described, list):
        return [example_tensors(each, n_samples) for each in described]
    raise ValueError(f"a {described['other']}, not a tensor")


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape[1:]), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {str(name): _described(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    return {"other": type(value).__name__}
