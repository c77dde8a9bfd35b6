"""A store of checkpoints that tolerates kills, full disks and bit flips.

A checkpoint is a folder ``step-00000480`` with ``state.pt`` and ``manifest.json``, and the rows of
each process if the model is sharded. It is renamed into place after all of it is synced to disk,
and its hashes are verified before it is used.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from base.checkpoint.background import BackgroundWriter, Snapshot
from base.checkpoint.sharded_state import check_shards, put_back, shards_entry, take_out, write_rows
from base.checkpoint.state_file import (
    check_writable,
    make_folder,
    manifest_bytes,
    plain_copy,
    put_in_trash,
    read_state,
    remove_if_possible,
    sync_folder,
    verify_file,
    write_bytes,
    write_state,
)
from base.distributed.group import ALONE, World
from base.distributed.shard import Division, Rows
from base.errors import CheckpointError, KindlingError, disk_error, why
from base.system.run_folder import missing_folder_error, must_exist
from logger.files import read_file, write_whole

LOG = logging.getLogger("kindling")
VERSION = "0.2.0"
FORMAT = 2
PLAIN_FORMAT = 1  # of checkpoints in one file; earlier versions read those of one process
# migrations[k] converts a state of format k to format k + 1.
migrations: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda state: state}

STATE, MANIFEST = "state.pt", "manifest.json"
# A "~" marks the older of two checkpoints of the same step until the newer one is on disk.
STEP = re.compile(r"step-(\d{8,})(~?)")
N_CHECKED = 10
"""The newest checkpoints whose manifests each save reads again, as they may have been damaged."""


class CheckpointStore:
    """Writes, finds and prunes the checkpoints of one run.

    Args:
        folder: holds the checkpoints; it is created by the first save.
        keep: number of newest checkpoints to keep, beside the best.
        in_background: copy the state in `save` and write the copy in a thread, one at a time.
        validate: called with each state before it is written; an error cancels the save.
        world: the processes that save together, each the rows that it holds of sharded tensors.
    """

    def __init__(
        self,
        folder: Path | str,
        keep: int = 3,
        in_background: bool = False,
        validate: Callable[[dict[str, Any]], object] = lambda _: None,
        world: World = ALONE,
    ) -> None:
        assert keep >= 2, "a single checkpoint may be damaged"
        assert not (in_background and world.is_active), "the threads would not agree on an order"
        self.snapshot = Snapshot() if in_background else None
        self.background = BackgroundWriter()
        self.removal = BackgroundWriter()  # of pruned checkpoints: a large file takes the disk long
        self.folder = Path(folder)
        self.keep = keep
        self.validate, self.world = validate, world
        self._protected: set[Path] = set()
        self._marks: dict[Path, bool] = {}  # of valid ones that a save has read: marked as best

    def check_writable(self) -> None:
        """Write and remove a file, so that the run fails before its first step if it cannot save.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        try:
            check_writable(self.folder)
        except OSError as error:
            text = f"{self.folder}: cannot write here: {why(error)}"
            raise disk_error(error, text) from error

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a killed process; the caller must hold the run's lock."""
        for pattern in (".tmp-*", ".trash-*", ".*.tmp"):
            for leftover in self.folder.glob(pattern):
                remove_if_possible(leftover)

    def protect(self, path: Path | str) -> None:
        """Never prune this checkpoint, such as the one that a run was resumed from."""
        path = Path(path)
        self._protected.add((path.parent if path.name == STATE else path).resolve())

    def save(
        self,
        state: dict[str, Any],
        *,
        step: int,
        epoch: int,
        metrics: Mapping[str, float],
        is_best: bool,
        facts: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint and return its folder. An error leaves older checkpoints untouched.

        In the background, a later call of `check`, `wait` or this method raises the error.
        """
        self.wait()
        storages: dict[int, int] = {}
        state = plain_copy(state, "state", storages)
        path = self.folder / f"step-{step:08d}"
        if not metrics and (earlier := _manifest_or_none(path)):
            # The same step is saved again, for example after a signal: keep its metrics.
            metrics, is_best = earlier["metrics"], is_best or earlier["is_best"]
        manifest = {
            "format": PLAIN_FORMAT,
            "framework_version": VERSION,
            "torch_version": str(torch.__version__),
            "python_version": platform.python_version(),
            "step": step,
            "epoch": epoch,
            "metrics": {name: float(value) for name, value in metrics.items()},
            "is_best": bool(is_best),
            "facts": dict(facts),
        }
        write = partial(self._write, path, manifest, sum(storages.values()))
        if self.snapshot is None:
            write(state)
        else:
            self.background.start(partial(write, self.snapshot.take(state)))
        return path

    def wait(self) -> None:
        """Wait until the last save is on disk and pruned checkpoints are gone; raise its error."""
        self.background.wait()
        self.removal.wait()

    def end(
        self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None
    ) -> None:
        """Wait at the end of a run, unless a second Ctrl-C ends it."""
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            self.wait()

    def _write(
        self, path: Path, manifest: dict[str, Any], n_bytes: int, state: dict[str, Any]
    ) -> None:
        self.validate(state)
        step, world = manifest["step"], self.world
        rows: dict[str, Rows] = {}
        state = take_out(state, rows)
        temporary = self.folder / f".tmp-{step:08d}-{secrets.token_hex(4)}"
        try:
            if world.is_main:
                make_folder(self.folder)
                self._check_space(n_bytes)
                temporary.mkdir()
            temporary = self.folder / world.broadcast(temporary.name)
            written = world.gather(write_rows(temporary, Division(world.rank, world.size), rows))
            if written is None:
                return  # the main process writes the rest
            manifest["files"] = {STATE: write_state(temporary / STATE, state)}
            if rows:
                files, manifest["shards"] = shards_entry(written)
                manifest["files"] |= files
                manifest["format"] = FORMAT
            write_bytes(temporary / MANIFEST, manifest_bytes({**manifest, "complete": True}))
            sync_folder(temporary)
            self._commit(temporary, path)
        except BaseException as error:
            if world.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            elif isinstance(error, FileNotFoundError):
                world.gather({})  # raises the error for which process 0 removed the folder
            if not isinstance(error, Exception) or isinstance(error, KindlingError):
                raise
            run = self.folder.parent
            if isinstance(error, FileNotFoundError) or not run.is_dir():
                raise missing_folder_error(run) from error  # the folder was deleted in the meantime
            text = f"checkpoint not written: {why(error)}; {n_bytes} bytes are needed, "
            text += f"{_free_bytes(self.folder)} are free; the earlier checkpoints are untouched"
            raise disk_error(error, f"{path}: {text}") from error
        self._update_hints(path, step, manifest["is_best"])

    def _check_space(self, n_bytes: int) -> None:
        """Fail before writing if the disk lacks space for the tensors and the file's metadata."""
        disk = shutil.disk_usage(self.folder)
        if disk.total and disk.free < n_bytes + n_bytes // 16 + (1 << 20):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _commit(self, temporary: Path, path: Path) -> None:
        """Rename into place; an older checkpoint of the same step stays readable meanwhile."""
        replaced = path.with_name(path.name + "~")
        if path.exists():
            if replaced.exists():
                remove_if_possible(put_in_trash(replaced))
            path.rename(replaced)
        try:
            temporary.rename(path)
        except BaseException:
            if replaced.exists():
                replaced.rename(path)
            raise
        sync_folder(self.folder)

    def _update_hints(self, saved: Path, step: int, is_best: bool) -> None:
        """Write last.json and best.json, and prune; errors are only logged."""
        try:
            for name in ["last.json", "best.json"][: 1 + is_best]:
                write_whole(self.folder / name, json.dumps({"step": step}).encode())
            self._prune(saved)
        except OSError as error:
            if self.folder.is_dir():  # else the folder was deleted, which the next save reports
                text = "%s: saved, but updating last.json or pruning failed: %s"
                LOG.warning(text, saved, why(error))
        self.removal.start(self._empty_trash)

    def _empty_trash(self) -> None:
        with contextlib.suppress(OSError):  # a folder that is gone: the next save reports it
            for path in self.folder.glob(".trash-*"):
                remove_if_possible(path)

    def _prune(self, saved: Path) -> None:
        """Remove all but the newest `keep` valid checkpoints, the best, this and protected ones."""
        paths = checkpoints_in(self.folder)
        marks = {path: self._mark(path, number) for number, path in enumerate(paths)}
        self._marks = {path: is_best for path, is_best in marks.items() if is_best is not None}
        spared = {saved, next((path for path, is_best in marks.items() if is_best), saved)}
        n_whole = 0
        for path, is_best in marks.items():
            if _step_order(path) > _step_order(saved):
                # Steps only increase, so it predates a resume from an earlier step.
                path.rename(path.with_name(f"aside-{path.name}-{secrets.token_hex(4)}"))
            elif path.name.endswith("~") and marks.get(path.with_name(path.name[:-1])) is not None:
                put_in_trash(path)
            elif n_whole < self.keep or path in spared or path.resolve() in self._protected:
                n_whole += is_best is not None
            else:
                put_in_trash(path)

    def _mark(self, path: Path, number: int) -> bool | None:
        """Return whether the n-th newest checkpoint is marked as best; None if it is damaged."""
        if number >= N_CHECKED and path in self._marks:
            return self._marks[path]
        manifest = _manifest_or_none(path)
        return None if manifest is None else manifest["is_best"]

    def newest(self) -> Path | None:
        """Return the newest valid checkpoint, and log a warning for each damaged one skipped."""
        return _first_valid(self.folder, checkpoints_in(self.folder), _verify_checkpoint)[0]

    def best(self) -> Path | None:
        """Return the last valid checkpoint that was the best of its run when it was saved.

        If all of these are damaged, return the newest and log a warning; None if none was best.
        """
        return _first_valid(self.folder, _best_first(self.folder), _verify_checkpoint)[0]


def read(path: Path | str) -> dict[str, Any]:
    """Return the verified state of a checkpoint, or the newest valid one of a run's folder.

    If the path names a checkpoint (its folder or state.pt), no other one is used instead.
    """
    return read_from(path)[1]


def read_with_manifest(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state as `read` does, and the manifest of that checkpoint."""
    return read_from(path)[1:]


def read_from(
    path: Path | str, division: Division | None = None
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Return the folder of a checkpoint, its state as `read` does, and its manifest.

    Args:
        division: of tensors that several processes saved, read only the `Rows` of this process. A
            process other than 0 verifies only the files that have them.
    """
    candidates = _candidates(path)
    if candidates is None:
        folder = checkpoint_folder(Path(path))
        return folder, _read_checkpoint(folder, division), read_manifest(folder)
    read_one = partial(_read_checkpoint, division=division)
    found, state = _first_valid(checkpoint_folder(Path(path)), candidates, read_one)
    if found is None:
        raise CheckpointError(f"{path}: holds no checkpoint (a folder like step-00000480)")
    return found, state, read_manifest(found)


def write_joined(source: Path, out: Path) -> None:
    """Write a checkpoint again with a single file of state, as one process saves it.

    Args:
        out: a new folder. The checkpoint in it keeps step, metrics and all facts.

    Raises:
        CheckpointError: the checkpoint cannot be read or written.
    """
    state, manifest = read_with_manifest(source)
    manifest.pop("shards", None)
    temporary = out.with_name(f".tmp-{out.name}-{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        manifest["files"] = {STATE: write_state(temporary / STATE, plain_copy(state, "state", {}))}
        manifest["format"] = PLAIN_FORMAT
        write_bytes(temporary / MANIFEST, manifest_bytes(manifest))
        sync_folder(temporary)
        temporary.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_error(error, f"{out}: not written: {why(error)}") from error


def find_manifest(path: Path | str) -> dict[str, Any]:
    """Return the manifest of a checkpoint, or the newest valid manifest of a run; {} if none.

    The state is not read, so it may turn out to be damaged.
    """
    candidates = _candidates(path)
    folders = [checkpoint_folder(Path(path))] if candidates is None else candidates
    return next(filter(None, map(_manifest_or_none, folders)), {})


def checkpoint_folder(path: Path) -> Path:
    """Return the folder of the checkpoint that a path names, or a folder of several checkpoints."""
    folder = path.parent if path.name == STATE and path.is_file() else path
    return folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder


def _candidates(path: Path | str) -> list[Path] | None:
    """Return the checkpoints below a path, the newest first; None if it names a single one."""
    folder = checkpoint_folder(must_exist(path))
    is_one = STEP.fullmatch(folder.name) or (folder / MANIFEST).exists()
    return None if is_one else checkpoints_in(folder)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Return a checkpoint's manifest (step, epoch, metrics, ...).

    Raises:
        CheckpointError: it is missing, damaged or of a newer format, or the size of a file differs.
    """
    folder = Path(folder)
    try:
        content = read_file(folder / MANIFEST)
        manifest: dict[str, Any] = json.loads(content)
        if manifest_bytes(manifest) != content or manifest["complete"] is not True:
            raise CheckpointError("its manifest is damaged")
        version = manifest["format"]
        if version > FORMAT:
            raise _NewerFormatError(
                f"{folder}: written by a newer version: its format is {version}, this one reads "
                f"up to {FORMAT}; update Kindling"
            )
        for name, facts in manifest["files"].items():
            n_bytes = (folder / name).stat().st_size
            if n_bytes != facts["bytes"]:
                raise CheckpointError(f"{name} has {n_bytes} bytes, not {facts['bytes']}")
    except _NewerFormatError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder}: not a valid checkpoint: {why(error)}") from error
    return manifest


def _first_valid(
    folder: Path, paths: Iterable[Path], read_one: Callable[[Path], dict[str, Any]]
) -> tuple[Path | None, dict[str, Any]]:
    """Return the first checkpoint that can be read; log the ones that cannot in one line."""
    damaged: list[str] = []
    for path in paths:
        try:
            state = read_one(path)
        except _NewerFormatError:
            raise
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            LOG.warning("%s; falling back to %s", "; ".join(damaged), path)
        return path, state
    if damaged:
        raise CheckpointError(
            f"{folder}: none of its checkpoints is valid; start from scratch without -r, or name "
            "another run:\n  " + "\n  ".join(damaged)
        )
    return None, {}


def _read_checkpoint(folder: Path, division: Division | None = None) -> dict[str, Any]:
    manifest = read_manifest(folder)
    try:
        state: dict[str, Any] = read_state(folder / STATE, manifest["files"][STATE]["sha256"])
        if not isinstance(state, dict):
            raise CheckpointError(f"it holds a {type(state).__name__}, not a dict")
    except Exception as error:
        raise CheckpointError(f"{folder / STATE}: {why(error)}") from error
    try:
        if "shards" in manifest:
            state = put_back(state, folder, manifest, division)
    except Exception as error:
        raise CheckpointError(f"{folder}: {why(error)}") from error
    try:
        for version in range(manifest["format"], FORMAT):
            state = migrations[version](state)
    except Exception as error:
        raise CheckpointError(f"{folder / STATE}: {why(error)}") from error
    return state


def _verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Read a checkpoint; of one that several processes saved, only compare the hashes."""
    manifest = read_manifest(folder)
    if "shards" not in manifest:
        return _read_checkpoint(folder)
    path = folder
    try:
        check_shards(manifest["shards"], manifest["files"])
        for name in (STATE, *manifest["shards"]["files"]):
            path = folder / name
            verify_file(path, manifest["files"][name]["sha256"])
    except Exception as error:
        raise CheckpointError(f"{path}: {why(error)}") from error
    return {}


class _NewerFormatError(CheckpointError):
    """A valid checkpoint of a later version. It is not damaged, so it is never skipped."""


def _manifest_or_none(folder: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(folder)
    except CheckpointError:
        return None


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the highest step first."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        (path for path in entries if STEP.fullmatch(path.name)), key=_step_order, reverse=True
    )


def _step_order(path: Path) -> tuple[int, bool]:
    """Return a sort key: the step, and whether it is the newer checkpoint of that step."""
    return int(path.name[5:].rstrip("~")), not path.name.endswith("~")


def _best_first(folder: Path) -> Iterator[Path]:
    """Yield the checkpoints marked as best, then all, the newest first; none if none is marked.

    Manifests are read as far as needed.
    """
    is_marked = False
    for path in checkpoints_in(folder):
        manifest = _manifest_or_none(path)
        if manifest and manifest["is_best"]:
            is_marked = True
            yield path
    if is_marked:
        yield from checkpoints_in(folder)


def _free_bytes(folder: Path) -> str:
    try:
        return str(shutil.disk_usage(folder).free)
    except OSError:
        return "an unknown number"
