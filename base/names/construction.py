"""The second stage of a config's validation, and the one constructor call.

``check_names`` looks up every name of a config and holds its arguments against the signature of
what it names, before anything is built; ``build`` makes what a ``{type, args}`` section means.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from inspect import Parameter
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import numpy as np
import torch

from base.config.durations import parse_duration
from base.config.references import Reference
from base.config.tree import show
from base.errors import ConfigError, KindlingError, Problem, nearest
from base.names.discovery import describe_error
from base.names.kind_rules import made_fault
from base.names.layer_sections import layer_faults, with_names
from base.names.ranges import number_fault
from base.names.registry import find, override_note, project_root
from base.names.signatures import (
    INJECTED,
    Signature,
    signature,
    takes_modules,
    value_fault,
)
from base.names.trial_downloads import is_from, trial_weights, with_trial_root
from base.network.output_sizes import conv_class

Keys = tuple[str | int, ...]
Section = Mapping[str, Any]
Fault = tuple[Keys, str]
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by torch.load, whoever calls it


def check_names(config: Any) -> None:
    """Check all names and arguments of a config in its normal form; nothing is built.

    The config's notes gain a line for each name that the project defines and Kindling too.

    Raises:
        ConfigError: with all faults together.
    """
    faults = []
    notes: list[str] = []
    for kind, keys, section in _sections(config):
        faults += _faults(kind, keys, section, notes)
        if kind == "optimizer":
            faults += _rule_faults(keys, section)
    if faults:
        order = list(config)
        faults.sort(key=lambda fault: order.index(fault[0][0]))
        raise ConfigError([config.problem(keys, message) for keys, message in faults])
    config.notes += [each for each in dict.fromkeys(notes) if each not in config.notes]


def build(kind: str, section: Section, *, where: str = "", **injected: Any) -> Any:
    """Make what a ``{type, args}`` section means; functions of data get their ``args`` bound.

    Sections inside ``args`` (a dataset, transforms, schedulers) are built first, with the same
    injected arguments where they are of the same kind.

    Args:
        where: the section's place in the config, for errors.
        injected: further arguments, which a config cannot give (``params``, ``optimizer``).

    Raises:
        ConfigError: the name is unknown, or the constructor refuses the arguments.
    """

    def build_inner(inner: str, part: Section, _: Keys) -> Any:
        return build(inner, part, where=where, **(injected if inner == kind else {}))

    try:
        named = find(kind, section["type"])
    except KindlingError as error:
        raise ConfigError([Problem(where, str(error))]) from error
    parameters = signature(kind, named).parameters
    args = {}
    for name, value in (section.get("args") or {}).items():
        parameter = parameters.get(name)
        inner = _inner_kind(kind, name, parameter, value)
        made = _replace_sections(inner, (name,), _worded(parameter, value), build_inner)
        made = with_names(parameter, made, value) if inner == "model" else made
        args[name] = _as_annotated(parameter, _composed(kind, name, made))
    named = conv_class(named, args) if kind == "model" else named
    try:
        with _only_weights(named), trial_weights(named):
            made = _call(kind, named, with_trial_root(named, args), injected)
    except Exception as error:
        if isinstance(error, KindlingError) or _is_fault_of_code(error):
            raise
        text = f"{section['type']} cannot be built: {describe_error(error)}"
        raise ConfigError([Problem(where, text)]) from error
    if not isinstance(named, type) and (fault := made_fault(kind, made)):
        raise ConfigError([Problem(where, f"{section['type']} is no {kind}: {fault}")])
    return made


def check_section(config: Any, kind: str, keys: Keys, section: Section) -> None:
    """Check one section whose references were looked up, as `check_names` does all others.

    Raises:
        ConfigError: with all faults together.
    """
    faults = _faults(kind, keys, section)
    if kind == "optimizer":
        faults += _rule_faults(keys, section)
    if faults:
        raise ConfigError([config.problem(each, message) for each, message in faults])


def _sections(config: Mapping[str, Any]) -> Iterator[tuple[str, Keys, Section]]:
    """Yield kind, keys and value of each ``{type, args}`` section."""
    loaders = ("data_loader", "valid_data_loader", "test_data_loader")
    for key in ("model", *loaders, "optimizer", "lr_scheduler", "trainer"):
        if config.get(key):
            yield "data_loader" if key in loaders else key, (key,), config[key]
    for name, section in (config.get("optimizers") or {}).items():
        yield "optimizer", ("optimizers", name), section
        if section.get("lr_scheduler"):
            keys = ("optimizers", name, "lr_scheduler")
            yield "lr_scheduler", keys, section["lr_scheduler"]
    for key, kind in (("loss", "loss"), ("metrics", "metric"), ("callbacks", "callback")):
        for number, section in enumerate(config.get(key) or ()):
            yield kind, (key, number), section
    for number, rule in enumerate(config.get("init") or ()):
        for name in rule:
            if name not in ("match", "preset"):
                yield "init", ("init", number, name), rule[name]


def _faults(kind: str, keys: Keys, section: Section, notes: list[str] | None = None) -> list[Fault]:
    """Return what is wrong with one section and with those inside its ``args``.

    Args:
        notes: gains a line where one of two definitions of a name had to be chosen.
    """
    type_keys = keys if kind == "function" else (*keys, "type")
    try:
        named = find(kind, section["type"])
    except KindlingError as error:
        return [(type_keys, str(error))]
    if notes is not None and (note := override_note(kind, section["type"])):
        notes.append(note)
    args = section.get("args") or {}
    if not isinstance(args, Mapping):
        return [((*keys, "args"), "expected a mapping of arguments")]

    takes, faults = signature(kind, named), []
    missing = [name for name in takes.required if name not in args]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        faults.append((type_keys, f"{section['type']} needs argument{plural} {', '.join(missing)}"))

    def check_inner(inner: str, part: Section, inner_keys: Keys) -> None:
        faults.extend(_faults(inner, (*keys, "args", *inner_keys), part, notes))

    for name, value in args.items():
        message = _argument_fault(kind, section["type"], takes, name, value)
        if message:
            faults.append(((*keys, "args", name), message))
        inner = _inner_kind(kind, name, takes.parameters.get(name), value)
        if inner == kind == "lr_scheduler":
            faults += _scheduler_faults((*keys, "args", name), value)
        if inner == "model":
            faults += layer_faults((*keys, "args", name), value)
        _replace_sections(inner, (name,), _worded(takes.parameters.get(name), value), check_inner)
    return faults


def _scheduler_faults(keys: Keys, value: Any) -> list[Fault]:
    """Return the faults of the schedulers of one that is made of several, but for their names."""
    if isinstance(value, Reference):
        return []
    if not isinstance(value, list):
        return [(keys, f"expected a list of schedulers, found {show(value)}")]
    faults = []
    for number, part in enumerate(value):
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            text = f"expected {{type: ..., args: ...}}, found {show(part)}"
            faults.append(((*keys, number), text))
            continue
        known = ("type", "args")
        faults += [
            (
                (*keys, number, name),
                f"unknown key{nearest(str(name), known)} (there are type, args)",
            )
            for name in part
            if name not in known
        ]
    return faults


def _rule_faults(keys: Keys, section: Section) -> list[Fault]:
    """Return the faults of ``param_groups``: beside match and freeze, the optimizer's arguments."""
    try:
        takes = signature("optimizer", find("optimizer", section["type"]))
    except KindlingError:
        return []  # said already
    faults = []
    for number, rule in enumerate(section.get("param_groups") or ()):
        for name in rule:
            if name not in ("match", "preset", "freeze"):
                place = (*keys, "param_groups", number, name)
                message = _argument_fault("optimizer", section["type"], takes, name, rule[name])
                faults += [(place, message)] if message else []
    return faults


