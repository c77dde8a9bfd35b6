"""Which weights of a file go where in a model: the rules of ``model.weights``, what they did."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from itertools import count
from typing import Any

from torch import nn

from base.checkpoint.restoration import shape_in_words
from base.errors import CheckpointError, nearest
from base.network.patterns import NoMatch, match_names

MAX_LINES = 12  # of one kind in a message


@dataclass(frozen=True)
class Fit:
    """What becomes of each name of a file and of a model.

    A name of both is loaded, left out or mismatched; one of the model alone is missing, one of the
    file alone unexpected.
    """

    file: str
    loaded: list[str]
    renamed: dict[str, str]  # the name that the rules made: the name in the file
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, str]  # name: both shapes
    left_out: list[str]

    def table(self) -> str:
        """Return a line for each kind: its name, how many there are, the first few."""
        renamed = [f"{old} -> {new}" for new, old in self.renamed.items()]
        mismatched = [f"{name} ({shapes})" for name, shapes in self.mismatched.items()]
        kinds = {"loaded": self.loaded, "renamed": renamed, "missing": self.missing}
        kinds |= {"unexpected": self.unexpected, "mismatched": mismatched}
        kinds["left out"] = self.left_out
        return "\n".join(
            f"  {kind:10} {len(names):6,}  {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
            for kind, names in kinds.items()
        ).replace("  \n", "\n")


def new_names(
    names: Iterable[str], strip: Sequence[str], rename: Mapping[str, str]
) -> dict[str, str]:
    """Return, for each name that the rules make, the name in the file.

    Prefixes are taken off in turn, then the renames are done in turn, each on what the ones before
    it made. A ``*`` in a replacement stands for what that of the pattern took; in one for a ``re:``
    pattern, ``\\1`` for its first group.

    Raises:
        NoMatch: a rule does nothing, or cannot be read.
        CheckpointError: two names become one.
    """
    made = {name: name for name in names}
    for prefix in (f"{given.rstrip('.')}." for given in strip):
        if not any(name.startswith(prefix) for name in made.values()):
            parts = {
                name[: dot.end()] for name in made.values() for dot in re.finditer(r"\.", name)
            }
            raise NoMatch(f"`strip`: no weight begins with {prefix!r}{_like(prefix, parts, made)}")
        made = {old: name.removeprefix(prefix) for old, name in made.items()}
    for pattern, replacement in rename.items():
        hits = set(_matched("rename", made.values(), pattern, None))
        change = _change(pattern, replacement)
        made = {old: change(name) if name in hits else name for old, name in made.items()}
    sources: dict[str, str] = {}
    for old, name in made.items():
        if name in sources:
            text = f"{sources[name]!r} and {old!r} of the file would both be {name!r}"
            raise CheckpointError(f"{text}: `strip` and `rename` must keep names apart")
        sources[name] = old
    return sources


def _like(prefix: str, parts: Iterable[str], made: Mapping[str, str]) -> str:
    return nearest(prefix, parts) or f"; names look like: {', '.join([*made.values()][:3])}, ..."


def _matched(rule: str, names: Iterable[str], pattern: Any, model: nn.Module | None) -> list[str]:
    try:
        return match_names(names, pattern, model)
    except NoMatch as error:
        raise NoMatch(f"`{rule}`: {error}") from error


def _change(pattern: str, replacement: str) -> Callable[[str], str]:
    """Return what turns a name that the pattern matches into the new one."""
    template, expression = replacement, pattern.removeprefix("re:")
    if not pattern.startswith("re:"):
        n_stars = pattern.count("*"), replacement.count("*")
        if n_stars[0] != n_stars[1]:
            text = f"`rename`: {pattern!r} has {n_stars[0]} `*`, {replacement!r} has {n_stars[1]}"
            raise NoMatch(f"{text}: give as many, or a regular expression: 're:(.*)': '\\1'")
        numbers = count(1)
        template = re.sub(r"\*", lambda _: rf"\g<{next(numbers)}>", template.replace("\\", r"\\"))
        expression = "(.*)".join(translate(part)[4:-3] for part in pattern.split("*"))

    def expand(name: str) -> str:
        found = re.fullmatch(expression, name)
        try:
            return found.expand(template) if found else name
        except (re.error, IndexError) as error:
            raise NoMatch(f"`rename`: {pattern!r} to {replacement!r}: {error}") from error

    return expand


def fit(
    model: nn.Module, saved: Mapping[str, Any], section: Mapping[str, Any], file: str
) -> tuple[Fit, dict[str, Any]]:
    """Return what becomes of each name, and the values to load, by their names in the model.

    Raises:
        NoMatch: a rule does nothing, or cannot be read.
        CheckpointError: something that is not left out is missing, unexpected or of another shape,
            or nothing is left to load.
    """
    own = model.state_dict()
    sources = new_names(saved, section["strip"], section["rename"])
    values = {name: saved[old] for name, old in sources.items()}
    known = list(dict.fromkeys([*own, *values]))
    only, skip = section["only"], section["skip"]
    chosen = set(_matched("only", known, only, model) if only else known)
    chosen -= set(_matched("skip", known, skip, model) if skip else ())

    mismatched = {
        name: f"{shape_in_words(values[name])} in the file, {shape_in_words(value)} here"
        for name, value in own.items()
        if name in values and shape_in_words(values[name]) != shape_in_words(value)
    }
    both = [name for name in own if name in values and name not in mismatched]
    found = Fit(
        file=file,
        loaded=[name for name in both if name in chosen],
        renamed={name: old for name, old in sources.items() if name != old},
        missing=[name for name in own if name not in values],
        unexpected=[name for name in values if name not in own],
        mismatched=mismatched,
        left_out=[name for name in both if name not in chosen],
    )
    _refuse(found, chosen, section["on_shape_mismatch"] == "skip")
    return found, {name: values[name] for name in found.loaded}


def _refuse(found: Fit, chosen: set[str], may_mismatch: bool) -> None:
    """Raise CheckpointError where what was chosen does not fit, or nothing would be loaded."""
    missing = [name for name in found.missing if name in chosen]
    unexpected = [name for name in found.unexpected if name in chosen]
    mismatched = [name for name in found.mismatched if name in chosen and not may_mismatch]
    lines = [f"{name}: {found.mismatched[name]}" for name in mismatched[:MAX_LINES]]
    for names, others, text in (
        (missing, unexpected, "not in the file"),
        (unexpected, missing, "only in the file"),
    ):
        lines += [f"{name}: {text}{nearest(name, others)}" for name in names[:MAX_LINES]]
    n_more = len(missing) + len(unexpected) + len(mismatched) - len(lines)
    lines += [f"and {n_more} more"] * (n_more > 0)
    if lines:
        advice = _prefix(missing, unexpected) or "what is not to be loaded is named by `skip`"
        if mismatched and not missing and not unexpected:
            advice += "; all of another shape is left out by `on_shape_mismatch: skip`"
        text = "\n  ".join(["the file does not fit, nothing was changed:", *lines])
        raise CheckpointError(f"{text}\n{advice}")
    if not found.loaded:
        raise CheckpointError(f"nothing of the file would be loaded:\n{found.table()}")


def _prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Return the rule that would make most of it fit, where one prefix is all that differs."""
    for names, others, rule in (
        (missing, unexpected, "`strip: {0}.` takes {0!r} off the file's names"),
        (unexpected, missing, '`rename: {{"*": "{0}.*"}}` puts {0!r} before the file\'s names'),
    ):
        known = set(others)
        for name in names[:MAX_LINES]:
            longer = next((each for each in others if each.endswith(f".{name}")), name)
            prefix = longer.removesuffix(f".{name}")
            if sum(f"{prefix}.{each}" in known for each in names) * 2 > len(names):
                return f"{rule.format(prefix)}, and most would fit"
    return ""
