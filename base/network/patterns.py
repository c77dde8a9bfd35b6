"""Patterns that select parameters and modules, in all sections of a config.

- ``"head.*"``: a glob on the whole dotted name; ``*`` crosses dots, upper and lower case differ.
- ``"re:stem\\.[0-3]\\..*"``: a regular expression that must match the whole name.
- ``{type: Conv2d}`` or ``{type: [Conv2d, Linear]}``: modules of that class, subclasses included;
  for parameters, the class of the module that owns them.
- a list of these: any of them; each must match something.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from base.errors import KindlingError, nearest

if TYPE_CHECKING:
    from torch import nn

Pattern: TypeAlias = str | Mapping[str, Any] | Sequence[Any]


class NoMatch(KindlingError):  # noqa: N818 (it reads as what happened)
    """Raised if a pattern matches nothing or is not valid."""

    exit_code = 2


class _Candidate(NamedTuple):
    names: list[str]  # a shared parameter or module has several
    classes: list[str]  # the module's own class, then its bases


def match_parameters(model: nn.Module, pattern: Pattern) -> list[str]:
    """Return the names of the parameters that match, in the model's order.

    A shared parameter matches by any of its names, and is returned once, by the first.
    """
    return ParameterNames(model).matching(pattern)


class ParameterNames:
    """The names of a model's parameters, for many rules: the model is walked through once."""

    def __init__(self, model: nn.Module) -> None:
        self._classes = _classes(model)
        candidates: dict[int, _Candidate] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            candidate = candidates.setdefault(id(parameter), _Candidate([], []))
            candidate.names.append(name)
            candidate.classes.extend(self._classes[owner_and_leaf(name)[0]])
        self._candidates = list(candidates.values())

    def matching(self, pattern: Pattern) -> list[str]:
        """Return what `match_parameters` does."""
        return _select(pattern, self._candidates, "parameter", self._classes)


def match_modules(model: nn.Module, pattern: Pattern) -> list[str]:
    """Return the names of the matching modules. A shared module is returned once."""
    classes = _classes(model)
    candidates: dict[int, _Candidate] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            candidates.setdefault(id(module), _Candidate([], classes[name])).names.append(name)
    return _select(pattern, list(candidates.values()), "module", classes)


def match_names(
    names: Iterable[str], pattern: Pattern, model: nn.Module | None = None
) -> list[str]:
    """Return the matching names, such as the names in a weights file.

    With a model, names of its parameters and buffers also match by the class of their module.
    """
    classes = {} if model is None else _classes(model)
    candidates = [_Candidate([name], classes.get(owner_and_leaf(name)[0], [])) for name in names]
    return _select(pattern, candidates, "weight", classes)


def owner_and_leaf(name: str) -> tuple[str, str]:
    """Split a parameter's name into the name of its module and the last part.

    A parametrized weight belongs to its layer, not to the list of its parts:
    ``head.parametrizations.weight.original`` is the ``weight`` of ``head``.
    """
    owner, _, leaf = name.rpartition(".")
    owner, *inner = re.split(r"\.?\bparametrizations\.", owner)
    return owner, inner[0] if inner and leaf == "original" else leaf


def whole_of(name: str) -> str:
    """Return the last part of a parameter's name, or the weight's for a part of a weight."""
    found = re.search(r"\bparametrizations\.(\w+)\.original\d+$", name)
    return found[1] if found else owner_and_leaf(name)[1]


