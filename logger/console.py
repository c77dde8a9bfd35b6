"""The console and the log file: a header once, then one row an epoch."""

import logging
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from logger.progress import above_bars

ROW = 25  # the level of the rows: above INFO, below WARNING
LOGGER = "kindling"
_CONSOLE_LEVELS = {0: logging.WARNING, 1: ROW, 2: logging.DEBUG}


def setup_logging(folder: Path | None, verbosity: int = 2) -> logging.Logger:
    """Send the log to the console and, with a folder, to its `log.txt`; a second call starts over.

    Verbosity 0 shows warnings and errors, 1 the epoch rows too, 2 everything. The file gets all.
    """
    close_logging()
    logger = logging.getLogger(LOGGER)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False  # a handler on the root logger would print every line twice
    console = _Console(_CONSOLE_LEVELS[verbosity])
    logger.addHandler(console)
    if folder is not None:
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
        logger.addHandler(file)
    return logger


def close_logging() -> None:
    """Close the log file and leave the logger as if it had never been set up."""
    logger = logging.getLogger(LOGGER)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = True


class _Console(logging.Handler):
    """Print text bare to stdout, and warnings with their level to stderr, above any bar."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            stream = sys.stdout
            if record.levelno >= logging.WARNING:
                text, stream = f"{record.levelname.lower()}: {text}", sys.stderr
            encoding = getattr(stream, "encoding", None) or "utf-8"
            text = text.encode(encoding, "backslashreplace").decode(encoding)
            with above_bars():
                print(text, file=stream, flush=True)
        except Exception:
            self.handleError(record)


def format_header(facts: Mapping[str, object]) -> str:
    """Return the facts of a run as aligned lines; those that are None are left out."""
    width = max(map(text_width, facts), default=0)
    lines = []
    for name, fact in facts.items():
        if fact is not None:
            indented = str(fact).replace("\n", "\n" + " " * (width + 2))
            lines.append(f"{pad(name, width)}  {indented}")
    return "\n".join(lines)


class EpochTable:
    """Lay out one fixed-width row an epoch; `*` marks the best.

    With `columns` given those are shown, else those of the first row; names that come later are
    added on the right, and the header is repeated.
    """

    def __init__(self, columns: Sequence[str] | None = None, repeat_every: int = 40) -> None:
        self.columns = list(columns or [])
        self._fixed = columns is not None
        self._repeat_every = repeat_every
        self._rows = 0

    def lines(self, values: Mapping[str, object], best: bool = False) -> list[str]:
        """Return the row of one epoch, after the header where it is due."""
        new = [] if self._fixed else [name for name in values if name not in self.columns]
        self.columns += new
        header = [self.header()] if new or self._rows % self._repeat_every == 0 else []
        self._rows += 1
        cells = [
            pad(format_value(name, values.get(name)), self._width(name), right=True)
            for name in self.columns
        ]
        return [*header, "  ".join(cells) + (" *" if best else "")]

    def header(self) -> str:
        """Return the names over the columns."""
        return "  ".join(pad(shorten(name), self._width(name), right=True) for name in self.columns)

    def _width(self, name: str) -> int:
        return (
            text_width(shorten(name))
            if name in ("epoch", "step")
            else max(10, text_width(shorten(name)))
        )


def format_value(name: str, value: object) -> str:
    """Return a value as a person reads it: rates in powers of ten, seconds, four decimals."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if name.split("/")[0] == "lr":
        return f"{value:.2e}"
    if name.endswith("seconds"):
        return f"{value:.1f}"
    small = value == 0 or 1e-3 <= abs(value) < 1e4
    return f"{value:.4f}" if small else f"{value:.3e}"


def text_width(text: str) -> int:
    """Return how many terminal cells a text fills: 2 for wide letters, 0 for combining marks."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def pad(text: str, width: int, right: bool = False) -> str:
    """Fill up with spaces to `width` cells; on the left with `right`."""
    space = " " * max(0, width - text_width(text))
    return space + text if right else text + space


def shorten(name: str, limit: int = 24) -> str:
    """Return a long name with its middle left out."""
    return name if text_width(name) <= limit else f"{name[: limit // 2]}…{name[1 - limit // 2 :]}"
