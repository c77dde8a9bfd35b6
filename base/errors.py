"""Errors for users: a clear message, an exit code and no traceback."""

from __future__ import annotations

import difflib
import errno
import os
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from logger.files import FileError, NotAFileError

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it since Python 3.11


class KindlingError(Exception):
    """An error with a message for the user. Entry scripts print it and exit with its code.

    trace   the traceback of an OSError in user code, printed above the text
    advice  printed below the text

    Of several processes, all of which raise it, the rank ``reporter`` prints it. Another that is
    still there a few seconds later prints it too, unless it ``is_printed_once``.
    """

    exit_code = 1
    trace = ""
    advice = ""
    reporter = 0
    is_printed_once = False

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the message, without the engine's own calls."""
        lines = (self.trace.rstrip(), f"{type(self).__name__}: {self}", self.advice)
        return [line for line in lines if line]

    def with_trace_of(self, error: BaseException) -> Self:
        """Add the traceback of an OSError in user code, which would look like a disk error."""
        self.trace = trace_of(error)
        return self


def trace_of(error: BaseException) -> str:
    """Return the traceback of an OSError of the operating system; "" for other errors."""
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    return "".join(traceback.format_exception(error))


class Problem(NamedTuple):
    """A fault in the input: its location, what was found and what to do."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ConfigError(KindlingError):
    """All faults found in a config."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(KindlingError):
    """Incorrect use of the command line."""

    exit_code = 2


class TrainingError(KindlingError):
    """Training cannot continue. The last checkpoint stays valid."""


class OutOfMemoryError(TrainingError):
    """Out of memory. The run can be resumed with more memory or smaller batches."""

    exit_code = 3


class CheckpointError(KindlingError):
    """A checkpoint cannot be written or read."""


class DiskFullError(CheckpointError):
    """The disk is full. The run can be resumed with more space."""

    exit_code = 3


def disk_error(
    error: Exception, text: str, otherwise: type[KindlingError] = CheckpointError
) -> KindlingError:
    """Return the error to raise for a failed write. A full disk has a separate exit code."""
    no_room = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
    is_full = isinstance(error, OSError) and error.errno in no_room
    return DiskFullError(text) if is_full else otherwise(text)


def why(error: BaseException) -> str:
    """Return the cause of an error in one line."""
    if isinstance(error, NotAFileError | FileError) and not error.errno:
        return f"{error.filename} is {error.strerror}"
    if isinstance(error, OSError) and error.errno:
        where = f" at {error.filename}" if error.filename else ""
        return f"{os.strerror(error.errno)} (errno {error.errno}){where}"
    text = (str(error) or "no reason given").strip().splitlines()[0][:300]
    return text if isinstance(error, CheckpointError) else f"{type(error).__name__}: {text}"


class DataError(KindlingError):
    """A data set is missing or damaged."""


class BatchError(DataError):
    """Readable samples that do not match each other or the config. They are never skipped."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the most similar known name, else ``""``."""
    found = nearest_name(name, known)
    return "" if found is None else f"; did you mean {found!r}?"


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar known name, if there is one; of two that differ in case, the nearer.

    Of equally near ones it is the first.
    """
    spellings: dict[str, list[str]] = {}
    for choice in known:
        spellings.setdefault(choice.lower(), []).append(choice)
    matches = difflib.get_close_matches(name.lower(), list(spellings), n=1, cutoff=0.6)
    if not matches:
        return None
    choices = spellings[matches[0]]
    return max(choices, key=lambda choice: difflib.SequenceMatcher(None, choice, name).ratio())


def listed(items: Sequence[Any], most: int = 5) -> str:
    """Join the first items for a message."""
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")
