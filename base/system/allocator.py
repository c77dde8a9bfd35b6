"""Keep the memory that a step frees for the next one, as torch does on a GPU."""

from __future__ import annotations

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
KEPT, LARGEST = 2**31 - 1, 2**30  # bytes: what stays free at the end, what is taken from there


def keep_freed_memory(device: torch.device) -> bool:
    """Let glibc keep what is freed; return whether it does.

    By default it gives large pieces back to the system at once, so that each step of a training
    on the CPU has all its pages made anew, and cleared (see mallopt(3)). The process then stays as
    large as its largest step.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_TRIM_THRESHOLD, KEPT) and mallopt(M_MMAP_THRESHOLD, LARGEST))
