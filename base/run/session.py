"""Opens a run in its folder, restores its state, logs it, and closes it at the end."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from base.base_trainer import StopRequested
from base.checkpoint.background import saves_in_background
from base.checkpoint.data_record import data_of
from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.store import CheckpointStore
from base.config import Config
from base.config.changes import OWN_STATE, Change, differences, table_of
from base.config.ignored_rates import rate_warnings
from base.config.short_settings import short_settings
from base.distributed.agreement import Kind
from base.distributed.group import ALONE, World
from base.errors import KindlingError, disk_error, why
from base.names.registry import project_root
from base.report.figures import write_curves
from base.run.data_changes import write_data_record
from base.run.first_step import check_first_step, guard_first_step
from base.run.header import header_entries
from base.run.loaders import missing_test_data
from base.run.micro_batch import resolve_micro_batch
from base.run.parameter_table import parameter_rows, short_table, weights_tables, write_csv
from base.run.profiler import Profiler
from base.run.pruning import StopIfPruned
from base.run.restarts import note_run, read_together
from base.run.testing import (
    choose_checkpoint,
    preserve_state,
    record_validation,
    run_test,
    write_page,
)
from base.run.writers import build_writers
from base.runs import read_run
from base.runs.facts import State
from base.system.deferred_files import DeferredFiles
from base.system.run_folder import (
    create_run_folder,
    note_job,
    read_stamp,
    remove_if_not_started,
    run_folder_of,
    update_stamp,
)
from base.system.run_lock import lock
from base.system.signals import InterruptedRunError, resume_command
from base.system.trial import current_trial
from base.training.epoch_time import speed_factors
from base.training.experiment import CallbackProtocol
from base.training.nonfinite import refuse_bad_optimizers
from base.training.parameter_groups import learning_rates
from base.training.rank_states import gather_bad_samples, start_random_streams, state_of_rank
from base.training.run_log import Run, RunLog, write_config
from logger.console import (
    ROW,
    close_logging,
    early_warnings,
    format_header,
    format_value,
    setup_logging,
    setup_rank_logging,
)
from logger.files import FileError, write_whole

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

REQUEUE = "requeue"

log = logging.getLogger("kindling")


@contextmanager
def open_run(
    trainer: BaseTrainer,
    config: Config,
    resume_from: Path | None = None,
    allow_change: bool = False,
) -> Iterator[Run]:
    """Open a run in a folder of its own, or resume one::

        with open_run(trainer, config, resume_from) as run:
            trainer.train(run)

    Args:
        resume_from: the run, or the checkpoint, to resume.
        allow_change: whether labels may differ from those of the resumed run.

    Raises:
        UsageError: the folder cannot be created, or another process uses it.
        CheckpointError: the checkpoint is damaged, or its state does not fit.
        DataError: the data differ from those of the resumed run.
    """
    with (
        end_together(trainer.world),
        open_folder(config, resume_from, trainer.world) as folder,
        open_run_in(trainer, folder, resume_from, allow_change) as run,
    ):
        if not trainer.world.is_main:
            yield run
            return
        if resume_from is not None:
            record_resume(folder, config)
        with report_end(folder) if config["trainer"]["report"] else nullcontext():
            yield run


@contextmanager
def open_run_in(
    trainer: BaseTrainer,
    folder: Path | None = None,
    resume_from: Path | None = None,
    allow_change: bool = False,
) -> Iterator[Run]:
    """Open a run in an existing folder; None writes no files."""
    with ExitStack() as stack:
        stack.enter_context(trainer.signals)
        is_new = resume_from is None and trainer.world.is_main
        with remove_folder_on_error(folder if is_new else None):
            run = _prepare(trainer, folder, resume_from, allow_change, stack)
        yield run


@contextmanager
def end_together(world: World) -> Iterator[None]:
    """Let no rank exit before rank 0 has written everything; an error there reaches all ranks."""
    try:
        yield
    except InterruptedRunError:
        if world.is_active:
            world.agree(Kind.END)
        raise
    if world.is_active:
        world.agree(Kind.END)
        world.close()  # its threads may not outlive the interpreter


@contextmanager
def open_folder(
    config: Config, resume_from: Path | None = None, world: World = ALONE
) -> Iterator[Path]:
    """Create a folder for the run, or open that of the resumed one; lock it and log there.

    Rank 0 does this for all ranks; the others receive the path and print warnings only.

    Raises:
        UsageError: the folder cannot be created, or another process uses it.
    """
    if not world.is_main:
        with _join_folder(config, world) as folder:
            yield folder
        return
    if resume_from is None:
        settings = short_settings(config.changed, config)
        save_dir, name, changed = config["trainer"]["save_dir"], config["name"], config.changed
        folder = create_run_folder(save_dir, name, settings=settings, changed=changed)
    else:
        folder = run_folder_of(resume_from)
    new = folder if resume_from is None else None
    with ExitStack() as stack:
        with remove_folder_on_error(new):
            stack.enter_context(lock(folder))
            stack.callback(close_logging)
            known = early_warnings()
            setup_logging(folder, config["trainer"]["verbosity"])
            for note in config.notes:
                log.info(note)
            for text in rate_warnings(config) if new is not None else ():
                log.warning(text)
            if new is not None:
                write_config(config, new)
            else:
                (folder / REQUEUE).unlink(missing_ok=True)
            note_job(folder)
            note_run(folder, world)
            world.broadcast(str(folder))
            _log_warnings_of_ranks(known, world)
        with (
            add_resume_advice(folder),
            ask_for_requeue(folder),
            record_end(folder, new is not None),
        ):
            yield folder


@contextmanager
def _join_folder(config: Config, world: World) -> Iterator[Path]:
    """Receive the path of the folder that rank 0 opened; log the warnings of this rank."""
    folder = Path(world.broadcast(None))
    world.gather(early_warnings())
    has_log = config["distributed"]["rank_logs"] and folder.is_dir()
    with ExitStack() as stack:
        stack.callback(close_logging)
        setup_rank_logging(world.rank, folder if has_log else None)
        yield folder


def _log_warnings_of_ranks(known: Sequence[str], world: World) -> None:
    """Log the warnings that other ranks have had so far, each once: most are the same on all."""
    seen = set(known)
    for rank, texts in enumerate(world.gather(list(known)) or []):
        for text in texts:
            if text not in seen:
                seen.add(text)
                log.warning("rank %d: %s", rank, text)


@contextmanager
def remove_folder_on_error(folder: Path | None) -> Iterator[None]:
    """Remove the folder of a new run if an error stops its preparation; None removes nothing."""
    try:
        yield
    except FileError as error:
        if folder is None:
            raise  # the folder of a resumed run stays
        remove_if_not_started(folder)
        raise disk_error(error, f"{folder}: cannot be written: {why(error)}") from error
    except KindlingError:
        if folder is not None:
            remove_if_not_started(folder)
        raise


@contextmanager
def add_resume_advice(folder: Path) -> Iterator[None]:
    """Add the command that resumes the run to an error."""
    try:
        yield
    except FileError:
        raise  # its message has this advice
    except Exception as error:
        if any((folder / "checkpoints").glob("step-*")):
            text = f"the last checkpoint is valid; resume by: {resume_command(folder)}"
        else:
            text = f"{folder} has no checkpoint yet"
        if isinstance(error, KindlingError):
            error.advice = text if error.trace or getattr(error, "needs_advice", False) else ""
        elif hasattr(error, "add_note"):  # Python 3.11: printed after the traceback
            error.add_note(text)
        else:
            log.error(text)
        raise


def record_resume(folder: Path, config: Config) -> None:
    """Record that a run is running again, since when, and what the command line changed."""
    now = datetime.now(timezone.utc).isoformat()
    changed = changed_settings(folder, config)
    update_stamp(folder, changed=changed, state="running", resumed=now)


def changed_settings(folder: Path, config: Config) -> dict[str, Any]:
    """Return what the command line changed at the start of a run and at its resumes."""
    return {**read_run(folder).changed, **config.changed}


@contextmanager
def record_end(folder: Path, is_new: bool) -> Iterator[None]:
    """Record how a run ended. A resume that fails before it trains leaves the state as it was."""
    before = None if is_new else read_stamp(folder)
    try:
        yield
    except BaseException as error:
        if read_stamp(folder) != before:
            is_stopped = isinstance(error, InterruptedRunError | KeyboardInterrupt)
            update_stamp(folder, state="interrupted" if is_stopped else "failed")
        raise
    update_stamp(folder, state="finished")


@contextmanager
def ask_for_requeue(folder: Path) -> Iterator[None]:
    """Write a file with the number of the SLURM job if SIGTERM stopped the run.

    torchrun exits with 1 for any reason; the job's script requeues the job if it finds this file.
    """
    try:
        yield
    except InterruptedRunError as error:
        job = os.environ.get("SLURM_JOB_ID")
        if job is not None and error.exit_code == 128 + signal.SIGTERM:
            write_whole(folder / REQUEUE, f"{job}\n".encode())
        raise


def write_deferred_files(trainer: BaseTrainer, files: DeferredFiles) -> None:
    """Write the caches that waited for the checks, and close workers that started without them.

    Rank 0 writes first, so that the others find its caches if they share a disk.

    Raises:
        DataError: a cache cannot be written.
    """
    world = trainer.world
    has_written = files.write() if world.is_main else False
    world.broadcast(None)
    if not world.is_main:
        has_written = files.write()
    if has_written:
        for loader in (trainer.train_loader, trainer.valid_loader):
            getattr(loader, "close", lambda: None)()


@contextmanager
def report_end(folder: Path) -> Iterator[None]:
    """Write the report when training ends, is stopped or fails; it does not change how it ends."""
    try:
        yield
    except Exception as error:
        is_stopped = isinstance(error, InterruptedRunError)
        if (folder / "metrics.csv").is_file():  # else nothing is known of it
            _write_report(folder, "interrupted" if is_stopped else "failed")
        raise
    _write_report(folder, "finished")


def _write_report(folder: Path, state: State) -> None:
    """Write the page and the curves; a failure is a warning, and Ctrl-C ends it."""
    with suppress(KeyboardInterrupt):
        write_page(folder, state)
        try:
            write_curves(folder)
        except Exception as error:
            log.warning("cannot draw the curves in %s: %s", folder / "report", error)


def _log_changes(config: Config, folder: Path, rates: Sequence[Change] = ()) -> None:
    """Log the differences from the run's config, and the learning rates that they change."""
    has_config = (folder / "config.yaml").is_file()
    changes = differences(config, folder) if has_config else []
    if changes or rates:
        log.info(f"changed since the run began:\n{table_of(changes, rates)}")
    kept = [key for key, _, _ in changes if OWN_STATE.search(key)]
    if kept:
        log.warning("%s: the optimizer and its schedule keep their saved state", ", ".join(kept))


