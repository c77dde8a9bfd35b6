"""Writes reports of a run: curves, test results and tables."""

import io
import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logger.csv_writer import csv_text, number, read_rows
from logger.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_DRAWN = ("epoch", "step", "seconds", "samples_per_second", "memory_mb", "time", "wait")
"""Columns of metrics.csv that are not metrics."""

MOST_NAMES = 60  # classes with a name beside the picture of a table

Curve = tuple[list[float], list[float]]


def write_curves(folder: Path) -> Path | None:
    """Plot `metrics.csv` into `report/curves.png`: one axis for each metric with its phases."""
    curves = _read_curves(folder / "metrics.csv")
    n_columns = min(3, len(curves))
    n_rows = math.ceil(len(curves) / 3)
    figure = _new_figure(5 * n_columns, 3.2 * n_rows) if curves else None
    if figure is None:
        return None

    for place, (metric, lines) in enumerate(curves.items(), start=1):
        axis = figure.add_subplot(n_rows, n_columns, place, title=metric)
        for label, (xs, ys) in lines.items():
            axis.plot(xs, ys, label=label, marker="." if len(xs) < 30 else "")
        axis.grid(visible=True, alpha=0.3)
        axis.legend()
    return _save(figure, folder / "report" / "curves.png")


def write_test_report(folder: Path, values: Mapping[str, Any], classes: Sequence[str] = ()) -> Path:
    """Write numbers to `report/test.json`, and 2-D values to `report/<name>.csv` and a plot.

    Non-finite numbers become null, as JSON cannot hold them.

    Args:
        classes: the names of the rows and columns of tables of this size.
    """
    numbers = {}
    for name, value in values.items():
        plain = _as_plain(value)
        if isinstance(plain, list) and plain and all(isinstance(row, list) for row in plain):
            _write_table(folder / "report" / name.replace("/", "_"), plain, classes)
        else:
            numbers[name] = plain
    path = folder / "report" / "test.json"
    write_whole(path, (json.dumps(numbers, indent=2, allow_nan=False) + "\n").encode())
    return path


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


def _as_plain(value: Any) -> Any:
    """Convert tensors and arrays to numbers and lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {str(name): _as_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_table(path: Path, rows: list[list[float | None]], classes: Sequence[str] = ()) -> None:
    is_named = len(classes) > 0 and len(rows) == len(rows[0]) == len(classes)
    head = [["true class", *classes]] if is_named else []
    named = [[name, *row] for name, row in zip(classes, rows, strict=True)] if is_named else rows
    write_whole(path.with_name(f"{path.name}.csv"), csv_text([*head, *named]).encode())
    side = min(4.5 + 0.15 * len(classes) * is_named, 14)
    figure = _new_figure(side + 0.5, side)
    if figure is not None:
        cells = [[math.nan if cell is None else cell for cell in row] for row in rows]
        axis = figure.add_subplot(title=path.name)
        figure.colorbar(axis.imshow(cells))
        if is_named and len(classes) <= MOST_NAMES:
            names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
            names = [name.replace("$", r"\$") for name in names]  # no formulas
            axis.set_xticks(range(len(names)), names, rotation=90)
            axis.set_yticks(range(len(names)), names)
        if is_named:
            axis.set(xlabel="predicted class", ylabel="true class")
        _save(figure, path.with_name(f"{path.name}.png"))


def _new_figure(width: float, height: float) -> "Figure | None":
    """Return an empty figure; None with a warning if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # takes a second, so it is imported late
    except ImportError as error:
        text = "the report has no plots: %s (pip install matplotlib)"
        logging.getLogger("kindling").warning(text, error)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> Path:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name that the font cannot show
        figure.savefig(buffer, dpi=120, format="png")
    write_whole(path, buffer.getvalue())
    return path
