"""Opens regular files, and writes files atomically."""

import itertools
import os
import stat
from pathlib import Path
from typing import BinaryIO

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Without O_NONBLOCK, opening a FIFO waits for a process at its other end.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


class NotAFileError(OSError):
    """A path is a folder, FIFO, socket or device instead of a file."""

    def __init__(self, mode: int, path: Path | str) -> None:
        kind = next((name for is_kind, name in KINDS if is_kind(mode)), "something else")
        super().__init__(None, f"{kind}, not a file", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


class FileError(OSError):
    """A file of a run cannot be written.

    Only the functions in this module raise it. Any other OSError in training is from user code.
    """


def open_file(path: Path | str) -> BinaryIO:
    """Open a file for reading.

    Raises:
        NotAFileError: it is not a regular file; this is raised without reading or blocking.
        OSError: it cannot be opened.
    """
    return os.fdopen(open_descriptor(path, os.O_RDONLY), "rb")


def read_file(path: Path | str) -> bytes:
    """Return the content of a file; raise as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def append(path: Path, content: bytes, is_synced: bool = False) -> None:
    """Append to a file, which is created if it is missing.

    Args:
        is_synced: wait until the content is on the disk.

    Raises:
        FileError: it cannot be written.
    """
    try:
        with os.fdopen(open_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
            file.write(content)
            if is_synced:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise as_file_error(error, path) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename it to `path`.

    The folder is created if only its last part is missing.

    Raises:
        FileError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)  # not its parents: a deleted run folder is not recreated
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise as_file_error(error, path) from error


def put_aside(path: Path) -> Path:
    """Rename a damaged file, so that its content is not lost.

    Raises:
        FileError: it cannot be renamed.
    """
    numbered = (path.with_name(f"{path.stem}.damaged-{n}{path.suffix}") for n in itertools.count(1))
    aside = next(each for each in numbered if not os.path.lexists(each))
    try:
        return path.rename(aside)
    except OSError as error:
        raise as_file_error(error, path) from error


def open_descriptor(path: Path | str, flags: int) -> int:
    """Open a regular file as ``os.open`` does; raise as `open_file` does."""
    # Check before opening, as opening a device may already act on it. Check the open file again, as
    # another process may have replaced it in between.
    try:
        _refuse(os.stat(path).st_mode, path)  # noqa: PTH116  (Path costs more than the call)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    descriptor = os.open(path, flags | _FLAGS, 0o666)
    try:
        _refuse(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def as_file_error(error: OSError, path: Path) -> FileError:
    """Return a FileError that names the file, which errors of writing and syncing do not."""
    return FileError(error.errno, error.strerror or str(error), str(path))


def _refuse(mode: int, path: Path | str) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFileError(mode, path)
