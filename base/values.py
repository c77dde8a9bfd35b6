"""The named values that a step and an epoch give: losses with their sum, means, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from base.errors import ConfigError, TrainingError, nearest
from logger.meters import Meters

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


def with_total(losses: Mapping[str, Tensor], weighted: Mapping[str, Any]) -> dict[str, Tensor]:
    """Add ``"loss"``, the sum by the config's weights, unless it is there already."""
    if "loss" in losses:
        return dict(losses)
    if not losses:
        raise TrainingError("there is no loss to minimise: name one in the config's `loss:`")
    weights = {name: loss.weight for name, loss in weighted.items()}
    # A product with 1 would be one more operation, forward and backward.
    terms = [
        loss if weights.get(name, 1) == 1 else loss * weights[name] for name, loss in losses.items()
    ]
    total = sum(terms[1:], start=terms[0])
    return {"loss": total, **losses} if len(losses) > 1 else {"loss": total}


def detach(values: Mapping[str, Any]) -> dict[str, Any]:
    """Let go of the graph behind the values of a step, which would keep its activations alive."""
    return {k: v.detach() if isinstance(v, Tensor) else v for k, v in values.items()}


def summarise(phase: str, meters: Meters, metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the means and metrics of a phase as ``train/loss``, ``valid/accuracy``, ...

    A metric of several numbers gives ``valid/recall/<class>``; a table (a confusion matrix) is no
    number and is left to the test report.
    """
    values = {f"{phase}/{name}": value for name, value in meters.compute().items()}
    for name, metric in metrics.items():
        result = metric.compute()
        if isinstance(result, Mapping):
            values.update({f"{phase}/{name}/{key}": float(part) for key, part in result.items()})
        elif not isinstance(result, Tensor) or result.numel() == 1:
            values[f"{phase}/{name}"] = float(result)
    return values


def check_watched(trainer: BaseTrainer, phase: str, log: Mapping[str, Any]) -> None:
    """Make sure that what the config monitors is among the values of this phase or of another.

    Raises:
        ConfigError: a name is not among them.
    """
    watched: dict[tuple[str, ...], str] = {("trainer", "monitor"): trainer.monitor.key}
    for name, schedule in trainer.schedules.items():
        lone = trainer.config["optimizers"] is None
        keys = ("lr_scheduler", "monitor") if lone else ("optimizers", name, "lr_scheduler")
        watched[keys] = schedule.monitor or ""
    others = {"train", "valid"} if trainer.valid_loader is not None else {"train"}
    others.discard(phase)
    faults = [
        trainer.config.problem(
            keys, f"nothing called {key!r} is logged{nearest(key, log)}; there are {', '.join(log)}"
        )
        for keys, key in watched.items()
        if key and key not in log and key.partition("/")[0] not in others
    ]
    if faults:
        raise ConfigError(faults)
