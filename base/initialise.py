"""Initialisation by rules: every parameter gets the scheme that somebody chose for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from base.errors import ConfigError, Problem, nearest
from base.match import NoMatch, match_parameters

Rule = Mapping[str, Any]


class InitRecord(NamedTuple):
    """What a parameter was set to: ``default`` where no rule touched it."""

    name: str
    shape: tuple[int, ...]
    scheme: str


class _Scheme(NamedTuple):
    where: str  # its place in the config: init[1].weight
    text: str
    function: Callable[..., Any]
    args: Mapping[str, Any]


def initialise(
    model: nn.Module, rules: Sequence[Rule], find: Callable[[str, str], Any]
) -> list[InitRecord]:
    """Set the parameters by rules ``{match, weight, bias, ...}`` and tell each one's scheme.

    ``match`` chooses parameters by dotted name or by their owner's type; the other keys are globs
    on the last part of a name (``weight``, ``bias``, ``weight_hh_*``). Later rules win, key by key.
    A scheme is ``{type, args}``, its name, or a number. Either all values change or none does.
    """
    problems: list[Problem] = []
    chosen: dict[str, _Scheme] = {}
    for index, rule in enumerate(rules):
        chosen.update(_read_rule(model, rule, f"init[{index}]", find, problems))
    parameters = dict(model.named_parameters())
    values = _draw(parameters, chosen, problems)
    if problems:
        raise ConfigError(problems)

    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    return [
        InitRecord(name, _shape(parameter), chosen[name].text if name in chosen else "default")
        for name, parameter in parameters.items()
    ]


def _read_rule(
    model: nn.Module,
    rule: Rule,
    where: str,
    find: Callable[[str, str], Any],
    problems: list[Problem],
) -> dict[str, _Scheme]:
    try:
        names = match_parameters(model, rule["match"])
    except NoMatch as error:
        problems.append(Problem(f"{where}.match", str(error)))
        return {}
    chosen: dict[str, _Scheme] = {}
    leaves = sorted({name.rpartition(".")[2] for name in names})
    for key in (key for key in rule if key != "match"):
        try:
            scheme = _read_scheme(rule[key], f"{where}.{key}", find)
        except LookupError as error:
            problems.append(Problem(f"{where}.{key}", str(error)))
            continue
        hits = [name for name in names if fnmatchcase(name.rpartition(".")[2], key)]
        # A layer may go without a bias; any other name that is not there is a slip.
        if not hits and (key not in ("weight", "bias") or len(rule) == 2):
            near = nearest(key, leaves) or f"; they are named {', '.join(leaves)}"
            problems.append(Problem(f"{where}.{key}", f"no matched parameter has that name{near}"))
        chosen.update(dict.fromkeys(hits, scheme))
    return chosen


def _read_scheme(value: Any, where: str, find: Callable[[str, str], Any]) -> _Scheme:
    if isinstance(value, int | float):
        value = {"type": "constant_", "args": {"val": value}}
    elif isinstance(value, str):
        value = {"type": value}
    name, args = value["type"], value.get("args") or {}
    function = find("init", name)
    text = getattr(function, "__name__", name)
    if args:
        text += f"({', '.join(f'{key}={args[key]}' for key in args)})"
    return _Scheme(where, text, function, args)


def _draw(
    parameters: Mapping[str, nn.Parameter], chosen: Mapping[str, _Scheme], problems: list[Problem]
) -> dict[str, Tensor]:
    """Compute all new values, in the model's order, so that a fault is met before any change."""
    values: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        if name not in chosen:
            continue
        scheme = chosen[name]
        try:
            value = parameter.detach().clone()
            with torch.no_grad():
                result = scheme.function(value, **scheme.args)
            values[name] = _checked(result if isinstance(result, Tensor) else value, parameter)
        except Exception as error:  # whatever a project's own scheme raises, it is named
            fault = f"{scheme.text} cannot set {name!r} of shape {_shape(parameter)}: {error}"
            problems.append(Problem(scheme.where, fault))
    return values


def _checked(value: Tensor, parameter: nn.Parameter) -> Tensor:
    if value.shape != parameter.shape:
        raise ValueError(f"it gives shape {tuple(value.shape)}")
    return value


def _shape(parameter: Tensor) -> tuple[int, ...]:
    lazy = isinstance(parameter, UninitializedParameter)
    return () if lazy else tuple(parameter.shape)
