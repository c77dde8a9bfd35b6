"""Parts that several networks share; each can be named in a config, among the layers of another."""

from __future__ import annotations

from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """Convolution, BatchNorm, ReLU; the size of the image stays the same when ``stride`` is 1."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(n_in, n_out, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU()


def check_images(
    model: nn.Module, images: Tensor, channels: int, size: tuple[int, int] | None = None
) -> None:
    """Raise a ValueError unless the images are such as the model was made for."""
    is_right = images.ndim == 4 and images.shape[1] == channels
    if not is_right or (size and tuple(images.shape[2:]) != size):
        height, width = size or ("height", "width")
        wanted = f"images of shape (batch, {channels}, {height}, {width})"
        text = f"{type(model).__name__} takes {wanted}, not {tuple(images.shape)}"
        raise ValueError(f"{text}: change its arguments or the data")
