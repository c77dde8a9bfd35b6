"""Where predictions go: a file that is written under another name first, and the console."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from base.errors import UsageError, disk_error, why
from logger.console import n_fitting, table, text_width
from logger.files import as_file_error

N_SHOWN = 20  # rows on the console, and unreadable files
Cells = Sequence[Any]


class OutputFile:
    """A file that gets its name when it is complete; it is opened before the work.

    Raises:
        UsageError: it exists, its folder does not, or it cannot be written.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        if path.is_dir():
            raise UsageError(f"-o {path}: a folder; give a file, such as {path}/predictions.csv")
        if path.exists() and not overwrite:
            raise UsageError(f"-o {path}: it exists already; add --overwrite to replace it")
        if not path.parent.is_dir():
            raise UsageError(f"-o {path}: there is no folder {path.parent}; make it first")
        try:
            self.binary: IO[bytes] = self._temporary.open("wb")
        except OSError as error:
            text = f"-o {path}: cannot be written: {why(error)}"
            raise disk_error(error, text, UsageError) from error

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Rename the file if the block has succeeded; else remove it."""
        try:
            if kind is None:
                self.binary.flush()
                os.fsync(self.binary.fileno())
            self.binary.close()
            if kind is None:
                self._temporary.replace(self.path)
        except OSError as error:
            raise as_file_error(error, self.path) from error
        finally:
            self._temporary.unlink(missing_ok=True)

    def write_rows(self, rows: Iterable[Cells]) -> int:
        """Write rows as CSV, or separated by tabs for ``.tsv``; return their number."""
        delimiter = "\t" if self.path.suffix.lower() == ".tsv" else ","
        n_rows = -1
        lines = csv.writer(_Encoded(self), delimiter=delimiter, lineterminator="\n")
        for row in rows:
            lines.writerow(list(map(as_text, row)))
            n_rows += 1
        return max(0, n_rows)

    def write(self, content: bytes) -> None:
        """Write bytes.

        Raises:
            FileError: the disk is full, or the like.
        """
        try:
            self.binary.write(content)
        except OSError as error:
            raise as_file_error(error, self.path) from error


class _Encoded:
    """What csv writes to: text, encoded so that any name of a file survives."""

    def __init__(self, file: OutputFile) -> None:
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.encode("utf-8", "surrogateescape"))


def as_text(cell: Any) -> str:
    """Return a cell of a CSV file: numbers with seven digits, as float32 has."""
    return f"{cell:.7g}" if isinstance(cell, float) else str(cell)


def print_rows(columns: Sequence[str], rows: Iterator[Cells], first: Cells) -> int:
    """Print the first rows as a table if stdout is a terminal, else all rows as CSV.

    Returns the number of rows.
    """
    rows = chain([first], rows)
    if not sys.stdout.isatty():
        lines = csv.writer(sys.stdout, lineterminator="\n")
        lines.writerow(columns)
        n_rows = 0
        for row in rows:
            lines.writerow([_printable(as_text(cell)) for cell in row])
            n_rows += 1
        return n_rows
    shown = list(islice(rows, N_SHOWN))
    n_more = sum(1 for _ in rows)
    print(table_text(columns, shown, shutil.get_terminal_size().columns))
    if n_more:
        print(f"  ... and {n_more:,} more rows; all of them: -o predictions.csv")
    return len(shown) + n_more


def table_text(columns: Sequence[str], rows: Sequence[Cells], width: int) -> str:
    """Return rows as aligned columns that fit the width: names are cut, columns left out."""
    cells = [[_shown(cell) for cell in row] for row in rows]
    widths = [
        max(text_width(text) for text in column)
        for column in zip(columns, *cells, strict=True)
    ]  # fmt: skip
    least = min(widths[0], max(12, width // 3))
    n_columns = len(columns)
    while n_columns > 2 and 2 * n_columns + least + sum(widths[1:n_columns]) > width - 5:
        n_columns -= 1
    is_cut = n_columns < len(columns)
    room = max(least, width - 2 * n_columns - sum(widths[1:n_columns]) - 5 * is_cut)
    lines = [
        [_cut(text, room) if place == 0 else text for place, text in enumerate(row[:n_columns])]
        + ["..."] * is_cut
        for row in [list(columns), *cells]
    ]
    numeric = [
        name
        for place, name in enumerate(columns)
        if place and rows and isinstance(rows[0][place], float | int)
    ]
    return table(lines, numeric)


def print_unreadable(unreadable: Sequence[tuple[str, str]]) -> None:
    """List the samples that were left out, each with the reason, on stderr."""
    if not unreadable:
        return
    plural = "were" if len(unreadable) > 1 else "was"
    print(f"{len(unreadable):,} {plural} left out:", file=sys.stderr)
    for name, reason in unreadable[:N_SHOWN]:
        print(f"  {_printable(name)}: {_printable(' '.join(reason.split()))}", file=sys.stderr)
    if len(unreadable) > N_SHOWN:
        print(f"  ... and {len(unreadable) - N_SHOWN:,} more", file=sys.stderr)


def _shown(cell: Any) -> str:
    if not isinstance(cell, float):
        return _printable(str(cell))
    return f"{cell:.4f}" if cell == 0 or 1e-3 <= abs(cell) < 1e5 else f"{cell:.4g}"


def _printable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _cut(text: str, width: int) -> str:
    """Shorten a name in front: its end tells files of a folder apart."""
    if text_width(text) <= width:
        return text
    return f"…{text[len(text) - n_fitting(text[::-1], width - 1) :]}"
