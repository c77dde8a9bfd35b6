"""Compares runs: the settings in which they differ, and their order by one rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from base.config.short_settings import SAME_RESULT
from base.runs.facts import RunFacts

ABSENT: Any = object()
"""The value of a setting that a run does not have."""


def differing_settings(runs: Sequence[RunFacts]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs by dotted key, with the value in each run.

    Those that the command line changed in the most runs come first. Settings that do not change
    the result are left out, and so are keys that only some versions of Kindling write.
    """
    known = [index for index, run in enumerate(runs) if run.config]
    found: dict[str, list[Any]] = {}
    for key, values in _differences([runs[index].config for index in known], ()):
        if SAME_RESULT.search(key) or _is_of_some_versions(key, values):
            continue
        by_run = dict(zip(known, values, strict=True))
        found[key] = [by_run.get(index, ABSENT) for index in range(len(runs))]
    changed = Counter(key for run in runs for key in run.changed)
    return dict(sorted(found.items(), key=lambda item: -_n_changed(item[0], changed)))


def ranked(runs: Sequence[RunFacts], rule: str | None) -> list[RunFacts]:
    """Return runs from the best to the worst by a rule; those without a value come last."""
    sign = -1 if (rule or "").startswith("max ") else 1

    def place(run: RunFacts) -> tuple[bool, float, int, str]:
        value, _ = run.best_by(rule)
        return value is None, sign * (value or 0), run.number, run.folder.name

    return sorted(runs, key=place)


def common_rule(runs: Sequence[RunFacts]) -> str | None:
    """Return the rule by which most runs select their best epoch; None if it is off in all."""
    rules = Counter(rule for run in runs if (rule := run.monitor) is not None)
    return rules.most_common(1)[0][0] if rules else None


def _differences(values: Sequence[Any], keys: tuple[str, ...]) -> Iterator[tuple[str, list[Any]]]:
    """Yield each place where nested values differ, as deep as all of them have the same shape."""
    if all(value is values[0] or value == values[0] for value in values):
        return
    there = [value for value in values if value is not ABSENT and value is not None]
    if there and all(isinstance(value, Mapping) for value in there):
        names = list(dict.fromkeys(name for value in there for name in value))
        if len(there) < len(values):  # the section is off in some runs: its name tells so
            names = [name for name in names if name == "type" or _varies(there, name)]
        for name in names:
            inner = [_entry(value, name) for value in values]
            yield from _differences(inner, (*keys, str(name)))
    elif all(_holds_sections(value) and len(value) == len(values[0]) for value in values):
        for index, items in enumerate(zip(*values, strict=True)):
            yield from _differences(items, (*keys, str(index)))
    else:
        yield ".".join(keys), list(values)


def _entry(section: Any, name: str) -> Any:
    return section.get(name, ABSENT) if isinstance(section, Mapping) else ABSENT


def _varies(sections: Sequence[Mapping[str, Any]], name: str) -> bool:
    return any(_entry(each, name) != _entry(sections[0], name) for each in sections)


def _holds_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def _is_of_some_versions(key: str, values: Sequence[Any]) -> bool:
    """Return whether runs lack a key of a section that has all its keys in each version."""
    there = [value for value in values if value is not ABSENT]
    is_open = "args" in key.split(".") or key.startswith("extra.") or key.endswith("type")
    return len(there) < len(values) and not is_open and all(each == there[0] for each in there)


def _n_changed(key: str, changed: Mapping[str, int]) -> int:
    """Return in how many runs a key, or a section around it, was changed."""
    parts = key.split(".")
    return sum(changed.get(".".join(parts[:end]), 0) for end in range(1, len(parts) + 1))
