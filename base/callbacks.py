"""Callbacks: side tasks that change neither the numbers nor the order of a run.

Early stopping, the moving average and saving change these; they are plain lines of the loop.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from base.data.batch import inputs_of
from base.network.capture import stretch
from base.system.seeding import isolated_random_state

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")


class Callback:
    """Five points of a run, and a check before it; override those that you need.

    A callback must not depend on other callbacks, and must not change weights, order or random
    streams.
    """

    def check(self, trainer: BaseTrainer) -> None:
        """Raise ConfigError for settings that cannot work, before the run has a folder."""

    def on_start(self, trainer: BaseTrainer) -> None:
        """Run once before the first step; on resume, after the state is restored."""

    def on_epoch_start(self, trainer: BaseTrainer) -> None:
        """Run before the first step of an epoch, after the trainer's own ``begin_epoch``.

        Like ``begin_epoch``, it is called again when a run resumes within an epoch, for the checks
        before training (without ``trainer.folder`` and before ``on_start``) and for a test.
        """

    def on_step_end(self, trainer: BaseTrainer) -> None:
        """Run after each optimizer step; do not wait for the device here."""

    def on_epoch_end(self, trainer: BaseTrainer, values: Mapping[str, float]) -> None:
        """Run after validation, with the values that are logged."""

    def on_end(self, trainer: BaseTrainer) -> None:
        """Run once when training ends or is stopped."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save: plain data and tensors."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state that ``state_dict`` returned."""


class MemoryReport(Callback):
    """Logs peak memory after each of the first epochs."""

    def __init__(self, epochs: int = 1) -> None:
        self.epochs = epochs

    def on_epoch_end(self, trainer: BaseTrainer, values: Mapping[str, float]) -> None:
        epoch = trainer.progress.epoch + 1
        if epoch <= self.epochs:
            log.info(f"memory after epoch {epoch}: {values['memory_mb']:.0f} MB")


class ImageSamples(Callback):
    """Writes the first input images to TensorBoard once, as the model receives them."""

    def __init__(self, n_images: int = 16) -> None:
        self.n_images = n_images

    def on_start(self, trainer: BaseTrainer) -> None:
        with isolated_random_state(0):
            batch = next(iter(trainer.train_loader.batches(0, 1)))
        images = next(iter(inputs_of(batch, trainer.config["batch"])[0]), None)
        if isinstance(images, torch.Tensor) and images.dim() == 4 and images.size(1) in (1, 3):
            images = images[: self.n_images].detach().float().cpu()
            trainer.writers.add_images("inputs", stretch(images), trainer.progress.step)


class StopAfter(Callback):
    """Stops the run with a saved state after a number of minutes, such as a queue's time limit."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.started = time.monotonic()

    def on_step_end(self, trainer: BaseTrainer) -> None:
        if time.monotonic() - self.started > 60 * self.minutes:
            trainer.signals.stop = signal.SIGTERM
