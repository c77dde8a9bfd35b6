"""Counts the work of Python code in opcodes, which noise on a machine does not change."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENGINE = tuple(f"{ROOT / name}/" for name in ("base", "logger", "model", "trainer", "data_loader"))
LINEAR = 2.2  # times the work for an input of twice the size, with some room


def opcodes(action: Callable[[], object]) -> int:
    """Return the number of Python instructions that an action executes, in all its calls."""
    return sum(_count(action, "").values())


def engine_opcodes(action: Callable[[], object]) -> Counter[str]:
    """Return the Python instructions that an action executes in each function of the engine."""
    counts: Counter[str] = Counter()
    for (file, line, name), n in _count(action, ENGINE).items():
        counts[f"{file[len(str(ROOT)) + 1 :]}:{line} {name}"] = n
    return counts


def _count(
    action: Callable[[], object], folders: str | tuple[str, ...]
) -> Counter[tuple[str, int, str]]:
    """Return the instructions by file, line and name of the functions in some folders."""
    counts: Counter[tuple[str, int, str]] = Counter()

    def count(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(folders):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        counts[code.co_filename, code.co_firstlineno, code.co_name] += event == "opcode"
        return count

    former = sys.gettrace()
    sys.settrace(count)
    try:
        action()
    finally:
        sys.settrace(former)
    return counts


def growth(action: Callable[[int], object], n: int, prepare: Callable[[int], Any] = int) -> float:
    """Return how many times the instructions of a size are those of half of it: 2 is linear.

    Args:
        action: receives what `prepare` returns for a size.
    """
    action(prepare(2))  # imports, and the first use of caches
    small, large = prepare(n // 2), prepare(n)
    return opcodes(lambda: action(large)) / opcodes(lambda: action(small))


def faster_than_linear(small: Counter[str], twice: Counter[str], slack: int = 500) -> list[str]:
    """Return the functions that do more than `LINEAR` times the work for twice the size.

    Args:
        slack: opcodes that depend on other things than the size.
    """
    return [
        f"{name}: {small[name]} -> {n}"
        for name, n in twice.most_common()
        if n > LINEAR * small[name] + slack
    ]
