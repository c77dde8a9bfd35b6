"""The named values of a step and of an epoch: losses with their sum, means, metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from base.data.sampler_state import SamplerState
from base.distributed import ALONE, World
from base.errors import ConfigError, Problem, TrainingError
from base.training.denominators import (
    SUM_REDUCTION,
    denominator_of,
    mark_denominator,
    mark_terms,
    sample_losses_of,
    terms_of,
)
from base.training.loss_terms import flatten_terms, is_of_terms, refuse_many, refuse_unnamed
from base.training.losses import WeightedLoss, lone_total, weigh_terms
from base.training.metric_values import describe, with_class_names
from base.training.metrics import Metric, Result
from logger.meters import TERM, Meters


def with_total(
    losses: Mapping[str, Any], weighted: Mapping[str, WeightedLoss], step: int | None = None
) -> dict[str, Any]:
    """Add ``"loss"``, the sum weighted by the config, unless it is present.

    Args:
        step: the number of steps made; weights that change are then returned as
            ``weight/<name>``. None takes the final weights, so that the validations of one run are
            comparable.
    """
    lone = lone_total(losses, weighted)
    if lone is not None:
        return {"loss": lone}
    found = flatten_terms(losses, weighted)
    if "loss" in found:  # the total of the trainer
        refuse_many("loss", found["loss"].value)
        return {name: term.value for name, term in found.items()}
    summed = {name: term for name, term in found.items() if term.is_minimised}
    if not summed:
        raise TrainingError("there is no loss to minimise: add one to `loss:` in the config")
    parts = weigh_terms(summed, weighted, step)
    first, *others = parts.values()
    values: dict[str, Any] = {"loss": sum(others, start=first)}
    if len(summed) > 1:
        # A loss of weight 0 is not in the sum, but its samples count in the mean of an epoch.
        all_terms = {k: parts[k] if k in parts else _zero(it.value) for k, it in summed.items()}
        total = values["loss"] if others else first.view(())  # a tensor other than the loss
        values = {"loss": mark_terms(total, all_terms)}
    for name, term in found.items():
        if len(summed) > 1 or not term.is_minimised or term.is_named:
            values[name] = term.value
    for name, loss in weighted.items() if step is not None else ():
        is_used = loss.is_moving and any(it.loss == name for it in summed.values())
        if is_used:
            values[f"weight/{name}"] = loss.weight_at(step)
    return values


def _zero(loss: Tensor) -> Tensor:
    return mark_denominator(torch.zeros_like(loss, requires_grad=False), denominator_of(loss))


def backward_passes(loss: Any, is_separate: bool) -> list[Tensor]:
    """Return the loss of each backward pass.

    Args:
        loss: a tensor, a loss of several terms, or a sequence of these.
        is_separate: whether each term of a sum of weighted losses has its own backward pass.

    Raises:
        TrainingError: one of them is not a tensor of one number.
    """
    if isinstance(loss, Tensor):
        terms = terms_of(loss) if is_separate else None
        if terms is not None:
            return [term for term in terms.values() if term.requires_grad] or [loss]
    is_one = isinstance(loss, Tensor) or is_of_terms(loss) or not isinstance(loss, Iterable)
    losses = [loss] if is_one else loss
    passes = [with_total(each, {})["loss"] if is_of_terms(each) else each for each in losses]
    for each in passes:
        if not isinstance(each, Tensor) or each.numel() != 1:
            found = f"shape {describe(each)}" if isinstance(each, Tensor) else repr(each)
            text = f"`self.backward` takes a loss, a tensor of one number, not {found}"
            raise TrainingError(f"{text}: reduce it, for example with `.mean()`, without `.item()`")
    return passes


class StepValues:
    """The values of a step, detached from the graph, which would keep activations alive.

    Args:
        values: the result of a step by name; the terms of a loss may be a nested dict.
        n_samples: the denominator of values without a denominator of their own.
        keep_sample_losses: keep the minimised loss of each sample, for a sampler.

    Raises:
        TrainingError: the result is not a dict.
    """

    values: dict[str, Any]
    means: list[tuple[str, Any, Any]]
    """Name, value and denominator (None for a sum); a sum of losses has one entry a term."""
    sample_losses_of: Tensor | None = None
    """The minimised loss of each sample, if a sampler needs it."""

    def __init__(
        self, values: Mapping[str, Any], n_samples: int, keep_sample_losses: bool = False
    ) -> None:
        if type(values) is not dict:
            refuse_unnamed(values, "what `train_step` or `valid_step` returns")
        lone = values.get("loss") if len(values) == 1 and not keep_sample_losses else None
        if type(lone) is Tensor and terms_of(lone) is None:  # the common case
            kept = lone.detach()
            self.values, self.means = {"loss": kept}, [("loss", kept, _count(lone, n_samples))]
            return
        self.values, self.means = {}, []
        if set(map(type, values.values())) != {Tensor}:  # a loss of terms is a nested dict
            values = _without_groups(values)
        for key, value in values.items():
            name = str(key)
            self.values[name] = part = value.detach() if isinstance(value, Tensor) else value
            if keep_sample_losses and name == "loss":
                self.sample_losses_of = sample_losses_of(value)
            if (terms := terms_of(value)) is None:
                self.means.append((name, part, _count(value, n_samples)))
                continue
            for term_name, term in terms.items():
                count = _count(term, n_samples)
                self.means.append((f"{name}{TERM}{term_name}", term.detach(), count))

    def add_to(self, meters: Meters) -> None:
        """Add the values to running means.

        Raises:
            TrainingError: a value is not a number.
        """
        for name, value, count in self.means:
            try:
                meters.add(name, value, count)
            except (TypeError, ValueError) as error:
                found = f"of shape {describe(value)}" if isinstance(value, Tensor) else repr(value)
                text = f"the value {name!r} of a step is {found}, not one number to log"
                raise TrainingError(f"{text}: reduce it, or leave it out") from error


def _without_groups(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the values of a step by name; the terms of a loss, a nested dict, are among them."""
    for value in values.values():
        if not isinstance(value, Tensor) and is_of_terms(value):
            return {name: term.value for name, term in flatten_terms(values, ()).items()}
    return values


