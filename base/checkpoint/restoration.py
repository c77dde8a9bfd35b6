"""Give objects the state they had, or say all that does not fit and change nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from base.errors import CheckpointError, nearest

Groups: TypeAlias = Sequence[Mapping[str, Any]]
COMPARED = (nn.Module, torch.optim.Optimizer)
MAX_ROWS = 12  # of a table in a message
ABSENT: tuple[str, frozenset[str]] = ("-", frozenset())
OPTIONAL = ("bad_samples", "epoch_rows", "epoch_start", "loss_attributes", "train_sampler")
"""Parts that may be missing: not in use, which may change, or unknown to an earlier version."""
EXTRA = "_extra_state"  # ends the keys where modules keep what is no tensor


def restore(stateful: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Give each object of `stateful` its state from `state`, which has the same names.

    All names, keys and shapes are compared before anything is changed. What cannot be compared is
    loaded first, so that modules and optimizers are unchanged even when it refuses its state.
    """
    ours, saved = (
        {k: v for k, v in each.items() if k not in OPTIONAL} for each in (stateful, state)
    )
    problems = _name_problems("", ours, saved)
    for name in stateful:
        if name in state:
            problems += _problems(name, stateful[name], state[name])
    _raise_all(problems)
    named = stateful.keys() & state.keys()
    for name in sorted(named, key=lambda name: isinstance(stateful[name], COMPARED)):
        try:
            stateful[name].load_state_dict(_own_copy(stateful[name], state[name]))
        except Exception as error:
            text = f"cannot take its state: {type(error).__name__}: {error}"
            raise CheckpointError(f"{name}: {text}") from error


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
    if problems := _group_problems(name, thing.param_groups, state.get("param_groups", [])):
        return problems
    # Options come with versions of torch and with schedulers; another optimizer lacks some as well.
    here, there = (
        set().union(*map(set, groups)) for groups in (thing.param_groups, state["param_groups"])
    )
    if here - there and there - here:
        return [f"{name}: the checkpoint's is no {type(thing).__name__}: {sorted(there - here)}"]
    return []


def _group_problems(name: str, ours: Groups, saved: Groups) -> list[str]:
    """Compare which parameters are in which group, by name where the checkpoint has names."""
    here, there = ([group.get("param_names") for group in groups] for groups in (ours, saved))
    n_here, n_there = ([len(group["params"]) for group in groups] for groups in (ours, saved))
    is_named = None not in (*here, *there)
    if here == there if is_named else n_here == n_there:
        return []
    text = f"{name}: parameters per group are {n_there} in the checkpoint, {n_here} here"
    return [f"{text}{_group_table(here, there) if is_named else ''}"]


def _group_table(ours: list[Any], saved: list[Any]) -> str:
    """Return a line for each parameter whose group has changed, the more it has the earlier."""
    here, there = _companions(ours), _companions(saved)
    change = {
        name: len(here.get(name, ABSENT)[1] ^ there.get(name, ABSENT)[1])
        for names in (*saved, *ours)
        for name in names
    }
    changed = sorted(filter(change.get, change), key=change.__getitem__, reverse=True)
    rows = [("parameter", "group then", "group now")]
    rows += [(name, there.get(name, ABSENT)[0], here.get(name, ABSENT)[0]) for name in changed]
    width = max(len(row[0]) for row in rows[: MAX_ROWS + 1])
    lines = [f"    {row[0]:{width}}  {row[1]:10}  {row[2]}" for row in rows[: MAX_ROWS + 1]]
    lines += [f"    and {len(changed) - MAX_ROWS} more"] * (len(changed) > MAX_ROWS)
    if not changed:  # torch goes by the place in a group
        lines = ["    the same in each group, but in another order"]
    advice = "go on with the groups of then, or start anew from the weights: leave out -r and write"
    return "\n".join(["", *lines, f"    {advice} `model: {{weights: RUN}}`, RUN being its folder"])


def _companions(groups: list[Any]) -> dict[str, tuple[str, frozenset[str]]]:
    """Return the number of each parameter's group, and all that are in it."""
    sets = enumerate(map(frozenset, groups))
    return {name: (str(number), names) for number, names in sets for name in names}


def _module_problems(prefix: str, ours: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    problems = _name_problems(prefix, ours, saved)
    for key in ours:
        if key in saved and not key.endswith(EXTRA) and not is_lazy(ours[key]):
            there, here = shape_in_words(saved[key]), shape_in_words(ours[key])
            if there != here:
                problems.append(f"{prefix}{key}: {there} in the checkpoint, {here} here")
    return problems


def _name_problems(prefix: str, ours: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    missing = [key for key in ours if key not in saved]
    unexpected = [key for key in saved if key not in ours]
    near = {key: nearest(key, unexpected) for key in missing[:MAX_ROWS]}  # of all it takes long
    near |= {key: nearest(key, missing) for key in unexpected[:MAX_ROWS]}
    return [
        *(f"{prefix}{key}: not in the checkpoint{near.get(key, '')}" for key in missing),
        *(f"{prefix}{key}: only in the checkpoint{near.get(key, '')}" for key in unexpected),
    ]


def shape_in_words(value: Any) -> str:
    """Return what to call a saved value in a message; equal for what can be copied as it is."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{'complex ' * value.is_complex()}shape {tuple(value.shape)}"


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
