"""The picture of a sweep, ``sweep.png``: what each setting does to the monitored value."""

from __future__ import annotations

import io
import itertools
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.config.short_settings import short_keys
from base.sweeps.record import Sweep, TrialRecord
from base.sweeps.space import Choices, Range, Space
from base.sweeps.table import best_of
from logger.console import format_value
from logger.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PER_ROW = 4
LOG_SPAN = 20.0  # numbers that differ by more than this factor are drawn on a log axis
EVEN_SPAN = 9.0  # and by at least this, if their ratios are about equal: 1e-3, 3e-3, 1e-2
MAX_TICKS = 8  # of an axis whose ticks are the values themselves
BEST, OTHER, STOPPED = "#d1495b", "#2e6f95", "#9a9a9a"


def draw_sweep(sweep: Sweep, space: Space, mode: str, name: str) -> Path | None:
    """Draw the trials with a value; None if there are none, or without matplotlib.

    Two settings of a full grid become a heat map, two others a scatter plot with the value as
    colour; otherwise each setting has a plot of the value.

    Args:
        mode: ``min`` or ``max``.
        name: the monitored value.
    """
    trials = [t for t in sweep.trials if t.value is not None and math.isfinite(t.value)]
    if not trials:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        text = "the sweep has no picture: %s (pip install matplotlib)"
        logging.getLogger("kindling").warning(text, error)
        return None
    best = best_of(sweep, mode)
    if len(space) == 2:
        figure = Figure(figsize=(6.4, 4.8), layout="constrained")
        axes = figure.add_subplot()
        if all(isinstance(each, Choices) for each in space):
            _draw_heat_map(figure, axes, trials, space, mode, best)
        else:
            _draw_scatter(figure, axes, trials, space, mode, best)
        axes.set_title(name)
    else:
        figure = _draw_rows(Figure, trials, space, name, best)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it draws a box instead
        figure.savefig(buffer, dpi=120, format="png")
    path = sweep.folder / "sweep.png"
    write_whole(path, buffer.getvalue())
    return path


def _draw_rows(
    figure_class: type[Figure],
    trials: Sequence[TrialRecord],
    space: Space,
    name: str,
    best: TrialRecord | None,
) -> Figure:
    """Draw the value over each setting."""
    n_columns = min(PER_ROW, len(space))
    n_rows = math.ceil(len(space) / PER_ROW)
    wide = 6.4 if len(space) == 1 else 3.4 * n_columns
    figure = figure_class(figsize=(wide, 4.0 if len(space) == 1 else 3.2 * n_rows))
    figure.set_layout_engine("constrained")
    names = short_keys([each.key for each in space])
    first: Any = None
    for place, each in enumerate(space):
        axes = figure.add_subplot(n_rows, n_columns, place + 1, sharey=first)
        first = first or axes
        places = _place_axis(axes, "x", each, trials)
        for trial, x in zip(trials, places, strict=True):
            _mark(axes, trial, x, trial is best)
        if isinstance(each, Choices) and len(space) == 1 and _are_numbers(each):
            finished = [(x, t.value) for t, x in zip(trials, places, strict=True) if _is_whole(t)]
            axes.plot(*zip(*sorted(finished), strict=True), color=OTHER, alpha=0.4, zorder=1)
        axes.set_xlabel(names[each.key])
        axes.grid(visible=True, alpha=0.3)
        if place == 0:
            _explain_marks(figure, axes, trials, best)
        if place % n_columns == 0:
            axes.set_ylabel(name)
    return figure


def _draw_heat_map(
    figure: Figure,
    axes: Axes,
    trials: Sequence[TrialRecord],
    space: Space,
    mode: str,
    best: TrialRecord | None,
) -> None:
    """Draw a cell with its value for each pair of settings."""
    across, down = (each for each in space if isinstance(each, Choices))
    if len(across.values) < len(down.values):
        across, down = down, across
    cells = [[math.nan] * len(across.values) for _ in down.values]
    found: dict[tuple[int, int], TrialRecord] = {}
    for trial in trials:
        x = across.values.index(trial.settings[across.key])
        y = down.values.index(trial.settings[down.key])
        cells[y][x], found[y, x] = float(trial.value or 0.0), trial
    colours = "viridis" if mode == "max" else "viridis_r"
    axes.set_facecolor("#eeeeee")
    image = axes.imshow(cells, cmap=colours, aspect="auto")
    figure.colorbar(image)
    low, high = (pick(t.value or 0.0 for t in trials) for pick in (min, max))
    for (y, x), trial in found.items():
        red, green, blue, _ = image.cmap((cells[y][x] - low) / ((high - low) or 1.0))
        ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        text = format_value("", trial.value) + ("" if _is_whole(trial) else f"\n{trial.state}")
        weight = "bold" if trial is best else "normal"
        axes.text(x, y, text, ha="center", va="center", color=ink, weight=weight)
    names = short_keys([each.key for each in space])
    axes.set_xticks(range(len(across.values)), map(_shorten, across.values))
    axes.set_yticks(range(len(down.values)), map(_shorten, down.values))
    axes.set_xlabel(names[across.key])
    axes.set_ylabel(names[down.key])


