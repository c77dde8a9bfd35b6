"""`metrics.csv`: one row an epoch, exact to the last bit."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from logger.files import write_whole
from logger.writers import Writer

Row = Mapping[str, object]


class CsvWriter(Writer):
    """Append rows to a CSV file, or go on with one; a last line that a crash cut short is lost."""

    name = "metrics.csv"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._columns: list[str] | None = None

    def add_row(self, row: Row) -> None:
        """Append a row; one that brings a new column rewrites the file with it."""
        if self._columns is None:
            self._rewrite(read_rows(self.path))
        columns = self._columns or []
        if not columns or not row.keys() <= set(columns):
            self._rewrite([*read_rows(self.path), row])
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(_as_text([row], columns))

    def truncate_after(self, last: float, column: str = "step") -> list[dict[str, str]]:
        """Drop and return the rows with `column` beyond `last`: a resumed run writes them again."""
        rows = read_rows(self.path)
        kept = [row for row in rows if number(row.get(column, "")) <= last]
        self._rewrite(kept)
        return [row for row in rows if row not in kept]

    def _rewrite(self, rows: Iterable[Row]) -> None:
        header = next(csv.reader([_whole_lines(self.path).partition("\n")[0]]), [])
        rows = list(rows)
        columns = list(dict.fromkeys([*header, *(name for row in rows for name in row)]))
        header_row = dict(zip(columns, columns, strict=True))
        if columns:
            write_whole(self.path, _as_text([header_row, *rows], columns).encode())
        self._columns = columns


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of a CSV file as text; none if it is not there."""
    return list(csv.DictReader(io.StringIO(_whole_lines(path), newline=""), restval=""))


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows of cells as CSV: None is an empty cell, floats are exact."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def number(text: str) -> float:
    """Return the number that a cell holds; nan where it holds none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _whole_lines(path: Path) -> str:
    text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def _as_text(rows: Iterable[Row], columns: list[str]) -> str:
    return csv_text([row.get(name) for name in columns] for row in rows)
