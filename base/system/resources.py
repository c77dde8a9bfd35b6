"""The cores, threads and memory available to this process, also in a container."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

from base.errors import KindlingError
from base.system.trial import current_trial

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

UNLIMITED = sys.maxsize
# The files of a control group: limit, usage, and prefix of page counts.
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
VERSION_2 = ("memory.max", "memory.current", "")
OUT_OF_MEMORY = re.compile(
    r"(?i)out of memory|can't allocate memory|cannot allocate memory|not enough memory"
    r"|ALLOC_FAILED|bad_alloc|could not create a memory"  # of cuBLAS, cuDNN, cuFFT and so on; C++
    r"|(?-i:OUT_OF_(DEVICE_|HOST_)?(MEMORY|RESOURCES))"  # of XPU
    r"|unable to find an engine to execute"  # of cuDNN, when none of its algorithms has the memory
)


def usable_cores(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the number of cores available to this process by affinity and quota, at least 1.

    The processes that torchrun starts on a machine, and the trials of a sweep, share its cores
    evenly.
    """
    return max(1, int(min([_affinity(), *_quotas(proc, groups)])) // _n_local_processes())


def use_threads(n_threads: int | str) -> int:
    """Set torch's number of threads and return it, resolving ``auto``.

    The number is saved in the config: a resumed run must use the same, as sums depend on it.
    ``OMP_NUM_THREADS`` is an upper limit for ``auto``.
    """
    if isinstance(n_threads, str):
        n_threads = min(usable_cores(), torch.get_num_threads())
    torch.set_num_threads(n_threads)
    torch.get_num_threads()  # fixes the number, which a reader thread could change otherwise
    return n_threads


def free_memory(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the free memory in bytes, limited by the machine, the process and its control groups.

    The processes that torchrun starts on a machine, and the trials of a sweep, share its memory
    evenly. The limit of the
    process is set by ``ulimit -v``. Pages that only cache files count as free. If nothing is known,
    as on macOS, the result is `UNLIMITED`.
    """
    shared = min(_free_of_machine(proc), *_free_of_groups(proc, groups), UNLIMITED)
    if shared < UNLIMITED:
        shared //= _n_local_processes()
    return min(shared, _free_of_process(proc))


def peak_memory_mb() -> float:
    """Return the peak memory in MB: of the GPU if one is in use, else the resident set."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if resource is None:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error is due to a lack of memory, on a GPU or a CPU."""
    while isinstance(error, KindlingError):  # its cause holds the reason
        error = error.__cause__
    is_by_text = isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))
    return is_by_text or isinstance(error, torch.OutOfMemoryError | MemoryError)


@contextmanager
def ignored_out_of_memory() -> Iterator[None]:
    """Ignore a lack of memory inside the block, of a trial that training repeats."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def _n_local_processes() -> int:
    """Return how many processes share this machine: of torchrun, and of the trials of a sweep."""
    given, trial = os.environ.get("LOCAL_WORLD_SIZE", ""), current_trial()
    n_jobs = 1 if trial is None else trial.n_jobs
    return n_jobs * (max(1, int(given)) if given.isdecimal() else 1)


def _quotas(proc: Path, groups: Path) -> Iterator[float]:
    for folder, version in _control_groups("cpu", proc, groups):
        if version == 1:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            words = [line for name in names for line in _read_lines(folder / name)]
        else:
            words = " ".join(_read_lines(folder / "cpu.max")).split()
        if len(words) == 2 and words[0] not in ("max", "-1"):
            yield int(words[0]) / int(words[1])


def _free_of_machine(proc: Path) -> int:
    lines = _read_lines(proc / "meminfo")
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 if kilobytes else UNLIMITED


def _free_of_process(proc: Path) -> int:
    if resource is None or (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) < 0:
        return UNLIMITED
    lines = [line for line in _read_lines(proc / "self" / "status") if line.startswith("VmSize:")]
    return max(0, limit - int(lines[0].split()[1]) * 1024) if lines else UNLIMITED


def _free_of_groups(proc: Path, groups: Path) -> Iterator[int]:
    for folder, version in _control_groups("memory", proc, groups):
        yield _free_of_group(folder, *(VERSION_1 if version == 1 else VERSION_2))


def _free_of_group(group: Path, limit_file: str, usage_file: str, prefix: str) -> int:
    limit, usage = _read_lines(group / limit_file), _read_lines(group / usage_file)
    if not limit or not usage or limit[0] == "max":
        return UNLIMITED
    kept = (f"{prefix}inactive_file", f"{prefix}active_file")
    counts = (line.split() for line in _read_lines(group / "memory.stat"))
    reclaimable = sum(int(count) for name, count in counts if name in kept)
    return max(0, int(limit[0]) - int(usage[0]) + reclaimable)


def _control_groups(controller: str, proc: Path, groups: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folder and version of each control group of this process, and of their parents.

    In a container the path of the group may be the host's, with only the root visible.
    """
    for line in _read_lines(proc / "self/cgroup"):
        _, controllers, path = line.split(":", maxsplit=2)
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controller if controllers else groups
        folder = root / path.lstrip("/")
        for each in (folder, *folder.parents):
            yield each, 1 if controllers else 2
            if each == root:
                break


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a system file; none if it does not exist."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
