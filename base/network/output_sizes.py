"""Computes output sizes of convolutions and pooling, and the padding for a given output size.

>>> conv_output_size((28, 20), kernel_size=3, stride=2, padding=(1, 0))
(14, 9)

Each function takes a size, or a tuple of sizes such as (height, width), for which it returns a
tuple. Each setting is one value for all dimensions, or one per dimension. Names and rules follow
torch's documentation of Conv2d, ConvTranspose2d and MaxPool2d. An impossible size raises a
ValueError that lists the possible ones.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from itertools import count
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

Padding: TypeAlias = int | tuple[int, int]


def each_dimension(one: Callable[..., Any]) -> Callable[..., Any]:
    """Extend a function of one dimension to tuples of sizes."""
    signature = inspect.signature(one)

    @wraps(one)
    def each(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        size = given["size"]
        if isinstance(size, int):
            return one(**given)
        columns = [v if isinstance(v, tuple | list) else [v] * len(size) for v in given.values()]
        if {len(column) for column in columns} != {len(size)}:
            raise ValueError(f"{given} do not all have {len(size)} dimensions")
        rows = [dict(zip(given, row, strict=True)) for row in zip(*columns, strict=True)]
        return tuple(one(**row) for row in rows)

    return each


@each_dimension
def conv_output_size(
    size: int, kernel_size: int, stride: int = 1, padding: Padding = 0, dilation: int = 1
) -> int:
    """Return the output size of a convolution. A padding may be a pair (before, after)."""
    total = 2 * padding if isinstance(padding, int) else sum(padding)
    room = total - _span(kernel_size, stride, dilation)
    return _checked(size, lambda n: (n + room) // stride + 1)


@each_dimension
def conv_transpose_output_size(
    size: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    dilation: int = 1,
) -> int:
    """Return the output size of a transposed convolution."""
    if output_padding >= max(stride, dilation):
        limits = f"stride={stride} or dilation={dilation}"
        raise ValueError(f"output_padding={output_padding} must be smaller than {limits}")
    more = _span(kernel_size, stride, dilation) - 2 * padding + output_padding
    return _checked(size, lambda n: (n - 1) * stride + more)


@each_dimension
def pool_output_size(
    size: int,
    kernel_size: int,
    stride: int | None = None,
    padding: int = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> int:
    """Return the output size of pooling. The last window starts in the input or the left padding.

    The default ``stride`` is ``kernel_size``, as in torch.
    """
    step = kernel_size if stride is None else stride
    if padding > kernel_size // 2:
        raise ValueError(f"padding={padding} is more than half of kernel_size={kernel_size}")
    room = 2 * padding - _span(kernel_size, step, dilation) + (step - 1 if ceil_mode else 0)

    def output(n: int) -> int:
        n_windows = (n + room) // step + 1
        starts_too_late = ceil_mode and (n_windows - 1) * step >= n + padding
        return n_windows - starts_too_late

    return _checked(size, output)


@each_dimension
def conv_padding_for(
    size: int, output_size: int, kernel_size: int, stride: int = 1, dilation: int = 1
) -> tuple[int, int]:
    """Return the minimum padding (before, after) that gives a convolution this output size.

    Both are equal, as layers require, if possible, which it always is with a stride above 1.
    Otherwise the second is larger by 1, for ``F.pad(images, (left, right, top, bottom))``.
    """
    span = _span(kernel_size, stride, dilation)
    smallest = max(1, (size - span) // stride + 1)
    if output_size < smallest:
        raise ValueError(f"{size} can become {smallest} and more, not {output_size}")
    total = max(0, (output_size - 1) * stride + span - size)
    if stride > 1:
        total += total % 2  # one more element never adds a window
    return total // 2, total - total // 2


@each_dimension
def conv_transpose_padding_for(
    size: int, output_size: int, kernel_size: int, stride: int = 1, dilation: int = 1
) -> tuple[int, int]:
    """Return (padding, output_padding) that gives a transposed convolution this output size."""
    full = (size - 1) * stride + _span(kernel_size, stride, dilation)
    slack = max(stride, dilation) - 1
    padding = max(0, (full - output_size + 1) // 2)
    output_padding = output_size - full + 2 * padding
    if output_size < 1 or output_padding > slack:
        low = 1 if slack or full % 2 else 2
        steps = "" if slack else " in steps of 2"
        raise ValueError(f"{size} can become {low} to {full + slack}{steps}, not {output_size}")
    return padding, output_padding


@each_dimension
def pool_padding_for(
    size: int,
    output_size: int,
    kernel_size: int,
    stride: int | None = None,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> tuple[int, int]:
    """Return the minimum padding (before, after) that gives pooling this output size.

    Both are equal if possible, and neither is more than half of the kernel size.
    """
    reached: dict[int, tuple[int, int]] = {}
    half = kernel_size // 2
    for before, after in [(n, n) for n in range(half + 1)] + [(n, n + 1) for n in range(half)]:
        # Layers support only equal paddings; others must be added to the input.
        padded, padding = (size, before) if before == after else (size + before + after, 0)
        with suppress(ValueError):  # too small for one window
            length = pool_output_size(padded, kernel_size, stride, padding, dilation, ceil_mode)
            reached.setdefault(length, (before, after))
    if output_size not in reached:
        raise ValueError(f"{size} can become one of {sorted(reached)}, not {output_size}")
    return reached[output_size]


def _span(kernel_size: int, stride: int, dilation: int) -> int:
    if min(kernel_size, stride, dilation) < 1:
        raise ValueError("kernel_size, stride and dilation are at least 1")
    return dilation * (kernel_size - 1) + 1


def _checked(size: int, output: Callable[[int], int]) -> int:
    if size < 1 or output(size) < 1:
        least = next(n for n in count(1) if output(n) > 0)
        raise ValueError(f"size {size} is too small, at least {least} is needed")
    return output(size)


class SamePad(_ConvNd):
    """Pads each input as needed. Odd padding is larger at the end, as in TensorFlow and torch."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: str = "same",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if padding != "same":
            raise ValueError(f"{type(self).__name__} supports padding='same', not {padding!r}")
        no_padding: Any = 0  # each forward pass computes it
        args = (stride, no_padding, *args)
        super().__init__(in_channels, out_channels, kernel_size, *args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(batch, channel, *size)`` to ``(batch, channel, *ceil(size / stride))``."""
        output: Tensor = super().forward(self.padded(input))
        return output

    def padded(self, input: Tensor) -> Tensor:
        """Return the input with the padding that `forward` gives it."""
        sides: list[int] = []
        sizes = input.shape[-len(self.kernel_size) :]
        settings = zip(sizes, self.kernel_size, self.stride, self.dilation, strict=True)
        for size, kernel_size, stride, dilation in settings:
            last = (size - 1) // stride * stride  # where the last window starts
            total = max(0, last + dilation * (kernel_size - 1) + 1 - size)
            sides = [total // 2, total - total // 2, *sides]  # F.pad has the last dimension first
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(input, sides, mode=mode)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, padding=same"


class SamePadConv1d(SamePad, nn.Conv1d):
    """Conv1d with ``padding="same"`` at any stride."""


class SamePadConv2d(SamePad, nn.Conv2d):
    """Conv2d with ``padding="same"`` at any stride."""


class SamePadConv3d(SamePad, nn.Conv3d):
    """Conv3d with ``padding="same"`` at any stride."""


class _LazySamePad(SamePad):
    """Infers ``in_channels`` from the first batch, as torch's lazy layers do."""

    def __init__(
        self,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: str = "same",
        *args: Any,
        **kwargs: Any,
    ) -> None:
        lazy: Any = super(SamePad, self)  # SamePad's own __init__ takes in_channels first
        lazy.__init__(out_channels, kernel_size, stride, 0, *args, **kwargs)


_SAME: dict[Any, Any] = {
    nn.Conv1d: SamePadConv1d,
    nn.Conv2d: SamePadConv2d,
    nn.Conv3d: SamePadConv3d,
}
_SAME |= {
    lazy: type(
        f"LazySamePadConv{n}d", (_LazySamePad, lazy), {"cls_to_become": _SAME[lazy.cls_to_become]}
    )
    for n, lazy in enumerate((nn.LazyConv1d, nn.LazyConv2d, nn.LazyConv3d), start=1)
}


def conv_class(named: Any, args: Mapping[str, Any]) -> Any:
    """Return the class to build: SamePad for torch's convolutions with "same" and a stride."""
    stride = args.get("stride", 1)
    strides = stride if isinstance(stride, list | tuple) else [stride]
    is_strided = args.get("padding") == "same" and any(step != 1 for step in strides)
    return _SAME.get(named, named) if is_strided else named
