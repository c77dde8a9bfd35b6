"""Requests to stop and to save, and what is due by the clock: the same on all ranks."""

from __future__ import annotations

from base.distributed.agreement import Kind, Message
from base.distributed.group import World
from base.system.signals import SignalFlags
from base.training.accumulation import Every


class Requests:
    """What the loop does at the next step boundary.

    With several ranks, each sends its requests with the batches of a step; all act on them at the
    end of that step. What is due after minutes is due by the clock of rank 0.
    """

    def __init__(self, world: World, signals: SignalFlags, save_every: Every) -> None:
        self._world, self._signals, self._save_every = world, signals, save_every
        self._stop: int | None = None
        self._saves = self._save_is_due = False

    @property
    def stop(self) -> int | None:
        """The signal that stops the training; None if it goes on."""
        return self._stop if self._world.is_active else self._signals.stop

    def send(self) -> dict[str, float]:
        """Return the requests of this rank, which are then sent."""
        fields = {"stop": float(self._signals.stop or 0), "save": float(self._signals.save)}
        self._signals.save = False
        if self._world.is_main:
            fields["save_due"] = self._save_every.is_due_by_clock()
        return fields

    def receive(self, message: Message) -> None:
        """Take the requests of all ranks from a message."""
        self._stop = message.stop_signal or self._stop
        self._saves = self._saves or any(message["save"])
        self._save_is_due = self._save_is_due or any(message["save_due"])

    def exchange(self, kind: Kind, step: int) -> None:
        """Send the requests of this rank and receive those of all."""
        if self._world.is_active:
            self.receive(self._world.agree(kind, step, **self.send()))

    def save_is_due(self, step: int) -> bool:
        """Return whether a checkpoint is due after this step, or was requested."""
        if not self._world.is_active:
            if self._signals.save:
                self._signals.save = False
                return True
            return self._save_every.is_due_at_step(step)
        is_due = self._saves or self._save_is_due or self._save_every.is_due_by_count(step)
        self._saves = self._save_is_due = False
        return is_due
