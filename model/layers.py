"""Layers that several networks share; a config can name them among the layers of a network."""

from __future__ import annotations

import math

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


class CosineFilters(nn.Conv2d):
    """A first convolution with fixed filters: cosine waves, as in JPEG, and their negatives.

    It is not trained, so the backward pass ends above it: neither its weights nor its input need a
    gradient. A filter has u and v half waves in height and width, the lowest u + v first, and is
    scaled by (u + 1)(v + 1), because images have less contrast at higher frequencies. Behind a
    ReLU, a wave and its negative keep an edge of either sign. An `init:` rule must not match it.

    Args:
        n_out: the filters of each channel, an even number; half of them are negatives.
        channels: of the images. Each is filtered separately, for ``channels * n_out`` outputs.
    """

    def __init__(
        self,
        n_out: int = 16,
        kernel_size: int = 4,
        stride: int = 2,
        padding: int = 1,
        channels: int = 1,
    ) -> None:
        most = 2 * kernel_size**2
        if n_out % 2 or not 2 <= n_out <= most:
            raise ValueError(f"n_out is {n_out}: give an even number from 2 to {most}")
        size = (kernel_size, stride, padding)
        super().__init__(channels, channels * n_out, *size, groups=channels, bias=False)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the filters, which need no random numbers."""
        n_waves = self.out_channels // self.in_channels // 2
        waves = _cosine_waves(n_waves, self.kernel_size[0])
        filters = torch.cat([waves, -waves]).repeat(self.in_channels, 1, 1)
        self.weight.copy_(filters[:, None])


def _cosine_waves(n: int, size: int) -> Tensor:
    """Return the n lowest two-dimensional cosine waves (n, size, size), scaled by frequency."""
    places = torch.arange(size) + 0.5
    waves = torch.stack([torch.cos(math.pi / size * u * places) for u in range(size)])
    waves *= (torch.arange(size) + 1)[:, None] / waves.norm(dim=1, keepdim=True)
    pairs = sorted(((u, v) for u in range(size) for v in range(size)), key=lambda uv: (sum(uv), uv))
    return torch.stack([torch.outer(waves[u], waves[v]) for u, v in pairs[:n]]) / size


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
