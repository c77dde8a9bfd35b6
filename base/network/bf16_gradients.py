"""Refuses convolutions whose bf16 gradient this CPU takes from memory that nobody has written.

With torch 2.14.1 on a CPU with AVX512-BF16, the weights of a convolution get such a gradient if its
stride exceeds the width of its padded input's inside, such as 3x3 with stride 2 on an image of one
column, or a transposed one with a stride on one column. Most of these values are small, so a run
trains on them without a word, until one is NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from base.errors import TrainingError
from base.network.shape_errors import is_compiled
from base.network.shapes import shape_text

N_TRIES = 8  # what was in the memory decides whether one of them shows it
CLOSE = 0.05  # of the largest gradient; bf16 keeps two to three digits


@contextmanager
def refuse_unwritten_gradients(model: nn.Module) -> Iterator[None]:
    """Check the convolutions that compute in bf16 on the CPU. Meant for the first batch.

    Raises:
        TrainingError: one of them gets a wrong gradient; it names the layer and its input.
    """
    layers = {} if is_compiled(model) else dict(model.named_modules(remove_duplicate=False))
    handles = [
        layer.register_forward_hook(_Check(name))
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

    def __call__(self, layer: Any, args: tuple[Any, ...], output: Any) -> None:
        if self.is_done or not isinstance(output, Tensor) or output.dtype != torch.bfloat16:
            return
        is_trained = layer.weight.requires_grad and torch.is_grad_enabled()
        if not (output.is_cpu and is_trained and _may_be_wrong(layer, args[0], output)):
            return
        self.is_done = True
        if has_unwritten_gradient(layer, args[0]):
            sizes = ("x".join(map(str, each)) for each in (layer.kernel_size, layer.stride))
            text = f"{type(layer).__name__} {' with stride '.join(sizes)} of {shape_text(args[0])}"
            raise TrainingError(
                f"model: layer {self.name!r} ({text}): in bf16, torch computes a wrong gradient "
                "for its weights on this CPU, as the image is narrower than the stride: set "
                "`memory: {precision: fp32}`, or use larger images or fewer strides"
            )


def _may_be_wrong(layer: Any, given: Tensor, output: Tensor) -> bool:
    """Return whether a convolution is of the kind that was seen to fail."""
    narrow = given if isinstance(layer, _ConvTransposeNd) else output
    return bool(narrow.shape[-1] == 1 and layer.stride[-1] > 1 and layer.kernel_size[-1] > 1)


def has_unwritten_gradient(layer: Any, given: Tensor) -> bool:
    """Return whether the bf16 gradient of a convolution's weights is far from the float32 one."""
    given = given.detach()[:8].to(torch.bfloat16)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        exact = _gradient(layer, given.float())
        limit = CLOSE * exact.abs().max().clamp(min=torch.finfo(torch.bfloat16).tiny)
        for _ in range(N_TRIES):
            _fill_free_memory(exact)
            found = _gradient(layer, given).float()
            if not bool(((found - exact).abs() <= limit).all()):  # also if it is NaN
                return True
    return False


def _gradient(layer: Any, given: Tensor) -> Tensor:
    """Return the gradient of the weights in the dtype of the input, for a sum of outputs."""
    weight = layer.weight.detach().to(torch.bfloat16).to(given.dtype).requires_grad_()
    if isinstance(layer, _ConvTransposeNd):
        convolve = getattr(F, f"conv_transpose{len(layer.kernel_size)}d")
        sizes = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        output = convolve(given, weight, None, *sizes)
    else:
        output = layer._conv_forward(given, weight, None)
    gradient: Tensor = torch.autograd.grad(output, weight, torch.ones_like(output))[0]
    return gradient


def _fill_free_memory(like: Tensor) -> None:
    """Leave NaN in freed memory of the sizes that a backward pass asks for."""
    sizes = [like.numel() * factor // 2 for factor in (1, 2, 4, 8)]
    kept = [torch.full((size,), float("nan")) for size in sizes for _ in range(4)]
    del kept
