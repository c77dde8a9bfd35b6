"""Where the system says what the control groups of this process may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def control_groups(controller: str, proc: Path, groups: Path) -> Iterator[tuple[Path, int]]:
    """Give the folder of each group that this process is in and of those above it; its version.

    Within a container the path of the group may be the host's, and only the root is to be seen.
    """
    for line in read_lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", maxsplit=2)
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controller if controllers else groups
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            yield each, 1 if controllers else 2
            if each == root:
                break


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file of the system; none where there is no such file."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
