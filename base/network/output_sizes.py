"""Output sizes of convolutions and pools, and the padding that gives a wished size.

>>> conv_output_size((28, 20), kernel_size=3, stride=2, padding=(1, 0))
(14, 9)

Each function is written for one dimension. Give it a tuple of sizes, as (height, width), and it
returns a tuple; a setting is then one value for all dimensions, or one for each. Names and rules
are those of torch's pages of Conv2d, ConvTranspose2d and MaxPool2d. What cannot be raises a
ValueError that says what can.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from itertools import count
from typing import Any, TypeAlias

Padding: TypeAlias = int | tuple[int, int]


def each_dimension(one: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of one dimension take a tuple of sizes too."""
    signature = inspect.signature(one)

    @wraps(one)
    def each(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        size = given["size"]
        if isinstance(size, int):
            return one(**given)
        columns = [v if isinstance(v, tuple | list) else [v] * len(size) for v in given.values()]
        if {len(column) for column in columns} != {len(size)}:
            raise ValueError(f"{given} are not all for {len(size)} dimensions")
        rows = [dict(zip(given, row, strict=True)) for row in zip(*columns, strict=True)]
        return tuple(one(**row) for row in rows)

    return each


@each_dimension
def conv_output_size(
    size: int, kernel_size: int, stride: int = 1, padding: Padding = 0, dilation: int = 1
) -> int:
    """Return the size that a convolution gives; a padding may be a pair (before, after)."""
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
    """Return the size that a transposed convolution gives."""
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
    """Return the size that a pool gives; its last window starts in the input or in what is before.

    No ``stride`` means that of ``kernel_size``, as in torch.
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
    size: int, wished: int, kernel_size: int, stride: int = 1, dilation: int = 1
) -> tuple[int, int]:
    """Return the least padding (before, after) for a convolution to give the wished size.

    The two are equal, as the layers take it, where that is possible: always with a stride above 1.
    Else one more goes behind, as in ``F.pad(images, (left, right, top, bottom))``.
    """
    span = _span(kernel_size, stride, dilation)
    smallest = max(1, (size - span) // stride + 1)
    if wished < smallest:
        raise ValueError(f"{size} can become {smallest} and more, not {wished}")
    total = max(0, (wished - 1) * stride + span - size)
    if stride > 1:
        total += total % 2  # one more never makes room for another window
    return total // 2, total - total // 2


@each_dimension
def conv_transpose_padding_for(
    size: int, wished: int, kernel_size: int, stride: int = 1, dilation: int = 1
) -> tuple[int, int]:
    """Return (padding, output_padding) for a transposed convolution to give the wished size."""
    full = (size - 1) * stride + _span(kernel_size, stride, dilation)
    slack = max(stride, dilation) - 1
    padding = max(0, (full - wished + 1) // 2)
    output_padding = wished - full + 2 * padding
    if wished < 1 or output_padding > slack:
        low = 1 if slack or full % 2 else 2
        steps = "" if slack else " in steps of 2"
        raise ValueError(f"{size} can become {low} to {full + slack}{steps}, not {wished}")
    return padding, output_padding


@each_dimension
def pool_padding_for(
    size: int,
    wished: int,
    kernel_size: int,
    stride: int | None = None,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> tuple[int, int]:
    """Return the least padding (before, after) for a pool to give the wished size.

    The two are equal as in `conv_padding_for`, and neither is more than half of the kernel.
    """
    reached: dict[int, tuple[int, int]] = {}
    half = kernel_size // 2
    for before, after in [(n, n) for n in range(half + 1)] + [(n, n + 1) for n in range(half)]:
        # A layer takes equal paddings only, so others have been added to its input.
        padded, padding = (size, before) if before == after else (size + before + after, 0)
        with suppress(ValueError):  # too small for one window even so
            length = pool_output_size(padded, kernel_size, stride, padding, dilation, ceil_mode)
            reached.setdefault(length, (before, after))
    if wished not in reached:
        raise ValueError(f"{size} can become one of {sorted(reached)}, not {wished}")
    return reached[wished]


def _span(kernel_size: int, stride: int, dilation: int) -> int:
    if min(kernel_size, stride, dilation) < 1:
        raise ValueError("kernel_size, stride and dilation are at least 1")
    return dilation * (kernel_size - 1) + 1


def _checked(size: int, output: Callable[[int], int]) -> int:
    if size < 1 or output(size) < 1:
        least = next(n for n in count(1) if output(n) > 0)
        raise ValueError(f"size {size} is too small, at least {least} is needed")
    return output(size)
