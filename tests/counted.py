"""Counts the work of Python code, which noise on a machine does not change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def opcodes(action: Callable[[], object]) -> int:
    """Return the number of Python instructions that an action executes, in all its calls."""
    n_opcodes = 0

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal n_opcodes
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        n_opcodes += event == "opcode"
        return count

    former = sys.gettrace()
    sys.settrace(count)
    try:
        action()
    finally:
        sys.settrace(former)
    return n_opcodes


def growth(action: Callable[[int], object], n: int, prepare: Callable[[int], Any] = int) -> float:
    """Return how many times the instructions of a size are those of half of it: 2 is linear.

    Args:
        action: receives what `prepare` returns for a size.
    """
    action(prepare(2))  # imports, and the first use of caches
    small, large = prepare(n // 2), prepare(n)
    return opcodes(lambda: action(large)) / opcodes(lambda: action(small))
