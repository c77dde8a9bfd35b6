"""The threads and the memory for this process, also in a container."""

from __future__ import annotations

import logging
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
from base.system.cores import (
    GROUPS,
    PROC,
    control_groups,
    free_cores,
    n_local_processes,
    read_lines,
    usable_cores,
)

UNLIMITED = sys.maxsize
# The files of a control group: limit, usage, and prefix of page counts.
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
VERSION_2 = ("memory.max", "memory.current", "")
OUT_OF_MEMORY = re.compile(
    r"(?i)out of memory|can't allocate memory|cannot allocate memory|not enough memory"
    r"|ALLOC_FAILED|bad_alloc|could not create a memory"  # of cuBLAS, cuDNN, cuFFT and so on; C++
    r"|(?-i:OUT_OF_(DEVICE_|HOST_)?(MEMORY|RESOURCES))"  # of XPU
)
MAY_LACK_MEMORY = re.compile(
    # Of cuDNN: none of its algorithms has the memory, or none takes this type and layout.
    r"unable to find an engine to execute"
    # Of libraries that cannot allocate their handle, or for another reason.
    r"|STATUS_NOT_INITIALIZED|(CUDNN|CUSOLVER|CUSPARSE)_STATUS_INTERNAL_ERROR"
)
LITTLE_MEMORY = 0.1  # of a GPU's: so little is free when it is memory that these lack


def use_threads(n_threads: int | str) -> int:
    """Set torch's number of threads and return it, resolving ``auto``.

    The number is saved in the config: a resumed run must use the same, as sums depend on it.
    ``auto`` takes the usable cores that others leave free, at most ``OMP_NUM_THREADS``: a thread
    without a core of its own delays each operation, for which all threads wait.
    """
    if isinstance(n_threads, str):
        most = min(usable_cores(), torch.get_num_threads())
        free = free_cores() if most > 1 else most
        n_threads = max(1, min(most, round(free)))
        if n_threads < most:
            text = "threads: %d, as others leave %.1f of %d cores free (set `threads` to change it)"
            logging.getLogger("kindling").info(text, n_threads, free, most)
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
        shared //= n_local_processes()
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
    seen: set[int] = set()  # an error raised from itself is its own cause
    while isinstance(error, KindlingError) and id(error) not in seen:  # its cause is the reason
        seen.add(id(error))
        error = error.__cause__
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return bool(OUT_OF_MEMORY.search(text)) or (
        MAY_LACK_MEMORY.search(text) is not None and _gpu_is_full()
    )


def _gpu_is_full() -> bool:
    """Return whether little memory of the current GPU is free."""
    if not torch.cuda.is_available():
        return False
    free, total = torch.cuda.mem_get_info()
    return free < LITTLE_MEMORY * total


@contextmanager
def ignored_out_of_memory() -> Iterator[None]:
    """Ignore a lack of memory inside the block, of a trial that training repeats."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise


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
        yield _free_of_group(folder, *(VERSION_1 if version == 1 else VERSION_2))


def _free_of_group(group: Path, limit_file: str, usage_file: str, prefix: str) -> int:
    limit, usage = read_lines(group / limit_file), read_lines(group / usage_file)
    if not limit or not usage or limit[0] == "max":
        return UNLIMITED
    kept = (f"{prefix}inactive_file", f"{prefix}active_file")
    counts = (line.split() for line in read_lines(group / "memory.stat"))
    reclaimable = sum(int(count) for name, count in counts if name in kept)
    return max(0, int(limit[0]) - int(usage[0]) + reclaimable)
