"""``padding: same`` for strided convolutions: the output has ceil(input / stride) positions.

torch's own layers have it for stride 1 only, where these give the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd


class SamePad(_ConvNd):
    """Pads each input as it needs; odd padding is larger at the end, as in TensorFlow and torch."""

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
        sides: list[int] = []
        sizes = input.shape[-len(self.kernel_size) :]
        settings = zip(sizes, self.kernel_size, self.stride, self.dilation, strict=True)
        for size, kernel_size, stride, dilation in settings:
            last = (size - 1) // stride * stride  # where the last window starts
            total = max(0, last + dilation * (kernel_size - 1) + 1 - size)
            sides = [total // 2, total - total // 2, *sides]  # F.pad has the last dimension first
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        output: Tensor = super().forward(F.pad(input, sides, mode=mode))
        return output

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
    """Return the class to build: SamePad for a convolution of torch with "same" and a stride."""
    stride = args.get("stride", 1)
    strides = stride if isinstance(stride, list | tuple) else [stride]
    is_strided = args.get("padding") == "same" and any(step != 1 for step in strides)
    return _SAME.get(named, named) if is_strided else named
