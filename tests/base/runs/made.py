"""Folders of runs for tests, made without training."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from base.system.run_folder import create_run_folder
from logger.csv_writer import CsvWriter

NOON = datetime(2026, 3, 1, 12, 0, 0)
CONFIG = """name: toy
optimizer: {type: Adam, args: {lr: 0.001}}
trainer: {epochs: 3, steps: null, early_stop: null, monitor: max valid/accuracy}
"""
ACCURACIES = [0.5, 0.75, 0.625]


def make_run(
    save_dir: Path,
    accuracies: Sequence[float | None] = ACCURACIES,
    config: str = CONFIG,
    name: str = "toy",
    settings: str = "",
    now: datetime = NOON,
    **stamp: Any,
) -> Path:
    """Make a folder as a run leaves it: one row for each of these accuracies."""
    folder = create_run_folder(save_dir, name, now, settings=settings)
    (folder / "config.yaml").write_text(config)
    path = folder / "run.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**{key: known[key] for key in ("number", "started")}, **stamp}))
    writer = CsvWriter(folder / "metrics.csv")
    for epoch, value in enumerate(accuracies, start=1):
        writer.add_row({"epoch": epoch, "step": 10 * epoch, "valid/accuracy": value})
    return folder
