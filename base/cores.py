"""How many cores this process may use."""

from __future__ import annotations

import os


def free_cores() -> int:
    return len(os.sched_getaffinity(0))
