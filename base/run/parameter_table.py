"""The table of parameters: shape, initialisation, parameter group, rate and weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from base.errors import listed
from base.network.shapes import shape_text
from base.training.experiment import Experiment
from logger.console import format_value, table
from logger.csv_writer import csv_text
from logger.epoch_table import row_width
from logger.files import write_whole

MAX_LINES = 8  # of the short table, without its head
HEAD = ("group", "lr", "decay", "trainable", "tensors", "numbers", "init", "such as")
NUMBERS = ("tensors", "numbers")
SPARE = ("numbers", "shared_with", "init", "trainable")  # of a parameter, in a narrow terminal


class Row(NamedTuple):
    """One parameter; None for values that it does not have."""

    name: str
    shape: str
    numbers: int
    init: str
    group: str | None
    lr: float | None
    weight_decay: float | None
    trainable: str
    loaded_from: str | None
    shared_with: str | None


def parameter_rows(experiment: Experiment) -> list[Row]:
    """Return a row for each parameter in the order of the model; a shared one has one row."""
    places: dict[int, tuple[str | None, dict[str, Any]]] = {
        id(parameter): (f"{name}/{number}{_algorithm(group)}", group)
        for name, optimizer in experiment.optimizers.items()
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    schemes = {record.name: record.scheme for record in experiment.init_records}
    names: dict[int, list[str]] = {}
    for name, parameter in experiment.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)

    sources = {
        f"{prefix}.{name}" if prefix else name: fit.file
        for prefix, fit in experiment.loaded.items()
        for name in fit.loaded
    }
    rows = []
    for name, parameter in experiment.model.named_parameters():
        place, group = places.get(id(parameter), (None, {}))
        source, until = sources.get(name), experiment.freezing.frozen_until.get(name)
        row = Row(
            name=name,
            shape=shape_text(parameter),
            numbers=parameter.numel(),
            init=schemes.get(name, "default") if source is None else "loaded",
            group=place,
            lr=float(group["lr"]) if group else None,
            weight_decay=group.get("weight_decay"),
            trainable=f"after {until}" if until else "yes" if parameter.requires_grad else "no",
            loaded_from=source,
            shared_with=" ".join(names[id(parameter)][1:]) or None,
        )
        rows.append(row)
    return rows


def _algorithm(group: dict[str, Any]) -> str:
    """Return which of the two algorithms of `MuonWithAdamW` a group has."""
    return f" {'Muon' if group['use_muon'] else 'AdamW'}" if "use_muon" in group else ""


def weights_tables(experiment: Experiment) -> str:
    """Return a table for each weights file: which parameters it set, and which it did not."""
    return "\n".join(
        f"weights of {prefix or 'the model'} from {fit.file}:\n{fit.table()}"
        for prefix, fit in experiment.loaded.items()
    )


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """Write all rows below a head; None is an empty cell."""
    write_whole(path, csv_text([Row._fields, *rows]).encode())


def full_table(rows: Iterable[Row]) -> str:
    """Return a line for each parameter, without columns that are empty."""
    cells = [[_cell(*pair) for pair in row._asdict().items()] for row in rows]
    names = ["decay" if name == "weight_decay" else name for name in Row._fields]
    columns = zip(names, *cells, strict=True)
    kept = [column for column in columns if {*column[1:]} != {"-"}]
    return table(zip(*kept, strict=True), right=NUMBERS, spare=SPARE)


def short_table(rows: Iterable[Row]) -> str:
    """Return a line for each parameter group; of many groups, the first and the last."""
    by_group: dict[Any, list[Row]] = {}
    for row in rows:
        by_group.setdefault((row.group, row.lr, row.weight_decay, row.trainable), []).append(row)
    parts = list(by_group.values())
    lines = [_summary(part) for part in parts]
    if len(parts) > MAX_LINES:
        middle = slice(MAX_LINES // 2, 1 - MAX_LINES // 2)
        rest = [row for part in parts[middle] for row in part]
        lines[middle] = [[f"{len(parts[middle])} more", *_summary(rest)[1:]]]
    return table([HEAD, *lines], right=NUMBERS, width=row_width())


def _summary(rows: Sequence[Row]) -> list[str]:
    """Return the cells of a line for several parameters; `...` for values that differ."""
    cells = []
    for name in ("group", "lr", "weight_decay", "trainable"):
        values = {_cell(name, getattr(row, name)) for row in rows}
        cells.append(values.pop() if len(values) == 1 else "...")
    counts = [f"{len(rows):,}", f"{sum(row.numbers for row in rows):,}"]
    schemes = [*dict.fromkeys(row.init for row in rows)]
    return [*cells, *counts, listed(schemes, 2), listed([row.name for row in rows], 2)]


def _cell(name: str, value: Any) -> str:
    is_plain = name != "lr" and isinstance(value, int | float)
    return f"{value:,}" if is_plain else format_value(name, value)
