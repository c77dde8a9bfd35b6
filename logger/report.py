"""What a run leaves for its reader: curves, test results, tables."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from logger.csv_writer import read_rows
from logger.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = list[list[float]]


def write_curves(folder: Path) -> Path | None:
    """Draw `metrics.csv` into `report/curves.png`: one axis a metric, its phases together."""
    rows = read_rows(folder / "metrics.csv")
    curves = _curves(rows)
    figure = _new_figure(5 * min(3, len(curves)), 3.2 * math.ceil(len(curves) / 3))
    if not curves or figure is None:
        return None
    for place, (metric, phases) in enumerate(curves.items(), start=1):
        axis = figure.add_subplot(math.ceil(len(curves) / 3), min(3, len(curves)), place)
        for phase, (xs, ys) in phases.items():
            axis.plot(xs, ys, label=phase, marker="." if len(xs) < 30 else None)
        axis.set_title(metric)
        axis.grid(visible=True, alpha=0.3)
        if list(phases) != [metric]:
            axis.legend()
    return _save(figure, folder / "report" / "curves.png")


def write_test_report(folder: Path, values: Mapping[str, object]) -> Path:
    """Write numbers to `report/test.json`; a 2-D value goes to `report/<name>.csv` and a picture.

    A number that is not finite is written as null: JSON has no other word for it.
    """
    numbers: dict[str, object] = {}
    for name, value in values.items():
        table = _as_table(value)
        if table is None:
            numbers[name] = _plain(value)
        else:
            _write_table(folder / "report" / name.replace("/", "_"), table)
    path = folder / "report" / "test.json"
    write_whole(path, json.dumps(numbers, indent=2, allow_nan=False) + "\n")
    return path


def _curves(rows: list[dict[str, str]]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Gather metric -> phase -> (x, y) from the rows; x is the epoch where there is one."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    names = [name for name in (rows[0] if rows else {}) if name not in ("epoch", "step")]
    for name in names:
        phase, _, metric = name.partition("/")
        xs, ys = curves.setdefault(metric or name, {}).setdefault(phase, ([], []))
        for place, row in enumerate(rows, start=1):
            y = _number(row[name])
            if math.isfinite(y):
                xs.append(_number(row.get("epoch", str(place))))
                ys.append(y)
    return {
        metric: phases for metric, phases in curves.items() if any(p[1] for p in phases.values())
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, Tensor):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def _as_table(value: object) -> Table | None:
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Sequence) and value and isinstance(value[0], Sequence):
        return [list(row) for row in value]
    return None


def _write_table(path: Path, table: Table) -> None:
    lines = [",".join(map(str, row)) for row in table]
    write_whole(path.with_suffix(".csv"), "\n".join(lines) + "\n")
    figure = _new_figure(5, 4.5)
    if figure is not None:
        axis = figure.add_subplot()
        axis.set_title(path.name)
        figure.colorbar(axis.imshow(table, cmap="viridis"))
        _save(figure, path.with_suffix(".png"))


def _new_figure(width: float, height: float) -> "Figure | None":
    """Return an empty figure, or None after one warning where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        text = "no pictures in the report: %s (pip install matplotlib)"
        logging.getLogger("kindling").warning(text, error)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
    return path