def _draw_scatter(
    figure: Figure,
    axes: Axes,
    trials: Sequence[TrialRecord],
    space: Space,
    mode: str,
    best: TrialRecord | None,
) -> None:
    """Draw a point for each trial at its two settings, coloured by the value."""
    xs = _place_axis(axes, "x", space[0], trials)
    ys = _place_axis(axes, "y", space[1], trials)
    edges = [BEST if trial is best else "white" for trial in trials]
    colours = "viridis" if mode == "max" else "viridis_r"
    points = axes.scatter(
        xs, ys, c=[float(t.value or 0.0) for t in trials], cmap=colours, s=70, edgecolors=edges,
        linewidths=[2.5 if trial is best else 0.5 for trial in trials],
    )  # fmt: skip
    figure.colorbar(points)
    names = short_keys([each.key for each in space])
    axes.set_xlabel(names[space[0].key])
    axes.set_ylabel(names[space[1].key])
    axes.grid(visible=True, alpha=0.3)


def _place_axis(
    axes: Axes, which: str, each: Choices | Range, trials: Sequence[TrialRecord]
) -> list[float]:
    """Scale an axis for a setting; return the place of each trial on it."""
    texts = [trial.settings[each.key] for trial in trials]
    set_scale = axes.set_xscale if which == "x" else axes.set_yscale
    if isinstance(each, Choices) and not _are_numbers(each):
        set_ticks = axes.set_xticks if which == "x" else axes.set_yticks
        set_ticks(range(len(each.values)), [_shorten(value) for value in each.values])
        set_limits = axes.set_xlim if which == "x" else axes.set_ylim
        set_limits(-0.5, len(each.values) - 0.5)
        return [float(each.values.index(text)) for text in texts]
    numbers = [float(text) for text in texts]
    if isinstance(each, Range):
        is_log = each.is_log
    else:
        known = sorted(float(value) for value in each.values)
        ratios = [after / before for before, after in itertools.pairwise(known) if before > 0]
        is_even = len(ratios) == len(known) - 1 > 1 and max(ratios) < 1.01 * min(ratios)
        is_about_even = len(ratios) == len(known) - 1 > 1 and max(ratios) < 1.5 * min(ratios)
        span = known[-1] / known[0] if known[0] > 0 else 0.0
        is_log = span > LOG_SPAN or (is_about_even and span >= EVEN_SPAN) or (span > 0 and is_even)
    if is_log:
        set_scale("log")
    if isinstance(each, Choices) and len(each.values) <= MAX_TICKS:
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_ticks([float(value) for value in each.values], [*each.values])
        axis.set_ticks([], minor=True)
    return numbers


def _mark(axes: Axes, trial: TrialRecord, x: float, is_best: bool) -> None:
    y = float(trial.value or 0.0)
    colour = BEST if is_best else OTHER if _is_whole(trial) else STOPPED
    marker = "o" if _is_whole(trial) else "x"
    axes.plot([x], [y], marker, color=colour, markersize=9 if is_best else 6, zorder=2 + is_best)


def _explain_marks(
    figure: Figure, axes: Axes, trials: Sequence[TrialRecord], best: TrialRecord | None
) -> None:
    if best is not None:
        axes.plot([], [], "o", color=BEST, label="best")
    stopped = sorted({trial.state for trial in trials if not _is_whole(trial)})
    if stopped:
        axes.plot([], [], "x", color=STOPPED, label=", ".join(stopped))
    figure.legend(loc="outside upper right", ncols=2, fontsize="small", frameon=False)


def _is_whole(trial: TrialRecord) -> bool:
    return trial.state == "finished"


def _are_numbers(each: Choices) -> bool:
    try:
        return all(math.isfinite(float(value)) for value in each.values)
    except ValueError:
        return False


def _shorten(text: str) -> str:
    return text if len(text) <= 16 else f"{text[:8]}…{text[-7:]}"
