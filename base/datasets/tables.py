"""Data sets from CSV files: numeric and categorical columns, or a column of image paths."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.datasets.image_files import ImageFiles
from base.datasets.in_memory import InMemoryDataset
from base.datasets.labels import (
    N_SHOWN,
    Classes,
    all_of,
    class_names,
    raise_problems,
    read_targets,
)
from base.datasets.table_columns import (
    Rule,
    Table,
    drop_rows,
    is_missing,
    missing_rules,
    other_delimiter,
    read_inputs,
    read_numbers,
    read_table,
    rules_by_column,
    text_columns,
)
from base.datasets.table_encoding import (
    ENCODINGS,
    Columns,
    Part,
    TableEncoding,
    TargetScale,
    fit_encoding,
)
from base.errors import DataError, Problem, listed, nearest

log = logging.getLogger("kindling")

Names = str | Sequence[str]
MOST_SHOWN = 24  # names of inputs
DROPS = "`missing: drop` leaves such rows out"


class CsvDataset(InMemoryDataset):
    """A CSV file with a header: inputs and targets, held in memory.

    A sample is (inputs, targets). Inputs are float32 (k,): a number per numeric column, and one
    per value of a categorical column. With ``encode: codes`` a sample is (numbers, codes,
    targets), with codes int64 (c,) for an embedding. A value that no training sample has is
    encoded as zeros, or as code 0.

    `targets` always keep their original unit. A `DatasetLoader` with ``normalize: auto``
    standardizes batches; `target_scale` converts predictions back.

    Args:
        inputs: the columns of the model's inputs; by default all columns but the targets.
        target: the column of the targets, or a list of columns.
        task: classification, regression or multilabel.
        classes: the class names in the order of their numbers, or the number of classes.
        separator: separates the class names in one column, for multilabel: ``a|b``.
        ignore: columns to exclude, if `inputs` is not given.
        categories: the categorical input columns, or ``auto``: those with only text.
        encode: ``one_hot`` or ``codes``.
        dates: the date columns, as in 2024-03-31, converted to days since 1970-01-01.
        missing: ``error``, ``drop`` (the row), ``mean``, ``median`` or a fill value: for all
            columns, or by column, with ``"*"`` for the others.
        decimal: the decimal separator, a point or a comma.

    Raises:
        DataError: the file is not valid. All problems are listed with line and column.
    """

    def __init__(  # noqa: PLR0913
        self,
        file: str,
        target: Names,
        inputs: Names | None = None,
        task: str = "classification",
        classes: Classes = None,
        separator: str | None = None,
        delimiter: str = ",",
        *,
        ignore: Names = (),
        categories: Names = (),
        encode: str = "one_hot",
        dates: Names = (),
        missing: Rule | Mapping[str, Rule] = "error",
        decimal: str = ".",
    ) -> None:
        if encode not in ENCODINGS:
            known = f"{nearest(str(encode), ENCODINGS)} ({', '.join(ENCODINGS)})"
            raise DataError(f"encode: there is no {encode!r}{known}")
        table = read_table(file, delimiter, decimal)
        targets, ignored = as_list(target, "target"), as_list(ignore, "ignore")
        left_out = {*targets, *ignored}
        names = [name for name in table.columns if name not in left_out]
        names = names if inputs is None else as_list(inputs, "inputs")
        days, is_auto = as_list(dates, "dates"), categories == "auto"
        coded = [] if is_auto else as_list(categories, "categories")
        by_column = rules_by_column(missing)
        others = {"ignore": ignored, "categories": coded, "dates": days, "missing": by_column}
        check_columns(table, {"inputs": names, "target": targets}, others)
        refuse_slips(table, names, targets, coded, days)
        coded = text_columns(table, names, days) if is_auto else coded
        if encode == "codes" and not coded:
            raise DataError(f"{file}: encode: codes: no column is in `categories`")
        rules = missing_rules(file, by_column, names, coded, targets)
        if separator is not None:  # a sample may have no label
            rules |= dict.fromkeys(targets, "error")

        table = drop_rows(table, rules, [*coded, *(targets if task == "classification" else ())])
        self._others = without_columns(table, [*names, *targets])
        self._are_inputs_named = inputs is not None
        (numbers, values), (labels, found) = all_of(
            lambda: read_inputs(table, names, coded, days, rules),
            lambda: read_labels(table, targets, task, classes, separator),
        )
        self.lines = table.lines
        self.columns = Columns(
            file, table.lines, names, targets, numbers, values, rules, labels, task, encode
        )
        self.has_record, self._noted = False, ""
        super().__init__(torch.empty(len(labels), 0), labels, found, source=file)
        fit_tables([(self, torch.arange(len(labels)))])

    def table_parts(self, indices: Tensor) -> list[tuple[CsvDataset, Tensor]]:
        """Return the tables of some samples with their rows: only this one."""
        return [(self, indices)]

    def sample_numbers(self, name: str) -> Tensor | None:
        """Return a numeric column, float64 (row,), such as a weight, or None.

        Raises:
            DataError: a number is missing, or the column is an input by default.
        """
        if name in self.columns.inputs and not self._are_inputs_named:
            text = f"the column {name!r} is also an input: exclude it with `ignore: [{name}]`"
            raise DataError(f"{self.source}: {text}, or name it in `inputs`")
        if name in self.columns.numbers:
            return self.columns.numbers[name]
        return column_of_numbers(self._others, name)

    def record(self) -> dict[str, Any]:
        """Return the encoding of this table's columns as plain data."""
        return {"table": self.encoding.as_record()}

    def use_record(self, record: Mapping[str, Any]) -> None:
        """Use the encoding in another table's record.

        Raises:
            DataError: the columns differ.
        """
        if "table" in record:
            self.follow(TableEncoding.from_record(record["table"]))
            self.has_record = True

    def follow(self, encoding: TableEncoding) -> None:
        """Apply the encoding of other data, and log the values that are unknown to it."""
        self.take(encoding)
        note = encoding.unknown_text(self.columns)
        if note not in ("", self._noted):
            log.warning(f"{self.source}: {note}")
        self._noted = note

    def take(self, encoding: TableEncoding) -> None:
        """Encode the tensors of batches."""
        inputs, codes, targets = encoding.apply(self.columns)
        self.encoding, self.images = encoding, inputs
        others = [targets] if codes is None else [codes, targets]
        self.tensors_given = [inputs, *others]
        scale = encoding.target_mean, encoding.target_std
        self.target_scale = TargetScale(*scale) if encoding.target_mean else None
        if self.placed is not None:
            device = self.placed.tensors_given[0].device
            self.placed.tensors_given = self.placed_on(device).tensors_given

    @property
    def input_text(self) -> str:
        """Return a description of the inputs, for the log and for error messages."""
        names, codes = self.encoding.input_names, self.encoding.code_counts
        shown = [*names[:MOST_SHOWN], "..."] if len(names) > MOST_SHOWN else names
        text = f"{len(names)} numbers: {', '.join(shown)}" if names else "no numbers"
        if self.encoding.encode == "codes":
            counts = ", ".join(f"{name} (0 to {n - 1})" for name, n in codes.items())
            text += f"; {len(codes)} codes: {counts}"
        return text

    def place(self, index: int) -> str:
        """Return the location of a sample: its file and line."""
        return f"{self.source}:{self.lines[index]}"


