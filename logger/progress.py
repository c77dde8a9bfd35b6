"""One transient line for the running epoch, which log lines never break."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from types import TracebackType
from typing import TextIO

from tqdm.std import tqdm

REDRAW_SECONDS = 0.1


class _Line(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no watching thread: the loop redraws, and forked workers stay simple


class ProgressBar:
    """Show how far `total` steps have come; nothing at all where nobody watches.

    The text behind the bar may be a callable: it is called only when the line is redrawn, ten times
    a second at most, so it may wait for the device.
    """

    def __init__(
        self,
        total: int | None,
        initial: int = 0,
        description: str = "",
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self._stream = stream or sys.stdout
        self._text: str | Callable[[], str] = ""
        self._pending = 0
        self._next_redraw = perf_counter() + REDRAW_SECONDS
        self._line: _Line | None = None
        if enabled and can_redraw(self._stream):
            self._line = _Line(
                total=total,
                initial=initial,
                desc=description,
                file=self._stream,
                leave=False,
                dynamic_ncols=True,
                mininterval=0,
                miniters=1,
            )

    def update(self, n: int = 1) -> None:
        """Count `n` more steps, and redraw when a tenth of a second has gone."""
        if self._line is None:
            return
        self._pending += n
        if perf_counter() >= self._next_redraw:
            self._redraw(self._line)

    def show(self, text: str | Callable[[], str]) -> None:
        """Set what stands behind the bar from the next redraw on."""
        self._text = text

    def write(self, line: str) -> None:
        """Print a whole line above the bar."""
        with above_bars():
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Wipe the line; later calls do nothing."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _redraw(self, line: _Line) -> None:
        text = self._text if isinstance(self._text, str) else self._text()
        line.set_postfix_str(text, refresh=False)
        line.update(self._pending)
        self._pending = 0
        self._next_redraw = perf_counter() + REDRAW_SECONDS


def above_bars() -> AbstractContextManager[None]:
    """Take every bar off the screen while the block prints, then draw them again."""
    return _bars_lifted()


@contextmanager
def _bars_lifted() -> Iterator[None]:
    with tqdm.external_write_mode(file=sys.stdout):
        yield


def can_redraw(stream: TextIO) -> bool:
    """Say whether a line can be wiped there: a terminal that is not dumb, or a notebook."""
    terminal = stream.isatty() and os.environ.get("TERM", "") != "dumb"
    return terminal or "ipykernel.iostream" in sys.modules
