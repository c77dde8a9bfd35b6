"""One transient line for the running epoch, which log lines never break."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import TextIO

from tqdm.std import tqdm

REDRAW_SECONDS = 0.1


class _Line(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no thread that watches: the loop redraws


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """Show how far the steps of an epoch have come; nothing where nobody can see it move."""

    def __init__(
        self,
        total: int | None,
        initial: int = 0,
        description: str = "",
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        stream = stream or sys.stdout
        self._line: _Line | None = None
        self._text: Callable[[], str] = lambda: ""
        self._pending = 0
        self._next_redraw = perf_counter() + REDRAW_SECONDS
        if enabled and can_redraw(stream):
            self._line = _Line(
                desc=description,
                total=total,
                initial=initial,
                file=stream,
                leave=False,
                dynamic_ncols=True,
                mininterval=0,
                miniters=1,
            )

    def update(self, n: int = 1) -> None:
        """Count `n` more steps; the line is redrawn ten times a second at most."""
        if self._line is not None:
            self._pending += n
            if perf_counter() >= self._next_redraw:
                self._redraw(self._line)

    def show(self, text: Callable[[], str]) -> None:
        """Set what gives the text behind the bar; it is only asked when the line is redrawn."""
        self._text = text

    def close(self) -> None:
        """Wipe the line; later calls do nothing."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _redraw(self, line: _Line) -> None:
        line.set_postfix_str(self._text(), refresh=False)
        line.update(self._pending)
        self._pending = 0
        self._next_redraw = perf_counter() + REDRAW_SECONDS


@contextmanager
def above_bars() -> Iterator[None]:
    """Take every tqdm line off the screen while the block prints, then draw them again."""
    with tqdm.get_lock():
        lines = [line for line in getattr(tqdm, "_instances", ()) if hasattr(line, "start_t")]
        for line in lines:
            line.clear(nolock=True)
        try:
            yield
        finally:
            for line in lines:
                line.refresh(nolock=True)


def can_redraw(stream: TextIO) -> bool:
    """Say whether a line can be wiped there: a terminal that is not dumb, or a notebook."""
    if type(stream).__module__.startswith("ipykernel"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"
