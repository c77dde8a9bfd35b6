"""Explains shape errors with the layer, its input and valid settings."""

from __future__ import annotations

import inspect
import linecache
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_hook

from base.errors import TrainingError
from base.network.output_sizes import (
    SamePad,
    conv_output_size,
    conv_transpose_output_size,
    pool_output_size,
)
from base.network.shapes import inputs_text, shape_text

# Words in torch's shape errors, but not in errors about devices, dtypes and memory.
_ABOUT_SHAPES = re.compile(
    r"(?i)\b(sizes?|shapes?|dim(ension)?s?|[1-5]D|channels?|elements|subscripts?|to unpack)\b"
    r"|broadcast|index out of range in self|out of bounds"
)
# Python's errors for a layer that receives a tuple, or too few arguments.
_ABOUT_INPUTS = re.compile(
    r"must be Tensor, not|invalid combination of arguments|forward\(\) (missing|takes|got an unex)"
    r"|^'(tuple|list|dict|NoneType)' object has no attribute"
)
_ERRORS = (RuntimeError, ValueError, IndexError, AssertionError, TypeError, AttributeError)


@contextmanager
def explain_shape_errors(model: nn.Module, input_text: str | None = None) -> Iterator[None]:
    """Explain shape errors in the model's forward pass. Meant for the first batches.

    Other errors, errors raised outside of the model, and errors of a compiled model, which cannot
    be inspected, are not changed.

    Args:
        input_text: a description of the model's inputs, if known.

    Raises:
        TrainingError: names the innermost module, its input and valid settings.
    """
    modules = dict(model.named_modules())
    if is_compiled(model):
        yield
        return
    names = {id(module): name or "(model)" for name, module in modules.items()}
    last = ""

    def note(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal last
        if id(module) in names:
            last = f"{names[id(module)]}, which returned {shape_text(output)}"

    handle = register_module_forward_hook(note)  # global: layers do not change
    try:
        yield
    except _ERRORS as error:
        text = _explain(error, names, last)
        if text is None:
            raise
        about_inputs = f"\n  the inputs are {input_text}" if input_text else ""
        raise TrainingError(text + about_inputs) from error
    finally:
        handle.remove()


def is_compiled(model: nn.Module) -> bool:
    """Return whether the model, or a part of it, is compiled and cannot be inspected."""
    return any(m._compiled_call_impl or "_orig_mod" in m._modules for m in model.modules())


def _explain(error: Exception, names: Mapping[int, str], last: str) -> str | None:
    frames = list(traceback.walk_tb(error.__traceback__))
    is_call = [
        frame.f_code is nn.Module.__call__.__code__ and id(frame.f_locals["self"]) in names
        for frame, _ in frames
    ]
    if not any(is_call):
        return None
    first, innermost = is_call.index(True), len(is_call) - 1 - is_call[::-1].index(True)
    call = frames[innermost][0].f_locals
    layer, args, kwargs = call["self"], call["args"], call["kwargs"]
    tensor = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
    check = next((check for kinds, check in _CHECKS if isinstance(layer, kinds)), None)
    is_of_inputs = isinstance(error, TypeError | AttributeError)
    advice = check(layer, tensor) if check and tensor is not None and not is_of_inputs else None
    if advice is None and not (_ABOUT_INPUTS if is_of_inputs else _ABOUT_SHAPES).search(str(error)):
        return None
    what = type(layer).__name__ if any(layer.children()) else repr(layer)
    head = f"{names[id(layer)]}: {what} was given {inputs_text(args, kwargs) or 'no tensor'}"
    lines = [f"{head}: {advice}" if advice else head, *_user_line(frames[first:])]
    if last:
        lines.append(f"the layer before was {last}")
    return "\n  ".join([*lines, f"{type(error).__name__}: {error}"])


def _user_line(frames: list[tuple[FrameType, int]]) -> list[str]:
    """Return the innermost line outside of torch, with the shapes of its local tensors."""
    torch_folder = Path(torch.__file__).parent
    for frame, number in reversed(frames):
        file = Path(frame.f_code.co_filename)
        if torch_folder not in file.parents:
            code = linecache.getline(str(file), number).strip()
            tensors = {k: v for k, v in frame.f_locals.items() if isinstance(v, Tensor)}
            known = f" ({inputs_text((), tensors)})" if tensors else ""
            return [f"in {'/'.join(file.parts[-2:])}:{number}: {code}{known}"]
    return []


def _width(layer: Any, given: Tensor, argument: str, axis: int) -> str | None:
    """Compare one dimension of the input with the layer's argument for it."""
    if given.dim() <= max(axis, -axis - 1) or given.shape[axis] == getattr(layer, argument):
        return None
    wanted, found, flat = getattr(layer, argument), given.shape[axis], given.shape[1:].numel()
    fit, place = f"{argument}={found}", axis % given.dim()
    if wanted == 1 and given.dim() == -axis:
        fit = "x.unsqueeze(1)"
    elif given.shape[-1] == wanted:
        fit = f"x.movedim(-1, {place}) if its channels come last, else {fit}"
    elif argument == "in_features" and given.dim() > 2:
        flattened = f"{fit}, or {argument}={flat} after x.flatten(1)"
        fit = "x.flatten(1)" if flat == wanted else flattened
    return f"dimension {place} must be {wanted}, not {found}; what would fit: {fit}"


def _window(layer: Any, given: Tensor, n: int, output_size: Callable[..., Any]) -> str | None:
    """Compare the dimensions, channels and size of the input with a layer that has a kernel."""
    if given.dim() not in (n + 1, n + 2):
        return f"it takes (batch, channel, {_AXES[n]})"
    channels = _width(layer, given, "in_channels", -n - 1) if isinstance(layer, _ConvNd) else None
    names = [name for name in inspect.signature(output_size).parameters if hasattr(layer, name)]
    settings = {name: getattr(layer, name) for name in names}
    if channels or isinstance(layer, SamePad) or isinstance(settings.get("padding"), str):
        return channels
    try:
        output_size(tuple(given.shape[-n:]), **settings)
    except ValueError as error:
        return str(error)
    return None


def _indices(layer: Any, given: Tensor) -> str | None:
    if given.device.type != "cpu" or given.is_floating_point() or not given.numel():
        return None  # after an error, a GPU cannot be read
    low, high, n = int(given.min()), int(given.max()), layer.num_embeddings
    if low >= 0 and high < n:
        return None
    fit = f"; what would fit: num_embeddings={high + 1}" if low >= 0 else ""
    return f"its indices must be from 0 to {n - 1}, but are from {low} to {high}{fit}"


_AXES = {1: "length", 2: "height, width", 3: "depth, height, width"}
_SIZES = {
    "Conv": conv_output_size,
    "ConvTranspose": conv_transpose_output_size,
    **dict.fromkeys(("MaxPool", "AvgPool", "LPPool"), pool_output_size),
}
_CHECKS: list[tuple[Any, Callable[[Any, Tensor], str | None]]] = [
    *(
        (getattr(nn, f"{kind}{n}d"), partial(_window, n=n, output_size=function))
        for kind, function in _SIZES.items()
        for n in _AXES
    ),
    (nn.Linear, partial(_width, argument="in_features", axis=-1)),
    (_BatchNorm, partial(_width, argument="num_features", axis=1)),
    (nn.GroupNorm, partial(_width, argument="num_channels", axis=1)),
    ((nn.RNNBase, nn.RNNCellBase), partial(_width, argument="input_size", axis=-1)),
    (nn.MultiheadAttention, partial(_width, argument="embed_dim", axis=-1)),
    ((nn.Embedding, nn.EmbeddingBag), _indices),
]
