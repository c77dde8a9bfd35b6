"""Locks the folder of a run for one process, and shows whether a process holds it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from pathlib import Path

from base.errors import UsageError, disk_error, why
from logger.files import open_descriptor

try:
    import fcntl
except ImportError:  # Windows: runs are not locked there
    fcntl = None  # type: ignore[assignment]

LOG = logging.getLogger("kindling")
LOCK = "LOCK"


class RunLock:
    """The lock on a run's folder, held until the end of the block or of the process."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            # Workers that outlive a killed trainer must not keep its lock.
            os.register_at_fork(after_in_child=self.release)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def lock(folder: Path | str) -> RunLock:
    """Lock the folder for this process.

    Raises:
        UsageError: another process has the lock, or the file of the lock cannot be written.
    """
    if fcntl is None:
        return RunLock(None)
    path = Path(folder) / LOCK
    try:
        descriptor = open_descriptor(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise disk_error(error, f"{path}: cannot be created: {why(error)}", UsageError) from error
    try:
        _take(descriptor)
    except BlockingIOError as error:
        holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "just started"
        os.close(descriptor)
        message = f"{folder}: another process uses this run: {holder}; wait for it, or stop it"
        raise UsageError(message) from error
    except OSError as error:  # some network file systems have no locks
        LOG.warning("%s: cannot be locked (%s): start no second run in it", folder, error.strerror)
    about = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, about)
    except OSError as error:
        os.close(descriptor)
        raise disk_error(error, f"{path}: cannot be written: {why(error)}", UsageError) from error
    return RunLock(descriptor)


def is_locked(folder: Path | str) -> bool | None:
    """Return whether a process holds the lock of a folder; None if the system cannot tell."""
    if fcntl is None:
        return None
    try:
        descriptor = open_descriptor(Path(folder) / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        # Held until the next line; `_take` waits for it.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # some network file systems have no locks
        return None
    finally:
        os.close(descriptor)
    return False


def _take(descriptor: int) -> None:
    """Take the lock; wait a moment for `is_locked` in other processes.

    Raises:
        BlockingIOError: another process holds it.
    """
    for _ in range(9):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.01)
    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
