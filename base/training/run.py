"""What the loop needs of the run it is part of: its folder, log and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from base.checkpoint.store import CheckpointStore
from base.training.experiment import CallbackProtocol
from base.training.run_log import RunLog


def _nothing(*_: Any) -> None: ...


@dataclass
class Run:
    """One run of a trainer, opened by `base.run.session.open_run`::

        with open_run(trainer, config, resume_from) as run:
            trainer.train(run)

    What must call ``train_step`` or ``evaluate`` itself stands above the loop; the loop is given
    it here as functions.
    """

    log: RunLog
    folder: Path | None = None
    """None writes no files."""
    store: CheckpointStore | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    """What checkpoints record of the data."""
    callbacks: Mapping[str, CallbackProtocol] = field(default_factory=dict)
    """Those of the run itself, such as the profiler; checkpoints do not hold them."""
    guard_first_step: Callable[[], AbstractContextManager[Any]] = nullcontext
    """The context in which the first step is checked."""
    check_first_step: Callable[[Mapping[str, Any]], None] = _nothing
    """Checks what the first step has logged."""
    finish: Callable[[], dict[str, float]] = dict
    """Logs how training ended and runs the test phase; returns the test's values."""
