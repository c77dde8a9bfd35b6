"""Learning-rate schedules: torch's schedulers, a warm-up, and lengths relative to the training."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from base.config import Config
from base.config.durations import RunLength, parse_duration
from base.config.ignored_rates import OWN_RATES
from base.errors import ConfigError, KindlingError, Problem, listed, nearest
from base.names.construction import build
from base.names.registry import find
from base.names.signatures import DURATION_ARGUMENTS, FILLED_IN, needed_arguments, signature
from base.training.parameter_groups import Section

# Arguments of schedulers that are learning rates, one for all groups or a list; other such lists.
RATE_ARGUMENTS = {**OWN_RATES, "ReduceLROnPlateau": ("min_lr",)}
LIST_ARGUMENTS = ("lr_lambda", "base_momentum", "max_momentum")

LENGTH_ARGUMENTS = DURATION_ARGUMENTS | {"epochs", "steps_per_epoch"}
FROM_CONFIG = LENGTH_ARGUMENTS | {"lr_lambda", "scale_fn", "mode"}
"""Arguments that a resumed run takes from its config; the others come from the checkpoint."""

LENGTH_ATTRIBUTES = (
    *("T_max", "T_0", "total_iters", "total_steps", "total_size", "step_ratio", "step_size"),
    *("milestones", "_milestones"),
)
"""Attributes of torch's schedulers with lengths, for checkpoints that do not record lengths."""


