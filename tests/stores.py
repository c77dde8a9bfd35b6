"""Checkpoints of a small state, saved and forged."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import torch

from base.checkpoint.state_file import manifest_bytes
from base.checkpoint.store import CheckpointStore


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
    """Return what lies in the store, beside its hints."""
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
