"""The numbers of the runs in a folder, kept in a file beside them: ``saved/NAME/.runs.json``.

A ``run.json`` that has not changed is opened once, not at each start of a run or each ``-r``. The
file only saves time: it may be missing, old or damaged, and is written again when it lacks many
runs.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from logger.files import read_file, write_whole

STAMP = "run.json"
INDEX = ".runs.json"
MOST_UNKNOWN = 100  # runs that are opened each time; with more, the file is written again


class Numbered(NamedTuple):
    """The place of a run among all of its ``save_dir``; 0 and "" of one without ``run.json``."""

    number: int
    started: str
    job: str = ""
    """The job that trained it last, if there was one."""


UNNUMBERED = Numbered(0, "")


def numbered_runs(
    parent: Path, read: Callable[[Path], Mapping[str, Any]]
) -> Iterator[tuple[str, Numbered]]:
    """Yield the name and the number of each folder in a folder of runs.

    Args:
        read: returns the content of a run's ``run.json``.
    """
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return
    known = _read(parent)
    n_unknown = 0
    current: dict[str, list[Any]] = {}
    for name in names:
        listed, version = known.get(name), _version(f"{parent}/{name}/{STAMP}")
        if listed is not None and listed[:2] == version:
            one = Numbered(*listed[2:])
            current[name] = listed
        else:
            one = number_of(read(parent / name))
            if one.number > 0:
                n_unknown += 1
                current[name] = [*version, *one]
        yield name, one
    if n_unknown > MOST_UNKNOWN:
        with contextlib.suppress(OSError):  # such as a folder that is only readable
            write_whole(parent / INDEX, json.dumps(current).encode())


def number_of(stamp: Mapping[str, Any]) -> Numbered:
    """Return the number, the start and the job in a ``run.json``."""
    try:
        return Numbered(int(stamp["number"]), str(stamp["started"]), str(stamp.get("job") or ""))
    except (ValueError, LookupError, TypeError):
        return UNNUMBERED


def _version(path: str) -> list[int]:
    """Return the inode and the time of a ``run.json``; a folder's name and inode may be reused."""
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path would take longer than the disk)
    except OSError:
        return [0, 0]
    return [found.st_ino, found.st_mtime_ns]


def _read(parent: Path) -> dict[str, list[Any]]:
    """Return the version of ``run.json``, and what `number_of` does, of the listed runs by name."""
    try:
        content = json.loads(read_file(parent / INDEX))
        kinds = {tuple(map(type, each)) for each in content.values()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return content if kinds == {(int, int, int, str, str)} else {}
