"""Pictures by matplotlib: the curves of a run, and tables of its test."""

import io
import logging
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from logger.csv_writer import number, read_rows
from logger.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_DRAWN = ("epoch", "step", "seconds", "samples_per_second", "memory_mb", "time", "wait")
"""Columns of metrics.csv that are not metrics."""

MOST_NAMES = 60  # classes with a name beside the picture of a table
MOST_NAMED_LINES = 20  # of an axis; more, such as the rates of many groups, have no legend
MOST_AXES = 60  # of curves.png; matplotlib lays out a thousand in ten minutes

Curve = tuple[list[float], list[float]]


def write_curves(folder: Path) -> Path | None:
    """Plot `metrics.csv` into `report/curves.png`: one axis for each metric with its phases.

    Of more than `MOST_AXES`, values of single classes are left out first; the picture says so.
    """
    curves = _read_curves(folder / "metrics.csv")
    n_metrics = len(curves)
    if n_metrics > MOST_AXES:
        means = ("/mean", "/macro")
        classes_last = sorted(curves, key=lambda name: "/" in name and not name.endswith(means))
        kept = set(classes_last[:MOST_AXES])
        curves = {name: lines for name, lines in curves.items() if name in kept}
    n_columns = min(3, len(curves))
    n_rows = math.ceil(len(curves) / 3)
    figure = new_figure(5 * n_columns, 3.2 * n_rows) if curves else None
    if figure is None:
        return None
    if len(curves) < n_metrics:
        n_left_out = n_metrics - len(curves)
        figure.suptitle(f"{n_left_out} of {n_metrics} metrics left out: metrics.csv has them")

    for place, (metric, lines) in enumerate(curves.items(), start=1):
        axis = figure.add_subplot(n_rows, n_columns, place, title=metric)
        for label, (xs, ys) in lines.items():
            axis.plot(xs, ys, label=label, marker="." if len(xs) < 30 else "")
        axis.grid(visible=True, alpha=0.3)
        if len(lines) <= MOST_NAMED_LINES:
            axis.legend()
    return save_figure(figure, folder / "report" / "curves.png")


def _read_curves(path: Path) -> dict[str, dict[str, Curve]]:
    """Return metric -> label -> (xs, ys); `train/loss` and `valid/loss` are lines of `loss`."""
    curves: dict[str, dict[str, Curve]] = {}
    rows = read_rows(path)
    for name in rows[0] if rows else []:
        points = [(number(r.get("epoch", str(i))), number(r[name])) for i, r in enumerate(rows)]
        points = [point for point in points if all(map(math.isfinite, point))]
        if points and name.partition("/")[0] not in NOT_DRAWN:
            first, _, rest = name.partition("/")
            is_phase = first in ("train", "valid", "test") and rest
            metric, label = (rest, first) if is_phase else (first, name)
            curves.setdefault(metric, {})[label] = ([x for x, _ in points], [y for _, y in points])
    return curves


def write_table_picture(
    path: Path,
    title: str,
    rows: Sequence[Sequence[float | None]],
    classes: Sequence[str] = (),
) -> None:
    """Draw a table of numbers, such as a confusion matrix, as colours.

    Args:
        classes: the names of the rows and of the columns, if they are classes.
    """
    side = min(4.5 + 0.15 * len(classes), 14)
    figure = new_figure(side + 0.5, side)
    if figure is not None:
        cells = [[math.nan if cell is None else cell for cell in row] for row in rows]
        axis = figure.add_subplot(title=title)
        figure.colorbar(axis.imshow(cells))
        if 0 < len(classes) <= MOST_NAMES:
            names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
            names = [name.replace("$", r"\$") for name in names]  # no formulas
            axis.set_xticks(range(len(names)), names, rotation=90)
            axis.set_yticks(range(len(names)), names)
        if classes:
            axis.set(xlabel="predicted class", ylabel="true class")
        save_figure(figure, path)


def new_figure(width: float, height: float) -> "Figure | None":
    """Return an empty figure; None with a warning if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # takes a second, so it is imported late
    except ImportError as error:
        text = "the report has no plots: %s (pip install matplotlib)"
        logging.getLogger("kindling").warning(text, error)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure as PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name that the font cannot show
        figure.savefig(buffer, dpi=120, format="png")
    write_whole(path, buffer.getvalue())
    return path