def _prepare(
    trainer: BaseTrainer,
    folder: Path | None,
    resume_from: Path | None,
    allow_change: bool,
    stack: ExitStack,
) -> Run:
    """Restore the state and open all that a run writes to; ``stack`` closes it."""
    config, settings, experiment = trainer.config, trainer.settings, trainer.experiment
    shared, world = folder, trainer.world
    if not world.is_main:  # rank 0 writes and logs
        folder, settings = None, SimpleNamespace(**{**vars(settings), "progress": False})
    state, manifest = ({}, {}) if resume_from is None else read_together(resume_from, world)
    store = _store_of(trainer, shared) if shared is not None and world.is_sharded else None
    data: Mapping[str, Any] = {}
    if folder is not None:
        store = _open_store(trainer, folder, stack)
        experiment.references.log_changes()
        data = write_data_record(experiment, folder, data_of(manifest), allow_change)
        experiment.bad_samples.open(folder)
    if resume_from is None:
        start_random_streams(config["seed"], world)
    else:
        _restore(trainer, state, folder)
        del state
        if store is not None:
            store.protect(resume_from)
    if resolve_micro_batch(trainer) and folder is not None:
        write_config(config, folder)
    writers = []
    if folder is not None:
        resumed_at = None if resume_from is None else trainer.progress
        rows, is_finished = trainer.epoch_rows, trainer.is_finished()
        changed = changed_settings(folder, config)
        writers = build_writers(folder, config, resumed_at, rows, is_finished, changed)
    facts = speed_factors(trainer.train_loader, config, trainer.device)
    run_log = RunLog(settings, folder, writers, trainer.epoch_rows, facts)
    stack.callback(run_log.close)
    trainer.recovery.keep()
    stack.callback(trainer.capture.remove)
    for loader in (trainer.train_loader, trainer.valid_loader):
        stack.callback(getattr(loader, "close", lambda: None))
    if world.is_main:
        log_header(trainer, folder)
    if folder is not None and trainer.progress.step > 0:
        write_config(config, folder)  # of a resumed run, whose state is known to fit now
    return Run(
        log=run_log,
        folder=shared,
        store=store,
        data=data,
        callbacks={} if folder is None else _callbacks_of_run(config),
        guard_first_step=functools.partial(guard_first_step, trainer),
        check_first_step=functools.partial(check_first_step, trainer),
        finish=functools.partial(finish, trainer),
    )


