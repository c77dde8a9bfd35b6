"""How many cores this process may use, how many of them are free, and how many threads it takes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from base.system.control_groups import GROUPS, PROC, control_groups, read_lines

if TYPE_CHECKING:
    from base.config import Config

log = logging.getLogger("kindling")

SHORTEST_SECONDS = 0.1
"""What the system counts in steps of 10 ms says nothing about less."""


def free_cores() -> int:
    """Return how many cores are free now, at least 1; it looks on for a tenth of a second."""
    load = OtherLoad()
    time.sleep(SHORTEST_SECONDS)
    return max(1, min(usable_cores(), round(len(_cores()) - load.cores())))


def usable_cores(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return how many cores the process is let run on, at least 1, however busy they are."""
    return max(1, int(min([len(_cores()), *_quotas(proc, groups)])))


class OtherLoad:
    """Sees from now on how many of the cores other processes keep busy."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._began, self._busy = time.perf_counter(), self._busy_seconds()

    def cores(self) -> float:
        """Return how many it were, in the mean; 0 where the system does not tell."""
        seconds = time.perf_counter() - self._began
        if seconds < SHORTEST_SECONDS:
            return 0.0
        return max(0.0, (self._busy_seconds() - self._busy) / seconds)

    def _busy_seconds(self) -> float:
        """Return how long our cores have worked, but not for this process and its children."""
        lines = read_lines(self._proc / "stat")
        if not lines:  # not Linux
            return 0.0
        ours = {f"cpu{number}" for number in _cores()}
        ticks = 0
        for name, *counts in map(str.split, lines):
            if name in ours:  # user nice system idle iowait irq softirq steal ...
                ticks += sum(int(counts[place]) for place in (0, 1, 2, 5, 6, 7))
        for child in multiprocessing.active_children():
            for line in read_lines(self._proc / f"{child.pid}/stat"):
                ticks -= sum(map(int, line.rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])


def use_threads(config: Config) -> None:
    """Let torch compute in as many threads as the config says.

    What ``auto`` comes to takes its place in the config, for a run that goes on must have as many:
    sums depend on it. The load of the moment does not count, and torch may have been told to take
    fewer, by ``OMP_NUM_THREADS``.
    """
    if config["threads"] == "auto":
        config.resolve("threads", value=min(usable_cores(), torch.get_num_threads()))
    torch.set_num_threads(config["threads"])
    torch.get_num_threads()  # settles it: else our first operation takes what a reader's thread set


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS


def _quotas(proc: Path, groups: Path) -> Iterator[float]:
    for folder, version in control_groups("cpu", proc, groups):
        if version == 1:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [line for name in names for line in read_lines(folder / name)]
        else:
            words = " ".join(read_lines(folder / "cpu.max")).split()
        if len(words) == 2 and words[0] not in ("max", "-1"):
            yield int(words[0]) / int(words[1])
