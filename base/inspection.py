"""What ``--dry-run`` shows: the experiment, its model and its parameters; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from base.batch import draw
from base.run_log import header_facts, peak_memory_mb
from base.values import check_watched, detach
from logger.console import format_header, format_value, pad, text_width

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


def check(trainer: BaseTrainer) -> None:
    """Try two batches of validation and the names to monitor, before any file is made.

    Raises:
        ConfigError: what the config monitors is not among the values there.
    """
    if trainer.valid_loader is not None:
        values = trainer.evaluate(trainer.valid_loader, "valid", max_batches=2)
        check_watched(trainer, "valid", values)


def dry_run(trainer: BaseTrainer) -> str:
    """Train on one batch and validate on one; return what was built and what came of it."""
    parts = [
        format_header(header_facts(trainer, None)),
        "model:\n" + model_table(trainer),
        "parameters:\n" + parameter_table(trainer),
    ]
    trainer.model.train()
    batch = next(draw(trainer.train_loader, 0, 1, trainer.device))
    with trainer.precision.autocast():
        values = detach(trainer.train_step(batch))
    parts.append("one training batch: " + _numbers(values.items()))
    if trainer.valid_loader is not None:
        values = trainer.evaluate(trainer.valid_loader, "valid", max_batches=1)
        check_watched(trainer, "valid", values)
        parts.append("one validation batch: " + _numbers(values.items()))
    parts.append(f"peak memory: {peak_memory_mb():.0f} MB")
    parts.append("nothing was written")
    return "\n\n".join(parts) + "\n"


def model_table(trainer: BaseTrainer) -> str:
    """Return a line for each module that holds parameters of its own."""
    rows: list[Sequence[Any]] = [("module", "type", "parameters", "trainable")]
    for name, module in trainer.model.named_modules():
        own = list(module.parameters(recurse=False))
        if own:
            n_trainable = sum(p.numel() for p in own if p.requires_grad)
            n_all = sum(p.numel() for p in own)
            rows.append(
                (name or "(model)", type(module).__name__, f"{n_all:,}", f"{n_trainable:,}")
            )
    return _table(rows)


def parameter_table(trainer: BaseTrainer) -> str:
    """Return a line for each parameter: shape, scheme, optimizer and group, rate, decay."""
    places = {}
    for name, optimizer in trainer.optimizers.items():
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                rate = format_value("lr", float(group["lr"]))
                decay = group.get("weight_decay", "-")
                places[id(parameter)] = (f"{name}/{number}", rate, str(decay))
    rows: list[Sequence[Any]] = [("name", "shape", "init", "group", "lr", "weight_decay")]
    parameters = dict(trainer.model.named_parameters())
    for record in trainer.experiment.init_records:
        shape = "x".join(map(str, record.shape)) or "-"
        place = places.get(id(parameters[record.name]), ("frozen", "-", "-"))
        rows.append((record.name, shape, record.scheme, *place))
    return _table(rows)


def _numbers(items: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {format_value(name, float(value))}" for name, value in items)


def _table(rows: Sequence[Sequence[Any]]) -> str:
    columns = list(zip(*rows, strict=True))
    widths = [max(text_width(str(cell)) for cell in column) for column in columns]
    lines = [
        "  ".join(pad(str(cell), width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join("  " + line for line in lines)
