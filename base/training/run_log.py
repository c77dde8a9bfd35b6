"""What a run tells while it trains: header, bar, rows, curves; and the folder that holds them."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from base.checkpoint.background import in_background
from base.checkpoint.store import CheckpointStore, read_whole, restore
from base.config import Config
from base.config.changes import OWN_STATE, Change, differences, table_of
from base.data.loaders import missing_test_data
from base.data.record import data_of
from base.errors import KindlingError, disk_error, why
from base.names.registry import project_root
from base.run.data_changes import keep_data
from base.run.header import header_facts, peak_memory_mb
from base.run.micro_batch import settle
from base.run.parameter_table import audit, loaded_tables, short_table, write_csv
from base.run.profiler import Profiler
from base.run.writers import make_writers
from base.system.cores import warn_of_load
from base.system.run_folder import (
    create_run_folder,
    lock,
    refuse_gone,
    remove_unbegun,
    run_of,
    write_environment,
)
from base.system.signals import resume_command
from base.training.epoch_rows import EpochRows
from base.training.epoch_time import Clock, advice, facts_of, write_times
from base.training.nonfinite import refuse_bad_optimizers
from base.training.optimizers import learning_rates
from base.training.progress import Progress
from logger.console import (
    ROW,
    EpochTable,
    close_logging,
    format_header,
    format_value,
    setup_logging,
)
from logger.files import FileError, write_whole
from logger.progress import ProgressBar
from logger.report import write_curves
from logger.writers import Writers

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")

QUIET_COLUMNS = ("step", "samples_per_second", "memory_mb")
"""Columns of metrics.csv that the console's row leaves out."""


@contextmanager
def open_folder(config: Config, resume_from: Path | None = None) -> Iterator[Path]:
    """Make the run's folder, or go back to the resumed one; hold it and log into it.

    Raises:
        UsageError: the folder cannot be made, or another process holds it.
    """
    if resume_from is None:
        folder = create_run_folder(config["trainer"]["save_dir"], config["name"])
    else:
        folder = run_of(resume_from)
    new = folder if resume_from is None else None
    with ExitStack() as stack:
        with removed_on_error(new):
            stack.enter_context(lock(folder))
            stack.callback(close_logging)
            setup_logging(folder, config["trainer"]["verbosity"])
            for note in config.notes:
                log.info(note)
            if new is not None:
                keep_config(config, new)
        with told_where_to_resume(folder):
            yield folder
        _draw_curves(folder)


@contextmanager
def removed_on_error(folder: Path | None) -> Iterator[None]:
    """Remove a new run's folder where it cannot be made ready: nothing half-made is left."""
    try:
        yield
    except FileError as error:
        if folder is None:
            raise  # a run that is resumed
        remove_unbegun(folder)
        raise disk_error(error, f"{folder}: cannot be written: {why(error)}") from error
    except KindlingError:
        if folder is not None:
            remove_unbegun(folder)
        raise


@contextmanager
def told_where_to_resume(folder: Path) -> Iterator[None]:
    """Add to the traceback of an error of user code how to resume the run."""
    try:
        yield
    except FileError:
        raise  # it says so itself
    except Exception as error:
        if any((folder / "checkpoints").glob("step-*")):
            text = f"the last checkpoint is whole; resume by: {resume_command(folder)}"
        else:
            text = f"{folder} has no checkpoint yet"
        if isinstance(error, KindlingError):
            error.advice = text if error.trace else ""
        elif hasattr(error, "add_note"):  # Python 3.11: it ends the traceback
            error.add_note(text)
        else:
            log.error(text)
        raise


def keep_config(config: Config, folder: Path) -> None:
    """Write down what is run, and on what."""
    write_whole(folder / "config.yaml", config.to_yaml().encode())
    write_environment(folder)


def _draw_curves(folder: Path) -> None:
    try:
        write_curves(folder)
    except Exception as error:  # no picture is worth a run
        log.warning("no curves in %s: %s", folder / "report", error)


def _log_changes(config: Config, folder: Path, rates: Sequence[Change] = ()) -> None:
    """Log what differs from the config that the run had, and the learning rates that follow."""
    has_config = (folder / "config.yaml").is_file()
    changes = differences(config, folder) if has_config else []
    if changes or rates:
        log.info(f"changed since the run began:\n{table_of(changes, rates)}")
    kept = [key for key, _, _ in changes if OWN_STATE.search(key)]
    if kept:
        log.warning("%s: what the optimizer and its schedule have saved stays", ", ".join(kept))


