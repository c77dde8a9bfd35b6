"""Logs a run during training: the progress bar, a row for each epoch, curves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from base.checkpoint.store import CheckpointStore
from base.config import Config
from base.system.resources import peak_memory_mb
from base.system.run_folder import check_run_folder, write_environment
from base.training.epoch_rows import EpochRows
from base.training.epoch_time import Clock, advice, write_times
from base.training.experiment import CallbackProtocol
from base.training.host_copy import HostCopy
from base.training.progress import Progress
from base.training.results import is_part
from logger.console import ROW
from logger.epoch_table import EpochTable
from logger.files import write_whole
from logger.progress import ProgressBar
from logger.writers import Writer, Writers

log = logging.getLogger("kindling")

QUIET_COLUMNS = ("step", "samples_per_second", "memory_mb")
"""Columns of metrics.csv that the console does not show."""


class ShownLoss:
    """Returns the text after the progress bar: the loss of the last batch.

    On a GPU it is that of an earlier redraw, once it has arrived: nothing waits for it.

    Args:
        last_values: returns the values of the last batch.
    """

    def __init__(self, last_values: Callable[[], Mapping[str, Any]]) -> None:
        self._last_values, self._text = last_values, ""
        self._copy: HostCopy | None = None

    def __call__(self) -> str:
        loss = self._last_values().get("loss")
        if not (isinstance(loss, Tensor) and loss.is_cuda):
            return "" if loss is None else f"loss {float(loss):.4f}"
        if self._copy is not None and self._copy.is_ready():
            self._text, self._copy = f"loss {self._copy.number:.4f}", None
        if self._copy is None:
            self._copy = HostCopy(loss)
        return self._text


class RunLog:
    """Sends the values of a run to the console and to its writers.

    Args:
        settings: the config's ``trainer:`` section.
        folder: the folder of the run; None writes no files.
        writers: the writers of logged values, in addition to the console.
        rows: the rows of metrics.csv that checkpoints hold.
        factors: the settings that `advice` depends on, see `speed_factors`; None disables
            the advice.
    """

    def __init__(
        self,
        settings: SimpleNamespace,
        folder: Path | None = None,
        writers: Sequence[Writer] = (),
        rows: EpochRows | None = None,
        factors: dict[str, Any] | None = None,
    ) -> None:
        self.settings, self._folder = settings, folder
        self.rows = rows or EpochRows()
        self.table = EpochTable(monitored=(settings.monitor or "").rpartition(" ")[2])
        self.factors = factors or {}
        self._advised = ""
        self._logged_at = 0
        self._started, self._samples = time.perf_counter(), 0
        self.writers = Writers(list(writers))

    def bar(
        self, progress: Progress, n_batches: int, last_values: Callable[[], Mapping[str, Any]]
    ) -> ProgressBar:
        """Start the timer and the progress bar of an epoch.

        Args:
            last_values: returns the values of the last batch; the bar shows the loss.
        """
        self._started, self._samples = time.perf_counter(), progress.samples
        bar = ProgressBar(
            n_batches,
            initial=progress.batch,
            description=f"epoch {progress.epoch + 1}",
            enabled=self.settings.progress and self.settings.verbosity > 0,
        )
        bar.show(ShownLoss(last_values))
        return bar

    def log_step(self, values: Mapping[str, float], progress: Progress) -> None:
        """Write the values of a step to the writers."""
        numbers = {f"step/{name}": value for name, value in values.items()}
        self.writers.add_scalars({**numbers, **progress.rates}, progress.step)
        self._logged_at = progress.step

    def log_epoch(
        self,
        values: Mapping[str, float],
        progress: Progress,
        is_best: bool,
        clock: Clock,
        rate: float | None = None,
    ) -> dict[str, float]:
        """Write the values of an epoch to the console and all writers; return the added values.

        Args:
            rate: the learning rate that the console shows; None takes the first one.
        """
        if self._folder is not None:
            check_run_folder(self._folder)
        clock.lap("compute")
        idle, times = clock.idle_share(), clock.take()
        seconds = time.perf_counter() - self._started
        rates = progress.rates
        added = {
            **rates,
            "seconds": seconds,
            "samples_per_second": (progress.samples - self._samples) / max(seconds, 1e-9),
            "memory_mb": peak_memory_mb(),
            **{f"time/{part}": spent for part, spent in times.items()},
            "wait": times["data"] / max(sum(times.values()), 1e-9),
        }
        row = {"epoch": progress.epoch + 1, "step": progress.step, **values, **added}
        shown = {**values, **added}
        for name in rates if self._logged_at == progress.step else ():
            del shown[name]  # written for this step already
        self.writers.add_scalars(shown, progress.step)
        self.writers.add_row(row)
        self.rows.add(row)
        self.writers.flush()
        shown = {name: value for name, value in row.items() if self._is_shown(name, rates)}
        if rates:
            shown["lr"] = next(iter(rates.values())) if rate is None else rate
        *header, line = self.table.lines(shown, is_best)
        for above in header:
            log.log(ROW, above, extra={"style": "bold"})
        log.log(ROW, line, extra={"style": "best" if is_best else None})
        if self.factors and row["epoch"] not in self.factors["profiled"]:
            self.factors["idle"] = idle
            self._advise(times)
        return added

    def _advise(self, times: Mapping[str, float]) -> None:
        """Log advice on speed once, for epochs of at least a second."""
        text = advice(times, self.factors)
        if text is not None and text.partition(": ")[2] != self._advised:
            self._advised = text.partition(": ")[2]
            log.info(f"faster: {text}")

    def _is_shown(self, name: str, rates: Mapping[str, float]) -> bool:
        is_quiet = name in QUIET_COLUMNS or name.startswith("time/") or is_part(name)
        return not is_quiet and name not in rates

    def close(self) -> None:
        """Write pending values and the table of times."""
        self.writers.close()
        if self._folder is not None:
            try:
                write_times(self._folder, self.factors)
            except Exception as error:  # a failed table must not end the run
                log.warning(
                    "cannot write the table of times in %s: %s", self._folder / "report", error
                )


def write_config(config: Config, folder: Path) -> None:
    """Write the config and the environment of a run."""
    write_whole(folder / "config.yaml", config.to_yaml().encode())
    write_environment(folder)


def _nothing(*_: Any) -> None: ...


@dataclass
class Run:
    """One run of a trainer, opened by `base.run.session.open_run`::

        with open_run(trainer, config, resume_from) as run:
            trainer.train(run)

    Its functions call ``train_step`` and ``evaluate``; the loop receives them as values.
    """

    log: RunLog
    folder: Path | None = None
    """None writes no files."""
    store: CheckpointStore | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    """The record of the data in checkpoints."""
    callbacks: Mapping[str, CallbackProtocol] = field(default_factory=dict)
    """The callbacks of the run, such as the profiler; checkpoints do not hold them."""
    guard_first_step: Callable[[], AbstractContextManager[Any]] = nullcontext
    """The context in which the first step is checked."""
    check_first_step: Callable[[Mapping[str, Any]], None] = _nothing
    """Checks the values that the first step logged."""
    finish: Callable[[], dict[str, float]] = dict
    """Logs the end of training and runs the test phase; returns the values of the test."""