class Schedule:
    """A torch scheduler that is stepped after each step or each epoch, after a warm-up.

    A resumed run may be longer or shorter than the saved one. If that changes a length in the
    schedule, ``follow_new_length`` moves to the current step of the new curve, where a run with
    this length from the start would be; otherwise the state is restored.

    Args:
        section: the config section: a type, its arguments, ``every`` and ``warmup``. During the
            warm-up the learning rate increases linearly from ``lr / warmup_steps`` to ``lr`` (Goyal
            et al., 2017); the scheduler begins after it.
        where: the place of the section in the config, for errors.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        section: Section,
        length: RunLength,
        where: str = "lr_scheduler",
    ) -> None:
        self.optimizer, self.where = optimizer, where
        self.section = copy.deepcopy(dict(section))
        self.length = length
        self.ticks, self.warmup_steps = _count_ticks(self.section, length)
        self.every, self.monitor = section["every"], section["monitor"]
        self.n_steps = self.n_epochs = 0
        self.initial = [_numbers(group) for group in optimizer.param_groups]
        self._own_keys = [set(group) for group in optimizer.param_groups]
        self._is_behind = False
        self._begin()

    def after_step(self) -> None:
        """Update the learning rate after a step of the optimizer."""
        self.n_steps += 1
        if self.n_steps <= self.warmup_steps:
            self._set_warmup_rate()
        elif self.every == "step":
            self.scheduler.step()

    def after_epoch(self, log: Mapping[str, float]) -> None:
        """Update the learning rate after an epoch with the logged values ``log``."""
        self.n_epochs += 1
        has_begun = self.n_steps > self.warmup_steps
        if not has_begun or self.every == "step":
            return
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        elif self.monitor is not None and (name := logged_name(self.monitor, log)) is not None:
            self.scheduler.step(log[name])  # the epoch was validated

    def state_dict(self) -> dict[str, Any]:
        return {
            "n_steps": self.n_steps,
            "n_epochs": self.n_epochs,
            "targets": list(self.targets),
            "scheduler": _plain(self.scheduler.state_dict()),
            "section": self.section,
            "run_length": [self.length.steps_per_epoch, self.length.total_steps],
            "initial": self.initial,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state. Call ``follow_new_length`` after the optimizer is restored too."""
        state, scheduler_state = state_dict, state_dict["scheduler"]
        saved = state.get("section", self.section)
        section = _with_own_lengths(saved, self.section)
        self.n_steps, self.targets = state["n_steps"], list(state["targets"])
        self.n_epochs = state.get("n_epochs", self._count_epochs(scheduler_state))
        self.initial = state.get("initial", self.initial)
        if "run_length" in state:
            saved_length = RunLength(*state["run_length"])
            has_changed = _timing(saved, saved_length) != _timing(section, self.length)
        else:
            has_changed = self._differs_from(scheduler_state)
        self.section = section
        was_plateau = saved["type"] == section["type"] and "mode" in scheduler_state
        if isinstance(self.scheduler, ReduceLROnPlateau) and was_plateau:
            has_changed = has_changed and not scheduler_state["last_epoch"]
            self._load_plateau(scheduler_state, saved["monitor"])
        elif not has_changed:
            self.scheduler.load_state_dict(scheduler_state)
        self._is_behind = has_changed

    def follow_new_length(self) -> None:
        """Move to the current step of the new curve if a length differs from the saved one.

        The scheduler is built again with the initial learning rates and stepped to the current
        step, because torch's schedulers compute each rate from the previous one. This takes about
        five microseconds for each step and group.
        """
        if not self._is_behind:
            return
        self._is_behind = False
        self._begin()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the optimizer does not step in between
            for _ in range(self._ticks_due()):
                self.scheduler.step()

    def _begin(self) -> None:
        """Restore the initial options of the optimizer and build the scheduler."""
        groups = zip(self.optimizer.param_groups, self.initial, self._own_keys, strict=True)
        for group, numbers, own_keys in groups:
            for key in group.keys() - own_keys:
                del group[key]  # options of a former scheduler, such as `initial_lr`
            group.update(numbers)
        section = fit_to_groups(self.optimizer, self.section, self.where)
        section = _in_ticks(section, self.ticks)
        self.scheduler: LRScheduler = _build_scheduler(self.optimizer, section, self.where)
        self.targets = [group["lr"] for group in self.optimizer.param_groups]
        if self.warmup_steps:
            self._set_warmup_rate()

    def _set_warmup_rate(self) -> None:
        fraction = min(1.0, (self.n_steps + 1) / self.warmup_steps)
        for group, target in zip(self.optimizer.param_groups, self.targets, strict=True):
            group["lr"] = target * fraction

    def _ticks_due(self) -> int:
        """Return the number of scheduler steps so far, up to the end of the schedule."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            return 0  # it depends on logged values
        if self.every == "step":
            n_ticks = self.n_steps - self.warmup_steps
        else:
            n_ticks = self.n_epochs - self.warmup_steps // self.length.steps_per_epoch
        return min(max(n_ticks, 0), self.ticks.total)

    def _load_plateau(self, state: Mapping[str, Any], monitor: str | None) -> None:
        """Restore the measured values, unless the monitored value or direction has changed.

        A scheduler that has begun has no warm-up left, whatever its new length.
        """
        assert isinstance(self.scheduler, ReduceLROnPlateau)
        mode = self.scheduler.mode
        self.scheduler.load_state_dict({**state, "mode": mode})
        if mode != state["mode"] or self.monitor != monitor:
            self.scheduler._reset()
        if state["last_epoch"]:
            self.warmup_steps = min(self.warmup_steps, self.n_steps)

    def _count_epochs(self, state: Mapping[str, Any]) -> int:
        """Return the number of complete epochs for a state that does not record it."""
        n_ticks, per_epoch = _ticks_made(state), self.length.steps_per_epoch
        if self.every == "step" or not n_ticks or self.n_steps <= self.warmup_steps:
            return self.n_steps // per_epoch
        return n_ticks + self.warmup_steps // per_epoch

    def _differs_from(self, state: Mapping[str, Any]) -> bool:
        """Return whether a state without recorded lengths has other lengths or another warm-up.

        The number of scheduler steps is the only evidence of the warm-up.
        """
        n_ticks = _ticks_made(state)
        if self.every == "step" and not isinstance(self.scheduler, ReduceLROnPlateau):
            is_off = n_ticks != self._ticks_due()
        else:
            is_off = n_ticks > 0 and self.n_steps <= self.warmup_steps
        return is_off or _differ(self.scheduler, state)


def _plain(state: Any) -> Any:
    """Return a scheduler's state without callables, which some schedulers store."""
    if isinstance(state, dict):
        return {key: _plain(inner) for key, inner in state.items() if not callable(inner)}
    if isinstance(state, (list, tuple)):
        return type(state)(_plain(inner) for inner in state)
    return state


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numeric options of a parameter group, which a scheduler may change."""

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    return {
        key: value
        for key, value in group.items()
        if is_number(value)
        or (isinstance(value, list | tuple) and value and all(map(is_number, value)))
    }


@dataclass
class Ticks:
    """Converts durations to calls of ``scheduler.step()``, one for each step or each epoch."""

    length: RunLength
    steps_per_tick: int
    total: int
    """The number of calls in the whole training, after the warm-up."""

    def convert(self, value: Any) -> Any:
        """Convert a duration, or a list of durations, to ticks; return numbers unchanged."""
        if isinstance(value, list):
            return [self.convert(item) for item in value]
        if not isinstance(value, str):
            return value
        steps = parse_duration(value).in_steps(self.length)
        return max(1, round(steps / self.steps_per_tick))


def build_schedule(
    optimizer: Optimizer,
    section: Section | None,
    length: RunLength,
    where: str = "lr_scheduler",
) -> Schedule | None:
    """Build the schedule of a config section; None for no section.

    Durations (``2 epochs``, ``5%``) are converted to scheduler steps, and the lengths that torch
    requires (``OneCycleLR.total_steps``, ``CosineAnnealingLR.T_max``) are filled in.

    Raises:
        ConfigError: the scheduler cannot be built, or ends before the training.
    """
    if section is None:
        return None
    schedule = Schedule(optimizer, section, length, where)
    scheduler, per_tick = schedule.scheduler, schedule.ticks.steps_per_tick
    n_calls = length.total_steps // per_tick - schedule.warmup_steps // per_tick
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < n_calls:
        text = f"OneCycleLR ends after {scheduler.total_steps} steps, training takes {n_calls}"
        raise ConfigError(
            [Problem(where, f"{text}; remove total_steps to use the length of the training")]
        )
    if isinstance(scheduler, ReduceLROnPlateau) and section["every"] == "step":
        text = "ReduceLROnPlateau monitors a value of each epoch; set `every: epoch`"
        raise ConfigError([Problem(where, text)])
    if fault := _why_unusable(scheduler):
        raise ConfigError([Problem(where, f"{section['type']} cannot be used: {fault}")])
    return schedule


def _why_unusable(scheduler: Any) -> str:
    """Return why a scheduler of the project cannot be stepped or saved; empty if it can."""
    methods = ("step", "state_dict", "load_state_dict")
    if lacking := [name for name in methods if not callable(getattr(scheduler, name, None))]:
        return f"it has no {' and no '.join(lacking)}; derive it from torch's LRScheduler"
    needed = needed_arguments(scheduler.step)
    if needed and not isinstance(scheduler, ReduceLROnPlateau):
        return f"its step is called without arguments, but requires {', '.join(needed)}"
    return ""


def fit_to_groups(optimizer: Optimizer, section: Section, where: str) -> Section:
    """Expand one learning rate to a list if groups have different rates, to keep their ratios.

    The rate of a scheduler refers to the optimizer's ``lr``: a group with ten times that ``lr`` has
    ten times the rate. If ``lr`` is 0, the rate refers to the group with the highest one.

    Raises:
        ConfigError: a list does not fit the groups, or a minimum would raise some of the rates.
    """
    if not isinstance(section, Mapping) or "type" not in section:
        raise ConfigError([Problem(where, f"expected {{type: ..., args: ...}}, found {section!r}")])
    args, rates = dict(section.get("args") or {}), [float(g["lr"]) for g in optimizer.param_groups]
    scaled, fault = RATE_ARGUMENTS.get(section["type"], ()), ""
    for key in (*scaled, *LIST_ARGUMENTS):
        value = args.get(key)
        if isinstance(value, list) and len(value) != len(rates):
            fault = f"{key} has {len(value)} values for {len(rates)} parameter groups"
        elif key in scaled and isinstance(value, int | float) and len(set(rates)) > 1:
            own_rate = float(optimizer.defaults["lr"]) or max(rates)
            args[key] = [value * (rate / own_rate) for rate in rates]
    if section["type"].startswith("Cosine") and min(rates) < args.get("eta_min", 0) <= max(rates):
        fault = f"eta_min {args['eta_min']} is the minimum of all groups, and some begin below it"
    if fault:
        raise ConfigError(
            [Problem(where, f"{fault}; the groups are {_describe_groups(optimizer)}")]
        )
    if "schedulers" in args:
        args["schedulers"] = [fit_to_groups(optimizer, x, where) for x in args["schedulers"] or ()]
    return {**section, "args": args}


def _describe_groups(optimizer: Optimizer) -> str:
    """Describe the groups in one line: number, learning rate and first names."""
    return "; ".join(
        f"{number}: lr {float(group['lr']):g}, {listed(group.get('param_names', []), 2)}"
        for number, group in enumerate(optimizer.param_groups)
    )


def _count_ticks(section: Section, length: RunLength) -> tuple[Ticks, int]:
    """Return the ticks of a section's scheduler and the steps of its warm-up."""
    warmup_steps = 0
    if section["warmup"] is not None:
        warmup_steps = parse_duration(section["warmup"]).in_steps(length)
    per_tick = 1 if section["every"] == "step" else length.steps_per_epoch
    total = max(1, math.ceil((length.total_steps - warmup_steps) / per_tick))
    return Ticks(length, per_tick, total), warmup_steps


