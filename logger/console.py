"""The console and the log file, and how values, headers and tables are written there."""

import logging
import os
import re
import sys
import textwrap
import unicodedata
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from logger.files import as_file_error, open_descriptor
from logger.progress import above_bars
from logger.terminal import styled, terminal_width

ROW = 25  # the level of epoch rows, between INFO and WARNING: logger.log(ROW, line)
Handler = TypeVar("Handler", bound=logging.Handler)

logging.addLevelName(ROW, "ROW")


def setup_logging(folder: Path | None, verbosity: int = 2) -> logging.Logger:
    """Send the logger "kindling" to the console and, with a folder, append it to `log.txt`.

    Verbosity 0 shows warnings and errors, 1 also the epoch rows, 2 everything; the file always has
    everything. A second call replaces the handlers; records that were logged without a folder are
    written to its file.
    """
    level = {0: logging.WARNING, 1: ROW, 2: logging.DEBUG}[verbosity]
    handlers: list[logging.Handler] = [_Console(level)]
    if folder is None:
        handlers.append(_Memory())
    return _set_up(handlers, log_of_rank(folder, 0))


def _set_up(handlers: list[logging.Handler], path: Path | None) -> logging.Logger:
    """Replace the handlers; with a path, append all records to this file, also earlier ones."""
    earlier = [record for handler in _handlers(_Memory) for record in handler.records]
    close_logging()
    logger = logging.getLogger("kindling")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # a handler on the root logger would print each line twice
    for handler in handlers:
        logger.addHandler(handler)
    if path is not None:
        file = _LogFile(path)
        line = "%(asctime)s %(levelname)-7s %(message)s"
        file.setFormatter(logging.Formatter(line, datefmt="%Y-%m-%d %H:%M:%S"))
        logger.addHandler(file)
        for record in earlier:
            file.handle(record)
    return logger


def mute_other_ranks(rank: int) -> None:
    """Keep the records of a rank but 0 until `setup_rank_logging`: rank 0 prints what all log."""
    for handler in _handlers(_Console) if rank else ():
        logging.getLogger("kindling").removeHandler(handler)


def early_warnings() -> list[str]:
    """Return the warnings that were logged before the log file existed."""
    records = (record for handler in _handlers(_Memory) for record in handler.records)
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def setup_rank_logging(rank: int, folder: Path | None = None) -> logging.Logger:
    """Print only the warnings of a rank, as ``rank 1: warning: ...``.

    Args:
        folder: where to append everything to ``log-rank1.txt``; None writes no file.
    """
    return _set_up([_Console(logging.WARNING, f"rank {rank}: ")], log_of_rank(folder, rank))


def log_of_rank(folder: Path | None, rank: int) -> Path | None:
    """Return the log file of a rank in the folder of a run."""
    return None if folder is None else folder / ("log.txt" if rank == 0 else f"log-rank{rank}.txt")


def close_logging() -> None:
    """Close the log file and remove all handlers."""
    logger = logging.getLogger("kindling")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def _handlers(kind: type[Handler]) -> list[Handler]:
    return [each for each in logging.getLogger("kindling").handlers if isinstance(each, kind)]


class _Memory(logging.Handler):
    """Keeps the records that are logged before the log file exists."""

    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=1000)

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _LogFile(logging.Handler):
    """Appends lines to a file. If writing fails, it warns once and stops writing.

    Raises:
        FileError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.descriptor = path, -1
        try:
            self.descriptor = open_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            raise as_file_error(error, path) from error

    def emit(self, record: logging.LogRecord) -> None:
        if self.descriptor < 0:
            return
        try:
            line = memoryview(f"{self.format(record)}\n".encode(errors="backslashreplace"))
            while line:
                line = line[os.write(self.descriptor, line) :]
        except OSError as error:
            self.close()
            text = f"warning: {self.path} is off, training continues without it: {error.strerror}"
            with above_bars():
                print(text, file=sys.stderr)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        super().close()


class _Console(logging.Handler):
    """Prints to stdout, and warnings with their level to stderr, above any progress bar.

    A record may have a ``style`` of `logger.terminal`, from `extra={"style": "bold"}`.

    Args:
        prefix: is printed before each line.
    """

    def __init__(self, level: int, prefix: str = "") -> None:
        super().__init__(level)
        self.prefix = prefix

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        stream = sys.stderr if warns else sys.stdout
        try:
            text = wrap_prose(self.format(record), terminal_width(stream))
            text = styled(text, getattr(record, "style", None), stream)
            if warns:
                kind = "warning" if record.levelno < logging.ERROR else "error"
                text = f"{styled(f'{record.levelname.lower()}:', kind, stream)} {text}"
            text = self.prefix + text
            encoding = stream.encoding or "utf-8"
            with above_bars():
                print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream)
                stream.flush()
        except OSError:
            # The reader has closed the pipe (`| head`), or the disk of `> file` is full. The run
            # continues, and log.txt has the remaining lines.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except Exception:
            self.handleError(record)


def format_header(facts: Mapping[str, object]) -> str:
    """Return entries as aligned lines of name and value, omitting None.

    In a terminal, lists are continued on further lines; a path or a command stays whole.
    """
    width = max(map(text_width, facts), default=0) + 2
    end = terminal_width()
    return "\n".join(
        pad(name, width) + wrap_list(str(fact), end, width)
        for name, fact in facts.items()
        if fact is not None
    )


def wrap_list(text: str, end: int | None, indent: int = 2, start: int | None = None) -> str:
    """Return a text whose lines end before cell ``end``: they are cut after ", " and "; ".

    Args:
        end: None cuts no line.
        indent: the cell in which further lines begin.
        start: the cell in which the text begins; None means ``indent``.
    """
    lines, at = [""], indent if start is None else start
    for paragraph in text.split("\n"):
        for part in re.split(r"(?<=[,;]) ", paragraph):
            is_full = end is not None and at + text_width(f"{lines[-1]} {part}") > end
            if lines[-1] and is_full:
                lines.append("")
                at = indent
            lines[-1] += f" {part}" if lines[-1] else part
        lines.append("")
        at = indent
    return f"\n{' ' * indent}".join(lines[:-1])


def wrap_prose(text: str, end: int | None) -> str:
    """Return a text whose lines are cut at spaces, but for those with a command to copy."""
    if end is None:
        return text
    lines = text.split("\n")
    return "\n".join(line if "python " in line else _wrap(line, end) for line in lines)


def _wrap(line: str, end: int) -> str:
    if text_width(line) <= end:
        return line
    whole = textwrap.TextWrapper(
        end, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return whole.fill(line)


def table(
    rows: Iterable[Sequence[str]],
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """Return rows as aligned columns. The first row holds the names.

    To fit a terminal, texts are cut, the widest first, but none of the first column and no number;
    then columns are left out.

    Args:
        right: names of the columns to align on the right.
        spare: names of the columns to leave out first, in this order; then the last ones follow.
        width: the cells of a line; None means those of the terminal, and any number in a pipe.
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    gap, columns, widths = _fit(columns, spare, width or terminal_width())
    texts = []
    for column, cells in zip(columns, widths, strict=True):
        is_right = column[0] in right
        texts.append([pad(shorten(cell, cells), cells, right=is_right) for cell in column])
    space = " " * gap
    return "\n".join("  " + space.join(row).rstrip() for row in zip(*texts, strict=True))


