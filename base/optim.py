"""Optimizers and learning rate schedules from their config sections."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from base.config.durations import parse_duration
from base.errors import ConfigError, Problem
from base.memory.optimizer import choose_fused
from base.names import build
from base.parameter_groups import Section, parameter_groups, shown
from base.signatures import DURATION_ARGUMENTS, FILLED_IN

# Arguments of schedulers that are rates, one for all groups or a list; and other such lists.
SCALED = {"OneCycleLR": ("max_lr",), "CyclicLR": ("base_lr", "max_lr")}
SCALED["ReduceLROnPlateau"] = ("min_lr",)
LISTED = ("lr_lambda", "base_momentum", "max_momentum")


def build_optimizer(
    model: nn.Module,
    section: Section,
    where: str = "optimizer",
    later: Collection[str] = (),
    fused: bool | str = False,
) -> Optimizer:
    """Make the optimizer of a config section over the parameters that it claims.

    Args:
        later: names of parameters that are frozen now and trained later.
        fused: whether to take torch's fused form; ``auto`` where there is one.
    """
    groups = parameter_groups(model, section, where, later)
    for group in groups:
        _check_group(section, group, where)
    if fused == "auto" and any(getattr(module, "sparse", False) for module in model.modules()):
        fused = False  # an embedding whose gradients are sparse

    def construct(section: Section) -> Optimizer:
        return _construct(section, [dict(group) for group in groups], where)

    return choose_fused(construct, section, fused, where)


def _check_group(section: Section, group: Section, where: str) -> None:
    """Let the optimizer judge a group's own arguments: by itself it looks at its ``args`` only."""
    own = [key for key in group if key != "params"]
    if own:
        args = {**section["args"], **{key: group[key] for key in own}}
        place = f"{where}.param_groups ({shown([name for name, _ in group['params']])})"
        taken = _construct({**section, "args": args}, group["params"], place).defaults
        if ignored := [key for key in own if key not in taken]:
            text = f"{section['type']} takes {shown(ignored)} for all parameters alike, in `args`"
            raise ConfigError([Problem(place, text)])


def _construct(section: Section, params: Any, where: str) -> Optimizer:
    try:
        optimizer: Optimizer = build("optimizer", section, where=where, params=params)
    except (RuntimeError, IndexError) as error:  # fused and foreach together; `betas: [0.9]`
        text = f"{section['type']} cannot be built: {type(error).__name__}: {error}"
        raise ConfigError([Problem(where, text)]) from error
    return optimizer