def _in_ticks(section: Section, ticks: Ticks) -> dict[str, Any]:
    """Return a section and its inner sections with all lengths in scheduler steps."""
    args = dict(section.get("args") or {})
    args.update({key: ticks.convert(args[key]) for key in _durations(section) if key in args})
    for key in FILLED_IN.get(section["type"], ()):
        if key not in args and "epochs" not in args:
            args[key] = ticks.total
    if "schedulers" in args:
        parts = zip(args["schedulers"], _ticks_of_parts(args, ticks), strict=True)
        args["schedulers"] = [_in_ticks(*part) for part in parts]
    return {**section, "args": args}


def _durations(section: Section) -> frozenset[str]:
    """Return which arguments of a scheduler may be durations."""
    try:
        return signature("lr_scheduler", find("lr_scheduler", section["type"])).durations
    except KindlingError:  # the class of a saved section no longer exists
        return DURATION_ARGUMENTS


def _build_scheduler(optimizer: Optimizer, section: Section, where: str) -> Any:
    """Build a scheduler after the schedulers that it consists of."""
    name, args = section["type"], dict(section["args"])
    if "schedulers" in args:
        args["schedulers"] = [_build_scheduler(optimizer, x, where) for x in args["schedulers"]]
    injected = {} if name == "ChainedScheduler" else {"optimizer": optimizer}
    return build("lr_scheduler", {"type": name, "args": args}, where=where, **injected)