def _argument_fault(kind: str, type_name: str, takes: Signature, name: Any, value: Any) -> str:
    """Return what is wrong with one argument, or an empty text."""
    if name == "self" or name in takes.injected:
        return f"{name!r} is given by Kindling; leave it out"
    parameter = takes.parameters.get(name)
    if parameter is None and takes.is_open:
        return number_fault(kind, type_name, name, parameter, value)
    if parameter is None:
        known = f" (it takes {', '.join(takes.parameters) or 'none'})"
        return f"unknown argument for {type_name}{nearest(str(name), takes.parameters) or known}"
    if parameter.kind is Parameter.POSITIONAL_ONLY:
        return f"{type_name} takes it by position only, so a config cannot give it"
    if name in takes.durations:
        try:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, str) and not isinstance(item, Reference):
                    parse_duration(item)
        except ValueError as error:
            return str(error)
        if isinstance(value, str):
            return ""
    fault = value_fault(parameter, value)
    return fault or number_fault(kind, type_name, name, parameter, value)


def _replace_sections(
    inner: str | None, keys: Keys, value: Any, replace: Callable[[str, Section, Keys], Any]
) -> Any:
    """Return an argument's value with each section in it, all of the kind ``inner``, replaced.

    Mappings with keys beside ``type`` and ``args`` are the project's own, and stay.
    """
    if inner is None or isinstance(value, Reference):
        return value
    if isinstance(value, list):
        each = enumerate(value)
        return [_replace_sections(inner, (*keys, number), item, replace) for number, item in each]
    if inner in ("function", "model") and isinstance(value, str):
        return replace(inner, {"type": value}, keys)
    is_section = isinstance(value, Mapping) and "type" in value
    if is_section and (inner == "model" or set(value) <= {"type", "args"}):
        return replace(inner, value, keys)
    return value


