"""Checks all names in a config and their arguments: the second stage of validation.

Each name is looked up, and its arguments are compared with its signature. Nothing is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import Parameter
from typing import Any

from base.config.config import Config
from base.config.durations import parse_duration
from base.config.normal_form import optimizer_keys, optimizer_sections
from base.config.references import Reference, has_reference
from base.config.tree import Keys, dotted, show
from base.errors import ConfigError, KindlingError, nearest
from base.names.inner_sections import inner_kind, is_passed_on, replace_sections, words_as_sections
from base.names.layer_sections import layer_faults
from base.names.ranges import number_fault
from base.names.registry import find, override_note
from base.names.signatures import Signature, signature, value_fault

Section = Mapping[str, Any]
Fault = tuple[Keys, str]
LOADERS = ("data_loader", "valid_data_loader", "test_data_loader")


def check_names(config: Config) -> None:
    """Check all names and arguments of a config in its normal form, without building anything.

    Adds a note to the config for each name that both the project and Kindling define.

    Raises:
        ConfigError: lists all faults.
    """
    faults = []
    notes: list[str] = []
    for kind, keys, section in _sections(config):
        faults += _faults(kind, keys, section, notes)
        if kind == "optimizer":
            faults += _rule_faults(keys, section)
    if faults:
        order: list[str | int] = list(config)
        faults.sort(key=lambda fault: order.index(fault[0][0]))
        raise ConfigError([config.problem(keys, message) for keys, message in faults])
    config.notes += [each for each in dict.fromkeys(notes) if each not in config.notes]


def check_section(config: Config, kind: str, keys: Keys, section: Section) -> None:
    """Check a section after its references were resolved, as `check_names` does for all others.

    Raises:
        ConfigError: lists all faults.
    """
    faults = _faults(kind, keys, section)
    if kind == "optimizer":
        faults += _rule_faults(keys, section)
    if faults:
        raise ConfigError([config.problem(each, message) for each, message in faults])


def _sections(config: Config) -> Iterator[tuple[str, Keys, Section]]:
    """Yield the kind, keys and value of each ``{type, args}`` section."""
    yield "model", ("model",), config["model"]
    for key in LOADERS:
        if config[key]:
            yield "data_loader", (key,), config[key]
    for name, section in optimizer_sections(config).items():
        yield "optimizer", optimizer_keys(config, name), section
        if section["lr_scheduler"]:
            keys = optimizer_keys(config, name, "lr_scheduler")
            yield "lr_scheduler", keys, section["lr_scheduler"]
    yield "trainer", ("trainer",), config["trainer"]
    for key, kind in (("loss", "loss"), ("metrics", "metric"), ("callbacks", "callback")):
        for number, section in enumerate(config[key]):
            yield kind, (key, number), section
    for number, rule in enumerate(config["init"]):
        for name in rule:
            if name not in ("match", "preset"):
                yield "init", ("init", number, name), rule[name]


def _faults(kind: str, keys: Keys, section: Section, notes: list[str] | None = None) -> list[Fault]:
    """Return the faults of a section and of the sections inside its ``args``.

    Args:
        notes: receives a line for each name with two definitions and each section not built.
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

    for name, value in args.items():
        place, parameter = (*keys, "args", name), takes.parameters.get(name)
        if message := _argument_fault(kind, section["type"], takes, name, value):
            faults.append((place, message))
        faults += _inner_faults(kind, place, parameter, value, notes)
        if notes is not None and is_passed_on(kind, name, parameter, value):
            text = "is passed unchanged, not built; to have it built, annotate the argument"
            notes.append(f"{dotted(place)} {text} of {section['type']}, such as `{name}: Dataset`")
    if not faults and (own := getattr(named, "argument_faults", None)):
        # A builder's own check of arguments that its signature does not show.
        plain = {name: value for name, value in args.items() if not has_reference(value)}
        faults += [
            ((*keys, "args", name) if name else type_keys, text) for name, text in own(plain)
        ]
    return faults


def _inner_faults(
    kind: str, place: Keys, parameter: Parameter | None, value: Any, notes: list[str] | None
) -> list[Fault]:
    """Return the faults of the sections in an argument."""
    faults: list[Fault] = []
    name, args_keys = str(place[-1]), place[:-1]
    inner = inner_kind(kind, name, parameter, value)
    if inner == kind == "lr_scheduler":
        faults += _scheduler_faults(place, value)
    if inner == "model":
        faults += layer_faults(place, value)

    def check(inner: str, part: Section, keys: Keys) -> None:
        faults.extend(_faults(inner, (*args_keys, *keys), part, notes))

    replace_sections(inner, (name,), words_as_sections(parameter, value), check)
    return faults


def _scheduler_faults(keys: Keys, value: Any) -> list[Fault]:
    """Return the faults of the schedulers inside another one, except for their names."""
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
                f"unknown key{nearest(str(name), known)} (known: type, args)",
            )
            for name in part
            if name not in known
        ]
    return faults


def _rule_faults(keys: Keys, section: Section) -> list[Fault]:
    """Return the faults of ``param_groups``: match, freeze and the optimizer's arguments."""
    try:
        takes = signature("optimizer", find("optimizer", section["type"]))
    except KindlingError:
        return []  # already reported
    faults = []
    for number, rule in enumerate(section.get("param_groups") or ()):
        for name in rule:
            if name not in ("match", "preset", "freeze"):
                place = (*keys, "param_groups", number, name)
                message = _argument_fault("optimizer", section["type"], takes, name, rule[name])
                faults += [(place, message)] if message else []
    return faults


def _argument_fault(kind: str, type_name: str, takes: Signature, name: Any, value: Any) -> str:
    """Return the fault of an argument, or ""."""
    if name == "self" or name in takes.injected:
        return f"{name!r} is passed by Kindling; remove it"
    parameter = takes.parameters.get(name)
    if parameter is None and takes.is_open:
        return number_fault(kind, type_name, name, parameter, value)
    if parameter is None:
        known = f" (it takes {', '.join(takes.parameters) or 'none'})"
        return f"unknown argument for {type_name}{nearest(str(name), takes.parameters) or known}"
    if parameter.kind is Parameter.POSITIONAL_ONLY:
        return f"{type_name} takes it as positional-only, so a config cannot pass it"
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
