"""Checkpoints that outlive kills, full disks, flipped bits and changed models.

One is a folder ``step-00000480`` of ``state.pt`` and ``manifest.json``: it appears by one rename
once all of it is on the disk, and each byte is verified before any is used.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from base.checkpoint.background import Background, Snapshot, changed_by_steps_alone
from base.checkpoint.manifest import sealed
from base.checkpoint.restoration import load_weights, restore
from base.checkpoint.state_file import (
    discard,
    make_folder,
    open_folder,
    plain_copy,
    read_state,
    remove,
    sync_folder,
    write_bytes,
    write_state,
)
from base.errors import CheckpointError, disk_error, why
from base.system.run_folder import missing_folder_error, must_exist
from logger.files import read_file

__all__ = ["CheckpointStore", "load_weights", "migrations", "read", "read_manifest", "restore"]

LOG = logging.getLogger("kindling")
VERSION = "0.1.0"
FORMAT = 1
# migrations[k] turns a state of format k into one of format k + 1.
migrations: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

STATE, MANIFEST = "state.pt", "manifest.json"
# A "~" marks the older of two checkpoints of one step, until the newer one is safe.
STEP = re.compile(r"step-(\d{8,})(~?)")


class CheckpointStore:
    """The checkpoints of one run: writes, finds and prunes them."""

    def __init__(self, folder: Path | str, keep: int = 3, in_background: bool = False) -> None:
        """With ``in_background`` a thread writes, one checkpoint at a time, what `save` copies."""
        assert keep >= 2, "one checkpoint is not enough: it may be the damaged one"
        self.snapshot = Snapshot() if in_background else None
        self.background = Background()
        self.folder = Path(folder)
        self.keep = keep
        # Called with each state before it is written; what it raises stops the save.
        self.look: Callable[[dict[str, Any]], object] = lambda _: None
        self._protected: set[Path] = set()

    def probe(self) -> None:
        """Write and remove a file, so that a bad folder stops the run before its first step."""
        try:
            open_folder(self.folder)
        except OSError as error:
            text = f"{self.folder}: cannot write here: {why(error)}"
            raise disk_error(error, text) from error

    def sweep(self) -> None:
        """Remove what a killed process left behind; call it when the run's lock is held."""
        for pattern in (".tmp-*", ".trash-*"):
            for leftover in self.folder.glob(pattern):
                remove(leftover)

    def protect(self, path: Path | str) -> None:
        """Keep the checkpoint that a run was resumed from, however old it gets."""
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
        owners: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write one checkpoint and return its folder; on an error the older ones are untouched.

        In the background, the error comes from a later call of `check`, `wait` or this function;
        what those `owners` of the state that are optimizers hold is copied while they do not step.
        """
        self.wait()
        storages: dict[int, int] = {}
        state = plain_copy(state, "state", storages)
        path = self.folder / f"step-{step:08d}"
        if not metrics and (earlier := _manifest_or_none(path)):
            # The same step again, as on a signal: what was known of it stays known.
            metrics, is_best = earlier["metrics"], is_best or earlier["is_best"]
        manifest = {
            "format": FORMAT,
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
            optimizers = changed_by_steps_alone(owners or {})
            write = partial(write, self.snapshot.begin(state, optimizers))
            self.background.start(write, self.snapshot.finish, optimizers.values())
        return path

    def check(self) -> None:
        """Raise the error of a checkpoint that was written in the background, if it is known."""
        self.background.check()

    def wait(self) -> None:
        """Wait until what `save` was given is on the disk, or raise why it is not."""
        self.background.wait()

    def _write(
        self, path: Path, manifest: dict[str, Any], n_bytes: int, state: dict[str, Any]
    ) -> None:
        self.look(state)
        step = manifest["step"]
        temporary = self.folder / f".tmp-{step:08d}-{secrets.token_hex(4)}"
        try:
            make_folder(self.folder)
            self._check_space(n_bytes)
            temporary.mkdir()
            manifest["files"] = {STATE: write_state(temporary / STATE, state)}
            write_bytes(temporary / MANIFEST, sealed({**manifest, "complete": True}))
            sync_folder(temporary)
            self._commit(temporary, path)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, Exception):
                raise
            run = self.folder.parent
            if isinstance(error, FileNotFoundError) or not run.is_dir():
                # What was made a moment ago has been taken away.
                raise missing_folder_error(run) from error
            text = f"checkpoint not written: {why(error)}; {n_bytes} bytes needed, "
            text += f"{_free(self.folder)} free; the checkpoints before it are untouched"
            raise disk_error(error, f"{path}: {text}") from error
        self._tidy(path, step, manifest["is_best"])

    def _check_space(self, n_bytes: int) -> None:
        """Fail before writing, with some room for the file's own tables."""
        disk = shutil.disk_usage(self.folder)
        if disk.total and disk.free < n_bytes + n_bytes // 16 + (1 << 20):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _commit(self, temporary: Path, path: Path) -> None:
        """Rename into place; an older checkpoint of the same step stays readable throughout."""
        replaced = path.with_name(path.name + "~")
        if path.exists():
            if replaced.exists():
                discard(replaced)
            path.rename(replaced)
        try:
            temporary.rename(path)
        except BaseException:
            if replaced.exists():
                replaced.rename(path)
            raise
        sync_folder(self.folder)

    def _tidy(self, saved: Path, step: int, is_best: bool) -> None:
        """Write the hints and prune; the checkpoint is safe, so errors here are only reported."""
        try:
            for name in ["last.json", "best.json"][: 1 + is_best]:
                temporary = self.folder / f".tmp-{secrets.token_hex(4)}-{name}"
                write_bytes(temporary, json.dumps({"step": step}).encode())
                temporary.replace(self.folder / name)
            self._prune(saved)
        except OSError as error:
            if self.folder.is_dir():  # else somebody has taken it away: the next save says so
                LOG.warning("%s: saved, but tidying up failed: %s", saved, why(error))

    def _prune(self, saved: Path) -> None:
        """Discard all but the last `keep` whole ones, the best, the saved and the protected."""
        manifests = {path: _manifest_or_none(path) for path in _listed(self.folder)}
        spared = {saved, *_marked_best(manifests)[:1]}
        n_whole = 0
        for path, manifest in manifests.items():
            if _order(path) > _order(saved):
                # Steps only grow: this one is from before the run went back to an earlier step.
                path.rename(path.with_name(f"aside-{path.name}-{secrets.token_hex(4)}"))
            elif path.name.endswith("~") and manifests.get(path.with_name(path.name[:-1])):
                discard(path)
            elif n_whole < self.keep or path in spared or path.resolve() in self._protected:
                n_whole += manifest is not None
            else:
                discard(path)

    def newest(self) -> Path | None:
        """Return the newest valid checkpoint, with a warning for each damaged one passed over."""
        return _first_valid(self.folder, _listed(self.folder))[0]

    def best(self) -> Path | None:
        """Return the last valid checkpoint that was the best of its run when saved.

        Where all of these are damaged it is the newest, with a warning; None where none was best.
        """
        manifests = {path: _manifest_or_none(path) for path in _listed(self.folder)}
        marked = _marked_best(manifests)
        return _first_valid(self.folder, [*marked, *manifests] if marked else [])[0]


