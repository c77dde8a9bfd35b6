"""The named values that a step and an epoch give: losses with their sum, means, metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from base.config.normal_form import optimizer_keys
from base.data.batch import ids_of
from base.errors import ConfigError, Problem, TrainingError, nearest
from base.training.denominators import SUM, counted_by, losses_of_samples, mark, mark_sum, terms_of
from base.training.loss_gradients import due_gradients
from base.training.loss_terms import flat, is_of_terms, refuse_many
from base.training.losses import WeightedLoss, lone_total, terms, weigh_terms
from logger.meters import TERM, Meters

log = logging.getLogger("kindling")

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


def with_total(
    losses: Mapping[str, Any], weighted: Mapping[str, WeightedLoss], step: int | None = None
) -> dict[str, Any]:
    """Add ``"loss"``, the sum by the config's weights, unless it is there already.

    Args:
        step: how many steps were made; weights that move are then told as ``weight/<name>``. None
            takes their final values, so that validations of one run can be compared.
    """
    lone = lone_total(losses, weighted, step)
    if lone is not None:
        return {"loss": lone}
    found = flat(losses, weighted)
    if "loss" in found:  # the trainer's own
        refuse_many("loss", found["loss"].value)
        return {name: term.value for name, term in found.items()}
    summed = {name: term for name, term in found.items() if term.is_minimised}
    if not summed:
        raise TrainingError("there is no loss to minimise: name one in the config's `loss:`")
    parts = weigh_terms(summed, weighted, step)
    first, *others = parts.values()
    values: dict[str, Any] = {"loss": sum(others, start=first)}
    if len(summed) > 1:
        # One of weight 0 is no part of the sum, but its samples count in the mean of an epoch.
        all_terms = {k: parts[k] if k in parts else _zero(it.value) for k, it in summed.items()}
        total = values["loss"] if others else first.view(())  # not the loss itself
        values = {"loss": mark_sum(total, all_terms)}
    for name, term in found.items():
        if len(summed) > 1 or not term.is_minimised or term.is_named:
            values[name] = term.value
    for name, loss in weighted.items() if step is not None else ():
        is_used = loss.is_moving and any(it.loss == name for it in summed.values())
        if is_used:
            values[f"weight/{name}"] = loss.weight_at(step)
    return values


def _zero(loss: Tensor) -> Tensor:
    return mark(torch.zeros_like(loss, requires_grad=False), counted_by(loss))


def weigh(
    trainer: BaseTrainer, losses: Mapping[str, Any]
) -> tuple[dict[str, Any], Tensor | list[Tensor]]:
    """Return what a step logs of its losses and what it minimises: their sum, or each by itself."""
    step = trainer.progress.step
    values = with_total(losses, trainer.experiment.all_losses, step)
    values.update(due_gradients(trainer, losses))
    if trainer.settings.backward == "sum":
        return values, values["loss"]
    parts = terms(losses, trainer.experiment.all_losses, step).values()
    return values, [part for part in parts if part.requires_grad] or values["loss"]


def passes(losses: Any) -> list[Tensor]:
    """Return what each backward pass is of: one of several losses, or the sum of one's terms."""
    if is_of_terms(losses):
        return [with_total(losses, {})["loss"]]
    return [with_total(each, {})["loss"] if is_of_terms(each) else each for each in losses]


class StepValues:
    """The values of a step, without the graph behind them, which would keep activations alive.

    Args:
        values: by name, as a step returns them; the terms of a loss are a dict among them.
        n_samples: what they are means of, unless they say it themselves.
    """

    def __init__(self, values: Mapping[str, Any], n_samples: int) -> None:
        self.values: dict[str, Any] = {}
        self.means: list[tuple[str, Any, Any]] = []
        """Name, value and denominator (None for a sum); a sum of losses has one for each term."""
        if any(not isinstance(value, Tensor) and is_of_terms(value) for value in values.values()):
            values = {name: term.value for name, term in flat(values, ()).items()}
        self.losses_of_samples = losses_of_samples(values.get("loss"))
        """What was minimised for each sample, where a sampler learns from it."""
        for name, value in values.items():
            self.values[name] = kept = value.detach() if isinstance(value, Tensor) else value
            terms = terms_of(value)
            if terms is None:
                self.means.append((name, kept, _count(value, n_samples)))
            else:
                self.means += [
                    (f"{name}{TERM}{key}", term.detach(), _count(term, n_samples))
                    for key, term in terms.items()
                ]

    def add_to(self, meters: Meters) -> None:
        """Add the values to running means."""
        for mean in self.means:
            meters.add(*mean)


