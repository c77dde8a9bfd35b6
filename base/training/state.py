"""The state of a training: the objects of a step, and which of them checkpoints hold."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from base.data.bad_samples import BadSamples
from base.data.batch import SampleCount
from base.data.sampler_state import SamplerState
from base.distributed.reduction import GradientSums
from base.network.capture import Capture
from base.network.freezing import Freezing
from base.training.accumulation import Window
from base.training.ema import ExponentialMovingAverage
from base.training.epoch_rows import EpochRows
from base.training.experiment import Experiment
from base.training.loss_attributes import LossAttributes
from base.training.losses import WeightedLoss
from base.training.nonfinite import FiniteWatch
from base.training.optimizer_step import Stepper, build_steppers
from base.training.precision import Precision
from base.training.progress import Monitor, Progress, RandomState, Stateful
from base.training.schedules import Schedule
from base.training.swa import StochasticWeightAverage, SwaSchedule, build_swa
from logger.meters import Meters


@dataclass
class TrainingState:
    """The objects that a step uses. The trainer owns it and exposes its fields as attributes."""

    device: torch.device
    model: nn.Module
    losses: dict[str, WeightedLoss]
    """The losses of the config, by name."""
    all_losses: Mapping[str, WeightedLoss]
    """The losses of the config and those that the trainer built."""
    metrics: dict[str, Any]
    optimizers: dict[str, Optimizer]
    steppers: dict[str, Stepper]
    schedules: dict[str, Schedule | SwaSchedule]
    precision: Precision
    window: Window
    sums: GradientSums
    freezing: Freezing
    capture: Capture
    ema: ExponentialMovingAverage | StochasticWeightAverage | None
    """The averaged weights: of `trainer.ema`, or of `trainer.swa`."""
    meters: Meters
    monitor: Monitor
    train_loader: Any
    bad_samples: BadSamples
    sampler: SamplerState | None
    """The state of the training sampler, if it has one."""
    progress: Progress = field(default_factory=Progress)
    epoch_rows: EpochRows = field(default_factory=EpochRows)
    finite: FiniteWatch = field(default_factory=FiniteWatch)
    stateful: dict[str, Stateful] = field(default_factory=dict)
    """Everything that a checkpoint holds, by name."""
    valid_metrics: dict[str, Any] = field(default_factory=dict)
    phase_metrics: dict[str, Any] = field(default_factory=dict)
    """The metrics of the current phase."""
    last_values: Mapping[str, Any] = field(default_factory=dict)
    """The values of the last batch."""


def build_state(experiment: Experiment) -> TrainingState:
    """Build the initial state of a training."""
    config, settings, memory = experiment.config, experiment.settings, experiment.config["memory"]
    precision = Precision(memory["precision"], experiment.device)
    steppers = build_steppers(experiment, precision)
    return TrainingState(
        device=experiment.device,
        model=experiment.model,
        losses=experiment.losses,
        all_losses=experiment.all_losses,
        metrics=experiment.metrics,
        optimizers=experiment.optimizers,
        steppers=steppers,
        schedules=experiment.schedules,
        precision=precision,
        window=Window(
            memory["accumulate"],
            memory["micro_batch"],
            experiment.losses,
            SampleCount(config["batch"], experiment.train_loader),
            experiment.own_losses,
            experiment.world,
        ),
        sums=GradientSums(
            experiment.world,
            steppers,
            order=experiment.model.parameters(),
            overlaps=config["distributed"]["overlap"],
            keeps_gradients=not memory["set_to_none"],
        ),
        freezing=experiment.freezing,
        capture=Capture(config["capture"], experiment.model, experiment.length),
        ema=build_average(experiment),
        meters=Meters(experiment.device),
        monitor=Monitor(experiment.monitor, settings.early_stop),
        train_loader=experiment.train_loader,
        bad_samples=experiment.bad_samples,
        sampler=experiment.sampler_state,
        valid_metrics=copy.deepcopy(experiment.metrics),
        phase_metrics=experiment.metrics,
    )


def build_average(
    experiment: Experiment,
) -> ExponentialMovingAverage | StochasticWeightAverage | None:
    """Build the average of ``trainer.ema`` or ``trainer.swa``; None without either."""
    settings, weights = experiment.settings, experiment.trained
    if settings.ema is not None:
        return ExponentialMovingAverage(weights, **settings.ema)
    if settings.swa is not None:
        return build_swa(experiment.model, weights, settings.swa, experiment.length)
    return None


def parts_with_state(
    state: TrainingState, callbacks: Mapping[str, Stateful], epoch_start: Stateful | None
) -> dict[str, Stateful]:
    """Return the stateful objects of a training, by their names in checkpoints."""
    parts: dict[str, Any] = {
        "model": state.model,
        "optimizer": state.optimizers,
        "schedule": state.schedules,
        "scaler": {name: stepper.scaler for name, stepper in state.steppers.items()},
        "loss": {name: loss for name, loss in state.losses.items() if loss.has_state},
        "loss_attributes": LossAttributes(state.all_losses, state.device),
        "metric": state.metrics,
        "callback": callbacks,
        "ema": {} if state.ema is None else state.ema,
        "monitor": state.monitor,
        "meters": state.meters,
        "progress": state.progress,
        "random": RandomState(),
        "bad_samples": state.bad_samples if state.bad_samples.skips else {},
        "epoch_rows": state.epoch_rows,
        "epoch_start": {} if epoch_start is None else epoch_start,
        "train_sampler": {} if state.sampler is None else state.sampler,
    }
    named: dict[str, Stateful] = {}
    for name, part in parts.items():
        several = isinstance(part, dict)
        named.update({f"{name}.{key}": part[key] for key in part} if several else {name: part})
    return named


RESERVED_NAMES = (
    "optimizer.", "schedule.", "scaler.", "loss.", "metric.", "callback.", "bad_samples",
    "epoch_start", "ranks",
)  # fmt: skip
"""Names of the engine, or prefixes, that are reserved even if a run does not use them."""


def matches_name(name: str, names: Collection[str]) -> bool:
    """Return whether a name is one of ``names``, or starts with one that ends in a dot."""
    return any(name == each or (each.endswith(".") and name.startswith(each)) for each in names)


def checked_parts(name: Any, value: Any, taken: Collection[str]) -> dict[str, Any]:
    """Return the objects to save by name: the value, or the values of a dict as ``name.key``.

    Raises:
        ValueError: a name is taken or not a string, or an object has no state.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"register({name!r}, ...): the name must be a non-empty string")
    if not isinstance(value, dict) or hasattr(value, "state_dict"):
        parts = {name: value}
    elif not value:
        raise ValueError(f"register({name!r}, {{}}): the dict is empty")
    else:
        parts = {f"{name}.{key}": inner for key, inner in value.items()}
        if empty := [key for key in value if not str(key).strip()]:
            raise ValueError(f"register({name!r}, ...): the key {empty[0]!r} is not a valid name")
    for key, part in parts.items():
        _check_name(key, taken)
        _check_state(key, part)
    return parts


