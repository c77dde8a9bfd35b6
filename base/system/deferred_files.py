"""Files that a run leaves for later ones, such as caches: written when it begins, not before.

A dry run, and a run that ends in its checks, write nothing. What builds data sets does not know
which of them it is part of: it hands such a file to `write_when_running`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path


class DeferredFiles:
    """The files that wait for a run to begin, and temporary folders until then.

    Args:
        is_trial: no run will begin, as in a dry run.
    """

    def __init__(self, is_trial: bool = False) -> None:
        self.is_trial = is_trial
        self.waiting: list[Callable[[], object]] = []
        self.is_running = False
        self._temporary = ExitStack()

    def write(self) -> bool:
        """Write them: the run begins. Return whether there were any."""
        self.is_running = True
        waiting, self.waiting = self.waiting, []
        for write in waiting:
            write()
        return bool(waiting)

    def temporary_folder(self) -> Path:
        """Make a folder that is removed at the end of the block."""
        name = tempfile.TemporaryDirectory(prefix="kindling-", ignore_cleanup_errors=True)
        return Path(self._temporary.enter_context(name))

    def close(self) -> None:
        """Forget what waits, and remove the temporary folders."""
        self.waiting.clear()
        self._temporary.close()


# Set within `defer_files` alone. Data sets are built by user code, through which nothing can be
# passed to them as an argument.
_CURRENT: ContextVar[DeferredFiles | None] = ContextVar("deferred files", default=None)


@contextmanager
def defer_files(is_trial: bool = False) -> Iterator[DeferredFiles]:
    """Let files wait, in this block, until its value is asked to write them."""
    files, before = DeferredFiles(is_trial), _compiler_folders()
    token = _CURRENT.set(files)
    try:
        yield files
    finally:
        _CURRENT.reset(token)
        files.close()
        if not files.is_running:
            for folder in _compiler_folders() - before:
                with suppress(OSError):  # it is not empty: a model has compiled something by itself
                    folder.rmdir()


def _compiler_folders() -> set[Path]:
    """Return the folders of compiled code: importing ``torch._dynamo`` makes an empty one."""
    given = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir()))
    return {
        *Path(tempfile.gettempdir()).glob("torchinductor_*"),
        *([given] if given.exists() else []),
    }


def waiting_files() -> DeferredFiles | None:
    """Return where files wait at present; None where they are written at once."""
    files = _CURRENT.get()
    return None if files is None or files.is_running else files


def write_when_running(write: Callable[[], object]) -> None:
    """Call a function that writes files: at once or, before a run has begun, when it begins."""
    files = waiting_files()
    if files is None:
        write()
    else:
        files.waiting.append(write)
