"""When things come due: the end of an accumulation window, of a duration."""

from __future__ import annotations

from base.config.durations import parse_duration


class Window:
    """The batches whose gradients make one step; the last window of an epoch may be shorter.

    A loss is divided by ``size``, the window's own, so that a short one weighs as it should.
    """

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate = accumulate
        self.size, self.is_full = 1, True

    def place(self, number: int, count: int) -> None:
        """Move to batch ``number`` of the ``count`` that are left of the epoch."""
        position = number % self.accumulate
        self.size = min(self.accumulate, count - number + position)
        self.is_full = position == self.size - 1


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