def _callbacks_of_run(config: Config) -> dict[str, CallbackProtocol]:
    """Return what a run adds to the callbacks of its config."""
    callbacks: dict[str, CallbackProtocol] = {}
    if config["profile"] is not None:
        callbacks["profile"] = Profiler(**config["profile"])
    trial = current_trial()
    if trial is not None and trial.is_judged:
        callbacks["sweep"] = StopIfPruned(trial)
    return callbacks


def _open_store(trainer: BaseTrainer, folder: Path, stack: ExitStack) -> CheckpointStore:
    """Return the checkpoint store of a run; remove what an interrupted save left there."""
    store = _store_of(trainer, folder)
    stack.push(store.end)
    store.remove_leftovers()
    store.check_writable()
    return store


def _store_of(trainer: BaseTrainer, folder: Path) -> CheckpointStore:
    """Return the store of this rank; ranks with parts of the weights save together."""
    settings, world = trainer.settings, trainer.world
    in_background = saves_in_background(settings.async_save, trainer.device)
    return CheckpointStore(
        folder / "checkpoints",
        settings.keep,
        in_background and not world.is_sharded,
        validate=refuse_bad_optimizers,
        world=world if world.is_sharded else ALONE,
    )


def _restore(trainer: BaseTrainer, state: Mapping[str, Any], folder: Path | None) -> None:
    """Restore the state, fit schedules to a new length of training, and log the changes."""
    rates: list[Change] = []
    try:
        own = state_of_rank(state, trainer.stateful, trainer.world)
        load_state_dicts(trainer.stateful, own)
        seed, step = trainer.config["seed"], trainer.progress.step
        start_random_streams(seed, trainer.world, state, step)
        saved = learning_rates(trainer.optimizers)
        for schedule in trainer.schedules.values():
            schedule.follow_new_length()
        now = learning_rates(trainer.optimizers)
        step = trainer.progress.step + 1
        if step <= trainer.experiment.total_steps:
            rates = [(f"{k} at step {step}", saved[k], now[k]) for k in now if now[k] != saved[k]]
    finally:  # logged also if the state does not fit, as a change may be the reason
        if folder is not None:
            _log_changes(trainer.config, folder, rates)


