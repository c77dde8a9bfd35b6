"""The rows of epochs on the console, below a header of two lines, as wide as the terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from logger.console import format_value, pad, shorten, text_width
from logger.terminal import terminal_width

PHASES = ("train", "valid", "test")
LAST = ("lr", "seconds", "wait")  # on the right, and the first to be left out, from the end
PIPE_WIDTH = 80
LEAST = {"epoch": 5, "seconds": 7, "wait": 4}
MARK = 2  # cells of " *" behind the columns


def row_width() -> int:
    """Return the width of the terminal; 80 in a pipe, whose reader is often a terminal too."""
    return terminal_width() or PIPE_WIDTH


class Layout(NamedTuple):
    """The columns that are shown, their widths, their names, and the cells between them."""

    columns: tuple[str, ...]
    widths: tuple[int, ...]
    labels: tuple[str, ...]
    gap: int


class EpochTable:
    """Formats one row per epoch. `*` marks the best.

    The header names the phases above their values. It is repeated when a value is new or the
    terminal has another width. To fit it, names are cut first; then columns are left out: ``wait``,
    ``seconds``, ``lr``, and metrics from the right, those of training first. The losses and the
    monitored value stay longest; metrics.csv has all values.

    Args:
        monitored: the name of the value that decides which epoch is the best.
        width: returns the number of cells of a line.
    """

    def __init__(
        self,
        repeat_every: int = 40,
        monitored: str = "",
        width: Callable[[], int] = row_width,
    ) -> None:
        self.columns: list[str] = []
        self._repeat_every, self._monitored, self._width = repeat_every, monitored, width
        self._needed: dict[str, int] = {}  # cells of the longest value so far
        self._layout: Layout | None = None
        self._n_rows = 0

    def lines(self, values: Mapping[str, object], best: bool = False) -> list[str]:
        """Return the row of one epoch, preceded by the lines of the header if it is due."""
        self.columns = list(dict.fromkeys([*self.columns, *values]))
        self.columns.sort(key=_place)
        cells = {name: _cell(name, values.get(name)) for name in self.columns}
        for name, cell in cells.items():
            least = self._needed.get(name, LEAST.get(_group(name)[1], 8))
            self._needed[name] = max(least, text_width(cell))
        layout = self._fit(self._width() - MARK)
        is_due = layout != self._layout or self._n_rows % self._repeat_every == 0
        self._layout = layout
        self._n_rows += 1
        row = _line(layout, [cells[name] for name in layout.columns]) + " *" * best
        return [*(self._header(layout) if is_due else []), row]

    def _fit(self, end: int) -> Layout:
        """Return the layout of the columns that fit into this number of cells."""
        least = self._needed
        n_cells = sum(least[name] + 1 for name in self.columns) - 1
        ranks = {name: self._rank(name, place) for place, name in enumerate(self.columns)}
        left_out = set()
        for name in sorted(ranks, key=lambda name: ranks[name], reverse=True)[:-1]:
            if n_cells <= end:
                break
            left_out.add(name)
            n_cells -= least[name] + 1
        columns = [name for name in self.columns if name not in left_out]
        labels = [_group(name)[1] for name in columns]
        wanted = [
            max(least[name], text_width(label)) for name, label in zip(columns, labels, strict=True)
        ]
        gap = 2 if sum(wanted) + 2 * (len(columns) - 1) <= end else 1
        widths = [least[name] for name in columns]
        for _ in range(end - sum(widths) - gap * (len(columns) - 1)):
            short = [w - have for w, have in zip(wanted, widths, strict=True)]
            if max(short) <= 0:
                break
            widths[short.index(max(short))] += 1
        labels = [shorten(label, width) for label, width in zip(labels, widths, strict=True)]
        return Layout(tuple(columns), tuple(widths), tuple(labels), gap)

    def _rank(self, name: str, place: int) -> tuple[int, int]:
        """Return a number that is highest for the column to leave out next."""
        phase, label = _group(name)
        if label in LAST and not phase:
            return 9, LAST.index(label)
        if name in ("epoch", self._monitored):
            return 0, int(name != "epoch")
        if label == "loss":
            return (2, 0) if phase == "train" else (1, 0)
        return (4 if phase == "train" else 3), place

    def _header(self, layout: Layout) -> list[str]:
        """Return the lines of the header: metrics that do not fit, the phases, the names."""
        spans: list[list[str | int]] = []  # the phase of adjacent columns, and their cells
        for name, width in zip(layout.columns, layout.widths, strict=True):
            phase = _group(name)[0]
            if spans and spans[-1][0] == phase:
                spans[-1][1] += layout.gap + width  # type: ignore[operator]
            else:
                spans.append([phase, width])
        between = " " * layout.gap
        phases = between.join(_rule(str(phase), int(cells)) for phase, cells in spans).rstrip()
        hidden = [n for n in self.columns if n not in layout.columns and _group(n)[1] not in LAST]
        note = shorten(f"not shown: {', '.join(hidden)}", self._width()) if hidden else ""
        return [*filter(None, (note, phases)), _line(layout, layout.labels)]


def _line(layout: Layout, cells: Sequence[str]) -> str:
    padded = (pad(c, w, right=True) for c, w in zip(cells, layout.widths, strict=True))
    return (" " * layout.gap).join(padded)


def _rule(phase: str, cells: int) -> str:
    """Return the name of a phase and a line above its columns."""
    return " " * cells if not phase else f"{phase} {'-' * (cells - len(phase) - 1)}"


def _group(name: str) -> tuple[str, str]:
    """Return the phase of a value and its name in that phase; the phase is often empty."""
    first, _, rest = name.partition("/")
    if first in PHASES and rest:
        return first, rest
    return "", first if first in LAST else name


def _place(name: str) -> int:
    """Return the place of a column: the epoch, other values, the phases, the last ones."""
    phase, label = _group(name)
    if phase:
        return 2 + PHASES.index(phase)
    if label in LAST:
        return 10 + LAST.index(label)
    return 0 if label in ("epoch", "step") else 1


def _cell(name: str, value: object) -> str:
    """Return a value in at most eight cells if it is an ordinary number."""
    text = format_value(name, value)
    if len(text) <= 8 or not isinstance(value, float):
        return text
    return f"{value:.1f}" if 1e3 <= abs(value) < 1e4 else f"{value:.2e}"
