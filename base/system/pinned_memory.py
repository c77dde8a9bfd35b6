"""Pinned memory in the size that is asked for, where it is held for a whole run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

ROUNDED_UP_TO = "pinned_max_round_threshold_mb"
NO_LIMIT = 1 << 30  # in MB, as by default


@contextmanager
def exact_pinned_memory() -> Iterator[None]:
    """Allocate pinned memory inside the block without rounding it up to a power of two.

    The rounding would take up to twice the memory. It helps where blocks of changing sizes are
    freed and used again, as for batches. A setting in the environment takes precedence, and
    versions of torch without this setting round up.
    """
    read: Any = getattr(torch._C, "_accelerator_getAllocatorSettings", str)
    before = read()
    if ROUNDED_UP_TO in before or not _set(before, 0):
        yield
        return
    try:
        yield
    finally:
        _set(before, NO_LIMIT)
        torch._C._accelerator_setAllocatorSettings(before)  # as a reader expects it


def _set(others: str, limit: int) -> bool:
    """Set the limit beside other settings; return whether torch knows it."""
    change: Any = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if change is None:
        return False
    try:
        change(",".join([*filter(None, [others]), f"{ROUNDED_UP_TO}:{limit}"]))
    except (ValueError, RuntimeError):  # an unknown key
        change(others)
        return False
    return True
