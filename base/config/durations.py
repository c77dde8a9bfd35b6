"""Durations of training: ``500 steps``, ``2 epochs``, ``5%``, and minutes where allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

DURATION_PATTERN = r"^(?:[0-9]{1,12} ?steps?|[0-9]{1,9}(?:\.[0-9]{1,9})? ?(?:epochs?|%))$"
MINUTES_PATTERN = r"^[0-9]{1,9}(?:\.[0-9]{1,9})? ?minutes?$"


@dataclass(frozen=True)
class RunLength:
    """The length of a training, which durations are converted to steps with."""

    steps_per_epoch: int
    total_steps: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any], batches_per_epoch: int) -> RunLength:
        """Return the length that ``trainer.steps`` or ``trainer.epochs`` sets."""
        steps_per_epoch = math.ceil(batches_per_epoch / config["memory"]["accumulate"])
        trainer = config["trainer"]
        return cls(steps_per_epoch, trainer["steps"] or trainer["epochs"] * steps_per_epoch)

    @property
    def n_epochs(self) -> int:
        """The number of epochs; the last one may be incomplete."""
        return math.ceil(self.total_steps / self.steps_per_epoch)


class Duration(NamedTuple):
    """A duration in steps, in epochs (fractions allowed), or as a percentage of the training."""

    amount: float
    unit: str  # "steps", "epochs", "%" or "minutes"

    def in_steps(self, length: RunLength) -> int:
        """Return the number of steps, rounded half to even and at least 1."""
        unit_steps = {"steps": 1, "epochs": length.steps_per_epoch, "%": length.total_steps / 100}
        return max(1, round(self.amount * unit_steps[self.unit]))

    def __str__(self) -> str:
        unit = self.unit.rstrip("s") if self.amount == 1 else self.unit
        return f"{self.amount:.12g}{'' if unit == '%' else ' '}{unit}"


def parse_duration(text: str, with_time: bool = False) -> Duration:
    """Parse a duration. The message of a ValueError shows the valid forms.

    Args:
        with_time: also accept minutes, for settings that do not affect results.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise ValueError(f"a number needs a unit: '{text} steps', '{text} epochs' or '{text}%'")
    is_time = isinstance(text, str) and bool(re.match(MINUTES_PATTERN, text.strip()))
    if is_time and not with_time:
        raise ValueError(f"{text!r} would make results depend on time: give steps or epochs")
    if not isinstance(text, str) or not (is_time or re.match(DURATION_PATTERN, text.strip())):
        more = ", '10 minutes'" if with_time else ""
        raise ValueError(f"expected a duration such as '500 steps', '2 epochs'{more} or '5%'")

    number, unit = re.findall(r"[0-9.]+|[a-z%]+", text)
    amount = float(number)
    if amount <= 0 or (unit == "%" and amount > 100):
        raise ValueError("a duration must be positive, and at most 100%")
    return Duration(amount, unit if unit == "%" else unit.rstrip("s") + "s")
