"""Power loss: what changed a folder is recorded, and what a disk may hold after it is made from it.

What is promised of a disk is what POSIX promises, no more: the content of a file is there once the
file is synced, a name once its folder is. Of what is not synced any part may be there: of writes
each block of 4 KiB by itself, of names each change by itself. A rename is made whole or not at all.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from base.checkpoint import state_file

BLOCK = 4096
Change = tuple[str, Path, Any]  # what, where, and the bytes written or the new name


class Recorder:
    """Records each change below a folder while it is made, by state_file.py or a path."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.changes: list[Change] = []
        self._paths: dict[int, Path] = {}
        patch.setattr(state_file, "os", self)
        patch.setattr(state_file, "SMALL", 1)  # each write by itself, not gathered
        for name in ("rename", "replace", "mkdir", "unlink"):
            patch.setattr(Path, name, self._recorded(name, getattr(Path, name)))
        patch.setattr(shutil, "rmtree", self._recorded("rmtree", shutil.rmtree))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _recorded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *arguments: Any, **options: Any) -> Any:
            inside = sorted(path.rglob("*"), reverse=True) if name == "rmtree" else []
            existed = path.exists()
            result = function(path, *arguments, **options)
            if existed == (name == "mkdir"):
                return result  # `exist_ok`, `missing_ok`: nothing has changed
            for each in inside:
                self.changes.append(("unlink", each, None))
            kind = {"replace": "rename", "rmtree": "unlink"}.get(name, name)
            self.changes.append((kind, path, arguments[0] if kind == "rename" else None))
            return result

        return call

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        descriptor = os.open(path, flags, mode)
        self._paths[descriptor] = path
        if flags & os.O_CREAT:
            self.changes.append(("create", path, None))
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self.changes.append(("write", self._paths[descriptor], bytes(data)))
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self.changes.append(("fsync", self._paths[descriptor], None))


@dataclass
class File:
    """A file on the disk: what is synced of it, and what is not yet."""

    content: bytes = b""
    pending: list[bytes] = field(default_factory=list)

    def sync(self) -> None:
        self.content, self.pending = self.content + b"".join(self.pending), []

    def after_loss(self, draw: random.Random, share: float) -> bytes:
        """Return what may be left of it: of what is not synced each block with this chance."""
        later, kept = b"".join(self.pending), bytearray(self.content)
        for start in range(0, len(later), BLOCK):
            block = later[start : start + BLOCK]
            kept += block if draw.random() < share else bytes(len(block))
        # How long it is, is written by itself too.
        return bytes(
            kept[: draw.choice([len(self.content), len(kept), len(self.content) + len(later) // 2])]
        )


@dataclass
class Folder:
    """A folder on the disk: the names that are synced, and the changes that are not yet."""

    names: dict[str, File | Folder] = field(default_factory=dict)
    pending: list[tuple[str | None, str | None, File | Folder]] = field(default_factory=list)

    def now(self) -> dict[str, File | Folder]:
        """Return the names that a running system shows."""
        return self._with(self.pending)

    def sync(self) -> None:
        self.names, self.pending = self.now(), []

    def change(self, old: str | None, new: str | None, what: File | Folder) -> None:
        """Take an old name away and give a new one, at once."""
        self.pending.append((old, new, what))

    def after_loss(self, draw: random.Random, share: float) -> dict[str, File | Folder]:
        """Return the names that may be left: each change that is not synced with this chance."""
        return self._with([one for one in self.pending if draw.random() < share])

    def _with(
        self, changes: list[tuple[str | None, str | None, File | Folder]]
    ) -> dict[str, File | Folder]:
        names = dict(self.names)
        for old, new, what in changes:
            if old is not None:
                names.pop(old, None)
            if new is not None:
                names[new] = what
        return names


class Disk:
    """A folder as a disk has it, to which recorded changes are made."""

    def __init__(self, root: Path) -> None:
        """Take over the folder as it is: all of it is on the disk."""
        self.root, self.top = root, _taken(root)

    def make(self, change: Change) -> None:
        kind, path, what = change
        if kind in ("write", "fsync"):
            node = self._find(path)
            if kind == "fsync":
                node.sync()
            else:
                node.pending.append(what)
            return
        parent, found = self._find(path.parent), None
        if kind in ("rename", "unlink"):
            # Of a file that is written by another way than ``os``, only the name is recorded.
            found = parent.now().get(path.name) or File()
        if kind == "rename":
            assert Path(what).parent == path.parent
            parent.change(path.name, Path(what).name, found)
        elif kind == "unlink":
            parent.change(path.name, None, found)
        else:
            parent.change(None, path.name, Folder() if kind == "mkdir" else File())

    def lose_power(self, to: Path, draw: random.Random, share: float) -> None:
        """Write into a new folder what may be left."""

        def write(folder: Folder, path: Path) -> None:
            path.mkdir()
            for name, node in folder.after_loss(draw, share).items():
                if isinstance(node, Folder):
                    write(node, path / name)
                else:
                    (path / name).write_bytes(node.after_loss(draw, share))

        write(self.top, to)

    def _find(self, path: Path) -> Any:
        node: Any = self.top
        for part in path.relative_to(self.root).parts:
            node = node.now()[part]
        return node


def _taken(path: Path) -> Folder:
    return Folder(
        {
            each.name: _taken(each) if each.is_dir() else File(each.read_bytes())
            for each in path.iterdir()
        }
    )