def _classes(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of each module's class and base classes."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: [cls.__name__ for cls in type(module).__mro__] for name, module in modules}


def _select(
    pattern: Pattern, candidates: list[_Candidate], kind: str, classes: Mapping[str, list[str]]
) -> list[str]:
    """Return the first name of each match. ``classes`` has the class names of all modules."""
    chosen: set[int] = set()
    for part in _parts(pattern):
        matches = _matcher(part)
        found = [index for index, one in enumerate(candidates) if matches(one)]
        if isinstance(part, Mapping):
            _refuse_unknown_types(_types(part), classes)
            if not found:
                raise NoMatch(_no_type_matches(_types(part), candidates, kind, classes))
        elif not found:
            raise NoMatch(_no_name_matches(part, candidates, kind))
        chosen.update(found)
    return [candidates[index].names[0] for index in sorted(chosen)]


def _parts(pattern: Pattern) -> Iterator[str | Mapping[str, Any]]:
    if isinstance(pattern, Mapping) or (isinstance(pattern, str) and pattern):
        yield pattern
    elif isinstance(pattern, list | tuple) and pattern:
        for part in pattern:
            yield from _parts(part)
    else:
        raise NoMatch(f"a pattern is a name, {{type: ...}} or a list of them, not {pattern!r}")


def _matcher(part: str | Mapping[str, Any]) -> Callable[[_Candidate], bool]:
    if isinstance(part, Mapping):
        wanted = set(_types(part))
        return lambda candidate: not wanted.isdisjoint(candidate.classes)
    if not part.startswith("re:"):
        glob = re.compile(translate(part)).match  # what `fnmatchcase` looks up for each name
        return lambda candidate: any(map(glob, candidate.names))
    try:
        fullmatch = re.compile(part[3:]).fullmatch
    except re.error as error:
        raise NoMatch(f"{part!r} is not a regular expression: {error}") from error
    return lambda candidate: any(map(fullmatch, candidate.names))


def _types(part: Mapping[str, Any]) -> list[str]:
    types = part["type"] if set(part) == {"type"} else None
    types = [types] if isinstance(types, str) else types
    if not isinstance(types, list | tuple) or not types or any(type(t) is not str for t in types):
        raise NoMatch(f"a pattern by class is written {{type: Conv2d}}, not {dict(part)!r}")
    return list(types)


def _refuse_unknown_types(types: list[str], classes: Mapping[str, list[str]]) -> None:
    """Raise for a type that does not exist. A list may have types that the model does not use."""
    from torch import nn

    present = {name for each in classes.values() for name in each}
    for name in types:
        if name not in present and not hasattr(nn, name):
            near = nearest(name, present) or nearest(name, vars(nn))
            raise NoMatch(f"no module is of type {name!r}{near}")


def _no_type_matches(
    types: list[str], candidates: list[_Candidate], kind: str, classes: Mapping[str, list[str]]
) -> str:
    text = f"no {kind} is of type {' or '.join(types)}"
    for name, each in classes.items():
        if name and not set(types).isdisjoint(each):
            return f"{text}: such modules have none of their own; match their parts: '{name}.*'"
    present = ", ".join(sorted({one.classes[0] for one in candidates if one.classes}))
    return f"{text}; the types here are: {present or 'none'}"


def _no_name_matches(part: str, candidates: list[_Candidate], kind: str) -> str:
    names = [name for one in candidates for name in one.names]
    if not names:
        return f"no {kind} matches {part!r}: there are none"
    sample = ", ".join(names[:: max(1, len(names) // 4)][:4])
    near = _near_miss(part, candidates)
    return f"no {kind} matches {part!r}{near or '; names'} look like: {sample}, ..."


def _near_miss(part: str, candidates: list[_Candidate]) -> str:
    """Suggest a similar pattern that matches, corrected or extended."""
    known = sorted({word for one in candidates for name in one.names for word in name.split(".")})

    def closest(found: re.Match[str]) -> str:
        return next(iter(difflib.get_close_matches(found[0], known, n=1)), found[0])

    prefix, body = ("re:", part[3:]) if part.startswith("re:") else ("", part)
    corrected = prefix + re.sub(r"(?<!\\)[A-Za-z_]\w+", closest, body)
    attempts = [f"{part}.*", f"*.{part}", corrected, f"{corrected}.*", f"*.{corrected}"]
    # A parameter instead of its module, and a prefix such as ``module.``.
    others = () if prefix else (part.rpartition(".")[0], part.partition(".")[2])
    attempts += [each for each in others if re.match(r"\w", each)]
    for attempt in attempts:
        if any(map(_matcher(attempt), candidates)):
            return f"; did you mean {attempt!r}? Names"
    return ""
