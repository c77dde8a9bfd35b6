"""Layers that several networks share; a config can name them among the layers of a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedBuffer


class ConvBlock(nn.Sequential):
    """Convolution, BatchNorm and ReLU; a ``stride`` of 1 keeps the size of the image."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv: nn.Module = nn.Conv2d(n_in, n_out, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(n_out)
        self.relu: nn.Module = nn.ReLU()


class PatchWhitening(LazyModuleMixin, nn.Module):
    """A fixed convolution whose outputs are uncorrelated: the whitened patches of images.

    Its filters are the principal components of the patches of the first batch, each divided by its
    standard deviation (David Page, "How to train your ResNet 8", 2019). They are measured once,
    when the model is built, and not trained.

    Args:
        eps: is added to the variances, so that components of noise are not blown up.
    """

    cls_to_become = None
    weight: Tensor  # (in_channels * kernel_size**2, in_channels, kernel_size, kernel_size)

    def __init__(self, kernel_size: int = 3, eps: float = 1e-2) -> None:
        super().__init__()
        self.kernel_size, self.eps = kernel_size, eps
        self.register_buffer("weight", UninitializedBuffer())

    @torch.no_grad()
    def initialize_parameters(self, images: Tensor) -> None:
        """Measure the filters on a batch; torch calls it before the first forward pass."""
        if not isinstance(self.weight, UninitializedBuffer):
            return  # they were loaded
        patches = F.unfold(images.double(), self.kernel_size).transpose(0, 1).flatten(1)
        variances, components = torch.linalg.eigh(torch.cov(patches))
        filters = components / (variances + self.eps).sqrt()
        shape = (len(filters), images.shape[1], self.kernel_size, self.kernel_size)
        self.weight.materialize(shape, images.device, torch.float32)
        self.weight.copy_(filters.T.flip(0).reshape(shape))  # the largest variance first

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight, padding=self.kernel_size // 2)


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