def log_header(trainer: BaseTrainer, folder: Path | None) -> None:
    """Log the header of a run; a new run also logs and writes its tables of parameters."""
    log.info(format_header(header_entries(trainer, folder)))
    if trainer.progress.step == 0:  # a resumed run has these files
        if trainer.experiment.loaded:
            log.info(weights_tables(trainer.experiment))
        rows = parameter_rows(trainer.experiment)
        log.info("parameters:\n" + short_table(rows))
        if folder is not None:
            write_csv(rows, folder / "parameters.csv")
    if trainer.is_finished() or trainer.progress.step > trainer.experiment.total_steps:
        log.log(ROW, _finished_message(trainer))


def _finished_message(trainer: BaseTrainer) -> str:
    settings = trainer.settings
    if trainer.monitor.is_exhausted:
        text, longer = f"early stop after epoch {trainer.progress.epoch}", "trainer.early_stop=null"
        if trainer.monitor.was_never_finite:
            text += f", as {trainer.monitor.key} was never finite"
    else:
        text = f"step {trainer.progress.step} of {trainer.experiment.total_steps}"
        unit = "epochs" if settings.steps is None else "steps"
        longer = f"trainer.{unit}=N"
    return f"training is complete: {text}; to train longer, add --set {longer}"


def finish(trainer: BaseTrainer) -> dict[str, float]:
    """Log how training ended; record predictions, and run the test phase if the config asks."""
    folder, world = trainer.folder, trainer.world
    gather_bad_samples(trainer.experiment.bad_samples, world)
    if world.is_main:
        log_end(trainer)
    records = folder is not None and _records_validation(trainer)
    if folder is None or not (trainer.settings.test or records):
        return {}
    with preserve_state(trainer):
        chosen = Path(world.broadcast(str(choose_checkpoint(folder)) if world.is_main else None))
        if records:
            _record_validation(trainer, chosen, folder)
        return run_test(trainer, chosen, folder) if trainer.settings.test else {}