def read(path: Path | str) -> dict[str, Any]:
    """Return the verified state of a checkpoint, or the newest valid one of a run's folder.

    An explicitly named checkpoint (its folder or state.pt) is that one or an error, never another.
    """
    return read_whole(path)[0]


def read_whole(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `read` does, and the manifest of that checkpoint."""
    candidates = _meant_by(path)
    if candidates is None:
        folder = _folder_of(Path(path))
        return _read_checkpoint(folder), read_manifest(folder)
    found, state = _first_valid(_folder_of(Path(path)), candidates)
    if found is None:
        raise CheckpointError(f"{path}: holds no checkpoint (a folder like step-00000480)")
    return state, read_manifest(found)


def peek_manifest(path: Path | str) -> dict[str, Any]:
    """Return the manifest of a checkpoint, or of a run's newest that has a whole one; {} of none.

    Nothing is read of the state, which may turn out to be damaged.
    """
    candidates = _meant_by(path)
    folders = [_folder_of(Path(path))] if candidates is None else candidates
    return next(filter(None, map(_manifest_or_none, folders)), {})


def _folder_of(path: Path) -> Path:
    """Return the checkpoint that a path names, or the folder of several."""
    folder = path.parent if path.name == STATE and path.is_file() else path
    return folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder


def _meant_by(path: Path | str) -> list[Path] | None:
    """Return the checkpoints that a path may mean, the newest first; None where it names one."""
    folder = _folder_of(must_exist(path))
    is_one = STEP.fullmatch(folder.name) or (folder / MANIFEST).exists()
    return None if is_one else _listed(folder)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Return a checkpoint's manifest (step, epoch, metrics, facts ...) if it is whole and known."""
    folder = Path(folder)
    try:
        content = read_file(folder / MANIFEST)
        manifest: dict[str, Any] = json.loads(content)
        if sealed(manifest) != content or manifest["complete"] is not True:
            raise CheckpointError("its manifest is damaged")
        version = manifest["format"]
        if version > FORMAT:
            raise _NewerFormatError(
                f"{folder}: written by a newer version: its format is {version}, this one reads up "
                f"to {FORMAT}; update this code"
            )
        for name, facts in manifest["files"].items():
            n_bytes = (folder / name).stat().st_size
            if n_bytes != facts["bytes"]:
                raise CheckpointError(f"{name} has {n_bytes} bytes, not {facts['bytes']}")
    except _NewerFormatError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder}: no whole checkpoint: {why(error)}") from error
    return manifest


