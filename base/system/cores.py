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
    from base.training.experiment import Experiment

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


def use_threads(n_threads: int | str) -> int:
    """Let torch compute in so many threads, and return the number, also of ``auto``.

    The number belongs into the config: a resumed run must use as many, as sums depend on it. The
    current load does not count, and ``OMP_NUM_THREADS`` may have limited torch to fewer.
    """
    if isinstance(n_threads, str):
        n_threads = min(usable_cores(), torch.get_num_threads())
    torch.set_num_threads(n_threads)
    torch.get_num_threads()  # settles it: else our first operation takes what a reader's thread set
    return n_threads


def warn_of_load(experiment: Experiment) -> None:
    """Warn where this run and others together want more than the cores can do."""
    n_cores, others = len(_cores()), experiment.load.cores()
    wanted = {"num_workers": getattr(experiment.train_loader, "num_workers", 0)}
    if experiment.device.type == "cpu":
        wanted["threads"] = torch.get_num_threads()
    n_usable, most = usable_cores(), max(wanted.values())
    n_free = max(1, min(n_usable, round(n_cores - others)))
    if most > n_usable or (most > n_free and most + others > n_cores + 0.5):
        less = " and ".join(f"`{key}: {n_free}`" for key, n in wanted.items() if n > n_free)
        text = f"this run wants {most} of {n_usable} cores, and others keep {others:.1f} busy"
        log.warning(f"{text}: what waits for a core holds up the rest; {less} may be faster")


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
