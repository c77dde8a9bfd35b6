"""When things come due: the end of an accumulation window, of a duration."""

from __future__ import annotations

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

    def place(self, number: int, count: int) -> None:
        """Move to batch ``number`` of the ``count`` that are left of the epoch."""
        position = number % self.accumulate
        self.size = min(self.accumulate, count - number + position)
        self.divisor, self.is_full = self.size, position == self.size - 1

    def parts(self, batch: Any) -> Iterable[tuple[Any, int]]:
        """Give the batch in parts, with the samples of each; a part weighs by its samples."""
        n_samples = count_samples(batch)
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


class Every:
    """Comes due once in a duration: after so many steps, or after so many whole epochs."""

    def __init__(self, text: str, steps_per_epoch: int, total_steps: int) -> None:
        duration = parse_duration(text)
        is_whole = duration.unit == "epochs" and duration.amount == int(duration.amount)
        self.epochs = int(duration.amount) if is_whole else 0
        self.steps = 0 if is_whole else duration.in_steps(steps_per_epoch, total_steps)

    def is_due_at_step(self, step: int) -> bool:
        """Tell whether it comes due after this step."""
        return self.steps > 0 and step % self.steps == 0

    def is_due_after_epoch(self, epoch: int) -> bool:
        """Tell whether it comes due when this many epochs are complete."""
        return self.epochs > 0 and epoch % self.epochs == 0
