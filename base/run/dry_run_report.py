"""``--dry-run``: one training and one validation batch, the tables and the memory estimate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from base.base_trainer import BaseTrainer
from base.config.ignored_rates import rate_warnings
from base.data.batch import to_device
from base.errors import OutOfMemoryError
from base.network.shape_errors import explain_shape_errors
from base.network.summary import summarise_model, table_rows
from base.run.batch_checks import check_batches
from base.run.checks import check_settings
from base.run.first_step import check_watched_values, guard_first_step, restore_weight_reads
from base.run.header import header_entries, input_text
from base.run.label_checks import check_labels
from base.run.memory_estimate import estimate_memory, free_bytes
from base.run.micro_batch import resolve_micro_batch
from base.run.parameter_table import full_table, parameter_rows, weights_tables
from base.run.step_checks import names_in_training
from base.system.resources import is_out_of_memory, peak_memory_mb
from base.system.torch_compat import without_compilation
from base.training.results import StepValues, is_part
from logger.console import format_header, format_value, table, wrap_list
from logger.terminal import terminal_width


@without_compilation()
def dry_run(trainer: BaseTrainer) -> str:
    """Train on one batch and validate on one; return the report to print. Write no file."""
    check_settings(trainer)
    with trainer.epoch_start.tried():
        try:
            return _dry_run(trainer)
        except Exception as error:
            if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
                raise
            cause = str(error).strip().partition("\n")[0][:200]
            text = "the dry run is out of memory: set memory.micro_batch=auto, or lower"
            text += " data_loader.args.batch_size; see docs/memory.md for other ways to save memory"
            raise OutOfMemoryError(f"{text} ({cause})") from error


def _dry_run(trainer: BaseTrainer) -> str:
    with restore_weight_reads(trainer):
        check_batches(trainer)
        resolve_micro_batch(trainer)
    batch = to_device(next(trainer.train_loader.batches(0, 1)), trainer.device)
    with explain_shape_errors(trainer.model, input_text(trainer)):
        layers = model_table(trainer, batch)
    notes = [*trainer.config.notes, *rate_warnings(trainer.config)]
    parts = [
        *(["\n".join(notes)] if notes else []),
        format_header(header_entries(trainer, None)),
        "model:\n" + layers,
        *([weights_tables(trainer.experiment)] if trainer.experiment.loaded else []),
        "parameters:\n" + full_table(parameter_rows(trainer.experiment)),
    ]
    trainer.epoch_start.begin()
    values = {}
    trainer.window.take(batch)
    with check_labels(trainer):
        for part, n_samples in trainer.window.parts(batch, 0):
            guard = guard_first_step(trainer)
            with trainer.precision.autocast(), trainer.offload(), guard:
                values = StepValues(trainer.train_step(part), n_samples).values
    parts.append(_value_list("one training batch", values.items()))
    evaluated: dict[str, Any] = {}
    if trainer.valid_loader is not None:
        evaluated = trainer.evaluate(trainer.valid_loader, "valid", max_batches=1)
        check_watched_values(trainer, "valid", evaluated)
        parts.append(_value_list("one validation batch", evaluated.items()))
    check_watched_values(trainer, "train", names_in_training(trainer, values, evaluated))
    where = "GPU" if trainer.device.type == "cuda" else "process"
    text = f"memory of the {where}: {peak_memory_mb():.0f} MB at its peak, with all that is loaded"
    estimate = "memory of a step: " + estimate_memory(trainer, batch).text(
        free_bytes(trainer.device)
    )
    parts.append("\n".join(wrap_list(line, terminal_width()) for line in (text, estimate)))
    parts.append("nothing was written")
    return "\n\n".join(parts) + "\n"


def model_table(trainer: BaseTrainer, batch: Any) -> str:
    """Return a table of the layers with the shapes of the batch in each."""

    def run() -> None:
        try:
            trainer.forward(batch)
        except NotImplementedError:  # several networks: only the step knows how to call them
            trainer.valid_step(batch)

    spare = ("trainable", "multiply-adds", "input")
    return table(table_rows(summarise_model(trainer.model, run)), spare=spare)


def _value_list(title: str, items: Iterable[tuple[str, Any]]) -> str:
    shown = (f"{k} {format_value(k, float(v))}" for k, v in items if not is_part(k))
    return wrap_list(f"{title}: {', '.join(shown)}", terminal_width())
