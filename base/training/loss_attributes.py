"""Plain attributes that losses change during training, such as a running target of each sample.

A loss's ``state_dict`` holds its buffers and parameters; many losses use plain attributes such as
``self.target = torch.zeros(...)`` instead. Checkpoints hold those that changed since the trainer
was built, as they do for metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from base.checkpoint.object_state import get_object_state, set_object_state
from base.training.losses import WeightedLoss

_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_LIBRARIES = ("torch", "builtins", "functools")


class LossAttributes:
    """The attributes of all losses, including those that the trainer builds later.

    Args:
        losses: the losses by name.
        device: the device of restored tensors that were not on the CPU.
    """

    def __init__(self, losses: Mapping[str, WeightedLoss], device: torch.device | str) -> None:
        self.losses, self.device = losses, device
        self._as_built: dict[str, dict[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes that changed since the trainer was built, by loss and module."""
        changed = {}
        for key, owner in self._owners().items():
            now, built = _plain(owner), self._built(key, owner)
            if names := [n for n in now if n not in built or not _is_same(now[n], built[n])]:
                changed[key] = {name: now[name] for name in names}
        return changed

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for key, owner in self._owners().items():
            now, built = _plain(owner), self._built(key, owner)
            whole = {**built, **state_dict.get(key, {})}
            for name in now.keys() - whole.keys():
                delattr(owner, name)
            differing = {n: v for n, v in whole.items() if n not in now or not _is_same(v, now[n])}
            set_object_state(owner, differing, self.device)

    def _built(self, key: str, owner: object) -> dict[str, Any]:
        return self._as_built.setdefault(key, _plain(owner))

    def _owners(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, loss in self.losses.items():
            function = loss.function
            parts = {"": function}
            if isinstance(function, nn.Module):
                parts = dict(function.named_modules())
            found |= {f"{name}.{part}".rstrip("."): one for part, one in parts.items()}
        return {key: one for key, one in found.items() if _is_own(one)}


def _is_own(one: object) -> bool:
    cls = type(one)
    return hasattr(one, "__dict__") and cls.__module__.partition(".")[0] not in _LIBRARIES


def _plain(owner: Any) -> dict[str, Any]:
    attributes = get_object_state(owner)
    is_module = isinstance(owner, nn.Module)
    return {k: v for k, v in attributes.items() if not (is_module and k in _MODULE_ATTRIBUTES)}


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two captured values are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)
