"""The files of a checkpoint (state and manifest): synced when written, verified when read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import queue
import secrets
import shutil
import sys
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from base.checkpoint.torch_archive import write_archive
from base.checkpoint.torch_file import MAX_DEPTH, load_torch_file, unsupported_kind
from base.distributed.shard import Rows, is_sharded, rows_of
from base.errors import CheckpointError
from logger.files import open_file

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
SMALL = 1 << 18  # bytes: what is smaller is gathered before it is written
LARGE = 1 << 23  # bytes that are written before the disk is asked to begin with them
MOST_UNHASHED = 1 << 28  # bytes that wait for the hash: of a GPU model, each storage is a copy
KEYS = (str, int, float, bool, type(None))
LEAVES = (*KEYS, complex, torch.Size, torch.dtype, torch.device)


def plain_copy(value: Any, where: str, storages: dict[int, int], depth: int = 0) -> Any:
    """Copy a state without the contents of its tensors, so that equal states give equal bytes.

    The size of each storage is added to ``storages``.

    Raises:
        CheckpointError: a value, named in the message, cannot be loaded with ``weights_only``.
    """
    kind = type(value)
    if kind is str:
        return sys.intern(value)  # pickle writes an object once: intern equal strings
    if kind in LEAVES:
        return value
    if isinstance(value, Tensor):
        return _plain_tensor(value, where, storages)
    if isinstance(value, Rows):
        return replace(value, tensor=_counted(value.tensor, storages))
    if kind in (list, tuple) and depth < MAX_DEPTH:
        return kind(
            plain_copy(item, f"{where}[{i}]", storages, depth + 1) for i, item in enumerate(value)
        )
    if kind not in (dict, OrderedDict, Counter) or depth >= MAX_DEPTH:
        problem = f"nested deeper than {MAX_DEPTH}" if depth >= MAX_DEPTH else kind.__qualname__
        raise CheckpointError(
            f"{where}: {problem}: a checkpoint holds tensors and plain data only "
            "(dict, list, tuple, str, int, float, bool, None); convert it to one of these"
        )
    copied: Any = kind()
    for key, item in value.items():
        if not is_key(key):
            text = f"the key {key!r:.99} is not a str or a number of 64 bits: convert it to one"
            raise CheckpointError(f"{where}: {text}")
        name = f"{where}[{key!r}]"
        copied[plain_copy(key, name, storages)] = plain_copy(item, name, storages, depth + 1)
    if hasattr(value, "_metadata"):  # the versions of a module's submodules
        copied._metadata = plain_copy(value._metadata, f"{where}._metadata", storages, depth + 1)
    return copied


def is_key(value: Any) -> bool:
    """Return whether a value may be a key; larger integers can be made to share one hash."""
    return type(value) in KEYS and not (type(value) is int and value.bit_length() > 64)


def _plain_tensor(tensor: Tensor, where: str, storages: dict[int, int]) -> Tensor | Rows:
    if is_sharded(tensor):
        return _plain_rows(tensor, where, storages)
    unsupported = unsupported_kind(tensor)
    if type(tensor) not in (Tensor, nn.Parameter) or unsupported:
        kind = f"a {unsupported} tensor" if unsupported else type(tensor).__qualname__
        raise CheckpointError(f"{where}: {kind} cannot be saved: convert it to a plain tensor")
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    if tensor.layout is not torch.strided:
        return tensor
    # A view would save the whole storage; an expanded tensor would be refused as an attack.
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.cpu().clone(memory_format=torch.contiguous_format)
    return _counted(tensor, storages)


def _plain_rows(tensor: Tensor, where: str, storages: dict[int, int]) -> Rows:
    """Return the rows of a sharded tensor; they stay views, so that shared weights are shared."""
    try:
        rows = rows_of(tensor)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}, cannot be saved") from error
    _counted(rows.tensor, storages)
    return rows


def _counted(tensor: Tensor, storages: dict[int, int]) -> Tensor:
    storages[tensor.untyped_storage().data_ptr()] = tensor.nbytes
    return tensor


def write_state(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """Write a plain state and sync it to the disk; return its size in bytes and its sha256."""
    with _HashedFile(path) as file:
        write_archive(state, file)
        return {"bytes": file.n_bytes, "sha256": file.sha256_so_far()}


def write_bytes(path: Path, content: bytes) -> None:
    """Write a new small file and sync it to the disk."""
    descriptor = os.open(path, NEW, 0o666)
    try:
        _write_all(descriptor, memoryview(content))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder if it is missing, so that it survives a power loss."""
    if not folder.exists():
        folder.mkdir()
        sync_folder(folder.parent)


