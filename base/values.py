"""The named values that a step and an epoch give: losses with their sum, means, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from base.denominators import SUM, counted_by, mark_sum, terms_of
from base.errors import ConfigError, Problem, TrainingError, nearest
from base.loss_gradients import due_gradients
from base.losses import Ramp, WeightedLoss, terms
from logger.meters import TERM, Meters

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


def with_total(
    losses: Mapping[str, Tensor], weighted: Mapping[str, WeightedLoss], step: int | None = None
) -> dict[str, Any]:
    """Add ``"loss"``, the sum by the config's weights, unless it is there already.

    Args:
        step: how many steps were made; weights that move are then told as ``weight/<name>``. None
            takes their final values, so that validations of one run can be compared.
    """
    if "loss" in losses:
        return dict(losses)
    if not losses:
        raise TrainingError("there is no loss to minimise: name one in the config's `loss:`")
    parts = list(terms(losses, weighted, step).values())
    values: dict[str, Any] = {"loss": mark_sum(sum(parts[1:], start=parts[0]), parts)}
    if len(losses) > 1:
        values.update(losses)
    if step is not None:
        for name, loss in weighted.items():
            if isinstance(loss.weight, Ramp) and name in losses:
                values[f"weight/{name}"] = loss.weight_at(step)
    return values


def weigh(
    trainer: BaseTrainer, losses: Mapping[str, Tensor]
) -> tuple[dict[str, Any], Tensor | list[Tensor]]:
    """Return what a step logs of its losses and what it minimises: their sum, or each by itself."""
    step = trainer.progress.step
    values = with_total(losses, trainer.losses, step)
    values.update(due_gradients(trainer, losses))
    if trainer.settings.backward == "sum":
        return values, values["loss"]
    parts = terms(losses, trainer.losses, step).values()
    return values, [part for part in parts if part.requires_grad] or values["loss"]


class StepValues:
    """The values of a step, without the graph behind them, which would keep activations alive.

    Args:
        values: by name, as a step returns them.
        n_samples: what they are means of, unless they say it themselves.
    """

    def __init__(self, values: Mapping[str, Any], n_samples: int) -> None:
        self.means: list[tuple[str, Any, Any]] = []
        """Name, value and denominator (None for a sum); a sum of losses has one for each term."""
        for name, value in values.items():
            terms = terms_of(value)
            for number, term in enumerate(terms):
                counted = counted_by(term)
                count = n_samples if counted is None else counted.number
                key = name if len(terms) == 1 else f"{name}{TERM}{number}"
                self.means.append((key, _detached(term), None if count is SUM else count))
        self.values = {name: _detached(value) for name, value in values.items()}

    def add_to(self, meters: Meters) -> None:
        """Add the values to running means."""
        for mean in self.means:
            meters.add(*mean)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def values_of(parts: Sequence[StepValues], device: torch.device) -> dict[str, Any]:
    """Return a batch's values from those of its parts; nothing is waited for."""
    if len(parts) == 1:
        return parts[0].values
    sums = Meters(device)
    for part in parts:
        part.add_to(sums)
    return sums.means()


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
        lone = trainer.config["optimizers"] is None
        keys = () if lone else ("optimizers", name)
        watched[keys := (*keys, "lr_scheduler", "monitor")] = schedule.monitor or ""
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
