"""Identifies unchanged shipped files in ``model/``, ``data_loader/`` and ``trainer/``.

``shipped_files.json`` holds a hash of each. ``python -m base.names.shipped`` regenerates it, and a
test compares it with the files. A changed file belongs to the project.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from base.system.places import PROJECT

LIST = Path(__file__).with_name("shipped_files.json")
FOLDERS = ("model", "data_loader", "trainer")


def is_shipped(file: str, content: bytes) -> bool:
    """Return whether a file, given relative to the project's root, is shipped and unchanged."""
    return shipped_files().get(file) == digest(content)


@functools.cache
def shipped_files() -> Mapping[str, str]:
    """Return the hash of each shipped file, by its path from the root."""
    try:
        files: dict[str, str] = json.loads(LIST.read_bytes())
    except FileNotFoundError:  # no file counts as shipped
        return {}
    return files


def digest(content: bytes) -> str:
    """Return a hash of a file's text that ignores line endings."""
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()[:16]


def hash_files(root: Path) -> dict[str, str]:
    """Compute the current hashes."""
    paths = (path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py")))
    return {path.relative_to(root).as_posix(): digest(path.read_bytes()) for path in paths}


def passed_own_code(error: BaseException) -> bool:
    """Return whether the traceback of an error includes the project's own code."""
    root = PROJECT
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_file() and path.is_relative_to(root):
            file = path.relative_to(root)
            if file.parts[0] in FOLDERS and not is_shipped(file.as_posix(), path.read_bytes()):
                return True
    return False


if __name__ == "__main__":
    LIST.write_text(json.dumps(hash_files(PROJECT), indent=0) + "\n", encoding="utf-8")
    sys.exit(0)
