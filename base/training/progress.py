"""How far a training has come, and its random streams: both are saved and resumed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

from base.system.seeding import capture_random_state, restore_random_state


@runtime_checkable
class Stateful(Protocol):
    """Anything that can be saved and resumed."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass
class Progress:
    """How far training has come: whole epochs, batches of the running epoch, steps, samples."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    batches_total: int = 0
    """Batches drawn since the start: the position in the endless order of the data."""
    closed_at: int = 0
    """The step at which an epoch was last validated and logged, its beginning or all of it."""
    rates: dict[str, float] = field(default_factory=dict)
    """The learning rates of the last step, as they go to the log."""
    skipped: int = 0
    """Steps dropped because a number was not finite; they count as steps."""
    skipped_in_a_row: int = 0
    rollbacks: int = 0

    @property
    def n_logged(self) -> int:
        """The epochs with a row in metrics.csv; the last of all steps may fall into one."""
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
    """The random streams of torch (CPU and CUDA), numpy and Python as one stateful object."""

    def state_dict(self) -> dict[str, Any]:
        return capture_random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        restore_random_state(state_dict)