def _ticks_of_parts(args: Mapping[str, Any], ticks: Ticks) -> list[Ticks]:
    """Divide the ticks at the milestones; chained schedulers each run for all ticks."""
    milestones = args.get("milestones", [])
    n_parts = len(args["schedulers"])
    if not isinstance(milestones, list) or len(milestones) != n_parts - 1:
        return [ticks] * n_parts
    bounds = [0, *milestones, ticks.total]
    return [replace(ticks, total=max(1, end - start)) for start, end in pairwise(bounds)]


# --- Comparisons of a resumed run -----------------------------------------------------------------


def _timing(section: Section, length: RunLength) -> Any:
    """Return the parts of a schedule that the config determines, to compare two of them."""
    ticks, warmup_steps = _count_ticks(section, length)

    def describe(part: Section) -> Any:
        args = part["args"]
        own = {key: args[key] for key in FROM_CONFIG | _durations(part) if key in args}
        return part["type"], own, [describe(inner) for inner in args.get("schedulers", ())]

    return section["every"], warmup_steps, describe(_in_ticks(section, ticks))


def _with_own_lengths(saved: Section, ours: Section) -> dict[str, Any]:
    """Return the saved section with the lengths, functions and directions of the config.

    If the type of a scheduler changed, also of an inner one, the config's section replaces it.
    """
    if saved["type"] != ours["type"]:
        return dict(ours)
    then, now = dict(saved.get("args") or {}), dict(ours.get("args") or {})
    own = {k for k in _durations(ours) if any(map(_has_text, (then.get(k), now.get(k))))}
    follow = FROM_CONFIG | own
    args = {key: value for key, value in then.items() if key not in follow or key in now}
    args.update({key: value for key, value in now.items() if key in follow})
    if "schedulers" in now and len(now["schedulers"]) == len(then.get("schedulers", ())):
        pairs = zip(then["schedulers"], now["schedulers"], strict=True)
        args["schedulers"] = [_with_own_lengths(*pair) for pair in pairs]
    elif "schedulers" in now:
        args["schedulers"] = now["schedulers"]
    return {**ours, "args": args} if "args" in ours or args else dict(ours)


def _has_text(value: Any) -> bool:
    return any(isinstance(each, str) for each in (value if isinstance(value, list) else [value]))


