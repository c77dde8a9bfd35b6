"""`metrics.csv`: one row an epoch, exact to the last bit."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from logger.files import write_whole
from logger.writers import Writer

Row = Mapping[str, object]


class CsvWriter(Writer):
    """Append rows to a CSV file; floats are written so that reading gives the same bits."""

    name = "metrics.csv"

    def __init__(self, path: Path) -> None:
        """Go on with the file if it is there; a last line cut short by a crash is dropped."""
        self.path = path
        self._columns: list[str] | None = None

    def add_row(self, row: Row) -> None:
        """Append a row; the first that brings a new column rewrites the file with it."""
        columns = self._read_columns()
        new = [name for name in row if name not in columns]
        if new:
            self._rewrite([*columns, *new], [*read_rows(self.path), row])
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                file.write(_lines([row], columns))

    def truncate_after(self, last: float, column: str = "step") -> None:
        """Drop the rows whose `column` is beyond `last`: a resumed run writes them again."""
        kept = [row for row in read_rows(self.path) if float(row[column]) <= last]
        if self.path.exists():
            self._rewrite(self._read_columns(), kept)

    def _read_columns(self) -> list[str]:
        if self._columns is None:
            rows = list(csv.reader(io.StringIO(_whole_lines(self.path), newline="")))
            self._rewrite(rows[0] if rows else [], read_rows(self.path))
        return self._columns or []

    def _rewrite(self, columns: list[str], rows: Iterable[Row]) -> None:
        header = dict(zip(columns, columns, strict=True))
        write_whole(self.path, _lines([header, *rows], columns) if columns else "")
        self._columns = columns


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the whole rows of a CSV file as text; none if it is not there."""
    return list(csv.DictReader(io.StringIO(_whole_lines(path), newline=""), restval=""))


def _whole_lines(path: Path) -> str:
    text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
    return text[: text.rfind("\n") + 1]


def _lines(rows: Iterable[Row], columns: list[str]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writerows(rows)
    return buffer.getvalue()
