"""The named values that a step and an epoch give: losses with their sum, means, metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from base.errors import ConfigError, Problem, TrainingError, nearest
from base.loss_gradients import due_gradients
from base.losses import Ramp, WeightedLoss, terms
from logger.meters import Meters

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
    first, *others = terms(losses, weighted, step).values()
    values: dict[str, Any] = {"loss": sum(others, start=first)}
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


def detach(values: Mapping[str, Any]) -> dict[str, Any]:
    """Let go of the graph behind the values of a step, which would keep its activations alive."""
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in values.items()}


def mean_of(parts: Sequence[tuple[dict[str, Any], int]]) -> dict[str, Any]:
    """Return a batch's values from those of its parts, each the mean of so many samples."""
    if len(parts) == 1:
        return parts[0][0]
    totals: dict[str, tuple[Any, int]] = {}
    for values, n_samples in parts:
        for name, value in values.items():
            total, count = totals.get(name, (0.0, 0))
            totals[name] = total + value * n_samples, count + n_samples
    return {name: total / max(count, 1) for name, (total, count) in totals.items()}


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
