"""The cores for this process, also in a container, and how busy others keep them.

torch is not imported, so that the first reading of `watch_cores` comes before it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from base.system.trial import current_trial

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
SHORTEST, LONGEST = 0.1, 30.0  # seconds between two readings: /proc/stat counts hundredths


def usable_cores(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the number of cores available to this process by affinity and quota, at least 1.

    The processes that torchrun starts on a machine, and the trials of a sweep, share its cores
    evenly.
    """
    quotas = (quota for _, quota in _quotas(proc, groups))
    return max(1, int(min([len(_own_cores()), *quotas])) // n_local_processes())


@dataclass(frozen=True)
class CpuTimes:
    """The seconds of CPU time used up to a moment."""

    at: float
    """The moment, in seconds of a clock that never goes back."""
    ours: float
    """Of this process, and of children that have ended."""
    machine: float | None
    """Of all that runs on the cores of this process; None on systems without ``/proc/stat``."""
    groups: dict[Path, float]
    """Of each control group of this process that has a quota."""


def read_cpu_times(proc: Path = PROC, groups: Path = GROUPS) -> CpuTimes:
    """Read the CPU time used so far."""
    spent = os.times()
    used = {folder: _used_by(folder) for folder, _ in _quotas(proc, groups)}
    return CpuTimes(
        at=time.monotonic(),
        ours=time.process_time() + spent.children_user + spent.children_system,
        machine=_used_on(_own_cores(), proc),
        groups={folder: seconds for folder, seconds in used.items() if seconds is not None},
    )


_first: list[CpuTimes] = []  # the reading of `watch_cores`


def watch_cores() -> None:
    """Take the first reading for `free_cores`, as early as possible."""
    _first[:] = [read_cpu_times()]


def free_cores() -> float:
    """Return how many of the usable cores others have left free since `watch_cores`.

    Without a first reading, or with one of long ago, this waits a tenth of a second between two.
    Processes of torchrun and trials that run side by side would count each other as others: they
    share all usable cores. Any other trial takes what its sweep has found.
    """
    usable = usable_cores()
    if n_local_processes() > 1:
        return usable
    trial = current_trial()
    if trial is not None and trial.free_cores is not None:
        return min(usable, trial.free_cores)
    first = _first[0] if _first else read_cpu_times()
    if not SHORTEST <= time.monotonic() - first.at <= LONGEST:
        first = read_cpu_times()
        time.sleep(SHORTEST)
    return min(usable, left_free(first, read_cpu_times()))


def left_free(first: CpuTimes, then: CpuTimes, proc: Path = PROC, groups: Path = GROUPS) -> float:
    """Return the cores that others did not use between two readings, at least 0."""
    seconds, ours = then.at - first.at, then.ours - first.ours
    left = [float(usable_cores(proc, groups))]
    if first.machine is not None and then.machine is not None:
        others = then.machine - first.machine - ours
        left.append(len(_own_cores()) - others / seconds)
    for folder, quota in _quotas(proc, groups):
        if folder in first.groups and folder in then.groups:
            others = then.groups[folder] - first.groups[folder] - ours
            left.append(quota - others / seconds)
    return max(0.0, min(left))


def control_groups(controller: str, proc: Path, groups: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folder and version of each control group of this process, and of their parents.

    In a container the path of the group may be the host's, with only the root visible.
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
    """Return the lines of a system file; none if it does not exist."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _own_cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS


def n_local_processes() -> int:
    """Return how many processes share this machine: of torchrun, and of the trials of a sweep."""
    given, trial = os.environ.get("LOCAL_WORLD_SIZE", ""), current_trial()
    n_jobs = 1 if trial is None else trial.n_jobs
    return n_jobs * (max(1, int(given)) if given.isdecimal() else 1)


def _quotas(proc: Path, groups: Path) -> Iterator[tuple[Path, float]]:
    """Yield each control group that has a quota, and its number of cores."""
    for folder, version in control_groups("cpu", proc, groups):
        if version == 1:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [line for name in names for line in read_lines(folder / name)]
        else:
            words = " ".join(read_lines(folder / "cpu.max")).split()
        if len(words) == 2 and words[0] not in ("max", "-1"):
            yield folder, int(words[0]) / int(words[1])


def _used_by(group: Path) -> float | None:
    """Return the seconds that a control group has used."""
    for line in read_lines(group / "cpuacct.usage"):  # version 1
        return int(line) / 1e9
    for line in read_lines(group / "cpu.stat"):
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    return None


def _used_on(cores: set[int], proc: Path) -> float | None:
    """Return the seconds in which cores were not idle; what a hypervisor took counts as used."""
    ticks, wanted = 0, {f"cpu{number}" for number in cores}
    lines = [line.split() for line in read_lines(proc / "stat")]
    found = [list(map(int, words[1:9])) for words in lines if words and words[0] in wanted]
    if not found or not any(map(any, found)):  # some containers show zeros
        return None
    for user, nice, system, _idle, _waiting, irq, soft_irq, stolen in found:
        ticks += user + nice + system + irq + soft_irq + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
