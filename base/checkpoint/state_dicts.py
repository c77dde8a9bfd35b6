"""Load state dicts into objects, or list every mismatch and change nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from base.distributed.shard import Rows, is_sharded, sharded_like
from base.errors import CheckpointError, nearest

Groups: TypeAlias = Sequence[Mapping[str, Any]]
COMPARED = (nn.Module, torch.optim.Optimizer)  # compared before anything is loaded
MANY_KEYS = 1000  # of a module, which are loaded in another way
MAX_ROWS = 12  # of a table in an error
ABSENT: tuple[str, frozenset[str]] = ("-", frozenset())
OPTIONAL = (
    "bad_samples", "epoch_rows", "epoch_start", "loss_attributes", "ranks", "train_sampler",
)  # fmt: skip
"""Parts that may be missing: they are optional, or an earlier version did not save them."""
EXTRA = "_extra_state"  # suffix of the keys of `nn.Module.get_extra_state`


def load_state_dicts(stateful: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Load `state` into the objects of `stateful` of the same names.

    All names, keys and shapes are compared before anything is changed. Objects that cannot be
    compared are loaded first, so that modules and optimizers stay unchanged if one of them raises.
    """
    ours, saved = (
        {k: v for k, v in each.items() if k not in OPTIONAL} for each in (stateful, state)
    )
    problems = _name_problems("", ours, saved)
    for name in stateful:
        if name in state:
            problems += _problems(name, stateful[name], state[name])
    _raise_all(problems)
    has_shards = _has_shards(stateful.values())
    named = stateful.keys() & state.keys()
    for name in sorted(named, key=lambda name: isinstance(stateful[name], COMPARED)):
        try:
            copied = (shard_state if has_shards else _copy_kept_values)(stateful[name], state[name])
            _load(stateful[name], copied)
        except Exception as error:
            text = f"cannot load its state: {type(error).__name__}: {error}"
            raise CheckpointError(f"{name}: {text}") from error


def load_weights(module: nn.Module, weights: Mapping[str, Any]) -> None:
    """Load weights whose names and shapes match exactly, or list every mismatch."""
    _raise_all(_problems("", module, weights))
    _load(module, shard_state(module, weights) if _has_shards([module]) else weights)


def _load(thing: Any, state: Any) -> None:
    """Call ``load_state_dict``, or do what that of a module with many tensors does, in less time.

    torch's looks through all keys of a module again for each of its children, which is the square
    of the layers of a flat network. Here a module deals the keys out to its children at once. That
    of an optimizer looks for each parameter in the list of its group.
    """
    if getattr(type(thing), "load_state_dict", None) is torch.optim.Optimizer.load_state_dict:
        state = {**state, "param_groups": list(map(_with_range, state["param_groups"]))}
    is_large = isinstance(thing, nn.Module) and len(state) >= MANY_KEYS
    if not is_large or not _loads_as_torch(thing):
        thing.load_state_dict(state)
        return
    faults: list[str] = []
    _load_part(thing, OrderedDict(state), "", getattr(state, "_metadata", None) or {}, faults)
    if faults:
        thing.load_state_dict(state)  # which raises them in torch's words