def tables_of(source: Any) -> list[CsvDataset]:
    """Return the tables of a data set, or none if it consists of other data."""
    if not hasattr(source, "table_parts"):
        return []
    return [table for table, _ in source.table_parts(torch.empty(0, dtype=torch.int64))]


def fit_tables(
    tables: Sequence[tuple[CsvDataset, Tensor]], inputs: bool = False, targets: bool = False
) -> None:
    """Fit one encoding to several tables, each with its training rows."""
    parts: list[Part] = [(table.columns, rows) for table, rows in tables]
    encoding = fit_encoding(parts, inputs, targets)
    for table, _ in tables:
        table.take(encoding)


class ImageCsvDataset(ImageFiles):
    """A CSV file with a column of image paths, relative to its folder or to `root`, and targets."""

    def __init__(  # noqa: PLR0913
        self,
        file: str,
        image: str,
        target: Names,
        task: str = "classification",
        classes: Classes = None,
        separator: str | None = None,
        delimiter: str = ",",
        root: str | None = None,
        mode: str = "RGB",
        resize: int | Sequence[int] | None = None,
    ) -> None:
        table = read_table(file, delimiter)
        targets = as_list(target, "target")
        check_columns(table, {"image": [image], "target": targets})
        self._others = without_columns(table, [image, *targets])
        numbers, found = read_labels(table, targets, task, classes, separator)
        super().__init__(
            Path(file).parent if root is None else root,
            [row[0] for row in table.texts([image])],
            numbers,
            found,
            mode,
            resize,
            source=file,
            lines=table.lines,
        )

    def sample_numbers(self, name: str) -> Tensor | None:
        """Return another numeric column, float64 (row,), such as a weight, or None."""
        return column_of_numbers(self._others, name)


def without_columns(table: Table, names: Sequence[str]) -> Table:
    """Return a table without some columns."""
    left_out = set(names)
    others = [name for name in table.columns if name not in left_out]
    return replace(table, columns=others, rows=table.texts(others))


