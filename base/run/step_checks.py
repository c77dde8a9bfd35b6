"""Checks of one training step: its gradient, and the names that it logs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from base.base_trainer import BaseTrainer
from base.data.batch import cut, to_device
from base.errors import ConfigError, KindlingError
from base.network.shape_errors import is_compiled
from base.run.first_step import check_watched_values
from base.system.resources import ignored_out_of_memory
from base.training.loss_terms import refuse_unnamed
from base.training.trials import kept_weights, trial

N_SAMPLES = 2  # of the batch that shows whether the loss has a gradient


def check_step(
    trainer: BaseTrainer, values: Mapping[str, Any], logged: Mapping[str, Any] | None = None
) -> None:
    """Try a training step on one batch; check that it logs every value that is monitored.

    Errors of user code are ignored here: training raises them again, with their traceback.

    Args:
        values: the values of an evaluation.
        logged: the values of a training step, if one was tried already.

    Raises:
        ConfigError: no gradient reaches the model, or a monitored value is not logged.
        KindlingError: a custom `train_step` is invalid, such as one that names a missing optimizer.
    """
    with ignored_out_of_memory():  # training handles it, by trainer.on_oom
        try:
            if logged is None:
                logged = (
                    _plain_step(trainer) if trainer.has_plain_step else try_first_batch(trainer)
                )
        except KindlingError:
            raise
        except Exception:
            return
    if logged is not None:
        check_watched_values(trainer, "train", names_in_training(trainer, logged, values))


def try_training_step(trainer: BaseTrainer, batch: Any) -> dict[str, Any]:
    """Run `train_step` on a batch without updates; restore the whole state.

    Raises:
        TrainingError: it does not return a dict.
    """
    batch = to_device(batch, trainer.device)
    trainer.epoch_start.begin()
    with (
        kept_weights(trainer.model, trainer.optimizers.values()),
        trial(trainer.training_state, trainer),
    ):
        values = trainer.try_step(batch)
    refuse_unnamed(values, "what `train_step` returns")
    return values


def try_first_batch(trainer: BaseTrainer) -> dict[str, Any]:
    """Try a training step on the first batch."""
    return try_training_step(trainer, next(trainer.train_loader.batches(0, 1)))


def _plain_step(trainer: BaseTrainer) -> dict[str, Any] | None:
    """Compute the losses of a few samples in training mode; check that they have a gradient."""
    if is_compiled(trainer.model):
        return None  # a batch of another size would compile it again
    is_like_valid = type(trainer).valid_step is BaseTrainer.valid_step
    has_valid = trainer.valid_loader is not None and is_like_valid
    loader = trainer.valid_loader if has_valid else trainer.train_loader
    try:
        batch = next(loader.batches(0, 1))
        n_samples = trainer.window.count(batch, 0)
        with suppress(KindlingError):  # a batch that cannot be cut is used whole
            batch = cut(batch, 0, min(N_SAMPLES, n_samples), n_samples)
        batch = to_device(batch, trainer.device)
        trainer.epoch_start.begin()
        with trial(trainer.training_state, trainer), trainer.precision.autocast():
            losses = trainer.compute_losses(trainer.forward(batch), batch)
            values = trainer.total(losses)
    except KindlingError:
        return None  # a loss may need more samples
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    if trained and not _has_gradient(values["loss"]):
        shown = ", ".join(map(repr, losses)) if isinstance(losses, Mapping) else "the loss"
        text = f"no gradient reaches the model from {shown}: its value is not computed from the"
        text += " outputs in a differentiable way (argmax, round, detach, item and numpy are not)"
        raise ConfigError([trainer.config.problem(("loss",), text)])
    return values


def _has_gradient(loss: Any) -> bool:
    return isinstance(loss, Tensor) and loss.requires_grad


def names_in_training(
    trainer: BaseTrainer, logged: Iterable[str], values: Iterable[str]
) -> dict[str, None]:
    """Return the names that training logs, from those of one step and of an evaluation."""
    names = [f"train/{name}" for name in logged]
    names += [
        f"train/{each.prefix}grad_norm"
        for each in trainer.steppers.values()
        if each.clip_norm is not None
    ]
    prefixes = ["train/grad_norm/", "train/grad_cosine/"] * bool(trainer.settings.loss_gradients)
    if trainer.settings.train_metrics:
        evaluated = (name.partition("/")[2] for name in values)
        of_metrics = [name for name in evaluated if name.partition("/")[0] in trainer.metrics]
        names += [f"train/{name}" for name in of_metrics or trainer.metrics]
        prefixes += [f"train/{name}/" for name in trainer.metrics]  # by class, for example
    schedules = (schedule.monitor or "" for schedule in trainer.schedules.values())
    watched = [trainer.monitor.key, *schedules]
    names += [key for key in watched if key.startswith(tuple(prefixes))]
    return dict.fromkeys(names)
