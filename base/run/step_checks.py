"""What a training step would be refused for, and what it logs: known before a folder is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from base.base_trainer import BaseTrainer
from base.data.batch import cut, to_device
from base.errors import ConfigError, KindlingError
from base.names.final_methods import final_names
from base.network.shape_errors import is_compiled
from base.run.first_step import check_watched_values
from base.run.loaders import missing_test_data
from base.training.trials import kept_weights, trial

N_SAMPLES = 2  # of a batch on which it is seen whether the loss has a gradient


def check_settings(trainer: BaseTrainer) -> None:
    """Refuse what the config and the trainer's class alone show not to work.

    Raises:
        ConfigError: an attribute hides a method of the loop, several optimizers for a step that
            trains one, or a test without test data.
    """
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
    if trainer.settings.test and (missing := missing_test_data(trainer.config)):
        text = f"there is no test data: {missing}"
        raise ConfigError([trainer.config.problem(("trainer", "test"), text)])


def check_step(
    trainer: BaseTrainer, values: Mapping[str, Any], logged: Mapping[str, Any] | None = None
) -> None:
    """Try what a training step does, on a batch, and what is watched of what it logs.

    Any error that is not ours will show in the training itself, with its traceback.

    Args:
        values: what the evaluation of some batches has logged.
        logged: what a training step has, where one was tried already.

    Raises:
        ConfigError: no gradient reaches the model, or what is watched will not be logged.
        KindlingError: a step of one's own is refused, as for an optimizer that is not there.
    """
    with suppress(torch.OutOfMemoryError):  # trainer.on_oom is for the training
        try:
            if logged is None:
                logged = _plain_step(trainer) if trainer.has_plain_step else try_own_step(trainer)
        except KindlingError:
            raise
        except Exception:
            return
    if logged is not None:
        check_watched_values(trainer, "train", _names_in_training(trainer, logged, values))


def try_own_step(trainer: BaseTrainer) -> dict[str, Any]:
    """Run a `train_step` of one's own on the first batch, without an update; all is put back."""
    batch = to_device(next(trainer.train_loader.batches(0, 1)), trainer.device)
    trainer.epoch_start.begin()
    with kept_weights(trainer.model, trainer.optimizers.values()), trial(trainer.state, trainer):
        return trainer.try_step(batch)


def _plain_step(trainer: BaseTrainer) -> dict[str, Any] | None:
    """Compute the losses of a few samples in training mode, and see that they have a gradient."""
    if is_compiled(trainer.model):
        return None  # for batches of another size it would be compiled once more
    is_like_valid = type(trainer).valid_step is BaseTrainer.valid_step
    has_valid = trainer.valid_loader is not None and is_like_valid
    loader = trainer.valid_loader if has_valid else trainer.train_loader
    try:
        batch = next(loader.batches(0, 1))
        n_samples = trainer.window.count(batch, 0)
        with suppress(KindlingError):  # one that cannot be cut is taken whole
            batch = cut(batch, 0, min(N_SAMPLES, n_samples), n_samples)
        batch = to_device(batch, trainer.device)
        trainer.epoch_start.begin()
        with trial(trainer.state, trainer), trainer.precision.autocast():
            losses = trainer.compute_losses(trainer.forward(batch), batch)
            values = trainer.total(losses)
    except KindlingError:
        return None  # so few samples may be too few for a loss
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    if trained and not _has_gradient(values["loss"]):
        shown = ", ".join(map(repr, losses)) if isinstance(losses, Mapping) else "the loss"
        text = f"no gradient reaches the model from {shown}: its value is not computed from the"
        text += " outputs in a differentiable way (argmax, round, detach, item and numpy are not)"
        raise ConfigError([trainer.config.problem(("loss",), text)])
    return values


def _has_gradient(loss: Any) -> bool:
    return isinstance(loss, Tensor) and loss.requires_grad


def _names_in_training(
    trainer: BaseTrainer, logged: Iterable[str], values: Iterable[str]
) -> dict[str, None]:
    """Return the names that training logs, from those that a step and an evaluation have given."""
    names = [f"train/{name}" for name in logged]
    names += [
        f"train/{each.prefix}grad_norm"
        for each in trainer.steppers.values()
        if each.clip_norm is not None
    ]
    beginnings = ["train/grad_norm/", "train/grad_cosine/"] * bool(trainer.settings.loss_gradients)
    if trainer.settings.train_metrics:
        rests = (name.partition("/")[2] for name in values)
        evaluated = [rest for rest in rests if rest.partition("/")[0] in trainer.metrics]
        names += [f"train/{name}" for name in evaluated or trainer.metrics]
        beginnings += [f"train/{name}/" for name in trainer.metrics]  # by class, for example
    schedules = (schedule.monitor or "" for schedule in trainer.schedules.values())
    watched = [trainer.monitor.key, *schedules]
    names += [key for key in watched if key.startswith(tuple(beginnings))]
    return dict.fromkeys(names)
