"""Checkpoints of a small state, saved by one process or by several, and forged."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from base.checkpoint.state_file import manifest_bytes
from base.checkpoint.store import CheckpointStore
from base.distributed.group import World
from base.distributed.shard import Division, Rows


def make_state(seed: int, size: int = 40) -> dict:
    """Return a state like a trainer's: tensors, numbers, text, nested."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": OrderedDict(weight=torch.randn(size, generator=generator), bias=torch.ones(2)),
        "optimizer": {"state": {0: {"step": torch.tensor(float(seed))}}, "param_groups": [{}]},
        "progress": {"step": seed, "best": float("inf"), "names": ("a", None, True)},
    }


def save(store: CheckpointStore, step: int, state: dict | None = None, **options) -> Path:
    """Save a state made from the step, with harmless facts."""
    given = {"epoch": 0, "metrics": {"loss": 1.0}, "is_best": False, "facts": {}, **options}
    return store.save(make_state(step) if state is None else state, step=step, **given)


def same(one, other) -> bool:
    """Tell whether two states are equal in types, numbers and bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(same(a, b) for a, b in pairs)
    return type(one) is type(other) and one == other


def names(store: CheckpointStore) -> set[str]:
    """Return what lies in the store, beside its hints, once pruned checkpoints are gone."""
    store.removal.wait()
    return {path.name for path in store.folder.iterdir()} - {"last.json", "best.json"}


def write_manifest(path: Path, **changes) -> None:
    """Change a manifest and seal it again."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_bytes(manifest_bytes({**manifest, **changes}))


def forge(path: Path, content: bytes) -> Path:
    """Replace a checkpoint's state by other bytes that its manifest vouches for."""
    (path / "state.pt").write_bytes(content)
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_manifest(path, files={"state.pt": facts})
    return path


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Thread(World):
    """A rank whose world is a thread for each rank; one that fails ends the others."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, values: dict) -> None:
        super().__init__(rank, size)
        self.barrier, self.values = barrier, values

    def all_gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.barrier.wait(20)
        values = [self.values[rank] for rank in range(self.size)]
        self.barrier.wait(20)
        return values

    def gather(self, value: Any) -> list[Any] | None:
        values = self.all_gather(value)
        return values if self.is_main else None

    def broadcast(self, value: Any) -> Any:
        return self.all_gather(value)[0]


def in_threads(size: int, act: Callable[[World], Any]) -> list[Any]:
    """Call a function in the threads of a world; return the results, errors among them."""
    barrier, values = threading.Barrier(size), {}

    def call(rank: int) -> Any:
        try:
            return act(Thread(rank, size, barrier, values))
        except Exception as error:
            barrier.abort()
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(call, range(size)))


def divide(state: Any, division: Division) -> Any:
    """Return what a rank holds of a state in which all tensors with dimensions are sharded."""
    if isinstance(state, torch.Tensor) and state.dim():
        first, end = division.of(len(state))
        return Rows(state[first:end], first, tuple(state.shape))
    if isinstance(state, dict):
        return type(state)((key, divide(value, division)) for key, value in state.items())
    if type(state) in (list, tuple):
        return type(state)(divide(value, division) for value in state)
    return state


def save_divided(folder: Path, size: int, step: int, state: dict, **options) -> Path:
    """Save a state by several ranks, each its rows."""

    def act(world: World) -> Path:
        store = CheckpointStore(folder, world=world)
        return save(store, step, divide(state, Division(world.rank, size)), **options)

    paths = in_threads(size, act)
    assert len(set(paths)) == 1, paths
    return paths[0]
