"""Checks of a trainer before its run has a folder: settings, validation, one training step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from base.base_trainer import BaseTrainer
from base.errors import ConfigError, TrainingError
from base.names.final_methods import final_names
from base.network.compilation import is_never_called
from base.network.new_layers import guard_first_batch
from base.run.batch_checks import check_batches
from base.run.first_step import check_shapes, check_watched_values, restore_weight_reads
from base.run.header import input_text
from base.run.label_checks import check_labels
from base.run.loaders import missing_test_data
from base.run.model_example import note_example
from base.run.profiler import check_profile
from base.run.step_checks import check_step, try_first_batch
from base.run.writers import check_writers
from base.system.resources import ignored_out_of_memory
from base.system.torch_compat import without_compilation
from base.training.swa import StochasticWeightAverage

log = logging.getLogger("kindling")

NOT_COMPILED = (
    "memory.compile has no effect: %s is compiled as a whole, and the trainer calls only parts of "
    "it. Make the parts networks of `model: {type: Networks}`, or give the model no `forward`: "
    "each of them is compiled then"
)


@without_compilation()
def check(trainer: BaseTrainer) -> None:
    """Check a trainer on a few batches before its run writes any file; restore its state.

    Raises:
        ConfigError: settings contradict each other, or a monitored value is not logged.
        DataError: labels are out of range.
        TrainingError: shapes do not match.
    """
    check_settings(trainer)
    with trainer.world.paused(), trainer.epoch_start.tried(), restore_weight_reads(trainer):
        check_batches(trainer)
        with note_example(trainer.experiment):
            _try_batches(trainer)
        if is_never_called(trainer.model):
            log.warning(NOT_COMPILED, type(trainer.model).__name__)
        for callback in trainer.callbacks.values():
            callback.check(trainer)


def check_settings(trainer: BaseTrainer) -> None:
    """Check the config and the trainer's class, without a batch.

    Raises:
        ConfigError: settings contradict each other, an attribute hides a method of the loop,
            `train_step` trains one network and there are several optimizers, or there is no test
            data.
    """
    check_writers(trainer.config)
    check_profile(trainer)
    if trainer.settings.early_stop is not None and trainer.settings.monitor == "off":
        text = "early stopping needs a value to compare, and `trainer.monitor` is off"
        raise ConfigError([trainer.config.problem(("trainer", "early_stop"), text)])
    name, hidden = type(trainer).__name__, final_names(type(trainer)) & vars(trainer).keys()
    if hidden:
        shown = ", ".join(f"self.{each}" for each in sorted(hidden))
        text = f"{name} sets {shown}, which hides a method that the loop calls: take another name"
        raise ConfigError([trainer.config.problem(("trainer", "type"), text)])
    if len(trainer.optimizers) > 1 and trainer.has_plain_step:
        known = " and ".join(map(repr, trainer.optimizers))
        text = (
            f"{name} trains one network with one optimizer, and here are {known}: name a trainer "
            "whose train_step says which (`self.backward(loss, only=NAME)`, `self.update(NAME)`; "
            "docs/gans.md), or, for other rates in parts of one network, write one `optimizer:` "
            "with `param_groups`"
        )
        raise ConfigError([trainer.config.problem(("optimizers",), text)])
    if isinstance(trainer.ema, StochasticWeightAverage):
        _check_measurable(trainer, trainer.ema)
    if trainer.settings.test and (missing := missing_test_data(trainer.config)):
        text = f"there is no test data: {missing}"
        raise ConfigError([trainer.config.problem(("trainer", "test"), text)])


def _check_measurable(trainer: BaseTrainer, average: StochasticWeightAverage) -> None:
    """Check that `forward` calls the model whose BatchNorm is to be measured."""
    is_own = type(trainer).forward is not BaseTrainer.forward
    if trainer.has_plain_step or is_own or not average.has_norms:
        return
    text = f"it measures BatchNorm's statistics by `forward`, which {type(trainer).__name__} does"
    text += " not define: define it to call the network with BatchNorm, or use `trainer.ema`"
    raise ConfigError([trainer.config.problem(("trainer", "swa"), text)])


def _try_batches(trainer: BaseTrainer) -> None:
    """Evaluate two batches and try a training step."""
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
            with ignored_out_of_memory():  # training handles it, by trainer.on_oom
                logged = try_first_batch(trainer)
        if getattr(trainer.train_loader, "mixes", ""):
            _try_mixed(trainer)
    check_step(trainer, values, logged)


def _try_mixed(trainer: BaseTrainer) -> None:
    """Evaluate a training batch of mixed samples, whose targets are class probabilities.

    Raises:
        TrainingError: a loss or a training metric does not accept such targets.
    """
    metrics = trainer.training_state.valid_metrics
    if not trainer.settings.train_metrics:
        trainer.training_state.valid_metrics = {}
    try:
        trainer.evaluate(trainer.train_loader, "train", max_batches=1)
    except TrainingError as error:
        text = f"targets mixed by {trainer.train_loader.mixes} are class probabilities"
        advice = "`trainer: {train_metrics: false}` computes metrics in validation only"
        raise TrainingError(f"{error} ({text}, (sample, class); {advice})") from error
    finally:
        trainer.training_state.valid_metrics = metrics
