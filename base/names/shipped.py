"""Files of ``model/``, ``data_loader/`` and ``trainer/`` that are as they came with Kindling.

``shipped_files.json`` has a hash of each; ``python -m base.names.shipped`` writes it again, and a
test compares it with the files. A file that its owner has changed is the project's own.
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
    """Return whether a file, named from the project's root, is as it came with Kindling."""
    return shipped_files().get(file) == digest(content)


@functools.cache
def shipped_files() -> Mapping[str, str]:
    """Return the hash of each file that came with Kindling, by its path from the root."""
    try:
        files: dict[str, str] = json.loads(LIST.read_bytes())
    except FileNotFoundError:  # then no file counts as one of Kindling's
        return {}
    return files


def digest(content: bytes) -> str:
    """Return a hash of a file's text, whatever its line endings."""
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()[:16]


def hash_files(root: Path) -> dict[str, str]:
    """Return the hashes as they are now."""
    paths = (path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py")))
    return {path.relative_to(root).as_posix(): digest(path.read_bytes()) for path in paths}


def passed_own_code(error: BaseException) -> bool:
    """Return whether an error passed code of the project that did not come with Kindling."""
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
