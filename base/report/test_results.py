"""The values of a test in ``report/``: numbers as JSON, tables as CSV files and pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from base.report.figures import write_table_picture
from logger.csv_writer import csv_text
from logger.files import write_whole

LARGEST_TABLE = 2000  # rows or columns that are written as a table, and drawn


def write_test_report(folder: Path, values: Mapping[str, Any], classes: Sequence[str] = ()) -> Path:
    """Write numbers to `report/test.json`, and 2-D values to `report/<name>.csv` and a plot.

    Non-finite numbers become null, as JSON cannot hold them. Of a table of more than
    `LARGEST_TABLE` rows or columns, the file lists the cells that are not 0, and there is no plot.

    Args:
        classes: the names of the rows and columns of tables of this size.
    """
    numbers = {}
    for name, value in values.items():
        if len(shape := getattr(value, "shape", ())) == 2 and max(shape) > LARGEST_TABLE:
            path = folder / "report" / f"{name.replace('/', '_')}.csv"
            _write_cells(path, _as_array(value), classes)
            continue
        plain = _as_plain(value)
        if isinstance(plain, list) and plain and all(isinstance(row, list) for row in plain):
            _write_table(folder / "report" / name.replace("/", "_"), plain, classes)
        else:
            numbers[name] = plain
    path = folder / "report" / "test.json"
    write_whole(path, (json.dumps(numbers, indent=2, allow_nan=False) + "\n").encode())
    return path


def _as_plain(value: Any) -> Any:
    """Convert tensors and arrays to numbers and lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {str(name): _as_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_array(value: Any) -> NDArray[Any]:
    """Convert a table; of a tensor's numbers numpy lacks some kinds, such as bfloat16."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
    return np.asarray(value)


def _write_cells(path: Path, table: NDArray[Any], classes: Sequence[str]) -> None:
    """Write the row, the column and the value of each cell that is not 0."""
    is_of_classes = table.shape == (len(classes), len(classes))
    head = ["true class", "predicted class", "samples"] if is_of_classes else ["row", "column", ""]
    places = np.argwhere(table)
    values = table[places[:, 0], places[:, 1]].tolist()
    rows: list[Sequence[object]] = [head]
    for (row, column), value in zip(places.tolist(), values, strict=True):
        names = (classes[row], classes[column]) if is_of_classes else (row, column)
        rows.append([*names, value])
    write_whole(path, csv_text(rows).encode())


def _write_table(path: Path, rows: list[list[float | None]], classes: Sequence[str]) -> None:
    if not len(rows) == len(rows[0]) == len(classes):
        classes = ()
    head = [["true class", *classes]] if classes else []
    named = [[name, *row] for name, row in zip(classes, rows, strict=True)] if classes else rows
    write_whole(path.with_name(f"{path.name}.csv"), csv_text([*head, *named]).encode())
    write_table_picture(path.with_name(f"{path.name}.png"), path.name, rows, classes)
