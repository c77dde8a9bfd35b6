"""What ``--dry-run`` shows: the experiment, its model and its parameters; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch

from base.base_trainer import BaseTrainer
from base.data.batch import to_device
from base.errors import ConfigError, TrainingError
from base.network.new_layers import guard_first_batch
from base.network.shape_errors import explain_shape_errors
from base.network.summary import summarise_model, table_rows
from base.run.batch_checks import check_batches
from base.run.first_step import agreeing_shapes, check_watched_values, guard_first_step
from base.run.header import header_facts, input_text
from base.run.label_check import checked_labels
from base.run.memory_estimate import estimate_memory, free_bytes
from base.run.micro_batch import settle
from base.run.parameter_table import audit, loaded_tables, whole_table
from base.run.profiler import check_profile
from base.run.step_checks import check_settings, check_step, try_own_step
from base.run.weight_use import reads_put_back
from base.run.writers import check_writers
from base.system.deferred_files import DeferredFiles
from base.system.resources import peak_memory_mb
from base.system.torch_compat import dynamo_is_imported
from base.training.results import StepValues
from logger.console import format_header, format_value, table


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what ``memory.compile`` or a model of the user's own compiles as it is written.

    Compiling takes its time, and fills torch's folder of compiled code.
    """
    if not dynamo_is_imported():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@uncompiled()
def check(trainer: BaseTrainer) -> None:
    """Try two batches of validation and the names to monitor, before any file is made.

    Raises:
        ConfigError: what the config monitors is not among the values there, or keys contradict.
    """
    check_writers(trainer.config)
    if trainer.settings.early_stop is not None and trainer.settings.monitor == "off":
        text = "there is nothing to stop by while `trainer.monitor` is off"
        raise ConfigError([trainer.config.problem(("trainer", "early_stop"), text)])
    check_profile(trainer)
    check_settings(trainer)
    with trainer.epoch_start.tried(), reads_put_back(trainer):
        check_batches(trainer)
        _try_batches(trainer)
        for callback in trainer.callbacks.values():
            callback.check(trainer)


def _try_batches(trainer: BaseTrainer) -> None:
    """Evaluate some batches, and try a training step."""
    values: Mapping[str, float] = {}
    logged: Mapping[str, Any] | None = None
    guard = guard_first_batch(trainer.model, input_text(trainer))
    with guard, checked_labels(trainer), agreeing_shapes(trainer):
        if trainer.valid_loader is not None:
            values = trainer.evaluate(trainer.valid_loader, "valid", max_batches=2)
            check_watched_values(trainer, "valid", values)
        elif trainer.has_plain_step:
            values = trainer.evaluate(trainer.train_loader, "train", max_batches=1)
        else:
            with suppress(torch.OutOfMemoryError):  # trainer.on_oom is for the training
                logged = try_own_step(trainer)
        if getattr(trainer.train_loader, "mixes", ""):
            _try_mixed(trainer)
    check_step(trainer, values, logged)


def begin(trainer: BaseTrainer, files: DeferredFiles) -> None:
    """Write the caches that waited for the checks.

    Raises:
        DataError: one cannot be made.
    """
    if files.write():
        for loader in (trainer.train_loader, trainer.valid_loader):
            getattr(loader, "close", lambda: None)()  # its workers began without them


def _try_mixed(trainer: BaseTrainer) -> None:
    """Evaluate a training batch of mixed samples, whose targets are shares of classes.

    Raises:
        TrainingError: a loss, or a metric that training batches are for, cannot take such targets.
    """
    metrics = trainer.state.valid_metrics
    if not trainer.settings.train_metrics:
        trainer.state.valid_metrics = {}
    try:
        trainer.evaluate(trainer.train_loader, "train", max_batches=1)
    except TrainingError as error:
        text = f"targets mixed by {trainer.train_loader.mixes} are shares of classes"
        advice = "`trainer: {train_metrics: false}` leaves the metrics to validation"
        raise TrainingError(f"{error} ({text}, (sample, class); {advice})") from error
    finally:
        trainer.state.valid_metrics = metrics


@uncompiled()
def dry_run(trainer: BaseTrainer) -> str:
    """Train on one batch and validate on one; return what was built and what came of it."""
    check_settings(trainer)
    with trainer.epoch_start.tried():
        return _dry_run(trainer)


def _dry_run(trainer: BaseTrainer) -> str:
    with reads_put_back(trainer):
        check_batches(trainer)
        settle(trainer)
    batch = to_device(next(trainer.train_loader.batches(0, 1)), trainer.device)
    with explain_shape_errors(trainer.model, input_text(trainer)):
        layers = model_table(trainer, batch)
    parts = [
        *(["\n".join(trainer.config.notes)] if trainer.config.notes else []),
        format_header(header_facts(trainer, None)),
        "model:\n" + layers,
        *([loaded_tables(trainer.experiment)] if trainer.experiment.loaded else []),
        "parameters:\n" + whole_table(audit(trainer.experiment)),
    ]
    trainer.epoch_start.begin()
    values = {}
    trainer.window.take(batch)
    for part, n_samples in trainer.window.parts(batch, 0):
        guard, labels = guard_first_step(trainer), checked_labels(trainer)
        with trainer.precision.autocast(), trainer.offload(), labels, guard:
            values = StepValues(trainer.train_step(part), n_samples).values
    parts.append("one training batch: " + _numbers(values.items()))
    if trainer.valid_loader is not None:
        values = trainer.evaluate(trainer.valid_loader, "valid", max_batches=1)
        check_watched_values(trainer, "valid", values)
        parts.append("one validation batch: " + _numbers(values.items()))
    parts.append(f"peak memory: {peak_memory_mb():.0f} MB")
    estimate = estimate_memory(trainer, batch)
    parts.append("memory: " + estimate.text(free_bytes(trainer.device)))
    parts.append("nothing was written")
    return "\n\n".join(parts) + "\n"


def model_table(trainer: BaseTrainer, batch: Any) -> str:
    """Return a line for each layer, with the shapes that the batch has there."""

    def run() -> None:
        try:
            trainer.forward(batch)
        except NotImplementedError:  # several networks: the step knows how they are called
            trainer.valid_step(batch)

    return table(table_rows(summarise_model(trainer.model, run)))


def _numbers(items: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {format_value(name, float(value))}" for name, value in items)
