"""The console and the log file: a header, then one row per epoch."""

import logging
import os
import sys
import unicodedata
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from logger.files import as_file_error, open_descriptor
from logger.progress import above_bars

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
            text = f"{record.levelname.lower()}: " * warns + self.format(record)
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
    """Return entries as aligned lines of name and value, omitting None."""
    width = max(map(text_width, facts), default=0) + 2
    return "\n".join(
        pad(name, width) + str(fact).replace("\n", "\n" + " " * width)
        for name, fact in facts.items()
        if fact is not None
    )


def table(rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> str:
    """Return rows as aligned columns. The first row holds the names.

    Args:
        right: names of the columns to align on the right.
    """
    columns = []
    for column in zip(*rows, strict=True):
        width, is_right = max(map(text_width, column)), column[0] in right
        columns.append([pad(cell, width, right=is_right) for cell in column])
    return "\n".join("  " + "  ".join(row).rstrip() for row in zip(*columns, strict=True))


class EpochTable:
    """Formats one fixed-width row per epoch. `*` marks the best.

    A name that first appears in a later epoch is added on the right, under a new header.
    """

    def __init__(self, repeat_every: int = 40) -> None:
        self.columns: list[str] = []
        self._repeat_every = repeat_every
        self._n_rows = 0

    def lines(self, values: Mapping[str, object], best: bool = False) -> list[str]:
        """Return the row of one epoch, preceded by the header if it is due."""
        new = [name for name in values if name not in self.columns]
        self.columns += new
        cells = [format_value(name, values.get(name)) for name in self.columns]
        lines = [self._line(cells) + " *" * best]
        if new or self._n_rows % self._repeat_every == 0:
            lines.insert(0, self._line([shorten(name) for name in self.columns]))
        self._n_rows += 1
        return lines

    def _line(self, cells: list[str]) -> str:
        least = {"epoch": 5, "step": 8}
        widths = [max(text_width(shorten(n)), least.get(n, 10)) for n in self.columns]
        return "  ".join(pad(c, w, right=True) for c, w in zip(cells, widths, strict=True))


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


def pad(text: str, width: int, right: bool = False) -> str:
    """Pad a text with spaces to `width` cells; `right` aligns it on the right."""
    space = " " * (width - text_width(text))
    return space + text if right else text + space


def shorten(name: str) -> str:
    """Shorten a name of more than 24 characters by omitting its middle."""
    return name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}"
