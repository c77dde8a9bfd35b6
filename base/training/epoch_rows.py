"""The rows of ``metrics.csv`` in a checkpoint, and the repair of the file on a resume."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from logger.csv_writer import CsvWriter, csv_text, number, read_table
from logger.files import put_aside

log = logging.getLogger("kindling")

MAX_ROWS = 1000  # epochs; bounds the size of a checkpoint
MAX_CELLS = 200_000  # the same of rows with a value for each of many classes
MEASURED = ("seconds", "samples_per_second", "memory_mb", "wait")
"""Columns that vary between identical runs; without them equal states have equal bytes."""


class EpochRows:
    """The rows of the last epochs as text, without times and memory."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, str]] = {}
        self._encoded: torch.Tensor | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of an epoch; it replaces the rows of this epoch and later ones."""
        kept = {name: value for name, value in row.items() if not _is_measured(name)}
        (cells,) = csv.reader([csv_text([kept.values()])])
        earlier = {epoch: one for epoch, one in self.rows.items() if epoch < row["epoch"]}
        self.rows = {**earlier, row["epoch"]: dict(zip(kept, cells, strict=True))}
        self.rows = _last_of(self.rows)
        self._encoded = None

    def fill(self, rows: Mapping[int, Mapping[str, str]]) -> None:
        """Add the rows of epochs that a checkpoint of an earlier version lacks."""
        for epoch in sorted(rows):
            if epoch not in self.rows:
                row = {name: cell for name, cell in rows[epoch].items() if not _is_measured(name)}
                self.rows[epoch] = row
                self._encoded = None
        self.rows = _last_of({epoch: self.rows[epoch] for epoch in sorted(self.rows)})

    def state_dict(self) -> dict[str, Any]:
        if self._encoded is None:
            columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
            cells = [[row.get(name) for name in columns] for row in self.rows.values()]
            # A tensor is written unchanged; a string would be interned at each save.
            text = csv_text([columns, *cells]).encode()
            self._encoded = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return {"csv": self._encoded}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        text = state_dict["csv"].numpy().tobytes().decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        self.rows = {int(row["epoch"]): row for row in rows}
        self._encoded = None


def _last_of(rows: Mapping[int, dict[str, str]]) -> dict[int, dict[str, str]]:
    """Return the last rows, as many as the limits allow, and at least one."""
    widest = max(map(len, rows.values()), default=1)
    n_rows = max(1, min(MAX_ROWS, MAX_CELLS // widest))
    return {epoch: rows[epoch] for epoch in list(rows)[-n_rows:]}


def repair_rows(
    writer: CsvWriter, kept: EpochRows, n_epochs: int, keep_later: bool = False
) -> list[dict[str, str]]:
    """Restore the rows of the completed epochs of a resumed run; return those of later epochs.

    Missing rows come from the checkpoint. A damaged file is renamed first.

    Args:
        keep_later: whether to keep the rows of later epochs in the file.

    Raises:
        FileError: the file cannot be written.
    """
    path, table = writer.path, read_table(writer.path)
    faults = table.faults
    if table.columns and "epoch" not in table.columns:
        faults = ["line 1: no column `epoch`"]
    aside = put_aside(path) if faults else None

    found: dict[int, dict[str, str]] = {}
    later = []
    for row in table.rows:
        epoch = number(row.get("epoch", ""))
        if 1 <= epoch <= n_epochs and epoch.is_integer():
            found.setdefault(int(epoch), row)
        elif epoch > n_epochs:
            later.append(row)
    missing = [epoch for epoch in range(1, n_epochs + 1) if epoch not in found]
    restored = {epoch: kept.rows[epoch] for epoch in missing if epoch in kept.rows}
    columns = sorted({name for e in found for name in kept.rows.get(e, ()) if name not in found[e]})
    # An edited cell stays unchanged; only missing cells come from the checkpoint.
    rows = {epoch: {**kept.rows.get(epoch, {}), **row} for epoch, row in found.items()} | restored
    writer.rewrite([rows[epoch] for epoch in sorted(rows)] + (later if keep_later else []))
    kept.fill(rows)
    lost = [epoch for epoch in missing if epoch not in restored]
    _report(path, faults, aside, list(restored), lost, columns)
    return later


def _report(
    path: Path,
    faults: list[str],
    aside: Path | None,
    restored: list[int],
    lost: list[int],
    columns: list[str],
) -> None:
    """Log one warning if rows were damaged or missing."""
    parts = []
    if aside is not None:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        parts.append(f"damaged: {faults[0]}{more}; kept as {aside.name}")
    if restored:
        text = f"missing {_epochs(restored)} restored from the checkpoint, without times and memory"
        parts.append(text)
    if columns:
        parts.append(f"missing columns are restored from the checkpoint: {', '.join(columns)}")
    if lost:
        them = "it" if len(lost) == 1 else "them"
        parts.append(f"missing {_epochs(lost)} lost: the checkpoint does not have {them}")
    if parts:
        log.warning("%s: %s", path, "; ".join(parts))


def _epochs(numbers: list[int]) -> str:
    """Return a description of rows: ``rows of epochs 2 to 5, 9 are``."""
    spans: list[list[int]] = []
    for each in numbers:
        if spans and spans[-1][-1] == each - 1:
            spans[-1].append(each)
        else:
            spans.append([each])
    texts = [f"{s[0]} to {s[-1]}" if len(s) > 1 else str(s[0]) for s in spans]
    shown = ", ".join(texts[:5]) + ", ..." * (len(texts) > 5)
    return f"row of epoch {shown} is" if len(numbers) == 1 else f"rows of epochs {shown} are"


def _is_measured(name: str) -> bool:
    return name in MEASURED or name.startswith("time/")