def _count(value: Any, n_samples: int) -> Any:
    counted = denominator_of(value)
    if counted is None:
        return n_samples
    return None if counted.number is SUM_REDUCTION else counted.number


def means_of(parts: Sequence[StepValues], device: torch.device) -> dict[str, Any]:
    """Return the values of a batch from its parts, without synchronizing with the device."""
    sums = Meters(device)
    for part in parts:
        part.add_to(sums)
    return sums.means()


def record_sample_losses(state: SamplerState, ids: Any, values: StepValues, batch: int = 0) -> None:
    """Pass the losses of samples to the sampler that learns from them.

    Args:
        batch: the position of the batch in the training.

    Raises:
        TrainingError: the loss of the step has no value for each sample.
    """
    if values.sample_losses_of is None:
        name = type(state.sampler).__name__
        text = f"{name} needs the loss of each sample, but the 'loss' of this step has none: use"
        text += " one of `self.losses`, called with `batch=batch`, or the sum that"
        raise TrainingError(f"{text} `compute_losses` returns")
    state.note(ids, values.sample_losses_of, batch)


def summarise(
    phase: str,
    meters: Meters,
    metrics: Mapping[str, Metric],
    world: World = ALONE,
    classes: Sequence[str] = (),
) -> dict[str, float]:
    """Return the means and metrics of a phase as ``train/loss``, ``valid/accuracy``, ...

    They are over the samples of all processes, and the same numbers in all of them. Meters and
    metrics keep their values. A metric of several numbers has names such as
    ``valid/recall/<class>``; a table (a confusion matrix) appears only in the test report.

    Args:
        classes: the names of the classes, for metrics with a number for each of them.

    Raises:
        ConfigError: a metric has the name of a loss.
    """
    values = {f"{phase}/{name}": value for name, value in _means_of(meters, world).items()}
    for name, result in results_of(metrics, world).items():
        if f"{phase}/{name}" in values:
            text = (
                f"a loss or a value of the trainer has the name {name!r} too; choose another name"
            )
            raise ConfigError([Problem(f"{metrics[name].selection.where}.name", text)])
        if isinstance(result, Mapping):
            # A metric that names its target may be of other classes than those of the data.
            is_of_data = metrics[name].selection.target is None
            result = with_class_names(result, classes if is_of_data else ())
            values.update({f"{phase}/{name}/{key}": float(part) for key, part in result.items()})
        elif not isinstance(result, Tensor) or result.numel() == 1:
            values[f"{phase}/{name}"] = float(result)
    return values


def is_part(name: str) -> bool:
    """Return whether a logged value is of one class or output: ``valid/recall/cat``."""
    return name.count("/") > 1 and not name.endswith(("/mean", "/macro"))


def _means_of(meters: Meters, world: World) -> dict[str, float]:
    """Return the means over the samples of all processes, by name."""
    if not world.is_active:
        return meters.compute()
    means: dict[str, float] = {}
    states = world.gather(meters.state_dict())
    if states is not None:
        whole = Meters("cpu")
        whole.load_state_dict(Meters.merged(states))
        means = whole.compute()
    result: dict[str, float] = world.broadcast(means)
    return result


def results_of(metrics: Mapping[str, Metric], world: World = ALONE) -> dict[str, Result]:
    """Return the results of metrics over the samples of all processes, by name.

    Rank 0 computes them, one metric after another, and the others receive them.
    """
    if not world.is_active:
        return {name: metric.compute() for name, metric in metrics.items()}
    results: dict[str, Result] = {}
    for name, metric in metrics.items():
        states = world.gather(metric.state_dict())
        if states is not None:
            results[name] = metric.whole(states).compute()
    received: dict[str, Result] = world.broadcast(results)
    return received