def _records_validation(trainer: BaseTrainer) -> bool:
    """Return whether the predictions for the validation data are recorded at the end."""
    if not trainer.settings.report or trainer.valid_loader is None:
        return False
    if trainer.world.is_sharded:
        text = "report: fsdp records no predictions of the validation data; `python -m base.report"
        log.info(f"{text} {trainer.folder}` does, in one process that holds the whole model")
        return False
    return trainer.world.is_active or not trainer.signals.stop  # of several ranks all or none do


def _record_validation(trainer: BaseTrainer, checkpoint: Path, folder: Path) -> None:
    """Record the predictions for the validation data; the run is complete without them."""
    command = f"`python -m base.report {folder}` makes them"
    try:
        record_validation(trainer, checkpoint, folder)
    except StopRequested:
        log.warning("report: stopped before the predictions of the validation data; %s", command)
    except Exception as error:
        if trainer.world.is_active:
            raise  # the other ranks wait for this one
        log.warning("report: no predictions of the validation data: %s", why(error))


def log_end(trainer: BaseTrainer) -> None:
    """Log the best epoch, skipped steps and samples, the report, and the command of the test."""
    if trainer.store is not None:
        trainer.store.wait()
    monitor, progress = trainer.monitor, trainer.progress
    if progress.skipped:
        text = "%d of %d steps were skipped: their loss or gradient was not finite"
        log.warning(text, progress.skipped, progress.step)
    trainer.experiment.bad_samples.log_summary()
    if monitor.is_exhausted:
        n_epochs = monitor.epochs_without_improvement
        log.info(f"early stop: {n_epochs} epochs without a better {monitor.key}")
    if monitor.was_never_finite:
        text = "%s was not finite in any of %d epochs, so no epoch is the best%s"
        stopped = ", and training stopped early for this reason" if monitor.is_exhausted else ""
        log.warning(text, monitor.key, monitor.n_nonfinite, stopped)
    if monitor.best_epoch:
        value = format_value(monitor.key, monitor.best)
        log.info(f"best: epoch {monitor.best_epoch}, {monitor.key} {value}")
    if trainer.folder is not None:
        if trainer.settings.report:
            log.info(f"report: {trainer.folder / 'report' / 'index.html'}")
        log.info(test_command(trainer.config, trainer.folder))


def test_command(config: Config, folder: Path) -> str:
    """Return the command that tests a run, or the setting that it lacks."""
    if missing := missing_test_data(config):
        return f"no test data: {missing}"
    script = "test.py" if Path("test.py").is_file() else str(project_root() / "test.py")
    return f"test by: {shlex.join(['python', script, '-r', str(folder)])}"