class RunLog:
    """Sends the values of a run to the console and to its writers.

    Args:
        folder: the run's folder; None writes no files.
        resumed_at: where a resumed run goes on; what was logged beyond it is dropped.
        rows: those of metrics.csv that checkpoints keep.
        is_finished: whether nothing is left to train.
    """

    def __init__(
        self,
        folder: Path | None,
        settings: SimpleNamespace,
        resumed_at: Progress | None = None,
        config: Mapping[str, Any] | None = None,
        rows: EpochRows | None = None,
        is_finished: bool = False,
    ) -> None:
        self.settings, self._folder = settings, folder
        self.rows = rows or EpochRows()
        self.table = EpochTable()
        self.last: Mapping[str, Any] = {}
        self.facts: dict[str, Any] = {}
        self._advised = ""
        self._logged_at = 0
        self._started, self._samples = time.perf_counter(), 0
        writers = []
        if folder and config:
            writers = make_writers(folder, config, resumed_at, self.rows, is_finished)
        self.writers = Writers(writers)

    def bar(self, progress: Progress, n_batches: int) -> ProgressBar:
        """Begin an epoch: start its clock and show its bar."""
        self._started, self._samples = time.perf_counter(), progress.samples
        bar = ProgressBar(
            n_batches,
            initial=progress.batch,
            description=f"epoch {progress.epoch + 1}",
            enabled=self.settings.progress and self.settings.verbosity > 0,
        )
        bar.show(self._loss_text)
        return bar

    def _loss_text(self) -> str:
        loss = self.last.get("loss")
        return "" if loss is None else f"loss {float(loss):.4f}"  # waits, ten times a second

    def log_step(self, values: Mapping[str, Any], progress: Progress) -> None:
        """Write the values of one step to the curves."""
        # The one wait for the device, each `log_every` steps.
        numbers = {f"step/{name}": float(value) for name, value in values.items()}
        self.writers.add_scalars({**numbers, **progress.rates}, progress.step)
        self._logged_at = progress.step

    def log_epoch(
        self,
        values: Mapping[str, float],
        progress: Progress,
        is_best: bool,
        clock: Clock,
    ) -> dict[str, float]:
        """Write the values of an epoch everywhere; return what was added to them."""
        if self._folder is not None:
            refuse_gone(self._folder)
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
            del shown[name]  # this step's are there
        self.writers.add_scalars(shown, progress.step)
        self.writers.add_row(row)
        self.rows.add(row)
        self.writers.flush()
        shown = {name: value for name, value in row.items() if self._is_shown(name, rates)}
        for line in self.table.lines(shown, is_best):
            log.log(ROW, line)
        if self.facts and row["epoch"] not in self.facts["profiled"]:
            self.facts["idle"] = idle
            self._advise(times)
        return added

    def _advise(self, times: Mapping[str, float]) -> None:
        """Say once what would make epochs of a second or more faster."""
        text = advice(times, self.facts)
        if text is not None and text.partition(": ")[2] != self._advised:
            self._advised = text.partition(": ")[2]
            log.info(f"faster: {text}")

    def _is_shown(self, name: str, rates: Mapping[str, float]) -> bool:
        is_further_rate = name in rates and name != next(iter(rates))
        is_part = name.count("/") > 1 and not name.endswith(("/mean", "/macro"))
        is_quiet = name in QUIET_COLUMNS or name.startswith("time/") or is_part
        return not is_quiet and not is_further_rate

    def close(self) -> None:
        """Write out what is pending, and where the time went."""
        self.writers.close()
        if self._folder is not None:
            try:
                write_times(self._folder, self.facts)
            except Exception as error:  # no table is worth a run
                log.warning("no times in %s: %s", self._folder / "report", error)


def open_run(
    trainer: BaseTrainer,
    folder: Path | None,
    resume_from: Path | None,
    stack: ExitStack,
    allow_change: bool = False,
) -> None:
    """Make ready to write, restore the state, and see that all is closed in the end."""
    with removed_on_error(folder if resume_from is None else None):
        _prepare(trainer, folder, resume_from, stack, allow_change)
    for callback in trainer.callbacks.values():
        stack.callback(callback.on_end, trainer)
        callback.on_start(trainer)
    trainer.epoch_start.has_started = True
    trainer.clock.start()


