"""How much memory this process may still take."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

UNLIMITED = sys.maxsize
# The files of a group: its limit, what it uses, and its counts of pages by kind.
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
VERSION_2 = ("memory.max", "memory.current", "")


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes that are free: of the machine, and under the limits of control groups.

    Pages that only keep a file's content count as free. Where nothing is known, as on macOS, the
    answer is `UNLIMITED`.
    """
    return min(_free_of_machine(proc), *_free_of_groups(proc, groups), UNLIMITED)


def _free_of_machine(proc: Path) -> int:
    lines = _lines(proc / "meminfo")
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 if kilobytes else UNLIMITED


def _free_of_groups(proc: Path, groups: Path) -> Iterator[int]:
    """Give what is left to each group that this process is in, and to the groups above it.

    Within a container the path of the group may be the host's, and only the root is to be seen.
    """
    for line in _lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", maxsplit=2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = groups / "memory" if controllers else groups
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            yield _left(each, *(VERSION_1 if controllers else VERSION_2))
            if each == root:
                break


def _left(group: Path, limit_file: str, usage_file: str, prefix: str) -> int:
    limit, usage = _lines(group / limit_file), _lines(group / usage_file)
    if not limit or not usage or limit[0] == "max":
        return UNLIMITED
    kept = (f"{prefix}inactive_file", f"{prefix}active_file")
    counts = (line.split() for line in _lines(group / "memory.stat"))
    reclaimable = sum(int(count) for name, count in counts if name in kept)
    return max(0, int(limit[0]) - int(usage[0]) + reclaimable)


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the system; none where there is no such file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
