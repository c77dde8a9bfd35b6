"""Layers that several networks share; a config can name them among the layers of a network."""

from __future__ import annotations

from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution, BatchNorm and ReLU; a ``stride`` of 1 keeps the size of the image."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(n_in, n_out, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU()


def check_images(
    model: nn.Module, images: Tensor, channels: int, size: tuple[int, int] | None = None
) -> None:
    """Raise a ValueError unless images have the shape that the model takes."""
    is_right = images.ndim == 4 and images.shape[1] == channels
    if not is_right or (size and tuple(images.shape[2:]) != size):
        height, width = size or ("height", "width")
        wanted = f"images of shape (batch, {channels}, {height}, {width})"
        text = f"{type(model).__name__} takes {wanted}, not {tuple(images.shape)}"
        raise ValueError(f"{text}: change its arguments or the data")
