"""The transient progress bar of the running epoch, which log lines never break."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter
from typing import Any, TextIO

from tqdm.std import tqdm

REDRAW_SECONDS = 0.1


class _Line(tqdm):  # type: ignore[type-arg]
    monitor_interval = 0  # no monitor thread: the loop redraws


def _new_line(stream: TextIO, **settings: Any) -> Any:
    """Return a tqdm line; in a notebook with ipywidgets, tqdm's bar for notebooks."""
    if is_notebook(stream):
        from tqdm import notebook

        if notebook.IProgress is not None:  # type: ignore[attr-defined]  # ipywidgets is there

            class _NotebookLine(notebook.tqdm_notebook):  # type: ignore[type-arg]
                monitor_interval = 0

            return _NotebookLine(**settings)
    return _Line(file=stream, dynamic_ncols=True, **settings)


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """Shows the progress of an epoch, on a stream that can redraw a line."""

    def __init__(
        self,
        total: int | None,
        initial: int = 0,
        description: str = "",
        enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        stream = stream or sys.stdout
        self._line: Any = None
        self._text: Callable[[], str] = lambda: ""
        self._pending = 0
        self._next_redraw = perf_counter() + REDRAW_SECONDS
        if enabled and can_redraw(stream):
            self._line = _new_line(
                stream,
                desc=description,
                total=total,
                initial=initial,
                leave=False,
                mininterval=0,
                miniters=1,
            )

    def update(self, n: int = 1) -> None:
        """Count `n` steps; the line is redrawn at most ten times a second."""
        if self._line is not None:
            self._pending += n
            if perf_counter() >= self._next_redraw:
                self._redraw(self._line)

    def show(self, text: Callable[[], str]) -> None:
        """Set the function that returns the text after the bar; only a redraw calls it."""
        self._text = text

    def close(self) -> None:
        """Clear the line; later calls have no effect."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def __exit__(self, *failure: object) -> None:
        self.close()

    def _redraw(self, line: Any) -> None:
        line.set_postfix_str(self._text(), refresh=False)
        line.update(self._pending)
        self._pending = 0
        self._next_redraw = perf_counter() + REDRAW_SECONDS


@contextmanager
def above_bars() -> Iterator[None]:
    """Clear every tqdm line while the block prints, then redraw them."""
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
    """Return whether a stream can redraw a line: a terminal that is not dumb, or a notebook."""
    if is_notebook(stream):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def is_notebook(stream: TextIO) -> bool:
    """Return whether a stream writes to the cells of a notebook."""
    return type(stream).__module__.startswith("ipykernel")
