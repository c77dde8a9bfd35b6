"""This process among those that torchrun started, by its environment; torch is not imported."""

from __future__ import annotations

import os
import signal
import sys
import time

from base.errors import KindlingError, UsageError

WAIT_SECONDS = 3.0  # of the other ranks, for the one that prints an error


def rank() -> int | None:
    """Return the number of this process among all; None if torchrun did not start it."""
    is_launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    return _number("RANK", None) if is_launched else None


def is_silent() -> bool:
    """Return whether another process prints what concerns all."""
    return rank() not in (None, 0)


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return _number("LOCAL_RANK", 0) or 0


def local_size() -> int:
    """Return the number of processes that torchrun started on this machine."""
    return max(_number("LOCAL_WORLD_SIZE", 1) or 1, local_rank() + 1)


def refuse_several_processes(command: str) -> None:
    """Refuse to run in each of several processes.

    Raises:
        UsageError: torchrun started more than one.
    """
    n_processes = os.environ.get("WORLD_SIZE", "1")
    if rank() is not None and n_processes != "1":
        text = f"{command} needs one process, and torchrun started {n_processes}"
        raise UsageError(f"{text}: start it without torchrun")


def await_report(error: BaseException) -> str | None:
    """Let one rank print the error that all of them raise; return the prefix of this rank's text.

    torchrun ends the other processes as soon as that one exits, and they print nothing. A process
    that is not ended within a few seconds prints its own error. None means: print nothing.
    """
    mine, reporter = rank(), getattr(error, "reporter", 0)
    if mine is None:
        return ""
    code = getattr(error, "exit_code", 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        is_mine = mine == reporter  # its text must come out whole, if another rank exits first
        signal.signal(number, signal.SIG_IGN if is_mine else lambda *_: sys.exit(code))
    if mine != reporter:
        # One after another: the first of a machine exits, and torchrun ends the rest.
        time.sleep(WAIT_SECONDS + 0.3 * local_rank())
        if isinstance(error, KindlingError) and error.is_printed_once:
            return None
    return f"rank {mine}: " if mine else ""


def _number(name: str, otherwise: int | None) -> int | None:
    value = os.environ.get(name, "").strip()
    return int(value) if value.isdigit() else otherwise
