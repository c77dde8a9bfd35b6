"""A callback that shows generated images after each epoch."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from base import Callback, ConfigError, derive_seed, isolated_random_state, write_whole


class GeneratedSamples(Callback):
    """Writes generated images to TensorBoard and to ``report/samples.png`` after each epoch.

    The trainer needs a method ``generate(n_images)`` that returns images (batch, 1 or 3, height,
    width) in [0, 1]. The noise is the same after each epoch, and random streams of training do
    not change. With ``trainer.ema``, the averaged weights are used.
    """

    def __init__(self, n_images: int = 64, columns: int = 8) -> None:
        self.n_images, self.columns = n_images, columns

    def check(self, trainer: Any) -> None:
        name, where = type(trainer).__name__, ("trainer", "type")
        if not callable(getattr(trainer, "generate", None)):
            text = (
                f"GeneratedSamples needs {name}.generate(n_images); see GANTrainer for an example"
            )
            raise ConfigError([trainer.config.problem(where, text)])
        shape = tuple(self.draw(trainer).shape)
        if len(shape) != 4 or shape[1] not in (1, 3):
            text = "GeneratedSamples needs images (batch, 1 or 3, height, width)"
            problem = trainer.config.problem(where, f"{text}; {name}.generate returned {shape}")
            raise ConfigError([problem])

    def on_epoch_end(self, trainer: Any, values: Mapping[str, float]) -> None:
        grid = make_grid(self.draw(trainer), self.columns)
        trainer.writers.add_images("samples", grid[None], trainer.progress.step)
        if trainer.folder is not None:
            write_whole(trainer.folder / "report" / "samples.png", as_png(grid))

    def draw(self, trainer: Any) -> Tensor:
        """Return generated images (batch, channel, height, width) in [0, 1]."""
        seed = derive_seed(trainer.config["seed"], "samples")
        averaged = nullcontext() if trainer.ema is None else trainer.ema.swapped_in()
        trainer.model.eval()  # each epoch begins with `model.train()`
        with isolated_random_state(seed), averaged, torch.inference_mode():
            images: Tensor = trainer.generate(self.n_images)
        return images.float().clamp(0, 1).cpu()


def make_grid(images: Tensor, columns: int) -> Tensor:
    """Arrange images in rows, enlarge small ones; return (channel, height, width)."""
    larger = F.interpolate(images, scale_factor=max(1, 32 // images.shape[-1]))
    n, channels, height, width = larger.shape
    rows = -(-n // columns)
    larger = torch.cat([larger, larger.new_zeros(rows * columns - n, channels, height, width)])
    framed = F.pad(larger, (1, 1, 1, 1), value=0.5)
    cells = framed.view(rows, columns, channels, height + 2, width + 2)
    return cells.permute(2, 0, 3, 1, 4).reshape(channels, rows * (height + 2), -1)


def as_png(image: Tensor) -> bytes:
    """Return an image (channel, height, width) in [0, 1] as the bytes of a PNG file."""
    from PIL import Image

    pixels = (image * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