def _first_valid(folder: Path, paths: Iterable[Path]) -> tuple[Path | None, dict[str, Any]]:
    """Return the first checkpoint that can be read; say in one line which ones could not."""
    damaged: list[str] = []
    for path in paths:
        try:
            state = _read_checkpoint(path)
        except _NewerFormatError:
            raise
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            LOG.warning("%s; going back to %s", "; ".join(damaged), path)
        return path, state
    if damaged:
        raise CheckpointError(
            f"{folder}: not one of its checkpoints is whole; start anew without -r, or name "
            "another run:\n  " + "\n  ".join(damaged)
        )
    return None, {}


def _read_checkpoint(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    try:
        state: dict[str, Any] = read_state(folder / STATE, manifest["files"][STATE]["sha256"])
        if not isinstance(state, dict):
            raise CheckpointError(f"it holds a {type(state).__name__}, not a dict")
        for version in range(manifest["format"], FORMAT):
            state = migrations[version](state)
    except Exception as error:
        raise CheckpointError(f"{folder / STATE}: {why(error)}") from error
    return state


class _NewerFormatError(CheckpointError):
    """A whole checkpoint of a later version: not damaged, so never passed over."""


def _manifest_or_none(folder: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(folder)
    except CheckpointError:
        return None


def _listed(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the highest step first, whatever their dates."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in entries if STEP.fullmatch(path.name)), key=_order, reverse=True)


def _order(path: Path) -> tuple[int, bool]:
    """Return the step of a checkpoint, and whether it is the newer one of that step."""
    return int(path.name[5:].rstrip("~")), not path.name.endswith("~")


def _marked_best(manifests: Mapping[Path, dict[str, Any] | None]) -> list[Path]:
    return [path for path, manifest in manifests.items() if manifest and manifest["is_best"]]


def _free(folder: Path) -> str:
    try:
        return str(shutil.disk_usage(folder).free)
    except OSError:
        return "an unknown number"
