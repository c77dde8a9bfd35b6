"""Calls that change the disk, counted, so that a fault can come at each of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from base.checkpoint import state_file

RMTREE = shutil.rmtree


class DiskCalls:
    """Counts the calls that change the disk, and acts at one of them, or from it on.

    These are the calls of base/checkpoint/state_file.py, and each rename, replace and mkdir of a
    path. Of the writes, which are many, only each `every`-th counts; half of it is written.

    Args:
        act: called with this object at the call number `at`, before the call is made.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        at: int,
        act: Callable[[DiskCalls], object],
        lasting: bool = False,
        every: int = 1,
    ) -> None:
        self.at, self.act, self.lasting, self.every = at, act, lasting, every
        self.count = self.n_writes = 0
        self.unsynced: list[int] = []
        patch.setattr(state_file, "os", self)
        patch.setattr(state_file, "SMALL", 1)  # each write by itself, not gathered
        for name in ("rename", "replace", "mkdir"):
            patch.setattr(Path, name, self.wrap(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", self.rmtree)
        self.open = self.wrap(self.open)  # type: ignore[method-assign]
        self.fsync = self.wrap(self.fsync)  # type: ignore[method-assign]

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def is_due(self) -> bool:
        self.count += 1
        return self.count >= self.at if self.lasting else self.count == self.at

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: Any, *arguments: Any, **options: Any) -> Any:
            try:
                if self.is_due():
                    self.act(self)
            except OSError as error:
                if isinstance(what, int):  # a descriptor: the system names no file then
                    raise
                raise OSError(error.errno, error.strerror, str(what)) from None
            return function(what, *arguments, **options)

        return call

    def rmtree(self, path: Path, ignore_errors: bool = False) -> None:
        try:
            if self.is_due():
                self.act(self)
            RMTREE(path, ignore_errors)
        except OSError:
            if not ignore_errors:
                raise

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        descriptor = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self.unsynced.append(os.fstat(descriptor).st_ino)
        return descriptor

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        inode = os.fstat(descriptor).st_ino
        self.unsynced = [each for each in self.unsynced if each != inode]

    def write(self, descriptor: int, data: memoryview) -> int:
        self.n_writes += 1
        has_died = self.lasting and self.count >= self.at
        if has_died or (self.n_writes % self.every == 0 and self.is_due()):
            os.write(descriptor, data[: 0 if has_died else len(data) // 2])
            self.act(self)
        return os.write(descriptor, data)
