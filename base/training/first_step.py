"""What is checked in the first batches: modules made in forward, shapes that would broadcast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from base.errors import TrainingError
from base.network.new_layers import guard_first_batch
from base.network.shape_errors import is_compiled
from base.training.shape_agreement import BroadcastError, ShapeAgreement, in_words
from base.training.weight_use import noted_losses, warn_of_unused

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


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
    metrics = (*trainer.metrics.values(), *trainer.valid_metrics.values())
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
def guard_first_step(trainer: BaseTrainer, has_plain_step: bool) -> Iterator[None]:
    """Catch in the first training step what would go wrong, or silently wrong, in each.

    Args:
        has_plain_step: whether the trainer's step is the one of `BaseTrainer`.
    """
    with (
        guard_first_batch(trainer.model),
        agreeing_shapes(trainer) as agreement,
        noted_losses(trainer) as returned,
    ):
        yield
        warn_of_unused(trainer, returned, has_plain_step, agreement.called)
