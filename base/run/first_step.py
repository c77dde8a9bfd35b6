"""What is checked in the first batches: modules made in forward, shapes that would broadcast."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from base.errors import TrainingError
from base.network.new_layers import guard_first_batch
from base.network.shape_errors import is_compiled
from base.run.weight_use import noted_losses, warn_of_unused
from base.training.monitor import check_watched
from base.training.shape_agreement import BroadcastError, ShapeAgreement, in_words

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")


@contextmanager
def agreeing_shapes(trainer: BaseTrainer) -> Iterator[ShapeAgreement]:
    """Refuse outputs and targets that would broadcast, in losses, metrics and a trainer's steps.

    Meant for the first batches, as each function of torch is looked at. Of a compiled model only
    the losses and metrics are, not what else its trainer computes in a step.

    Raises:
        ConfigError: names the loss or the metric, both shapes, and what to change.
        TrainingError: likewise, for what a trainer of your own computes without either.
    """
    agreement = ShapeAgreement()
    metrics = (*trainer.metrics.values(), *trainer.state.valid_metrics.values())
    watched = [*trainer.experiment.all_losses.values(), *metrics]
    steps = () if is_compiled(trainer.model) else ("train_step", "valid_step")
    try:
        for each in watched:
            each.agreement = agreement
        for name in steps:
            setattr(trainer, name, agreement.of_step(getattr(trainer, name)))
        with agreement.around_model(trainer.model) if steps else nullcontext():
            yield agreement
    except BroadcastError as error:
        raise TrainingError(in_words(error)) from error
    finally:
        for each in watched:
            each.agreement = None
        for name in steps:
            delattr(trainer, name)  # the class has its own


@contextmanager
def guard_first_step(trainer: BaseTrainer) -> Iterator[None]:
    """Catch in the first training step what would go wrong, or silently wrong, in each."""
    with (
        guard_first_batch(trainer.model),
        agreeing_shapes(trainer) as agreement,
        noted_losses(trainer) as returned,
    ):
        yield
        warn_of_unused(trainer, returned, trainer.has_plain_step, agreement.called)


def check_first_step(trainer: BaseTrainer, values: Mapping[str, Any]) -> None:
    """Check what the first step has logged, and what it has left unused.

    Raises:
        ConfigError: what the config monitors is not among the values.
    """
    check_watched_values(trainer, "train", values)
    is_weighted = any(loss.was_weighted for loss in trainer.losses.values())
    if trainer.config["batch"]["weight"] is not None and not is_weighted:
        text = "batch.weight: %s called none of `self.losses` with its batch, so the samples of a"
        log.warning(f"{text} batch count alike", type(trainer).__name__)
    _warn_of_iterators(trainer)


def check_watched_values(trainer: BaseTrainer, phase: str, values: Mapping[str, Any]) -> None:
    """Make sure that what the config monitors is among the values of this phase or of another."""
    phases = {"train"} if trainer.valid_loader is None else {"train", "valid"}
    others = phases - {phase}
    check_watched(trainer.config, trainer.monitor, trainer.schedules, values, others)


def _warn_of_iterators(trainer: BaseTrainer) -> None:
    """Name the attributes that a trainer iterates over, which a resume would start again."""
    saved = set(map(id, trainer.stateful.values()))
    for name, value in vars(trainer).items():
        is_iterator = isinstance(value, Iterator) and not isinstance(value, io.IOBase)
        if is_iterator and id(value) not in saved:
            text = "%s.%s is an iterator, which no checkpoint holds: a resumed run starts it again "
            text += "and differs; EndlessBatches continues (docs/from-pytorch-template.md, "
            log.warning(text + "need 13)", type(trainer).__name__, name)
