"""Writes `metrics.csv`: one row per epoch, with exact floats."""

import contextlib
import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from logger.files import NotAFileError, append, open_file, write_whole
from logger.writers import Writer

MAX_BYTES = 1 << 28  # a larger file is not a metrics.csv, and is not read into memory
Row = Mapping[str, object]


class CsvWriter(Writer):
    """Appends rows to a CSV file, new or existing; drops an incomplete last line."""

    name = "metrics.csv"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None

    def add_row(self, row: Row) -> None:
        """Append a row; a new column rewrites the file.

        Raises:
            FileError: it cannot be written.
        """
        if self._columns is None:
            self.rewrite(read_rows(self.path))
        columns = self._columns or []
        if not columns or not row.keys() <= set(columns):
            self.rewrite([*read_rows(self.path), row])
        else:
            append(self.path, _as_text([row], columns).encode())

    def truncate_after(self, last: float, column: str = "step") -> list[dict[str, str]]:
        """Remove and return the rows with `column` beyond `last`, which a resumed run rewrites."""
        kept: list[dict[str, str]] = []
        removed: list[dict[str, str]] = []
        for row in read_rows(self.path):
            (kept if number(row.get(column, "")) <= last else removed).append(row)
        self.rewrite(kept)
        return removed

    def rewrite(self, rows: Iterable[Row]) -> None:
        """Replace the rows of the file. Its columns are kept even if no row has a value for them.

        Raises:
            FileError: it cannot be written.
        """
        rows = list(rows)
        header = read_table(self.path).columns
        columns = list(dict.fromkeys([*header, *(name for row in rows for name in row)]))
        if columns:
            header_row = dict(zip(columns, columns, strict=True))
            write_whole(self.path, _as_text([header_row, *rows], columns).encode())
        self._columns = columns


class Table(NamedTuple):
    """The readable rows of a CSV file, and a message per fault."""

    columns: list[str]
    rows: list[dict[str, str]]
    faults: list[str]


def read_table(path: Path) -> Table:
    """Read a file written by `CsvWriter`. Damaged lines are returned as faults, not raised.

    Lines are parsed one by one, as cells contain no line breaks. A last line without a line break
    was truncated by a crash and is not a fault.
    """
    try:
        with open_file(path) as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Table([], [], [])
    except NotAFileError as error:
        return Table([], [], [f"it is {error}"])
    except OSError as error:
        return Table([], [], [f"it cannot be read: {error.strerror}"])
    if len(content) > MAX_BYTES:
        return Table([], [], [f"it is larger than {MAX_BYTES >> 20} MB"])
    first, *lines = content[: content.rfind(b"\n") + 1].split(b"\n")[:-1] or [b""]
    columns, fault = _cells(first)
    if fault or len(set(columns)) < len(columns) or "" in columns:
        return Table([], [], [f"line 1: {fault or 'column names are empty or repeated'}"])
    rows, faults = [], []
    for place, line in enumerate(lines, start=2):
        cells, fault = _cells(line)
        if not fault and len(cells) != len(columns):
            fault = f"{len(cells)} cells, not {len(columns)}"
        if fault:
            faults.append(f"line {place}: {fault}")
        else:
            rows.append(dict(zip(columns, cells, strict=True)))
    return Table(columns, rows, faults)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the complete rows of a CSV file as text; none if the file is missing."""
    return read_table(path).rows


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows of cells as CSV; None is an empty cell, and floats are exact."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def number(text: str) -> float:
    """Return the number in a cell; NaN if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _cells(line: bytes) -> tuple[list[str], str]:
    """Return the cells of a line, and its fault or an empty string."""
    if line and len(line) < 1 << 16 and not any(mark in line for mark in (b'"', b"\r", b"\0")):
        with contextlib.suppress(UnicodeDecodeError):
            return line.decode("utf-8-sig").split(","), ""  # as below, in a tenth of the time
    if b"\0" in line:
        return [], "NUL bytes"
    try:
        return next(csv.reader([line.decode("utf-8-sig")], strict=True), []), ""
    except UnicodeDecodeError:
        return [], "not UTF-8"
    except csv.Error as error:
        return [], str(error)


def _as_text(rows: Iterable[Row], columns: list[str]) -> str:
    return csv_text([row.get(name) for name in columns] for row in rows)
