"""Data sets from a CSV file: columns of numbers, or a column of images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from base.errors import DataError, Problem, nearest
from data_loader.image_files import ImageFiles, read_text
from data_loader.in_memory import InMemoryDataset
from data_loader.labels import Classes, class_names, raise_problems, read_targets

Columns = str | Sequence[str]


class Table(NamedTuple):
    """The rows of a CSV file, each a text for each column, and the lines where they stand."""

    file: str
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]

    def texts(self, names: Sequence[str]) -> list[list[str]]:
        """Return the texts in some columns, row by row."""
        places = [self.columns.index(name) for name in names]
        return [[row[place] for place in places] for row in self.rows]

    def read(
        self, names: list[str], task: str, classes: Classes = None, separator: str | None = None
    ) -> tuple[Tensor, list[str] | None]:
        """Return what some columns mean as targets, and the names of the classes."""
        if separator is not None and (task != "multilabel" or len(names) != 1):
            raise DataError(f"{self.file}: separator is for multilabel, with one target column")
        if task == "multilabel" and separator is None:
            classes = names if classes is None else classes
            if len(class_names(classes) or ()) != len(names):
                raise DataError(f"{self.file}: classes names others than the {len(names)} columns")

        def place(sample: int, column: int) -> str:
            return f"{self.file}:{self.lines[sample]}:{names[column]}"

        return read_targets(self.texts(names), place, task, classes, separator)


class CsvDataset(InMemoryDataset):
    """A CSV file whose first line names its columns: numbers in, targets out, all in memory.

    Inputs are float32 (k,), one for each column of `inputs`.

    Args:
        inputs: the columns that the model sees; by default all that are no target.
        target: the column of the targets, or a list of them.
        task: classification, regression or multilabel.
        classes: the names of the classes in the order of their numbers, or how many there are.
        separator: what stands between the class names in one column, for multilabel: ``a|b``.

    Raises:
        DataError: with all that is wrong, each with file, line and column.
    """

    def __init__(
        self,
        file: str,
        target: Columns,
        inputs: Columns | None = None,
        task: str = "classification",
        classes: Classes = None,
        separator: str | None = None,
        delimiter: str = ",",
    ) -> None:
        table = read_table(file, delimiter)
        targets = _as_list(target)
        given = [name for name in table.columns if name not in targets]
        names = given if inputs is None else _as_list(inputs)
        check_columns(table, {"inputs": names, "target": targets})
        values, _ = table.read(names, "regression")
        numbers, found = table.read(targets, task, classes, separator)
        super().__init__(values, numbers, found, source=file)
        self.lines = table.lines

    def place(self, index: int) -> str:
        """Say in which line a sample stands."""
        return f"{self.source}:{self.lines[index]}"


class ImageCsvDataset(ImageFiles):
    """A CSV file with a column of paths, relative to its folder or to `root`, and targets."""

    def __init__(  # noqa: PLR0913
        self,
        file: str,
        image: str,
        target: Columns,
        task: str = "classification",
        classes: Classes = None,
        separator: str | None = None,
        delimiter: str = ",",
        root: str | None = None,
        mode: str = "RGB",
        resize: int | Sequence[int] | None = None,
    ) -> None:
        table = read_table(file, delimiter)
        targets = _as_list(target)
        check_columns(table, {"image": [image], "target": targets})
        numbers, found = table.read(targets, task, classes, separator)
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


def _as_list(columns: Columns) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def read_table(file: str, delimiter: str = ",") -> Table:
    """Read a CSV file of UTF-8 whose first line names the columns.

    Raises:
        DataError: a line has more or fewer fields than there are columns, or none follows.
    """
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise DataError(f"delimiter is {delimiter!r}; give one character, as ',' or \"\\t\"")
    reader = csv.reader(io.StringIO(read_text(file)), delimiter=delimiter, strict=True)
    columns: list[str] = []
    rows, lines, problems = [], [], []
    try:
        for row in reader:
            texts = [text.strip() for text in row]
            if not columns:
                columns = texts
            elif len(texts) == len(columns):
                rows.append(texts)
                lines.append(reader.line_num)
            elif texts not in ([], [""]):
                text = f"{len(texts)} fields, but {len(columns)} columns"
                problems.append(Problem(f"{file}:{reader.line_num}", text))
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}") from error
    raise_problems(problems)
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice or not rows:
        text = f"two columns are named {twice[0]!r}" if twice else "no rows below the column names"
        raise DataError(f"{file}: {text}")
    return Table(file, columns, rows, lines)


def check_columns(table: Table, wanted: dict[str, list[str]]) -> None:
    """Make sure that each column asked for is there; `wanted` maps arguments to columns."""
    problems = []
    for argument, names in wanted.items():
        if not names:
            problems.append(Problem(table.file, f"{argument} names no column"))
        for name in names:
            if name not in table.columns:
                known = nearest(str(name), table.columns) or f" ({', '.join(table.columns)})"
                text = f"{argument}: there is no column {name!r}{known}"
                problems.append(Problem(table.file, text))
    raise_problems(problems)
