"""When things come due: the end of an accumulation window, of a duration."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from base.batch import count_samples, cut
from base.config.durations import parse_duration


class Window:
    """The batches whose gradients make one step; the last window of an epoch may be shorter.

    A loss is divided by ``divisor``: the number of batches in the window, so that a short one
    weighs as it should, times the parts of a batch that is cut.

    Args:
        accumulate: batches in a window.
        micro_batch: samples in a part of a batch; None leaves batches whole.
    """

    def __init__(self, accumulate: int = 1, micro_batch: int | None = None) -> None:
        self.accumulate, self.micro_batch = accumulate, micro_batch
        self.size, self.divisor, self.is_full = 1, 1.0, True
        self.n_samples = 0
        self.fate = ""  # "dropped": the rest is passed over; "again": the step begins anew

    def place(self, number: int, count: int) -> None:
        """Move to batch ``number`` of the ``count`` that are left of the epoch."""
        position = number % self.accumulate
        if position == 0:
            self.fate = ""
        self.size = min(self.accumulate, count - number + position)
        self.divisor, self.is_full = self.size, position == self.size - 1

    def parts(self, batch: Any) -> Iterable[tuple[Any, int]]:
        """Give the batch in parts, with the samples of each; a part weighs by its samples."""
        self.n_samples = n_samples = count_samples(batch)
        if self.fate:
            return ()
        if self.micro_batch is None or self.micro_batch >= n_samples:
            return ((batch, n_samples),)
        return self._cut(batch, n_samples, self.micro_batch)

    def _cut(self, batch: Any, n_samples: int, length: int) -> Iterator[tuple[Any, int]]:
        is_last = self.is_full
        for begin in range(0, n_samples, length):
            end = min(begin + length, n_samples)
            self.divisor = self.size * n_samples / (end - begin)
            self.is_full = is_last and end == n_samples
            yield cut(batch, begin, end, n_samples), end - begin
            if self.fate:
                break
        self.is_full = is_last and self.fate != "again"


class Every:
    """Comes due once in a duration: after so many steps, so many whole epochs, or minutes.

    Minutes are those of a clock that nobody sets, from the last time that it came due.
    """

    def __init__(self, text: str, steps_per_epoch: int, total_steps: int) -> None:
        duration = parse_duration(text, with_time=True)
        is_whole = duration.unit == "epochs" and duration.amount == int(duration.amount)
        self.epochs = int(duration.amount) if is_whole else 0
        self.seconds = 60 * duration.amount if duration.unit == "minutes" else 0.0
        is_timed = is_whole or self.seconds > 0
        self.steps = 0 if is_timed else duration.in_steps(steps_per_epoch, total_steps)
        self._began = time.monotonic()

    def is_due_at_step(self, step: int) -> bool:
        """Tell whether it comes due after this step."""
        if self.seconds and time.monotonic() - self._began >= self.seconds:
            self._began = time.monotonic()
            return True
        return self.steps > 0 and step % self.steps == 0

    def is_due_after_epoch(self, epoch: int) -> bool:
        """Tell whether it comes due when this many epochs are complete."""
        return self.epochs > 0 and epoch % self.epochs == 0