def learning_rates(optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
    """Return the rate of each parameter group: ``lr``, or ``lr/<network>/<group>`` of several."""
    rates = {}
    for name, optimizer in optimizers.items():
        for number, group in enumerate(optimizer.param_groups):
            parts = ["lr", name] if len(optimizers) > 1 else ["lr"]
            if len(optimizer.param_groups) > 1:
                parts.append(str(number))
            rates["/".join(parts)] = float(group["lr"])
    return rates


class Schedule:
    """A torch scheduler and when to step it: after each step or each epoch, after a warm-up.

    Args:
        every: ``"step"`` or ``"epoch"``.
        monitor: the logged value that ReduceLROnPlateau follows; epochs without it are left out.
        warmup_steps: the rate rises in a line from ``lr / warmup_steps`` to ``lr`` over so many
            optimizer steps (Goyal et al., 2017); the scheduler itself begins after them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        every: str = "epoch",
        monitor: str | None = None,
        warmup_steps: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.every = every
        self.monitor = monitor
        self.warmup_steps = warmup_steps
        self.n_steps = 0
        self.targets = [group["lr"] for group in optimizer.param_groups]
        if warmup_steps:
            self._set_warmup_rate()

    def after_step(self) -> None:
        """Follow one step of the optimizer."""
        self.n_steps += 1
        if self.n_steps <= self.warmup_steps:
            self._set_warmup_rate()
        elif self.scheduler is not None and self.every == "step":
            self.scheduler.step()

    def after_epoch(self, log: Mapping[str, float]) -> None:
        """Follow the end of an epoch, whose logged values are ``log``."""
        has_begun = self.n_steps > self.warmup_steps
        if self.scheduler is None or not has_begun or self.every == "step":
            return
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        elif self.monitor is not None and self.monitor in log:  # else this epoch was not validated
            self.scheduler.step(log[self.monitor])

    def _set_warmup_rate(self) -> None:
        fraction = min(1.0, (self.n_steps + 1) / self.warmup_steps)
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target * fraction

    def state_dict(self) -> dict[str, Any]:
        inner = {} if self.scheduler is None else _plain(self.scheduler.state_dict())
        return {"n_steps": self.n_steps, "targets": list(self.targets), "scheduler": inner}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; lengths that the config decides (``total_steps``) stay as they are."""
        self.n_steps, self.targets = state_dict["n_steps"], list(state_dict["targets"])
        if self.scheduler is not None and state_dict["scheduler"]:
            self.scheduler.load_state_dict(
                _with_own_lengths(self.scheduler, state_dict["scheduler"])
            )


def _with_own_lengths(scheduler: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    own = ("total_steps", "_schedule_phases", "T_max", "_milestones")
    kept = {key: value for key, value in vars(scheduler).items() if key in own}
    if "_schedulers" in state:
        pairs = zip(scheduler._schedulers, state["_schedulers"], strict=True)
        kept["_schedulers"] = [_with_own_lengths(inner, part) for inner, part in pairs]
    return {**state, **kept}


def _plain(state: Any) -> Any:
    """Return a scheduler's state without bound methods and other code that some keep in it."""
    if isinstance(state, dict):
        return {key: _plain(inner) for key, inner in state.items() if not callable(inner)}
    if isinstance(state, (list, tuple)):
        return type(state)(_plain(inner) for inner in state)
    return state


@dataclass
class Lengths:
    """What a duration in a schedule is counted in: a scheduler ticks each step or each epoch."""

    steps_per_epoch: int
    total_steps: int
    steps_per_tick: int
    ticks: int
    """How often the scheduler is stepped in the whole training, warm-up left out."""

    def in_ticks(self, value: Any) -> Any:
        """Turn a duration, or a list of them, into ticks; leave numbers as they are."""
        if isinstance(value, list):
            return [self.in_ticks(item) for item in value]
        if not isinstance(value, str):
            return value
        steps = parse_duration(value).in_steps(self.steps_per_epoch, self.total_steps)
        return max(1, round(steps / self.steps_per_tick))


def build_schedule(
    optimizer: Optimizer,
    section: Section | None,
    steps_per_epoch: int,
    total_steps: int,
    where: str = "lr_scheduler",
) -> Schedule | None:
    """Make the schedule of a config section; None for no section.

    Durations (``2 epochs``, ``5%``) become counts of the scheduler's own steps, and the lengths
    that torch demands (``OneCycleLR.total_steps``, ``CosineAnnealingLR.T_max``) are filled in.

    Raises:
        ConfigError: the scheduler cannot be built, or would not last for all of training.
    """
    if section is None:
        return None
    warmup_steps = 0
    if section["warmup"] is not None:
        warmup_steps = parse_duration(section["warmup"]).in_steps(steps_per_epoch, total_steps)
    per_tick = 1 if section["every"] == "step" else steps_per_epoch
    ticks = max(1, math.ceil((total_steps - warmup_steps) / per_tick))
    lengths = Lengths(steps_per_epoch, total_steps, per_tick, ticks)
    section = fit_to_groups(optimizer, section, where)
    scheduler = _build_scheduler(optimizer, section, lengths, where)
    n_calls = total_steps // per_tick - warmup_steps // per_tick
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < n_calls:
        text = f"OneCycleLR ends after {scheduler.total_steps} steps, training takes {n_calls}"
        raise ConfigError([Problem(where, f"{text}; leave out total_steps, which fits it")])
    if isinstance(scheduler, ReduceLROnPlateau) and section["every"] == "step":
        text = "ReduceLROnPlateau follows a value of each epoch; write `every: epoch`"
        raise ConfigError([Problem(where, text)])
    return Schedule(optimizer, scheduler, section["every"], section["monitor"], warmup_steps)


def fit_to_groups(optimizer: Optimizer, section: Section, where: str) -> Section:
    """Make one rate a list where groups have different rates, so that their ratios stay.

    A rate that a scheduler is given is meant for the optimizer's own ``lr``: a group of ten times
    that ``lr`` gets ten times that rate. If that ``lr`` is 0, the fastest group counts instead.

    Raises:
        ConfigError: a list does not fit the groups, or a floor would raise some of them.
    """
    if not isinstance(section, Mapping) or "type" not in section:
        raise ConfigError([Problem(where, f"expected {{type: ..., args: ...}}, found {section!r}")])
    args, rates = dict(section.get("args") or {}), [float(g["lr"]) for g in optimizer.param_groups]
    scaled, fault = SCALED.get(section["type"], ()), ""
    for key in (*scaled, *LISTED):
        value = args.get(key)
        if isinstance(value, list) and len(value) != len(rates):
            fault = f"{key} has {len(value)} values for {len(rates)} parameter groups"
        elif key in scaled and isinstance(value, int | float) and len(set(rates)) > 1:
            own_rate = float(optimizer.defaults["lr"]) or max(rates)
            args[key] = [value * (rate / own_rate) for rate in rates]
    if section["type"].startswith("Cosine") and min(rates) < args.get("eta_min", 0) <= max(rates):
        fault = f"eta_min {args['eta_min']} is one floor for all, and some groups begin below it"
    if fault:
        raise ConfigError([Problem(where, f"{fault}; the groups are {_in_words(optimizer)}")])
    if "schedulers" in args:
        args["schedulers"] = [fit_to_groups(optimizer, x, where) for x in args["schedulers"] or ()]
    return {**section, "args": args}


def _in_words(optimizer: Optimizer) -> str:
    """Return the groups in one line: number, rate and the first names."""
    return "; ".join(
        f"{number}: lr {float(group['lr']):g}, {shown(group.get('param_names', []), 2)}"
        for number, group in enumerate(optimizer.param_groups)
    )


def _build_scheduler(optimizer: Optimizer, section: Section, lengths: Lengths, where: str) -> Any:
    """Build a scheduler and, first, those that it consists of."""
    name, args = section["type"], dict(section.get("args") or {})
    args.update({key: lengths.in_ticks(args[key]) for key in DURATION_ARGUMENTS if key in args})
    for key in FILLED_IN.get(name, ()):
        if key not in args and "epochs" not in args:
            args[key] = lengths.ticks
    if "schedulers" in args:
        parts = zip(args["schedulers"], _lengths_of_parts(args, lengths), strict=True)
        args["schedulers"] = [_build_scheduler(optimizer, *part, where) for part in parts]
    injected = {} if name == "ChainedScheduler" else {"optimizer": optimizer}
    return build("lr_scheduler", {"type": name, "args": args}, where=where, **injected)


def _lengths_of_parts(args: Mapping[str, Any], lengths: Lengths) -> list[Lengths]:
    """Divide the ticks at the milestones; schedulers that are chained all run from end to end."""
    milestones = args.get("milestones", [])
    n_parts = len(args["schedulers"])
    if not isinstance(milestones, list) or len(milestones) != n_parts - 1:
        return [lengths] * n_parts
    bounds = [0, *milestones, lengths.ticks]
    return [replace(lengths, ticks=max(1, end - start)) for start, end in pairwise(bounds)]
