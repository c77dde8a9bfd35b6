"""Checks of the first batches: layers created in forward, broadcast shapes, unused weights."""

from __future__ import annotations

import inspect
import io
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor

from base.errors import TrainingError
from base.network.bf16_gradients import refuse_uninitialized_gradients
from base.network.new_layers import guard_first_batch
from base.network.shape_errors import is_compiled
from base.run.rank_checks import warn_of_other_state
from base.training.losses import Ramp, WeightedLoss
from base.training.progress import check_monitored
from base.training.shape_agreement import BroadcastError, ShapeAgreement, error_text

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")

READS_CONFIG = re.compile(r"""config\s*(\[|\.get\()\s*["']loss["']""")
MAY_CALL = re.compile(r"\.losses\b|\.compute_losses\(|super\(\)\.train_step")
READ_WEIGHT = "`self.losses[NAME].weight_at(self.progress.step)`"


@contextmanager
def guard_first_step(trainer: BaseTrainer) -> Iterator[None]:
    """Check the first training step for errors that every step would repeat, loud or silent."""
    with (
        guard_first_batch(trainer.model),
        refuse_uninitialized_gradients(trainer.model),
        check_shapes(trainer) as agreement,
        record_losses(trainer) as returned,
    ):
        yield
        warn_about_unused_weights(trainer, returned, trainer.has_plain_step, agreement.called)


def check_first_step(trainer: BaseTrainer, values: Mapping[str, Any]) -> None:
    """Check what the first step logged, and what it left unused.

    Raises:
        ConfigError: the config monitors a value that the step did not log.
    """
    check_watched_values(trainer, "train", values)
    is_weighted = any(loss.was_weighted for loss in trainer.losses.values())
    if trainer.config["batch"]["weight"] is not None and not is_weighted:
        text = "batch.weight: %s called none of `self.losses` with its batch, so all samples of"
        log.warning(f"{text} a batch have the same weight", type(trainer).__name__)
    _warn_about_iterators(trainer)
    if trainer.world.is_active:
        is_sharded = trainer.config["distributed"]["strategy"] == "fsdp"
        warn_of_other_state(trainer.stateful, trainer.world, is_sharded)


def check_watched_values(trainer: BaseTrainer, phase: str, values: Mapping[str, Any]) -> None:
    """Check that every monitored value belongs to this phase or to another one."""
    phases = {"train"} if trainer.valid_loader is None else {"train", "valid"}
    others = phases - {phase}
    check_monitored(trainer.config, trainer.monitor, trainer.schedules, values, others)


@contextmanager
def check_shapes(trainer: BaseTrainer) -> Iterator[ShapeAgreement]:
    """Raise an error for outputs and targets that would broadcast, in losses, metrics and steps.

    It inspects every torch function, so use it for the first batches only. For a compiled model
    it inspects losses and metrics alone.

    Raises:
        ConfigError: names the loss or the metric, both shapes, and what to change.
        TrainingError: the same, for what a custom trainer computes itself.
    """
    agreement = ShapeAgreement()
    metrics = (*trainer.metrics.values(), *trainer.training_state.valid_metrics.values())
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
        raise TrainingError(error_text(error)) from error
    finally:
        for each in watched:
            each.agreement = None
        for name in steps:
            delattr(trainer, name)  # the class has its own


@contextmanager
def restore_weight_reads(trainer: BaseTrainer) -> Iterator[None]:
    """Discard reads of loss weights in this block: a check is no use of a weight."""
    before = {name: loss.weight_was_read for name, loss in trainer.losses.items()}
    try:
        yield
    finally:
        for name, was_read in before.items():
            trainer.losses[name].weight_was_read = was_read


