"""Finds the files that the words of a command name: files, folders, patterns and lists of paths."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from base.datasets.image_files import count_suffixes, images_under
from base.errors import UsageError
from base.system.run_folder import must_exist


class FoundFile(NamedTuple):
    """A file, and its path within the folder that was given, which names what is written for it."""

    path: str
    within: str


ReadList = Callable[[str], Sequence[str] | None]


def find_files(
    words: Sequence[str | Path], endings: tuple[str, ...], read_list: ReadList = lambda word: None
) -> list[FoundFile]:
    """Return the files that words name, in the order of the words; in a folder, sorted by path.

    Args:
        endings: the suffixes, in lower case, of the files to take from folders; () takes all.
        read_list: returns the paths in a file that is a list of others, or None.

    Raises:
        UsageError: a file does not exist, a folder has no such file, or a pattern has no match.
    """
    found: list[FoundFile] = []
    for word in map(str, words):
        for path in _matches(word):
            if Path(path).is_dir():
                found += _in_folder(path, endings)
            elif (listed := read_list(path)) is not None:
                found += [FoundFile(each, Path(each).name) for each in listed]
            else:
                found.append(FoundFile(path, Path(path).name))
    return found


def _matches(word: str) -> Iterator[str]:
    if not os.path.lexists(word) and glob.has_magic(word):
        matches = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 -- any word
        if not matches:
            raise UsageError(f"{word}: no file matches; the current folder is {Path.cwd()}")
        yield from matches
    else:
        yield str(must_exist(word))


def _in_folder(folder: str, endings: tuple[str, ...]) -> Iterator[FoundFile]:
    files, others = images_under(folder, "", endings or ("",))
    if not files:
        kind = "images" if endings else "files"
        has = f", only {count_suffixes(others)}" if others else "; it is empty"
        raise UsageError(f"{folder}: no {kind} in this folder{has}")
    for name in files:
        yield FoundFile(os.path.join(folder, name), name)  # noqa: PTH118 -- ten times as fast
