"""Callbacks: side jobs that change neither the numbers nor the order of a run.

What changes them (early stop, the moving average, saving) is a plain line of the loop.
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
    """Five points of a run; override those that you need.

    A callback must not know its siblings and must leave weights, order and random streams alone.
    """

    def check(self, trainer: BaseTrainer) -> None:
        """Raise ConfigError for what cannot work, before a folder is made; change nothing."""

    def on_start(self, trainer: BaseTrainer) -> None:
        """Run once before the first step, after a resume."""

    def on_epoch_start(self, trainer: BaseTrainer) -> None:
        """Run before the first step of an epoch, after the trainer's own ``begin_epoch``.

        As that method, it is called again where a run resumes within an epoch, before what is tried
        ahead of training (by then there is no folder, and was no ``on_start``), and for a test.
        """

    def on_step_end(self, trainer: BaseTrainer) -> None:
        """Run after each step of the optimizer; must not wait for the device."""

    def on_epoch_end(self, trainer: BaseTrainer, values: Mapping[str, float]) -> None:
        """Run after validation, with the values that go to the log."""

    def on_end(self, trainer: BaseTrainer) -> None:
        """Run once when training is over or was stopped."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs: plain data and tensors."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""


class MemoryReport(Callback):
    """Logs the peak of device memory after each of the first epochs."""

    def __init__(self, epochs: int = 1) -> None:
        self.epochs = epochs

    def on_epoch_end(self, trainer: BaseTrainer, values: Mapping[str, float]) -> None:
        epoch = trainer.progress.epoch + 1
        if epoch <= self.epochs:
            log.info(f"memory after epoch {epoch}: {values['memory_mb']:.0f} MB")


class ImageSamples(Callback):
    """Writes the first input images of the run to TensorBoard, once: what the model really sees."""

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
    """Asks for a stop with a saved state after so many minutes, as a queue's time limit does."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.started = time.monotonic()

    def on_step_end(self, trainer: BaseTrainer) -> None:
        if time.monotonic() - self.started > 60 * self.minutes:
            trainer.signals.stop = signal.SIGTERM