def _inner_kind(kind: str, name: str, parameter: Parameter | None, value: Any) -> str | None:
    """Return the kind of the sections in an argument: its name tells it, a module's annotation."""
    if kind == "model":
        if parameter is None:  # one of `**networks`
            return kind if isinstance(value, Mapping) and "type" in value else None
        return kind if takes_modules(parameter) else None
    if kind == "lr_scheduler":
        return {"schedulers": kind, "lr_lambda": "function", "scale_fn": "function"}.get(name)
    if kind not in ("data_loader", "dataset", "transform", "sampler"):
        return None
    word = name.rpartition("_")[2].removesuffix("s")  # one of them, or a list
    known = {"dataset": "dataset", "transform": "transform", "sampler": "sampler"}
    return "function" if name == "collate_fn" else known.get(word)


def _worded(parameter: Parameter | None, value: Any) -> Any:
    """Return a list of things to call with each word in it as the section that it stands for."""
    if not isinstance(value, list) or "Callable" not in str(getattr(parameter, "annotation", "")):
        return value
    is_word = [isinstance(item, str) and not isinstance(item, Reference) for item in value]
    return [{"type": item} if is_word[n] else item for n, item in enumerate(value)]


def _composed(kind: str, name: str, value: Any) -> Any:
    """Make one transform of a list of them where the argument's name is in the singular."""
    is_one = _inner_kind(kind, name, None, value) == "transform" and name.endswith("transform")
    if is_one and isinstance(value, list) and value and all(map(callable, value)):
        return find("transform", "Compose")(value)
    return value


def _as_annotated(parameter: Parameter | None, value: Any) -> Any:
    """Turn a text into the dtype or enum member, a list into the tensor, that is asked for."""
    annotation = None if parameter is None else parameter.annotation
    members = get_args(annotation) or (annotation,)
    takes_tensors = torch.Tensor in members and set(members) <= {torch.Tensor, NoneType}
    if isinstance(value, list | np.ndarray) and takes_tensors:
        return torch.tensor(value, dtype=torch.get_default_dtype())
    if isinstance(value, str) and torch.dtype in members:
        dtype = getattr(torch, value.removeprefix("torch."), None)
        return dtype if isinstance(dtype, torch.dtype) else value
    for member in members:
        if isinstance(value, str) and isinstance(member, type) and issubclass(member, Enum):
            return next((each for each in member if value in (each.name, each.value)), value)
    return value


def _call(kind: str, named: Any, args: dict[str, Any], injected: dict[str, Any]) -> Any:
    """Call a class or a builder; bind ``args`` to a function of data."""
    if kind in ("loss", "metric", "init", "function") and not isinstance(named, type):
        return functools.partial(named, **args) if args else named
    own_names = dict(zip((INJECTED.get(kind, ""),), signature(kind, named).injected, strict=False))
    return named(**args, **{own_names.get(name, name): injected[name] for name in injected})


@contextmanager
def _only_weights(named: Any) -> Iterator[None]:
    """Have torch load no objects, only weights, while a function of torchvision builds a model.

    Its ``weights`` are a file that torchvision has downloaded once, and loads without this check.
    """
    before = os.environ.get(WEIGHTS_ONLY)
    if not is_from(named, "models"):
        yield
        return
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        text = "its file of weights is damaged, or holds objects beside them: remove it from "
        raise ValueError(f"{text}{torch.hub.get_dir()}") from None  # torch advises to trust it
    finally:
        os.environ.pop(WEIGHTS_ONLY)
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


def _is_fault_of_code(error: Exception) -> bool:
    """Tell what needs its traceback: what a line of the project raises but to refuse a value."""
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    is_ours = file.is_relative_to(project_root()) and "site-packages" not in file.parts
    return is_ours and not isinstance(error, TypeError | ValueError)