def check_writable(folder: Path) -> None:
    """Create a folder; write and remove a file in it and beside it.

    The folders above it, which may have been created for it, then survive a power loss too.

    Raises:
        OSError: the folder or a file cannot be written.
    """
    make_folder(folder)
    for each in (folder.parent, folder):
        probe = each / f".tmp-probe-{secrets.token_hex(4)}"
        write_bytes(probe, b"probe")
        probe.unlink()
    # These are the run, its name, the folder of all runs, and its parent.
    for above in list(folder.absolute().parents)[:4]:
        with suppress(OSError):  # it may not be readable
            sync_folder(above)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder, so that they survive a power loss (not on Windows)."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_in_trash(folder: Path) -> Path:
    """Rename a checkpoint that is to be removed, so that at any moment it is complete or absent."""
    return folder.rename(folder.with_name(f".trash-{secrets.token_hex(4)}-{folder.name}"))


def remove_if_possible(path: Path) -> None:
    """Remove a file or a folder, and ignore errors."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


class _HashedFile:
    """A new file, hashed in a thread while it is written, and synced at the end of the block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._small = bytearray()  # not written yet: few large writes take less time
        self._n_written = self._n_begun = 0  # bytes; those that the disk was told to receive
        self._sha256 = hashlib.sha256()
        self._queue: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._n_unhashed = 0  # bytes
        self._is_hashed = threading.Condition()
        self._error: BaseException | None = None  # of the hash
        self._thread = threading.Thread(target=self._hash, name="hash")

    def __enter__(self) -> _HashedFile:
        self._descriptor = os.open(self.path, NEW, 0o666)
        self._thread.start()
        return self

    def write(self, data: bytes | memoryview) -> None:
        self.n_bytes += len(data)
        if len(data) < SMALL:
            self._small += data
            if len(self._small) >= SMALL:
                self._write_small()
            return
        self._write_small()
        self._put(memoryview(data))

    def sha256_so_far(self) -> str:
        """Return the hash of all that was written; meanwhile the disk receives it."""
        self._write_small()
        os.fsync(self._descriptor)
        self._wait_for_hash(0)
        if self._error is not None:
            raise self._error
        return self._sha256.hexdigest()

    def _write_small(self) -> None:
        if self._small:
            small, self._small = bytes(self._small), bytearray()
            self._put(memoryview(small))

    def _put(self, view: memoryview) -> None:
        self._wait_for_hash(max(0, MOST_UNHASHED - len(view)))  # a larger one is alone
        with self._is_hashed:
            self._n_unhashed += len(view)
        self._queue.put(view)
        while view:
            n_bytes = os.write(self._descriptor, view[:LARGE])
            view = view[n_bytes:]
            self._n_written += n_bytes
            if self._n_written - self._n_begun >= LARGE:
                self._begin_writeback()

    def _begin_writeback(self) -> None:
        """Let the disk receive what is written while more is; else it begins at the `fsync`."""
        if hasattr(os, "posix_fadvise"):  # on Linux this begins to write back what is dirty
            n_bytes = self._n_written - self._n_begun
            os.posix_fadvise(self._descriptor, self._n_begun, n_bytes, os.POSIX_FADV_DONTNEED)
        self._n_begun = self._n_written

    def _wait_for_hash(self, n_bytes: int) -> None:
        """Wait until at most this many bytes are still to be hashed."""
        with self._is_hashed:
            self._is_hashed.wait_for(lambda: self._n_unhashed <= n_bytes)

    def _hash(self) -> None:
        while (view := self._queue.get()) is not None:
            try:
                self._sha256.update(view)
            except BaseException as error:  # the writer, which waits for this thread, raises it
                self._error = error
            with self._is_hashed:
                self._n_unhashed -= len(view)
                self._is_hashed.notify()

    def __exit__(self, *_: object) -> None:
        try:
            os.close(self._descriptor)
        finally:
            self._queue.put(None)
            self._thread.join()


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def read_state(path: Path, sha256: str) -> Any:
    """Return the state that `write_state` wrote, with tensors on the CPU.

    Raises:
        CheckpointError: the file does not have this hash.
    """
    with open_file(path) as file:
        _verify(file, sha256)
        return load_torch_file(file, is_verified=True, allows_objects=False)


def verify_file(path: Path, sha256: str) -> None:
    """Read a file without loading it; raise as `read_state` does."""
    with open_file(path) as file:
        _verify(file, sha256)


def _verify(file: BinaryIO, sha256: str) -> None:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise CheckpointError("damaged: its sha256 differs from the one in the manifest")


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as JSON with a checksum of its other entries."""
    content = _json_ready({key: item for key, item in manifest.items() if key != "checksum"})
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum}, indent=2).encode() + b"\n"


def _json_ready(value: Any) -> Any:
    """Replace the floats that JSON lacks (nan, inf) with their names."""
    if isinstance(value, Mapping):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
