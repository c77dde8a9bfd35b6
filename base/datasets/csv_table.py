"""Reading a CSV file: the names of its columns, and its rows as texts."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from base.datasets.image_files import read_text
from base.datasets.labels import as_number, raise_problems
from base.errors import DataError, Problem


class Table(NamedTuple):
    """The rows of a CSV file, each a text for each column, and the lines where they begin."""

    file: str
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]
    decimal: str = "."

    def texts(self, names: Sequence[str]) -> list[list[str]]:
        """Return the texts in some columns, row by row."""
        places = [self.columns.index(name) for name in names]
        return [[row[place] for place in places] for row in self.rows]

    def column(self, name: str) -> list[str]:
        """Return the texts of a column."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def place(self, sample: int, name: str) -> str:
        """Return the place of a text in the file, by row and column."""
        return f"{self.file}:{self.lines[sample]}:{name}"

    def number_text(self, text: str) -> str:
        """Return a text with a decimal point where this table's numbers have a comma."""
        if self.decimal == ".":
            return text
        return f"_{text}" if "." in text else text.replace(self.decimal, ".")


def read_table(file: str, delimiter: str = ",", decimal: str = ".") -> Table:
    """Read a CSV file of UTF-8 whose first line names the columns; ``# ...`` is a comment.

    Raises:
        DataError: a line has more or fewer fields than there are columns, or none follows.
    """
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise DataError(f"delimiter is {delimiter!r}; give one character, as ',' or \"\\t\"")
    if decimal not in (".", ",") or decimal == delimiter:
        raise DataError(f"decimal is {decimal!r}; give '.' or ',', and another delimiter")
    lines = _Lines(read_text(file))
    columns: list[str] = []
    rows, numbers, problems = [], [], []
    try:
        for texts in _records(lines, delimiter):
            if not columns:
                columns = _column_names(texts, file, lines)
            elif lines.is_comment and len(texts) == len(columns):
                text = (
                    f"{texts[0]!r}: put a blank after the # of a comment, or quotes around a value"
                )
                problems.append(Problem(f"{file}:{lines.first}", text))
            elif not lines.is_comment and len(texts) == len(columns):
                rows.append(texts)
                numbers.append(lines.first)
            elif not lines.is_comment:
                text = f"{len(texts)} fields, but {len(columns)} columns"
                problems.append(Problem(f"{file}:{lines.first}", text))
    except csv.Error as error:
        raise DataError(f"{file}:{lines.number}: {error}") from error
    raise_problems(problems)
    if not rows:
        raise DataError(f"{file}: no rows below the column names")
    return Table(file, columns, rows, numbers, decimal)


class _Lines(Iterator[str]):
    """The lines of a CSV file for its reader, without the comments between its records.

    A line within quotes is not a comment. ``#`` without a blank behind it may also begin a value:
    below the names of the columns such a line is given, and marked.
    """

    def __init__(self, text: str) -> None:
        self.lines = text.removesuffix("\n").split("\n")
        self.number = self.first = 0  # of the line, and of the first one of the record
        self.is_within = self.is_comment = self.is_below_names = False
        self.comments: list[str] = []  # above the names

    def __next__(self) -> str:
        while self.number < len(self.lines):
            line = self.lines[self.number]
            self.number += 1
            if not self.is_within:
                self.first, self.is_comment = self.number, line.startswith("#")
                if self.is_comment and not (self.is_below_names and line[1:2].strip(" \t#")):
                    self.comments += [] if self.is_below_names else [line]
                    continue
            self.is_within = True
            return f"{line}\n"
        raise StopIteration


def _records(lines: _Lines, delimiter: str) -> Iterator[list[str]]:
    """Yield the fields of each record, without blanks around them; empty lines are left out."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    for record in reader:
        lines.is_within = False
        texts = [text.strip() for text in record]
        if texts not in ([], [""]):
            lines.is_below_names = True
            yield texts


def _column_names(texts: list[str], file: str, lines: _Lines) -> list[str]:
    """Return the names of the columns, if the first line holds some.

    Raises:
        DataError: a name is there twice, or all of them are numbers.
    """
    twice = sorted({name for name in texts if name and texts.count(name) > 1})
    if twice:
        raise DataError(f"{file}: two columns are named {twice[0]!r}")
    if all(as_number(text) is not None for text in texts):
        hint = f": are they in the comment {lines.comments[-1]!r}?" if lines.comments else ""
        text = "expected column names in the first line, found only numbers"
        raise DataError(f"{file}:{lines.first}: {text}{hint}")
    return texts
