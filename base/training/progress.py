"""The progress of a training, its random states, and the monitor of the best epoch."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from base.config import Config
from base.config.normal_form import optimizer_keys
from base.errors import ConfigError, Problem, listed, nearest_name
from base.system.seeding import capture_random_state, restore_random_state
from base.training.schedules import Schedule, logged_name, split_rule
from base.training.swa import SwaSchedule

console = logging.getLogger("kindling")


@runtime_checkable
class Stateful(Protocol):
    """An object with ``state_dict`` and ``load_state_dict``."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass
class Progress:
    """The progress of a training: complete epochs, batches of the current epoch, steps, samples."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    batches_total: int = 0
    """Batches since the start: the position in the endless order of the data."""
    closed_at: int = 0
    """The step at which an epoch, or its beginning, was last validated and logged."""
    rates: dict[str, float] = field(default_factory=dict)
    """The learning rates of the last step, by their logged names."""
    skipped: int = 0
    """Steps skipped because of non-finite values; they count as steps."""
    skipped_in_a_row: int = 0
    rollbacks: int = 0

    @property
    def n_logged(self) -> int:
        """The number of epochs with a row in metrics.csv; the last one may be incomplete."""
        return self.epoch + (self.batch > 0 and self.closed_at == self.step)

    def advance(self, n_samples: int) -> None:
        """Count one batch."""
        self.batch += 1
        self.batches_total += 1
        self.samples += n_samples

    def start_next_epoch(self) -> None:
        """Count one epoch."""
        self.epoch += 1
        self.batch = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


class RandomState:
    """The random states of torch (CPU and CUDA), numpy and Python as one stateful object."""

    def state_dict(self) -> dict[str, Any]:
        return capture_random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        restore_random_state(state_dict)


class Monitor:
    """Monitors one logged value for the best epoch and for early stopping.

    Args:
        rule: ``"max valid/accuracy"``, ``"min train/loss"`` or ``"off"``.
        patience: the number of epochs without improvement before early stopping; None disables it.
    """

    def __init__(self, rule: str, patience: int | None = None) -> None:
        self.rule = rule
        self.mode, self.key = split_rule(rule)
        self.patience = patience
        self.best = math.inf if self.mode == "min" else -math.inf
        self.best_epoch = 0
        self.epochs_without_improvement = 0
        self.n_nonfinite = 0
        """The number of epochs whose value was NaN or infinite."""

    @property
    def was_never_finite(self) -> bool:
        """Whether there were values, but none was finite."""
        return self.n_nonfinite > 0 and self.best_epoch == 0

    @property
    def is_off(self) -> bool:
        return self.mode == "off"

    @property
    def is_exhausted(self) -> bool:
        return self.patience is not None and self.epochs_without_improvement >= self.patience

    def update(self, log: Mapping[str, float], epoch: int) -> bool:
        """Update the monitor with the values of an epoch; return whether it is the best so far."""
        if self.is_off:
            return False
        key = logged_name(self.key, log)
        if key is None:
            return False  # the epoch was not validated
        value = log[key]
        improved = value < self.best if self.mode == "min" else value > self.best
        if not math.isfinite(value):
            self._note_nonfinite(value, epoch, improved)
        if improved:
            self.best, self.best_epoch = value, epoch
        self.epochs_without_improvement = epoch - self.best_epoch
        return improved

    def _note_nonfinite(self, value: float, epoch: int, is_best: bool) -> None:
        """Count a non-finite value; warn about the first one."""
        if self.n_nonfinite == 0:
            effect = "nothing is better than that" if is_best else "such an epoch is not the best"
            text = "%s is %s in epoch %d, not a finite number: %s"
            console.warning(text, self.key, value, epoch, effect)
        self.n_nonfinite += 1

    def state_dict(self) -> dict[str, Any]:
        names = ["mode", "key", "best", "best_epoch", "epochs_without_improvement", "n_nonfinite"]
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, unless the config now monitors another value."""
        if (state_dict["mode"], state_dict["key"]) == (self.mode, self.key):
            for name, value in state_dict.items():
                setattr(self, name, value)


def check_monitored(
    config: Config,
    monitor: Monitor,
    schedules: Mapping[str, Schedule | SwaSchedule],
    values: Mapping[str, Any],
    other_phases: Collection[str] = (),
) -> None:
    """Check that the values that the config monitors are logged.

    Args:
        values: the values that a phase logged, such as ``train/loss``.
        other_phases: the phases still to come, such as ``valid``, whose values are not checked.

    Raises:
        ConfigError: a monitored value is not logged, or a schedule has no value to monitor.
    """
    faults: list[Problem] = []
    watched: dict[tuple[str, ...], str] = {("trainer", "monitor"): monitor.key}
    for name, schedule in schedules.items():
        keys = (*optimizer_keys(config, name, "lr_scheduler"), "monitor")
        watched[keys] = schedule.monitor or ""
        if schedule.monitor == "":
            text = (
                "ReduceLROnPlateau has no value to monitor while `trainer.monitor` is off; name one"
            )
            faults.append(config.problem(keys, f"{text}, as in `monitor: valid/loss`"))
    faults += [
        config.problem(keys, f"no value {key!r} is logged{_hint(key, values, config)}")
        for keys, key in watched.items()
        if key and logged_name(key, values) is None and key.partition("/")[0] not in other_phases
    ]
    if faults:
        raise ConfigError(faults)


def _hint(key: str, values: Mapping[str, Any], config: Config) -> str:
    """Return the nearest logged value, why a phase may have none, and what is logged."""
    aliases = {name: name for name in values}
    for name in values:  # the first values are the most likely ones
        phase, _, rest = name.partition("/")
        short = rest.removesuffix("/macro").removesuffix("/mean")
        for alias in (rest, short, f"{phase}/{short}"):
            aliases.setdefault(alias, name)
    found = aliases.get(key) or aliases.get(nearest_name(key, aliases) or "")
    text = f"; did you mean {found!r}?" if found else "."
    phases = {name.partition("/")[0] for name in values}
    if key.startswith("valid/") and "valid" not in phases:
        text += " There is no validation data."
    elif key.startswith("train/") and not config["trainer"]["train_metrics"]:
        text += " `trainer.train_metrics` is off."
    whole = [name for name in values if name.count("/") < 2 or name.endswith(("/macro", "/mean"))]
    return f"{text} There are {listed(whole or list(values), 12)}"
