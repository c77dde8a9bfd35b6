"""Counts the Python opcodes of the engine by function: a measure of work without a clock."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENGINE = tuple(f"{ROOT / name}/" for name in ("base", "logger", "model", "trainer", "data_loader"))


def opcodes(function: Callable[[], Any]) -> Counter[str]:
    """Call a function; return the opcodes that each function of the engine executed."""
    counts: Counter[str] = Counter()

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(ENGINE):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        name = f"{code.co_filename[len(str(ROOT)) + 1 :]}:{code.co_firstlineno} {code.co_name}"

        def count(frame: FrameType, event: str, arg: Any) -> Any:
            counts[name] += event == "opcode"
            return count

        return count

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        function()
    finally:
        sys.settrace(before)
    return counts


def faster_than_linear(small: Counter[str], twice: Counter[str], slack: int = 500) -> list[str]:
    """Return the functions that do more than 2.2 times the work for an input of twice the size.

    Args:
        slack: opcodes that depend on other things than the size.
    """
    return [
        f"{name}: {small[name]} -> {n}"
        for name, n in twice.most_common()
        if n > 2.2 * small[name] + slack
    ]
