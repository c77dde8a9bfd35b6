"""What two runs must share to be called the same: all state, and all numbers logged."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import torch

from base.checkpoint.store import read


def digest(folder: Path) -> str:
    """Return a hash of all state in the last checkpoint and of the loss log, times left out."""
    return digest_of([read(folder), loss_log(folder)])


def digest_of(value: Any) -> str:
    """Return a hash over nested plain data and the bits of tensors."""
    hasher = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
            hasher.update(value.contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            add([item for pair in value.items() for item in pair])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            hasher.update(repr(value).encode())

    add(value)
    return hasher.hexdigest()


def loss_log(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without what depends on the clock and the machine."""
    if not (folder / "metrics.csv").exists():
        return []
    measured = ("seconds", "samples_per_second", "memory_mb", "wait")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {k: v for k, v in row.items() if k not in measured and not k.startswith("time/")}
        for row in rows
    ]