def _prepare(
    trainer: BaseTrainer,
    folder: Path | None,
    resume_from: Path | None,
    stack: ExitStack,
    allow_change: bool,
) -> None:
    state, manifest = ({}, {}) if resume_from is None else read_whole(resume_from)
    if folder is not None:
        settings = trainer.settings
        is_beside = in_background(settings.async_save, trainer.device)
        trainer.store = CheckpointStore(folder / "checkpoints", settings.keep, is_beside)
        trainer.store.look = refuse_bad_optimizers
        stack.push(trainer.store.background.end)
        trainer.store.sweep()
        trainer.store.probe()
        trainer.experiment.references.log_changes()
        trainer.data = keep_data(trainer.experiment, folder, data_of(manifest), allow_change)
        trainer.experiment.bad_samples.open(folder)
    resumed_at = None
    if resume_from is not None:
        _restore(trainer, state, folder)
        del state
        if trainer.store is not None:
            trainer.store.protect(resume_from)
        resumed_at = trainer.progress
    if settle(trainer) and folder is not None:
        keep_config(trainer.config, folder)
    trainer.folder = folder
    if folder is not None and trainer.config["profile"] is not None:
        trainer.callbacks["profile"] = Profiler(**trainer.config["profile"])
    trainer.run_log = RunLog(
        folder, trainer.settings, resumed_at, trainer.config, trainer.epoch_rows,
        trainer.is_finished(),
    )  # fmt: skip
    trainer.writers = trainer.run_log.writers
    trainer.run_log.facts = facts_of(trainer)
    trainer.recovery.keep()
    stack.callback(trainer.run_log.close)
    stack.callback(trainer.capture.remove)
    for loader in (trainer.train_loader, trainer.valid_loader):
        stack.callback(getattr(loader, "close", lambda: None))
    tell_header(trainer, folder)


def _restore(trainer: BaseTrainer, state: Mapping[str, Any], folder: Path | None) -> None:
    """Restore the state, let the schedules follow a new length, and log what has changed."""
    rates: list[Change] = []
    try:
        restore(trainer.stateful, state)
        then = learning_rates(trainer.optimizers)
        for schedule in trainer.schedules.values():
            schedule.follow_new_length()
        now = learning_rates(trainer.optimizers)
        step = trainer.progress.step + 1
        if step <= trainer.experiment.total_steps:
            rates = [(f"{k} at step {step}", then[k], now[k]) for k in now if now[k] != then[k]]
    finally:  # also where the state does not fit: that may be why
        if folder is not None:
            _log_changes(trainer.config, folder, rates)


def tell_header(trainer: BaseTrainer, folder: Path | None) -> None:
    """Log what is about to be trained, where, and how to go on with it.

    A resumed run takes on its new config here, once its state is known to fit.
    """
    log.info(format_header(header_facts(trainer, folder)))
    warn_of_load(trainer.experiment)
    if trainer.progress.step == 0:  # a run that goes on keeps what it began with
        if trainer.experiment.loaded:
            log.info(loaded_tables(trainer.experiment))
        rows = audit(trainer.experiment)
        log.info("parameters:\n" + short_table(rows))
        if folder is not None:
            write_csv(rows, folder / "parameters.csv")
    if folder is not None and trainer.progress.step > 0:
        keep_config(trainer.config, folder)
    if trainer.is_finished() or trainer.progress.step > trainer.experiment.total_steps:
        log.log(ROW, _finished_message(trainer))


def _finished_message(trainer: BaseTrainer) -> str:
    settings = trainer.settings
    if trainer.monitor.is_exhausted:
        text, longer = f"early stop after epoch {trainer.progress.epoch}", "trainer.early_stop=null"
        if trainer.monitor.was_never_finite:
            text += f", as {trainer.monitor.key} was never a finite number"
    else:
        text = f"step {trainer.progress.step} of {trainer.experiment.total_steps}"
        unit = "epochs" if settings.steps is None else "steps"
        longer = f"trainer.{unit}=N"
    return f"nothing is left to train: {text}; to go on longer, add --set {longer}"


def tell_end(trainer: BaseTrainer, folder: Path | None) -> None:
    """Log which epoch was best, and how to test it."""
    if trainer.store is not None:
        trainer.store.wait()
    monitor, progress = trainer.monitor, trainer.progress
    if progress.skipped:
        text = "%d of %d steps were skipped: a number was not finite"
        log.warning(text, progress.skipped, progress.step)
    trainer.experiment.bad_samples.tell_end()
    if monitor.is_exhausted:
        n_epochs = monitor.epochs_without_improvement
        log.info(f"early stop: {n_epochs} epochs without a better {monitor.key}")
    if monitor.was_never_finite:
        text = "%s was not a finite number in any of %d epochs: none of them is the best%s"
        stopped = ", and patience ended for that alone" if monitor.is_exhausted else ""
        log.warning(text, monitor.key, monitor.n_nonfinite, stopped)
    if monitor.best_epoch:
        value = format_value(monitor.key, monitor.best)
        log.info(f"best: epoch {monitor.best_epoch}, {monitor.key} {value}")
    if folder is not None:
        log.info(test_line(trainer.config, folder))


def test_line(config: Config, folder: Path) -> str:
    """Return how to test a run, or which setting is missing for that."""
    if missing := missing_test_data(config):
        return f"no test data: {missing}"
    script = "test.py" if Path("test.py").is_file() else str(project_root() / "test.py")
    return f"test by: {shlex.join(['python', script, '-r', str(folder)])}"
