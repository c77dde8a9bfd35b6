"""A warning, at the first batch, where a trainer leaves the config's weights of losses unused."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from base.training.losses import Ramp, WeightedLoss

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")

READS_CONFIG = re.compile(r"""config\s*(\[|\.get\()\s*["']loss["']""")
MAY_CALL = re.compile(r"\.losses\b|\.compute_losses\(|super\(\)\.train_step")
TO_READ = "`self.losses[NAME].weight_at(self.progress.step)`"


@contextmanager
def reads_put_back(trainer: BaseTrainer) -> Iterator[None]:
    """Let what is read within, of the weights of losses, not count as a use of them."""
    before = {name: loss.weight_was_read for name, loss in trainer.losses.items()}
    try:
        yield
    finally:
        for name, was_read in before.items():
            trainer.losses[name].weight_was_read = was_read


@contextmanager
def noted_losses(trainer: BaseTrainer) -> Iterator[dict[str, Any]]:
    """Note what ``compute_losses`` returns within: a dict that it fills."""
    noted: dict[str, Any] = {}
    compute, attributes = trainer.compute_losses, vars(trainer)
    former = attributes.get("compute_losses")

    def compute_losses(outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = compute(outputs, batch)
        noted.update(losses if isinstance(losses, Mapping) else {"loss": losses})
        return losses

    attributes["compute_losses"] = compute_losses
    try:
        yield noted
    finally:
        del attributes["compute_losses"]  # the class has its own
        if former is not None:
            attributes["compute_losses"] = former
        noted.clear()


def warn_of_unused(
    trainer: BaseTrainer, returned: dict[str, Any], has_plain_step: bool, called: Mapping[str, Any]
) -> None:
    """Warn, once, of weights that the first step has not read, and of terms that it leaves out.

    Args:
        returned: what ``compute_losses`` has.
        called: what each loss that the step has called gave, by its place in the config.
    """
    losses = trainer.losses
    source = _source(type(trainer))
    # A step of one's own may call a loss now and then, as that of one network among several.
    may_come = not has_plain_step and MAY_CALL.search(source) is not None
    unused = {
        name: loss
        for name, loss in losses.items()
        if loss.is_weighted
        and not loss.weight_was_read
        and not (may_come and loss.compared.where not in called)
    }
    if unused and not READS_CONFIG.search(source):
        _warn_of_weights(trainer, unused, has_plain_step)
    if has_plain_step and "loss" in losses and not losses["loss"].weight_was_read:
        is_alone = returned.get("loss") is called.get(losses["loss"].compared.where, ...)
        if is_alone:  # not a sum that the trainer calls so
            _warn_of_terms(trainer, returned)
    for loss in losses.values():
        loss.weight_was_read = True  # said, or of no interest from here on


def _warn_of_weights(
    trainer: BaseTrainer, unused: dict[str, WeightedLoss], has_plain_step: bool
) -> None:
    name, number = type(trainer).__name__, list(trainer.losses).index(next(iter(unused)))
    shown = ", ".join(f"{key} ({_shown(loss)})" for key, loss in unused.items())
    if has_plain_step:
        why = f'{name}.compute_losses returns a "loss" of its own, which is minimised as it is; '
        why += 'without a "loss" among them the losses that it returns are weighted and summed'
    else:
        why = f"{name}.train_step does not read them"
    text = f"weights of losses are not used: {shown}: {why}; {TO_READ} is a loss's weight"
    log.warning("%s", trainer.config.problem(("loss", number, "weight"), text))


def _warn_of_terms(trainer: BaseTrainer, returned: dict[str, Any]) -> None:
    """Warn where a term is added to a lone loss that the config calls "loss", as the sum is."""
    others = [
        name
        for name, value in returned.items()
        if name != "loss" and isinstance(value, Tensor) and value.requires_grad
    ]
    if others:
        text = f'{", ".join(others)}: not minimised, only logged, as "loss" is taken to be the sum;'
        text += " to add to it, give the config's loss another name: `loss: {..., name: main}`"
        log.warning("%s", trainer.config.problem(("loss",), text))


def _shown(loss: WeightedLoss) -> str:
    weight = loss.weight
    return f"{weight.start:g} to {weight.end:g}" if isinstance(weight, Ramp) else f"{weight:g}"


def _source(cls: type[Any]) -> str:
    """Return the text of a trainer's class and of those above it that are not the engine's."""
    texts = []
    for each in cls.__mro__:
        if each.__module__.partition(".")[0] not in ("base", "builtins"):
            try:
                texts.append(inspect.getsource(each))
            except (OSError, TypeError):  # made in an interpreter
                continue
    return "\n".join(texts)