def _differ(scheduler: Any, state: Mapping[str, Any]) -> bool:
    """Return whether the lengths of a scheduler differ from those in a state."""
    ours = vars(scheduler)
    own = [key for key in LENGTH_ATTRIBUTES if key in ours]
    inner = zip(ours.get("_schedulers", ()), state.get("_schedulers", ()), strict=False)
    return any(ours[key] != state.get(key) for key in own) or any(_differ(*pair) for pair in inner)


def _ticks_made(state: Mapping[str, Any]) -> int:
    """Return the number of scheduler steps in a state."""
    if "last_epoch" not in state and "_schedulers" in state:
        return _ticks_made(state["_schedulers"][0])
    return int(state.get("last_epoch", 0))


def resolve_monitor(
    config: Config, keys: tuple[str, ...], section: Section, rule: str, losses: Collection[str]
) -> dict[str, Any]:
    """Return a scheduler's section with the name of the monitored value and its ``mode``.

    The direction comes from ``lr_scheduler.monitor``, or from ``trainer.monitor`` if it names the
    same value, or from ``args.mode``. Losses are minimised.

    Args:
        keys: the place of the section in the config.
        rule: the rule that selects the best epoch, such as ``"max valid/accuracy"``.
        losses: the names of the losses.

    Raises:
        ConfigError: directions contradict each other, or none is given.
    """
    direction, key = split_rule(section["monitor"] or "")
    if direction and not key:
        text = f"expected 'min NAME' or 'max NAME', found {section['monitor']!r}"
        raise ConfigError([config.problem((*keys, "monitor"), text)])
    bare = {**section, "monitor": key or None}
    if not _is_plateau(section["type"]):
        return bare
    of_trainer, key_of_trainer = split_rule(rule)
    key = key or key_of_trainer
    same = of_trainer if key and key == key_of_trainer else ""
    if direction and same and direction != same:
        text = f"trainer.monitor is {rule!r}, and this is {section['monitor']!r}; use one direction"
        raise ConfigError([config.problem((*keys, "monitor"), text)])
    args = dict(section["args"] or {})
    given, declared = args.get("mode", ""), direction or same
    if given in ("min", "max") and declared and given != declared:
        source = f"{'.'.join(keys)}.monitor" if direction else "trainer.monitor"
        text = f"{given!r} contradicts {source}, which is '{declared} {key}'; remove `mode`"
        raise ConfigError([config.problem((*keys, "args", "mode"), text)])
    is_loss = key.rpartition("/")[2] in {"loss", *losses}
    mode = declared or given or ("min" if is_loss else "")
    if key and not mode:
        text = f"are lower or higher values of {key!r} better? Write `monitor: min {key}` or"
        text += f" `monitor: max {key}`{_near(key, config, losses)}"
        raise ConfigError([config.problem((*keys, "monitor"), text)])
    if (
        mode
        and "mode" in signature("lr_scheduler", find("lr_scheduler", section["type"])).parameters
    ):
        args["mode"] = mode
    return {**bare, "monitor": key, "args": args}


def _near(key: str, config: Config, losses: Collection[str]) -> str:
    """Return the nearest name of a logged value, if ``key`` is not logged."""
    names = ("loss", *losses, *(metric["name"] for metric in config["metrics"]))
    known = [f"{phase}/{name}" for phase in ("train", "valid") for name in names]
    return "" if key in known else nearest(key, known)


def _is_plateau(name: str) -> bool:
    try:
        named = find("lr_scheduler", name)
    except KindlingError:
        return False  # `build` raises the error
    return isinstance(named, type) and issubclass(named, ReduceLROnPlateau)


def split_rule(rule: str) -> tuple[str, str]:
    """Return the direction and the monitored value of a rule; either may be empty."""
    mode, _, key = rule.partition(" ")
    if mode == "off" and not key:
        return mode, ""
    return (mode, key.strip()) if mode in ("min", "max") else ("", rule)


def logged_name(key: str, values: Mapping[str, Any]) -> str | None:
    """Return the name under which a monitored value is logged; None if it is not.

    The value of a class may be named by the number of the class, ``valid/Recall/3``, as configs of
    earlier versions do.
    """
    if key in values:
        return key
    metric, _, number = key.rpartition("/")
    if not metric or not number.isdecimal():
        return None
    parts = [name for name in values if name.startswith(f"{metric}/")]
    means = {f"{metric}/{mean}" for mean in ("macro", "mean", "micro", "weighted")}
    parts = [name for name in parts if name not in means]
    return parts[int(number)] if int(number) < len(parts) else None
