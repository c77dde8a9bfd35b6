"""Defers writing files for later runs, such as caches, until a run starts.

A dry run, or a run that fails its checks, writes nothing. Code that builds data sets does not know
the run it is part of, and passes such files to `write_when_running`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path


class DeferredFiles:
    """Files to write when the run starts, and temporary folders until then.

    Args:
        is_trial: whether no run will start, as in a dry run.
    """

    def __init__(self, is_trial: bool = False) -> None:
        self.is_trial = is_trial
        self.waiting: list[Callable[[], object]] = []
        self.is_running = False
        self._temporary = ExitStack()

    def write(self) -> bool:
        """Write the deferred files at the start of the run; return whether there were any."""
        self.is_running = True
        waiting, self.waiting = self.waiting, []
        for write in waiting:
            write()
        return bool(waiting)

    def temporary_folder(self) -> Path:
        """Create a folder that is removed at the end of the block."""
        name = tempfile.TemporaryDirectory(prefix="kindling-", ignore_cleanup_errors=True)
        return Path(self._temporary.enter_context(name))

    def close(self) -> None:
        """Discard the deferred files and remove the temporary folders."""
        self.waiting.clear()
        self._temporary.close()


# Set only by `defer_files`. User code builds data sets, so it cannot be passed to them.
_CURRENT: ContextVar[DeferredFiles | None] = ContextVar("deferred files", default=None)


@contextmanager
def defer_files(is_trial: bool = False) -> Iterator[DeferredFiles]:
    """Defer files in this block until ``write`` of its value is called."""
    files, before = DeferredFiles(is_trial), _compiler_folders()
    token = _CURRENT.set(files)
    try:
        yield files
    finally:
        _CURRENT.reset(token)
        files.close()
        if not files.is_running:
            for folder in _compiler_folders() - before:
                with suppress(OSError):  # not empty: the model compiled code itself
                    folder.rmdir()


def _compiler_folders() -> set[Path]:
    """Return the folders of compiled code; importing ``torch._dynamo`` creates an empty one."""
    given = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir()))
    return {
        *Path(tempfile.gettempdir()).glob("torchinductor_*"),
        *([given] if given.exists() else []),
    }


def waiting_files() -> DeferredFiles | None:
    """Return the current `DeferredFiles`; None if files are written at once."""
    files = _CURRENT.get()
    return None if files is None or files.is_running else files


def write_when_running(write: Callable[[], object]) -> None:
    """Call a function that writes files, now or when the run starts."""
    files = waiting_files()
    if files is None:
        write()
    else:
        files.waiting.append(write)