def _count(value: Any, n_samples: int) -> Any:
    counted = counted_by(value)
    if counted is None:
        return n_samples
    return None if counted.number is SUM else counted.number


def values_of(parts: Sequence[StepValues], device: torch.device) -> dict[str, Any]:
    """Return a batch's values from those of its parts; nothing is waited for."""
    if len(parts) == 1:
        return parts[0].values
    sums = Meters(device)
    for part in parts:
        part.add_to(sums)
    return sums.means()


def note_losses(trainer: BaseTrainer, part: Any, values: StepValues) -> None:
    """Hand the losses of a part's samples to the sampler that learns from them, if there is one.

    Raises:
        TrainingError: what the step minimised does not say what it is for each sample.
    """
    state = trainer.experiment.sampler_state
    if state is None or not state.wants_losses:
        return
    if values.losses_of_samples is None:
        name = type(state.sampler).__name__
        text = f"{name} learns from the loss of each sample, but the 'loss' of this step has none:"
        text += " it must be one of `self.losses`, called with `batch=batch`, or their sum by"
        raise TrainingError(f"{text} `compute_losses`")
    state.note(ids_of(part, trainer.config["batch"]), values.losses_of_samples)


def warn_unweighted(trainer: BaseTrainer) -> None:
    """Say, after a first step, where a trainer of one's own left the weights of samples out."""
    is_used = any(loss.was_weighted for loss in trainer.losses.values())
    if trainer.config["batch"]["weight"] is not None and not is_used:
        text = "batch.weight: %s called none of `self.losses` with its batch, so the samples of a"
        log.warning(f"{text} batch count alike", type(trainer).__name__)


def summarise(phase: str, meters: Meters, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the means and metrics of a phase as ``train/loss``, ``valid/accuracy``, ...

    A metric of several numbers gives ``valid/recall/<class>``; a table (a confusion matrix) is no
    number and is left to the test report.

    Raises:
        ConfigError: a metric has the name of a loss.
    """
    values = {f"{phase}/{name}": value for name, value in meters.compute().items()}
    for name, metric in metrics.items():
        if f"{phase}/{name}" in values:
            text = f"a loss, or a value of the trainer, is called {name!r} too; give another name"
            raise ConfigError([Problem(f"{metric.compared.where}.name", text)])
        result = metric.compute()
        if isinstance(result, Mapping):
            values.update({f"{phase}/{name}/{key}": float(part) for key, part in result.items()})
        elif not isinstance(result, Tensor) or result.numel() == 1:
            values[f"{phase}/{name}"] = float(result)
    return values


def check_watched(trainer: BaseTrainer, phase: str, log: Mapping[str, Any]) -> None:
    """Make sure that what the config monitors is among the values of this phase or of another.

    Raises:
        ConfigError: a name is not among them, or a schedule that follows a value has none.
    """
    faults: list[Problem] = []
    watched: dict[tuple[str, ...], str] = {("trainer", "monitor"): trainer.monitor.key}
    for name, schedule in trainer.schedules.items():
        keys = (*optimizer_keys(trainer.config, name, "lr_scheduler"), "monitor")
        watched[keys] = schedule.monitor or ""
        if schedule.monitor == "":
            text = "ReduceLROnPlateau has nothing to follow while `trainer.monitor` is off; name it"
            faults.append(trainer.config.problem(keys, f"{text}, as in `monitor: valid/loss`"))
    others = {"train", "valid"} if trainer.valid_loader is not None else {"train"}
    others.discard(phase)
    faults += [
        trainer.config.problem(
            keys, f"nothing called {key!r} is logged{nearest(key, log)}; there are {', '.join(log)}"
        )
        for keys, key in watched.items()
        if key and key not in log and key.partition("/")[0] not in others
    ]
    if faults:
        raise ConfigError(faults)