def _check_name(name: str, taken: Collection[str]) -> None:
    holders = [each for each in taken if each == name or each.startswith(f"{name}.")]
    if holders or matches_name(name, RESERVED_NAMES):
        of = f", for {holders[0]!r}" if holders and holders[0] != name else ""
        others = ", ".join(sorted({each.partition(".")[0] for each in taken}))
        text = f"register({name!r}, ...): this name is taken{of}; choose another one"
        raise ValueError(f"{text} (taken are {others})")


def _check_state(name: str, value: Any) -> None:
    methods = [getattr(value, each, None) for each in ("state_dict", "load_state_dict")]
    if isinstance(value, Stateful) and all(map(callable, methods)) and not isinstance(value, type):
        return
    text = f"register({name!r}, ...): {_described(value)} has no state_dict and load_state_dict"
    if isinstance(value, Tensor):
        advice = "make it a buffer of a module and register the module: `holder = "
        advice += "torch.nn.Module(); holder.register_buffer('value', tensor)`"
    elif isinstance(value, dict):
        advice = "a dict may hold objects that have both, but no dicts; register each one"
    elif isinstance(value, type):
        advice = "register an object of this class, not the class"
    else:
        advice = "keep it as an attribute of an object that has both and register that object; "
        advice += "docs/from-pytorch-template.md, need 10, shows one"
    raise ValueError(f"{text}: {advice}")


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    return "None" if value is None else f"a {type(value).__name__}"
