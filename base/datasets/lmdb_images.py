"""Images in an LMDB database: a large file instead of many small ones."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base.datasets.image_files import ImageListDataset
from base.datasets.labels import Classes, raise_problems
from base.errors import DataError, Problem
from logger.files import open_file


class LmdbImageDataset(ImageListDataset):
    """Encoded images (JPEG, PNG, ...) by key in LMDB, and a list of ``key label`` lines.

    Each process opens the database when it reads its first image.

    Raises:
        DataError: as for an `ImageListDataset`; or lmdb or the database is missing.
    """

    def __init__(
        self,
        path: str,
        list_file: str,
        label: int | Sequence[int] | None = None,
        task: str = "classification",
        classes: Classes = None,
        mode: str = "RGB",
        resize: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__(list_file, path, label, task, classes, mode, resize)

    def encoded(self, index: int) -> bytes:
        """Return the encoded bytes of an image."""
        with _open(self.root).begin() as transaction:
            content = transaction.get(self.ids[index].encode())
        if content is None:
            raise DataError(f"{self.place(index)}: {self.root} has no such key")
        return bytes(content)

    def facts(self, index: int) -> tuple[int, int]:
        """Return the size and modification time of the database."""
        path = Path(self.root)
        facts = (path / "data.mdb" if path.is_dir() else path).stat()
        return facts.st_size, facts.st_mtime_ns

    def refuse_missing(self) -> None:
        """Check that all keys exist."""
        with _open(self.root).begin() as transaction:
            keys = transaction.cursor()
            missing = [i for i, key in enumerate(self.ids) if not keys.set_key(key.encode())]
        text = f"{self.root} has no such key"
        raise_problems([Problem(self.place(index), text) for index in missing])


_environments: dict[str, Any] = {}  # of this process, in which LMDB opens a database once
_one_at_a_time = threading.Lock()


def _open(path: str) -> Any:
    """Open a database for reading."""
    try:
        import lmdb
    except ImportError as error:
        raise DataError(f"{path}: lmdb is not installed: pip install lmdb") from error
    with _one_at_a_time:
        if path not in _environments:
            options = {"subdir": Path(path).is_dir(), "readonly": True, "lock": False}
            try:
                open_file(Path(path, "data.mdb") if options["subdir"] else path).close()
                _environments[path] = lmdb.open(path, readahead=False, **options)
            except (lmdb.Error, OSError) as error:
                text = f"not a readable LMDB database: {error}"
                raise DataError(f"{path}: {text}") from error
        return _environments[path]


def _close_inherited() -> None:
    """Close the databases inherited from the parent process, where they stay open."""
    for environment in _environments.values():
        environment.close()
    _environments.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