def column_of_numbers(table: Table, name: str) -> Tensor | None:
    """Return a numeric column, float64 (row,), or None if it does not exist.

    Raises:
        DataError: values are missing or not numbers. All are listed with their lines.
    """
    if name not in table.places:
        return None
    numbers, problems = read_numbers(table, name, "error")
    raise_problems(problems)
    return numbers


def as_list(columns: Names, argument: str) -> list[str]:
    """Return the column names of an argument as a list."""
    if isinstance(columns, str | int):
        return [str(columns)]
    if not isinstance(columns, list | tuple):
        raise DataError(f"{argument}: expected a column or a list of them, found {columns!r}")
    return list(map(str, columns))


def read_labels(
    table: Table, names: list[str], task: str, classes: Classes = None, separator: str | None = None
) -> tuple[Tensor, list[str] | None]:
    """Return the targets of some columns, and the class names."""
    if separator is not None and (task != "multilabel" or len(names) != 1):
        raise DataError(
            f"{table.file}: separator requires task multilabel and a single target column"
        )
    if task == "multilabel" and separator is None:
        classes = names if classes is None else classes
        if len(class_names(classes) or ()) != len(names):
            raise DataError(f"{table.file}: classes differ from the {len(names)} columns")
    texts = table.texts(names)
    problems: list[Problem] = []
    if task != "classification" and separator is None:
        problems = [
            Problem(table.place(row, name), f"no target{f' ({text})' if text else ''}; {DROPS}")
            for name in names
            for row, text in enumerate(table.column(name))
            if is_missing(text, is_text=False)
        ]
    if problems:  # 0 stands for a missing target, to find the other problems
        texts = [
            ["0" if is_missing(text, is_text=False) else text for text in row] for row in texts
        ]
    if table.decimal != "." and task != "classification" and separator is None:
        texts = [list(map(table.number_text, cells)) for cells in texts]

    def place(sample: int, column: int) -> str:
        return table.place(sample, names[column])

    _, found = all_of(
        lambda: raise_problems(problems),
        lambda: read_targets(texts, place, task, classes, separator),
    )
    targets: tuple[Tensor, list[str] | None] = found
    return targets


def check_columns(
    table: Table,
    wanted: Mapping[str, Iterable[str]],
    others: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Check that all requested columns exist. Both parameters map arguments to columns.

    Args:
        others: arguments that may be empty.
    """
    problems = []
    asked = [name for names in wanted.values() for name in names if name not in table.places]
    if asked and (advice := other_delimiter(table.columns, table.delimiter)):
        raise DataError(f"{table.file}: no column {asked[0]!r}, and {advice}")
    for argument, names in {**wanted, **(others or {})}.items():
        if not names and argument in wanted:
            problems.append(Problem(table.file, f"{argument} names no column"))
        twice = [name for name, n in Counter(list(names)).items() if n > 1]
        problems += [Problem(table.file, f"{argument} names {name!r} twice") for name in twice]
        for name in names:
            if name not in table.places and not (argument == "missing" and name == "*"):
                known = ""
                if len(problems) < N_SHOWN:  # the others are not shown, and looking takes long
                    known = nearest(str(name), table.columns)
                    known = known or f" ({listed(table.columns, MOST_SHOWN)})"
                if len(table.columns) == 1:
                    known += "; set `delimiter` if it is not the right one"
                text = f"{argument}: no column {name!r}{known}"
                problems.append(Problem(table.file, text))
    raise_problems(problems)


def refuse_slips(
    table: Table, inputs: list[str], targets: list[str], categories: list[str], dates: list[str]
) -> None:
    """Refuse likely mistakes: nameless inputs, targets as inputs, and inputs of two kinds."""
    messages = [_nameless(table, name) for name in inputs if _is_nameless(name)]
    are_inputs, are_categories = set(inputs), set(categories)
    if are_inputs != set(targets):  # equal for an autoencoder
        text = "is also an input: the model would see the target"
        messages += [f"target {name!r} {text}" for name in targets if name in are_inputs]
    for argument, names in {"categories": categories, "dates": dates}.items():
        messages += [
            f"{argument}: {name!r} is not an input" for name in names if name not in are_inputs
        ]
    messages += [
        f"{name!r} is in both categories and dates" for name in dates if name in are_categories
    ]
    raise_problems([Problem(table.file, message) for message in messages])


def _is_nameless(name: str) -> bool:
    return not name or re.fullmatch(r"Unnamed: \d+", name) is not None


def _nameless(table: Table, name: str) -> str:
    """Return an explanation of a nameless column, or of one that pandas named."""
    number = table.places[name] + 1
    called = f"is named {name!r}" if name else "has no name"
    cause = "a delimiter at the end of a line starts one more column"
    if number == 1 or name:
        cause = "it looks like pandas' index: write the file with `index=False`"
    shown = name or '""'
    return f"column {number} {called}; {cause}, or exclude it: `ignore: [{shown}]`"
