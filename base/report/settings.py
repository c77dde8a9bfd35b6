"""The settings of a config, one a line, and which of them differ from the schema's defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from base.config.fields import ABSENT, REQUIRED, SAME_AS_TYPE, Either, Field, ListOf, Section
from base.config.schema import ROOT
from base.config.yaml_writer import as_word


class Setting(NamedTuple):
    """One value of a config by its dotted key."""

    key: str
    value: str
    default: str | None
    """None where there is none: the key is required, or an argument."""
    is_changed: bool


def settings_of(config: Mapping[str, Any]) -> list[Setting]:
    """Return all settings of a resolved config, in its order."""
    return list(_settings(config, ROOT, ""))


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the value of each setting as text, by its dotted key."""
    return {setting.key: setting.value for setting in settings_of(config)}


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the settings in which some configs differ, with the value in each; "" if absent."""
    texts = [flat(config) for config in configs]
    keys = dict.fromkeys(key for each in texts for key in each)
    rows = {key: [each.get(key, "") for each in texts] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _settings(config: Mapping[str, Any], section: Section, before: str) -> Iterator[Setting]:
    for name, value in config.items():
        key, known = f"{before}{name}", section.keys.get(str(name))
        field = known.field if known is not None else section.others
        default = known.default if known is not None else ABSENT
        inner = _section_of(field, value)
        if isinstance(value, Mapping) and value and inner is not None:
            yield from _settings(value, inner, f"{key}.")
            continue
        plain = _changes(value, field)
        if default is SAME_AS_TYPE:
            yield Setting(key, as_text(plain), None, value != config.get("type"))
        elif default is ABSENT or default is REQUIRED:
            yield Setting(key, as_text(plain), None, value not in ({}, [], None))
        else:
            yield Setting(key, as_text(plain), as_text(default), value != default)


def _section_of(field: Field | None, value: Any) -> Section | None:
    """Return the section that a value is checked by; an open one for plain data."""
    if isinstance(field, Either):
        field = field.section
    if isinstance(field, Section):
        return field
    return Section({}, others=Field()) if type(field) is Field and isinstance(value, dict) else None


def _changes(value: Any, field: Field | None) -> Any:
    """Return the entries of a list without those of their keys that have the default value."""
    item = field.item if isinstance(field, ListOf) else None
    if not isinstance(value, list) or not isinstance(item, Section):
        return value
    return [_entry(each, item) for each in value]


def _entry(value: Any, section: Section) -> Any:
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for name, part in value.items():
        known = section.keys.get(str(name))
        default = known.default if known is not None else ABSENT
        is_default = part == (value.get("type") if default is SAME_AS_TYPE else default)
        if not is_default:
            kept[name] = part
    return kept["type"] if [*kept] == ["type"] else kept


def as_text(value: Any) -> str:
    """Return plain data as it stands in a config, on one line."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{name}: {as_text(part)}" for name, part in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(as_text, value))}]"
    try:
        return as_word(value)
    except TypeError:
        return json.dumps(value, default=str)
