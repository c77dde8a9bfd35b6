"""Checks of a trainer before its run has a folder: settings, validation, one training step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch

from base.base_trainer import BaseTrainer
from base.errors import ConfigError, TrainingError
from base.network.new_layers import guard_first_batch
from base.run.batch_checks import check_batches
from base.run.first_step import check_shapes, check_watched_values, restore_weight_reads
from base.run.header import input_text
from base.run.label_checks import check_labels
from base.run.profiler import check_profile
from base.run.step_checks import check_settings, check_step, try_own_step
from base.run.writers import check_writers
from base.system.torch_compat import dynamo_is_imported


@contextmanager
def without_compilation() -> Iterator[None]:
    """Run what ``memory.compile`` or a model of the user's own compiles as it is written.

    Compiling takes its time, and fills torch's folder of compiled code.
    """
    if not dynamo_is_imported():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@without_compilation()
def check(trainer: BaseTrainer) -> None:
    """Try two batches of validation and the names to monitor, before any file is made.

    Raises:
        ConfigError: what the config monitors is not among the values there, or keys contradict.
    """
    check_writers(trainer.config)
    if trainer.settings.early_stop is not None and trainer.settings.monitor == "off":
        text = "there is nothing to stop by while `trainer.monitor` is off"
        raise ConfigError([trainer.config.problem(("trainer", "early_stop"), text)])
    check_profile(trainer)
    check_settings(trainer)
    with trainer.epoch_start.tried(), restore_weight_reads(trainer):
        check_batches(trainer)
        _try_batches(trainer)
        for callback in trainer.callbacks.values():
            callback.check(trainer)


def _try_batches(trainer: BaseTrainer) -> None:
    """Evaluate some batches, and try a training step."""
    values: Mapping[str, float] = {}
    logged: Mapping[str, Any] | None = None
    guard = guard_first_batch(trainer.model, input_text(trainer))
    with guard, check_labels(trainer), check_shapes(trainer):
        if trainer.valid_loader is not None:
            values = trainer.evaluate(trainer.valid_loader, "valid", max_batches=2)
            check_watched_values(trainer, "valid", values)
        elif trainer.has_plain_step:
            values = trainer.evaluate(trainer.train_loader, "train", max_batches=1)
        else:
            with suppress(torch.OutOfMemoryError):  # trainer.on_oom is for the training
                logged = try_own_step(trainer)
        if getattr(trainer.train_loader, "mixes", ""):
            _try_mixed(trainer)
    check_step(trainer, values, logged)


def _try_mixed(trainer: BaseTrainer) -> None:
    """Evaluate a training batch of mixed samples, whose targets are shares of classes.

    Raises:
        TrainingError: a loss, or a metric that training batches are for, cannot take such targets.
    """
    metrics = trainer.state.valid_metrics
    if not trainer.settings.train_metrics:
        trainer.state.valid_metrics = {}
    try:
        trainer.evaluate(trainer.train_loader, "train", max_batches=1)
    except TrainingError as error:
        text = f"targets mixed by {trainer.train_loader.mixes} are shares of classes"
        advice = "`trainer: {train_metrics: false}` leaves the metrics to validation"
        raise TrainingError(f"{error} ({text}, (sample, class); {advice})") from error
    finally:
        trainer.state.valid_metrics = metrics