@contextmanager
def record_losses(trainer: BaseTrainer) -> Iterator[dict[str, Any]]:
    """Record what ``compute_losses`` returns in this block, in the dict that is yielded."""
    recorded: dict[str, Any] = {}
    compute, attributes = trainer.compute_losses, vars(trainer)
    former = attributes.get("compute_losses")

    def compute_losses(outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = compute(outputs, batch)
        recorded.update(losses if isinstance(losses, Mapping) else {"loss": losses})
        return losses

    attributes["compute_losses"] = compute_losses
    try:
        yield recorded
    finally:
        del attributes["compute_losses"]  # the class has its own
        if former is not None:
            attributes["compute_losses"] = former
        recorded.clear()


def warn_about_unused_weights(
    trainer: BaseTrainer, returned: dict[str, Any], has_plain_step: bool, called: Mapping[str, Any]
) -> None:
    """Warn once about unread loss weights, and about terms that are not minimised.

    Args:
        returned: the losses that ``compute_losses`` returned.
        called: the value of each loss that the step called, by its place in the config.
    """
    losses = trainer.losses
    source = _source(type(trainer))
    # A custom step may call a loss only at some steps, such as every fifth.
    may_call_later = not has_plain_step and MAY_CALL.search(source) is not None
    unused = {
        name: loss
        for name, loss in losses.items()
        if loss.is_weighted
        and not loss.weight_was_read
        and not (may_call_later and loss.selection.where not in called)
    }
    if unused and not READS_CONFIG.search(source):
        _warn_about_weights(trainer, unused, has_plain_step)
    if has_plain_step and "loss" in losses and not losses["loss"].weight_was_read:
        is_alone = returned.get("loss") is called.get(losses["loss"].selection.where, ...)
        if is_alone:  # the trainer did not sum losses under this name
            _warn_about_terms(trainer, returned)
    for loss in losses.values():
        loss.weight_was_read = True  # warn once only


def _warn_about_weights(
    trainer: BaseTrainer, unused: dict[str, WeightedLoss], has_plain_step: bool
) -> None:
    name, number = type(trainer).__name__, list(trainer.losses).index(next(iter(unused)))
    shown = ", ".join(f"{key} ({_shown(loss)})" for key, loss in unused.items())
    if has_plain_step:
        why = f'{name}.compute_losses returns its own "loss", which is minimised without weights; '
        why += 'without a "loss" in its result, the losses are weighted and summed'
    else:
        why = f"{name}.train_step does not read them"
    text = f"weights of losses are not used: {shown}: {why}; {READ_WEIGHT} is the weight of a loss"
    log.warning("%s", trainer.config.problem(("loss", number, "weight"), text))


def _warn_about_terms(trainer: BaseTrainer, returned: dict[str, Any]) -> None:
    """Warn if terms accompany a loss that the config names "loss", which is taken for the sum."""
    others = [
        name
        for name, value in returned.items()
        if name != "loss" and isinstance(value, Tensor) and value.requires_grad
    ]
    if others:
        text = f'{", ".join(others)}: logged but not minimised, as "loss" is taken for the sum;'
        text += " to add these, give the config's loss another name: `loss: {..., name: main}`"
        log.warning("%s", trainer.config.problem(("loss",), text))


def _shown(loss: WeightedLoss) -> str:
    weight = loss.weight
    return f"{weight.start:g} to {weight.end:g}" if isinstance(weight, Ramp) else f"{weight:g}"


def _source(cls: type[Any]) -> str:
    """Return the source of a trainer's class and of its base classes outside the engine."""
    texts = []
    for each in cls.__mro__:
        if each.__module__.partition(".")[0] not in ("base", "builtins"):
            try:
                texts.append(inspect.getsource(each))
            except (OSError, TypeError):  # defined in an interpreter
                continue
    return "\n".join(texts)


def _warn_about_iterators(trainer: BaseTrainer) -> None:
    """Warn about attributes that are iterators: a resumed run starts them again."""
    saved = set(map(id, trainer.stateful.values()))
    for name, value in vars(trainer).items():
        is_iterator = isinstance(value, Iterator) and not isinstance(value, io.IOBase)
        if is_iterator and id(value) not in saved:
            text = "%s.%s is an iterator, which no checkpoint holds: a resumed run starts it again "
            text += "and differs; EndlessBatches continues (docs/from-pytorch-template.md, "
            log.warning(text + "need 13)", type(trainer).__name__, name)