DIGITS = "0123456789.,"
NUMBERS = re.compile(r"[-+\d.,e%()\[\] x?]*|\.\.\.|nan|inf")
LEAST = 8  # cells of a text that is cut


def _fit(
    columns: list[list[str]], spare: Sequence[str], end: int | None
) -> tuple[int, list[list[str]], list[int]]:
    """Return the gap, the columns that fit into ``end`` cells, and their widths."""
    widths = [max(map(text_width, column)) for column in columns]
    if end is None or 2 + sum(widths) + 2 * (len(widths) - 1) <= end:
        return 2, columns, widths
    least = [_least(column, width) for column, width in zip(columns, widths, strict=True)]
    least[:1] = [max(least[0], min(widths[0], end - 2))]
    kept = list(range(len(columns)))
    left_out = [k for name in spare for k in kept[1:] if columns[k][0] == name]
    for k in [*left_out, *(k for k in reversed(kept[1:]) if k not in left_out)]:
        if 2 + sum(least[k] + 1 for k in kept) - 1 <= end:
            break
        kept.remove(k)
    widths, least = [widths[k] for k in kept], [least[k] for k in kept]
    room = end - 2 - (len(kept) - 1)
    while sum(widths) > room and widths != least:
        widest = max(range(len(kept)), key=lambda k: (widths[k] > least[k], widths[k]))
        widths[widest] -= 1
    gap = 2 if sum(widths) + len(kept) - 1 <= room else 1
    return gap, [columns[k] for k in kept], widths


def _least(column: Sequence[str], width: int) -> int:
    """Return the cells that a column needs: numbers are not cut."""
    is_cut = not all(map(NUMBERS.fullmatch, column[1:]))
    return min(width, max(text_width(column[0]), LEAST)) if is_cut else width


def format_value(name: str, value: object) -> str:
    """Format a value by its name: learning rates in powers of ten, seconds, percent, decimals."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    if name.split("/")[0] == "lr":
        return f"{value:.2e}"
    if name == "wait":  # a fraction of the epoch's time
        return f"{value:.0%}"
    if name.endswith("seconds"):
        return f"{value:.1f}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


def text_width(text: str) -> int:
    """Return the width of a text in terminal cells: two for wide characters, none for accents."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def n_fitting(text: str, width: int) -> int:
    """Return the number of letters at the beginning of a text that fit into `width` cells."""
    n_cells = 0
    for n, letter in enumerate(text):
        n_cells += text_width(letter)
        if n_cells > width:
            return n
    return len(text)


def pad(text: str, width: int, right: bool = False) -> str:
    """Pad a text with spaces to `width` cells; `right` aligns it on the right."""
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def shorten(text: str, width: int = 24) -> str:
    """Shorten a text to at most `width` cells, omitting no part of a number.

    A name loses its middle, and a list or a call its end.
    """
    if text_width(text) <= width:
        return text
    n_last = 0 if re.search(r"[ (]", text) else (width - 1) // 3
    first = _beginning(text, width - 1 - n_last)
    return f"{first}…{_beginning(text[::-1], n_last)[::-1]}"


def _beginning(text: str, width: int) -> str:
    """Return as much of a text as fits into `width` cells, without a part of a number."""
    n = n_fitting(text, width)
    is_inside = 0 < n < len(text) and text[n - 1] in DIGITS and text[n] in DIGITS
    return text[:n].rstrip(DIGITS) if is_inside else text[:n].rstrip(" ,")
