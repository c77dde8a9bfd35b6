"""Starts all ranks from the same run, and continues a run that torchrun restarts.

The launcher of torchrun has a store that outlives its processes. Rank 0 notes there which run they
train, so that restarted processes (``--max-restarts``) find it whatever their command says.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from base.checkpoint.store import CheckpointStore, find_manifest, read_from, read_with_manifest
from base.distributed.group import World
from base.distributed.shard import Division
from base.errors import CheckpointError
from base.system.run_folder import remove_if_not_started

log = logging.getLogger("kindling")

KEY = "kindling/run"


def resume_together(resume_from: Path | None, world: World) -> Path | None:
    """Return the run or checkpoint that all ranks resume, as rank 0 decides; None for a new run.

    After a restart by torchrun it is the interrupted run, whose newest checkpoint is used even if
    ``-r`` names another one. If that run had not saved yet, it begins again as the command says;
    of a new run, the folder is removed unless it holds values of a step.

    Args:
        resume_from: the choice of the command line.
    """
    if not world.is_active:
        return resume_from
    chosen = _choose(resume_from, world) if world.is_main else None
    path: str | None = world.broadcast(None if chosen is None else str(chosen))
    return None if path is None else Path(path)


def _choose(resume_from: Path | None, world: World) -> Path | None:
    store = world.launch_store
    if store is None or not store.check([KEY]):
        return resume_from
    interrupted = json.loads(store.get(KEY))
    folder = Path(interrupted["folder"])
    if not folder.is_dir():
        return resume_from
    if _newest_save(folder) != interrupted["newest_save"]:
        log.info(f"restarted by torchrun: the run in {folder} continues")
        return folder
    if resume_from is None:
        CheckpointStore(folder / "checkpoints").remove_leftovers()
        remove_if_not_started(folder)
    return resume_from


def note_run(folder: Path, world: World) -> None:
    """Note in the launcher's store which run its processes train; called once by rank 0."""
    if world.launch_store is not None:
        about = {"folder": str(folder), "newest_save": _newest_save(folder)}
        world.launch_store.set(KEY, json.dumps(about))


def _newest_save(folder: Path) -> str | None:
    """Return the checksum of the newest checkpoint, by which a later one is recognised."""
    checksum: str | None = find_manifest(folder).get("checksum")
    return checksum


def read_together(path: Path, world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state and the manifest of a checkpoint on all ranks.

    Rank 0 chooses, verifies and reads it, and sends the content: so all ranks start from the same
    bytes, and only rank 0's machine needs the file. It costs each rank the memory of a second copy
    while it is received.

    Raises:
        CheckpointError: rank 0 finds no valid checkpoint.
    """
    if not world.is_active:
        return read_with_manifest(path)
    if world.is_sharded:
        return _read_rows(path, world)
    found = list(read_with_manifest(path)) if world.is_main else None
    state, manifest = world.broadcast(found)
    return state, manifest


def _read_rows(path: Path, world: World) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state and the manifest of a checkpoint, with the rows of this rank.

    Rank 0 chooses and verifies it; then each rank reads what it needs, from a disk that all share.
    """
    division = Division(world.rank, world.size)
    found = read_from(path, division) if world.is_main else None
    chosen = None if found is None else [str(found[0].absolute()), found[2]["checksum"]]
    folder, checksum = world.broadcast(chosen)
    if found is None:
        found = read_from(folder, division)
        if found[2]["checksum"] != checksum:
            text = f"{folder}: rank {world.rank} finds another checkpoint there than rank 0"
            raise CheckpointError(f"{text}: all ranks need the same disk")
    return found[1:]
