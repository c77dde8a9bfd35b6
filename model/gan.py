"""A generator and a discriminator for images (DCGAN: Radford et al., 2016, arXiv:1511.06434)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from base import BaseModel
from model.layers import check_images

# WGAN-GP (Gulrajani et al., 2017) forbids BatchNorm in the critic, as its penalty is on the
# gradient of each sample by itself, and recommends layer norm.
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "layer": lambda n_channels: nn.GroupNorm(1, n_channels),
    "none": lambda n_channels: nn.Identity(),
}


def _init_weights(model: nn.Module) -> None:
    """Draw weights as the paper does, with mean 0, or 1 in norms; set biases to 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.02)
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)


class DCGANGenerator(BaseModel):
    """Generates images in [-1, 1] from noise (batch, latent_size), doubling the size from 4x4.

    8x8 images start at 2x2: with a single doubling, generated digits were much worse.

    Args:
        width: channels before the last layer; each earlier layer has twice as many.
        image_size: 8, 16, 32 or 64.
        norm: ``batch``, ``layer`` or ``none``.
    """

    init_weights = _init_weights  # for `init: from_model`

    def __init__(
        self,
        latent_size: int = 64,
        width: int = 32,
        image_size: int = 8,
        channels: int = 1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.latent_size = latent_size
        first_size, widths = _plan(width, image_size)
        widths.reverse()
        first = nn.ConvTranspose2d(latent_size, widths[0], first_size, bias=norm == "none")
        self.blocks = nn.Sequential(_block(first, norm, nn.ReLU()))
        for n_in, n_out in pairwise(widths):
            conv = nn.ConvTranspose2d(n_in, n_out, 4, stride=2, padding=1, bias=norm == "none")
            self.blocks.append(_block(conv, norm, nn.ReLU()))
        self.to_image = nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1)

    def forward(self, noise: Tensor) -> Tensor:  # (batch, latent_size) -> (batch, channel, h, w)
        if noise.ndim != 2 or noise.shape[1] != self.latent_size:
            text = f"DCGANGenerator takes noise of shape (batch, {self.latent_size})"
            raise ValueError(f"{text}, not {tuple(noise.shape)}: see its latent_size")
        return self.to_image(self.blocks(noise[:, :, None, None])).tanh()


class DCGANDiscriminator(BaseModel):
    """Returns one score for each image, high for real ones: a logit, or a critic's score.

    Args:
        width: channels of the first layer; each further layer halves the image and doubles them.
        image_size: 8, 16, 32 or 64.
        norm: ``batch``; ``layer`` or ``none`` for the critic of WGAN-GP.
    """

    init_weights = _init_weights  # for `init: from_model`

    def __init__(
        self, width: int = 32, image_size: int = 8, channels: int = 1, norm: str = "batch"
    ) -> None:
        super().__init__()
        self.image_size, self.channels = image_size, channels
        last_size, widths = _plan(width, image_size)
        first = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        # As in the paper, the first layer has no norm.
        self.blocks = nn.Sequential(_block(first, "none", nn.LeakyReLU(0.2)))
        for n_in, n_out in pairwise(widths):
            conv = nn.Conv2d(n_in, n_out, 4, stride=2, padding=1, bias=norm == "none")
            self.blocks.append(_block(conv, norm, nn.LeakyReLU(0.2)))
        self.to_score = nn.Conv2d(widths[-1], 1, kernel_size=last_size)

    def forward(self, images: Tensor) -> Tensor:  # (batch, channel, h, w) -> (batch,)
        check_images(self, images, self.channels, (self.image_size, self.image_size))
        return self.to_score(self.blocks(images)).flatten()


def _plan(width: int, image_size: int) -> tuple[int, list[int]]:
    """Return the smallest feature map size, and the channels from the largest map to it."""
    if image_size not in (8, 16, 32, 64):
        raise ValueError(f"image_size is 8, 16, 32 or 64, not {image_size}: resize the images")
    size = min(4, image_size // 4)
    n_halvings = (image_size // size).bit_length() - 1
    return size, [width * 2**number for number in range(n_halvings)]


def _block(conv: nn.Conv2d | nn.ConvTranspose2d, norm: str, activation: nn.Module) -> nn.Module:
    if norm not in _NORMS:
        raise ValueError(f"norm is one of {', '.join(_NORMS)}, not {norm!r}")
    parts = {"conv": conv, "norm": _NORMS[norm](conv.out_channels), "relu": activation}
    return nn.Sequential(OrderedDict(parts))
