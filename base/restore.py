"""Give objects the state they had, or say all that does not fit and change nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from base.errors import CheckpointError, nearest

COMPARED = (nn.Module, torch.optim.Optimizer)
EXTRA = "_extra_state"  # ends the keys where modules keep what is no tensor


def restore(stateful: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Give each object of `stateful` its state from `state`, which has the same names.

    All names, keys and shapes are compared before anything is changed. What cannot be compared is
    loaded first, so that modules and optimizers are unchanged even when it refuses its state.
    """
    problems = _name_problems("", stateful, state)
    for name in stateful:
        if name in state:
            problems += _problems(name, stateful[name], state[name])
    _raise_all(problems)
    for name in sorted(stateful, key=lambda name: isinstance(stateful[name], COMPARED)):
        try:
            stateful[name].load_state_dict(_own_copy(stateful[name], state[name]))
        except Exception as error:
            raise CheckpointError(
                f"{name}: cannot take its state: {type(error).__name__}: {error}"
            ) from error


def load_weights(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Load weights that fit exactly; else list all that does not, and change nothing."""
    _raise_all(_problems("", module, weights))
    module.load_state_dict(weights)


def _problems(name: str, thing: object, state: Any) -> list[str]:
    """Return what keeps a module or an optimizer from taking this state."""
    if not isinstance(thing, COMPARED):
        return []
    if not isinstance(state, Mapping):
        return [f"{name}: the checkpoint has a {type(state).__name__} here, not a dict"]
    if isinstance(thing, nn.Module):
        return _module_problems(f"{name}." if name else "", thing.state_dict(), state)
    ours = [len(group["params"]) for group in thing.param_groups]
    saved = [len(group["params"]) for group in state.get("param_groups", [])]
    if ours != saved:
        return [f"{name}: parameters per group are {saved} in the checkpoint, {ours} here"]
    # Options come with versions of torch and with schedulers; another optimizer lacks some as well.
    here, there = (
        set().union(*map(set, groups)) for groups in (thing.param_groups, state["param_groups"])
    )
    if here - there and there - here:
        return [f"{name}: the checkpoint's is no {type(thing).__name__}: {sorted(there - here)}"]
    return []


def _module_problems(prefix: str, ours: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    problems = _name_problems(prefix, ours, saved)
    for key in ours:
        if key in saved and not key.endswith(EXTRA) and not is_lazy(ours[key]):
            there, here = _shape(saved[key]), _shape(ours[key])
            if there != here:
                problems.append(f"{prefix}{key}: {there} in the checkpoint, {here} here")
    return problems


def _name_problems(prefix: str, ours: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    missing = [key for key in ours if key not in saved]
    unexpected = [key for key in saved if key not in ours]
    return [
        *(f"{prefix}{key}: not in the checkpoint{nearest(key, unexpected)}" for key in missing),
        *(f"{prefix}{key}: only in the checkpoint{nearest(key, missing)}" for key in unexpected),
    ]


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise CheckpointError(
            "the checkpoint does not fit, nothing was changed:\n  " + "\n  ".join(problems)
        )


def _own_copy(thing: object, state: Any) -> Any:
    """Copy what the object would keep: optimizers keep the very tensors, modules only extras."""
    if not isinstance(thing, nn.Module):
        return copy.deepcopy(state)
    extras = {key: copy.deepcopy(item) for key, item in state.items() if key.endswith(EXTRA)}
    own = copy.copy(state)
    own.update(extras)
    return own
