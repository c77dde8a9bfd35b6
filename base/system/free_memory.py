"""How much memory this process may still take; which errors say that it was refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


from base.errors import KindlingError
from base.system.control_groups import GROUPS, PROC, control_groups, read_lines

UNLIMITED = sys.maxsize
# The files of a group: its limit, what it uses, and its counts of pages by kind.
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
VERSION_2 = ("memory.max", "memory.current", "")
OUT_OF_MEMORY = re.compile(
    r"(?i)out of memory|can't allocate memory|cannot allocate memory|not enough memory"
    r"|ALLOC_FAILED|bad_alloc|could not create a memory"
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory was refused: on a GPU, or on a CPU under a limit."""
    if isinstance(error, KindlingError):  # it says where; its cause says why
        error = error.__cause__
    is_torchs = type(error).__name__ == "OutOfMemoryError"  # which need not be imported for this
    is_told = isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))
    return is_told or is_torchs or isinstance(error, MemoryError)


def free_memory(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the bytes that are free: of the machine, and under the limits of control groups and of
    the process itself (``ulimit -v``).

    Pages that only keep a file's content count as free. Where nothing is known, as on macOS, the
    answer is `UNLIMITED`.
    """
    return min(
        _free_of_machine(proc), *_free_of_groups(proc, groups), _free_of_process(proc), UNLIMITED
    )


def _free_of_machine(proc: Path) -> int:
    lines = read_lines(proc / "meminfo")
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 if kilobytes else UNLIMITED


def _free_of_process(proc: Path) -> int:
    if resource is None or (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) < 0:
        return UNLIMITED
    lines = [line for line in read_lines(proc / "self" / "status") if line.startswith("VmSize:")]
    return max(0, limit - int(lines[0].split()[1]) * 1024) if lines else UNLIMITED


def _free_of_groups(proc: Path, groups: Path) -> Iterator[int]:
    for folder, version in control_groups("memory", proc, groups):
        yield _left(folder, *(VERSION_1 if version == 1 else VERSION_2))


def _left(group: Path, limit_file: str, usage_file: str, prefix: str) -> int:
    limit, usage = read_lines(group / limit_file), read_lines(group / usage_file)
    if not limit or not usage or limit[0] == "max":
        return UNLIMITED
    kept = (f"{prefix}inactive_file", f"{prefix}active_file")
    counts = (line.split() for line in read_lines(group / "memory.stat"))
    reclaimable = sum(int(count) for name, count in counts if name in kept)
    return max(0, int(limit[0]) - int(usage[0]) + reclaimable)


def peak_memory_mb() -> float:
    """Return the peak of memory so far in MB: of the GPU where there is one, else resident."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
