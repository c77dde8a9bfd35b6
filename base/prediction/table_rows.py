"""The rows of a new table, encoded as the training data were; it needs no target column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from base.datasets.in_memory import InMemoryDataset
from base.datasets.table_columns import (
    Rule,
    Table,
    how_to_set,
    missing_rules,
    other_delimiter,
    read_categories,
    read_dates,
    read_inputs,
    read_numbers,
    read_table,
    rules_by_column,
)
from base.datasets.table_encoding import Columns, TableEncoding
from base.datasets.tables import CsvDataset, as_list
from base.errors import UsageError, nearest
from base.names.signatures import signature
from base.prediction.file_loaders import dataset_section, evaluation_section, loader_of
from base.prediction.trained_model import TrainedModel

MOST_NAMED = 8  # columns in an error message
Fault = tuple[str, str]  # line of the file, and what is wrong with it


class RowsToPredict(CsvDataset):
    """The readable rows of a table with the inputs of another, and zeros in place of targets.

    Args:
        args: the arguments of the `CsvDataset` of the training data.
        encoding: computed from the training data.
    """

    def __init__(self, file: str, args: Mapping[str, Any], encoding: TableEncoding) -> None:
        delimiter = "\t" if Path(file).suffix.lower() == ".tsv" else args["delimiter"]
        table = read_table(file, delimiter, args["decimal"])
        _refuse_missing_columns(table, encoding.inputs)
        coded, days = list(encoding.categories), as_list(args["dates"], "dates")
        by_column = rules_by_column(args["missing"])
        rules = missing_rules(file, by_column, encoding.inputs, coded, encoding.targets)
        rules = {name: "error" if rule == "drop" else rule for name, rule in rules.items()}
        table, self.unreadable = _readable(table, encoding.inputs, coded, days, rules)
        numbers, values = read_inputs(table, encoding.inputs, coded, days, rules)

        n_rows, n_targets = len(table.rows), len(encoding.targets)
        is_class = args["task"] == "classification"
        labels = torch.zeros(n_rows, dtype=torch.int64)
        labels = labels if is_class else torch.zeros(n_rows, n_targets)
        self.lines, self.has_record, self._noted = table.lines, True, ""
        self.columns = Columns(
            file, table.lines, encoding.inputs, encoding.targets, numbers, values, rules, labels,
            args["task"], encoding.encode,
        )  # fmt: skip
        InMemoryDataset.__init__(self, torch.empty(n_rows, 0), labels, source=file)
        self.take(encoding)
        used = {*encoding.inputs, *encoding.targets}
        self.others = {n: table.column(n) for n in table.columns if n and n not in used}

    def sample_numbers(self, name: str) -> None:
        """Return None: predictions need no weights."""


def table_loader(
    run: TrainedModel, file: str, batch_size: int | None = None
) -> tuple[Any, RowsToPredict, list[Fault]]:
    """Return a loader of the rows of a CSV file, its rows, and those that cannot be read.

    Raises:
        UsageError: columns are missing, or no row can be read.
    """
    rows = RowsToPredict(file, table_arguments(run), TableEncoding.from_record(run.record["table"]))
    return loader_of(run, rows, batch_size), rows, rows.unreadable


def table_arguments(run: TrainedModel) -> dict[str, Any]:
    """Return the arguments of the `CsvDataset` of a run's validation data, with the defaults."""
    given = dataset_section(evaluation_section(run)).get("args", {})
    parameters = signature("dataset", CsvDataset).parameters
    return {name: given.get(name, each.default) for name, each in parameters.items()}


def _refuse_missing_columns(table: Table, inputs: Sequence[str]) -> None:
    missing = [name for name in inputs if name not in table.places]
    if not missing:
        return
    hints = [nearest(name, table.columns) for name in missing[:MOST_NAMED]]
    if len(missing) > 1:
        hints = [
            hint.replace("; did you mean", " (did you mean").replace("?", "?)") for hint in hints
        ]
    shown = [f"{name!r}{hint}" for name, hint in zip(missing, hints, strict=False)]
    advice = other_delimiter(table.columns, table.delimiter)
    has = (
        f"; {advice}"
        if advice
        else ""
        if len(table.columns) > MOST_NAMED
        else f" (the columns are {', '.join(table.columns)})"
    )
    plural = "columns" if len(missing) > 1 else "column"
    more = ", ..." if len(missing) > MOST_NAMED else ""
    raise UsageError(f"{table.file}: it lacks the {plural} {', '.join(shown)}{more}{has}")


def _readable(
    table: Table,
    inputs: Sequence[str],
    coded: Sequence[str],
    days: Sequence[str],
    rules: Mapping[str, Rule],
) -> tuple[Table, list[Fault]]:
    """Return the rows of a table that can be encoded, and what is wrong with the others.

    Raises:
        UsageError: no row, or no cell of a column, can be read.
    """
    faults: dict[int, str] = {}
    are_coded, are_dates = set(coded), set(days)
    for name in inputs:
        if name in are_coded:
            n_read, problems = len(table.rows), read_categories(table, name, rules[name])[1]
        else:
            read = read_dates if name in are_dates else read_numbers
            numbers, problems = read(table, name, rules[name])
            n_read = len(numbers)
        if not n_read:
            raise UsageError(_with_option(str(problems[0])))
        rows = {table.place(row, name): row for row in range(len(table.rows))} if problems else {}
        for problem in problems:
            faults.setdefault(rows[problem.where], f"{name}: {problem.message}")
    unreadable = [
        (str(table.lines[row]), text.partition(";")[0]) for row, text in sorted(faults.items())
    ]
    if len(faults) == len(table.rows):
        first, text = unreadable[0][0], _with_option(faults[0])
        raise UsageError(f"{table.file}: no row can be read; the first: line {first}: {text}")
    kept = [row for row in range(len(table.rows)) if row not in faults]
    rows_kept, lines = [table.rows[row] for row in kept], [table.lines[row] for row in kept]
    return replace(table, rows=rows_kept, lines=lines), unreadable


def _with_option(text: str) -> str:
    """Add the option of the command line to the advice about a decimal comma."""
    return text.replace('`decimal: ","`', how_to_set("decimal", ","))
