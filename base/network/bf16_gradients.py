"""Refuses convolutions whose bf16 gradient this CPU computes from uninitialized memory.

With torch 2.14.1 on a CPU with AVX512-BF16, the weights of a convolution get such a gradient if its
stride exceeds the width of its images, such as 3x3 with stride 2 on an image of one column, or a
transposed one with a stride on one column. Most of these values are small, so a run trains on them
without a word, until one is NaN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from base.errors import TrainingError
from base.network.output_sizes import SamePad
from base.network.shape_errors import is_compiled
from base.network.shapes import shape_text

N_TRIES = 8  # what was in the memory decides whether one of them shows it
CLOSE = 0.05  # of the largest gradient; bf16 keeps two to three digits


@contextmanager
def refuse_uninitialized_gradients(model: nn.Module) -> Iterator[None]:
    """Check the convolutions that compute in bf16 on the CPU. Meant for the first batch.

    A compiled model is not checked.

    Raises:
        TrainingError: one of them gets a wrong gradient; it names the layer and its input.
    """
    layers = {} if is_compiled(model) else dict(model.named_modules(remove_duplicate=False))
    handles = [
        layer.register_forward_hook(_Check(name), with_kwargs=True)
        for name, layer in layers.items()
        if isinstance(layer, _ConvNd)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Check:
    """A forward hook that tries the backward pass of a layer on its own input."""

    def __init__(self, name: str) -> None:
        self.name, self.is_done = name, False

    def __call__(
        self, layer: Any, args: tuple[Any, ...], named: Mapping[str, Any], output: Any
    ) -> None:
        given = args[0] if args else named.get("input")
        if self.is_done or not isinstance(output, Tensor) or not isinstance(given, Tensor):
            return
        if not (output.dtype == torch.bfloat16 and output.is_cpu and output.requires_grad):
            return
        weight = layer._parameters.get("weight")  # None if it is parametrized
        is_frozen = weight is not None and not weight.requires_grad
        if is_frozen or not _may_be_wrong(layer, given, output):
            return
        self.is_done, is_wrong = True, False
        with contextlib.suppress(Exception):  # a layer of its own kind: not a reason to stop
            is_wrong = has_uninitialized_gradient(layer, given)
        if is_wrong:
            sizes = ("x".join(map(str, each)) for each in (layer.kernel_size, layer.stride))
            text = f"{type(layer).__name__} {' with stride '.join(sizes)} of {shape_text(given)}"
            raise TrainingError(
                f"model: layer {self.name!r} ({text}): in bf16, torch computes a wrong gradient "
                "for its weights on this CPU, as the image is too narrow for the stride: set "
                "`memory: {precision: fp32}`, or use larger images or fewer strides"
            )


def _may_be_wrong(layer: Any, given: Tensor, output: Tensor) -> bool:
    """Return whether a convolution is of the kind that was seen to fail."""
    narrow = given if isinstance(layer, _ConvTransposeNd) else output
    return bool(narrow.shape[-1] == 1 and layer.stride[-1] > 1 and layer.kernel_size[-1] > 1)


def has_uninitialized_gradient(layer: Any, given: Tensor) -> bool:
    """Return whether the bf16 gradient of a convolution's weights is far from the float32 one.

    It depends on the input alone, so the layer is not called and its weights are not read.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        if not given.isfinite().all():
            return False  # no fault of the layer
        batched = given if given.dim() == len(layer.kernel_size) + 2 else given[None]
        batched, padding = _padded(layer, batched[:8].to(torch.bfloat16))
        exact = _gradient(layer, batched.float(), padding)
        limit = CLOSE * exact.abs().max().clamp(min=torch.finfo(torch.bfloat16).tiny)
        for _ in range(N_TRIES):
            _fill_free_memory(exact)
            found = _gradient(layer, batched, padding).float()
            if not bool(((found - exact).abs() <= limit).all()):  # also if it is NaN
                return True
    return False


def _padded(layer: Any, given: Tensor) -> tuple[Tensor, list[int]]:
    """Return the input as the convolution gets it, and the padding that is left to it."""
    none = [0] * len(layer.kernel_size)
    if isinstance(layer, SamePad):
        return layer.padded(given), none
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(given, layer._reversed_padding_repeated_twice, mode), none
    return given, list(layer.padding)


def _gradient(layer: Any, given: Tensor, padding: list[int]) -> Tensor:
    """Return the gradient of the weights in the dtype of the input, for a sum of outputs."""
    is_transposed = isinstance(layer, _ConvTransposeNd)
    first, second = layer.in_channels, layer.out_channels
    first, second = (first, second) if is_transposed else (second, first)
    weight = given.new_zeros(first, second // layer.groups, *layer.kernel_size)
    how = (list(layer.stride), padding, list(layer.dilation), is_transposed)
    more = (list(layer.output_padding), layer.groups)
    output = torch.ops.aten.convolution(given, weight, None, *how, *more)
    ones, wanted = torch.ones_like(output), [False, True, False]
    gradient: Tensor = torch.ops.aten.convolution_backward(
        ones, given, weight, None, *how, *more, wanted
    )[1]
    return gradient


def _fill_free_memory(like: Tensor) -> None:
    """Leave NaN in freed memory of the sizes that a backward pass asks for."""
    sizes = [like.numel() * factor // 2 for factor in (1, 2, 4, 8)]
    kept = [torch.full((size,), float("nan")) for size in sizes for _ in range(4)]
    del kept