def _with_range(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved group whose parameters, if their numbers follow each other, are a range."""
    numbers = group["params"]
    if not numbers or not isinstance(numbers[0], int):
        return dict(group)
    numbered = range(numbers[0], numbers[0] + len(numbers))
    return {**group, "params": numbered if list(numbered) == list(numbers) else numbers}


def _loads_as_torch(module: nn.Module) -> bool:
    """Return whether nobody has replaced the loading of a module, or asked to hear of its end."""
    own = module.__dict__.get("load_state_dict") or type(module).load_state_dict
    is_heard = any(each._load_state_dict_post_hooks for each in module.modules())
    return own is nn.Module.load_state_dict and not is_heard


def _load_part(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Mapping[str, Any],
    faults: list[str],
) -> None:
    of_module = metadata.get(prefix[:-1], {})
    module._load_from_state_dict(state, prefix, of_module, True, faults, faults, faults)
    of_children: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        name, dot, _ = key[len(prefix) :].partition(".")
        if dot:
            of_children.setdefault(name, {})[key] = value
    for name, child in module._modules.items():  # those of several names too
        if child is not None:
            own = of_children.get(name, {})
            _load_part(child, own, f"{prefix}{name}.", metadata, faults)


def shard_state(thing: Any, state: Any) -> Any:
    """Return a copy of a state in which each tensor is sharded that is sharded in the object.

    In the given state it is the whole tensor, or the rows of this process.
    """
    if not isinstance(thing, torch.optim.Optimizer):
        return _shard_like(thing.state_dict(), state)
    # A fresh optimizer has no states yet; those of the shape of a parameter are sharded like it.
    parameters = [p for group in thing.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    likes = dict(zip(numbers, parameters, strict=True))
    kept = {
        number: {key: _shard_like(likes.get(number), value) for key, value in each.items()}
        for number, each in state["state"].items()
    }
    return {**copy.deepcopy({**state, "state": {}}), "state": kept}


def _shard_like(own: Any, value: Any) -> Any:
    if is_sharded(own):
        is_like = isinstance(value, Tensor | Rows) and tuple(value.shape) == tuple(own.shape)
        return sharded_like(own, value) if is_like else copy.deepcopy(value)
    if isinstance(own, Mapping) and isinstance(value, Mapping):
        sharded: Any = copy.copy(value)
        sharded.update({key: _shard_like(own.get(key), item) for key, item in value.items()})
        return sharded
    if isinstance(own, list | tuple) and type(own) is type(value) and len(own) == len(value):
        return type(value)(map(_shard_like, own, value))
    return copy.deepcopy(value)


def _has_shards(things: Iterable[Any]) -> bool:
    """Return whether the parameters of a module among these are sharded."""
    modules = (thing for thing in things if isinstance(thing, nn.Module))
    return any(is_sharded(parameter) for module in modules for parameter in module.parameters())


def _problems(name: str, thing: object, state: Any) -> list[str]:
    """Return the reasons why a module or an optimizer cannot load this state."""
    if not isinstance(thing, COMPARED):
        return []
    if not isinstance(state, Mapping):
        return [f"{name}: the checkpoint has a {type(state).__name__} here, not a dict"]
    if isinstance(thing, nn.Module):
        return _module_problems(f"{name}." if name else "", thing.state_dict(), state)
    if problems := _group_problems(name, thing.param_groups, state.get("param_groups", [])):
        return problems
    # Versions of torch and schedulers add options; another optimizer also lacks some.
    here, there = (
        set().union(*map(set, groups)) for groups in (thing.param_groups, state["param_groups"])
    )
    if here - there and there - here:
        return [
            f"{name}: the checkpoint is of another optimizer than {type(thing).__name__}: it has "
            f"{sorted(there - here)}"
        ]
    return []


def _group_problems(name: str, ours: Groups, saved: Groups) -> list[str]:
    """Compare the parameters of each group, by name if the checkpoint has names."""
    here, there = ([group.get("param_names") for group in groups] for groups in (ours, saved))
    n_here, n_there = ([len(group["params"]) for group in groups] for groups in (ours, saved))
    is_named = None not in (*here, *there)
    if here == there if is_named else n_here == n_there:
        return []
    text = f"{name}: parameters per group are {n_there} in the checkpoint, {n_here} here"
    return [f"{text}{_group_table(here, there) if is_named else ''}"]


def _group_table(ours: list[Any], saved: list[Any]) -> str:
    """Return a line for each parameter whose group has changed, the largest change first."""
    here, there = _companions(ours), _companions(saved)
    change = {
        name: len(here.get(name, ABSENT)[1] ^ there.get(name, ABSENT)[1])
        for names in (*saved, *ours)
        for name in names
    }
    changed = sorted(filter(change.get, change), key=change.__getitem__, reverse=True)
    rows = [("parameter", "old group", "new group")]
    rows += [(name, there.get(name, ABSENT)[0], here.get(name, ABSENT)[0]) for name in changed]
    width = max(len(row[0]) for row in rows[: MAX_ROWS + 1])
    lines = [f"    {row[0]:{width}}  {row[1]:10}  {row[2]}" for row in rows[: MAX_ROWS + 1]]
    lines += [f"    and {len(changed) - MAX_ROWS} more"] * (len(changed) > MAX_ROWS)
    if not changed:  # torch matches parameters by their place in a group
        lines = ["    each group has the same parameters in another order"]
    advice = "resume with the old groups, or start from the weights: omit -r and set"
    return "\n".join(
        ["", *lines, f"    {advice} `model: {{weights: RUN}}`, RUN being the run's folder"]
    )


def _companions(groups: list[Any]) -> dict[str, tuple[str, frozenset[str]]]:
    """Return the number of each parameter's group, and the names in that group."""
    sets = enumerate(map(frozenset, groups))
    return {name: (str(number), names) for number, names in sets for name in names}


def _module_problems(prefix: str, ours: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    problems = _name_problems(prefix, ours, saved)
    for key in ours:
        if key in saved and not key.endswith(EXTRA) and not is_lazy(ours[key]):
            there, here = describe_shape(saved[key]), describe_shape(ours[key])
            if there != here:
                problems.append(f"{prefix}{key}: {there} in the checkpoint, {here} here")
    return problems


def _name_problems(prefix: str, ours: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    missing = [key for key in ours if key not in saved]
    unexpected = [key for key in saved if key not in ours]
    near = {key: nearest(key, unexpected) for key in missing[:MAX_ROWS]}  # slow for all of them
    near |= {key: nearest(key, missing) for key in unexpected[:MAX_ROWS]}
    return [
        *(f"{prefix}{key}: not in the checkpoint{near.get(key, '')}" for key in missing),
        *(f"{prefix}{key}: only in the checkpoint{near.get(key, '')}" for key in unexpected),
    ]


def describe_shape(value: Any) -> str:
    """Describe a value in an error; values with equal descriptions can be copied."""
    if isinstance(value, Rows):
        return f"{'complex ' * value.tensor.is_complex()}shape {value.shape}"
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{'complex ' * value.is_complex()}shape {tuple(value.shape)}"


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise CheckpointError(
            "the checkpoint does not match; nothing was changed:\n  " + "\n  ".join(problems)
        )


def _copy_kept_values(thing: object, state: Any) -> Any:
    """Copy what the object would keep: optimizers keep the tensors, modules only extra state."""
    if not isinstance(thing, nn.Module):
        return copy.deepcopy(state)
    extras = {key: copy.deepcopy(item) for key, item in state.items() if key.endswith(EXTRA)}
    own = copy.copy(state)
    own.update(extras)
    return own
