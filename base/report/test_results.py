"""The values of a test in ``report/``: numbers as JSON, tables as CSV files and pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from base.report.figures import write_table_picture
from logger.csv_writer import csv_text
from logger.files import write_whole


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


def _as_plain(value: Any) -> Any:
    """Convert tensors and arrays to numbers and lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping):
        return {str(name): _as_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_table(path: Path, rows: list[list[float | None]], classes: Sequence[str]) -> None:
    if not len(rows) == len(rows[0]) == len(classes):
        classes = ()
    head = [["true class", *classes]] if classes else []
    named = [[name, *row] for name, row in zip(classes, rows, strict=True)] if classes else rows
    write_whole(path.with_name(f"{path.name}.csv"), csv_text([*head, *named]).encode())
    write_table_picture(path.with_name(f"{path.name}.png"), path.name, rows, classes)
