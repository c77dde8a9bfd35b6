"""The one pattern language for parameters and modules, the same in every section of a config.

- ``"head.*"``: a glob on the whole dotted name; ``*`` crosses dots, upper and lower case differ.
- ``"re:stem\\.[0-3]\\..*"``: a regular expression that must fit the whole name.
- ``{type: Conv2d}`` or ``{type: [Conv2d, Linear]}``: modules of that class, subclasses included;
  for parameters, the class of the module that owns them.
- a list of these: any of them, and each must match something.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from base.errors import KindlingError, nearest

if TYPE_CHECKING:
    from torch import nn

Pattern: TypeAlias = str | Mapping[str, Any] | Sequence[Any]


class NoMatch(KindlingError):  # noqa: N818 (it reads as what happened)
    """A pattern matches nothing, or cannot be read."""

    exit_code = 2


class _Item(NamedTuple):
    names: list[str]  # more than one where a parameter or a module is shared
    classes: list[str]  # the module's own class first, then those it derives from


def match_parameters(model: nn.Module, pattern: Pattern) -> list[str]:
    """Return the names of the parameters that match, in the model's order.

    A shared parameter answers to each of its names and is returned once, under the first.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    items: dict[int, _Item] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # A parametrised weight belongs to its layer, not to the list that keeps its parts.
        owner = re.split(r"\.?\bparametrizations\.", name.rpartition(".")[0])[0]
        item = items.setdefault(id(parameter), _Item([], []))
        item.names.append(name)
        item.classes.extend(_class_names(modules[owner]))
    return _select(pattern, list(items.values()), "parameter")


def match_modules(model: nn.Module, pattern: Pattern) -> list[str]:
    """Return the names of the modules below the model that match, a shared one once."""
    items: dict[int, _Item] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            items.setdefault(id(module), _Item([], _class_names(module))).names.append(name)
    return _select(pattern, list(items.values()), "module")


def check_pattern(pattern: Pattern) -> None:
    """Raise NoMatch where a pattern cannot be read; needs no model and no torch."""
    for part in _parts(pattern):
        _test(part)


def _select(pattern: Pattern, items: list[_Item], kind: str) -> list[str]:
    chosen: set[int] = set()
    for part in _parts(pattern):
        test = _test(part)
        found = [index for index, item in enumerate(items) if test(item)]
        if isinstance(part, Mapping):
            _refuse_unknown_types(_types(part), items)
        if not found:
            raise NoMatch(_nothing(part, items, kind))
        chosen.update(found)
    return [items[index].names[0] for index in sorted(chosen)]


def _parts(pattern: Pattern) -> Iterator[str | Mapping[str, Any]]:
    if isinstance(pattern, Mapping) or (isinstance(pattern, str) and pattern):
        yield pattern
    elif isinstance(pattern, list | tuple) and pattern:
        for part in pattern:
            yield from _parts(part)
    else:
        raise NoMatch(f"a pattern is a name, {{type: ...}} or a list of them, not {pattern!r}")


def _test(part: str | Mapping[str, Any]) -> Callable[[_Item], bool]:
    if isinstance(part, Mapping):
        wanted = set(_types(part))
        return lambda item: not wanted.isdisjoint(item.classes)
    if not part.startswith("re:"):
        return lambda item: any(fnmatchcase(name, part) for name in item.names)
    try:
        fits = re.compile(part[3:]).fullmatch
    except re.error as error:
        raise NoMatch(f"{part!r} is no regular expression: {error}") from error
    return lambda item: any(fits(name) for name in item.names)


def _types(part: Mapping[str, Any]) -> list[str]:
    types = part["type"] if set(part) == {"type"} else None
    types = [types] if isinstance(types, str) else types
    if not isinstance(types, list | tuple) or not types or any(type(t) is not str for t in types):
        raise NoMatch(f"a pattern by class is written {{type: Conv2d}}, not {dict(part)!r}")
    return list(types)


def _class_names(module: nn.Module) -> list[str]:
    return [cls.__name__ for cls in type(module).__mro__]


def _refuse_unknown_types(types: list[str], items: list[_Item]) -> None:
    """A class that is absent here may stand in a list of types; one that nobody knows may not."""
    from torch import nn

    present = {name for item in items for name in item.classes}
    for name in types:
        if name not in present and not hasattr(nn, name):
            near = nearest(name, present) or nearest(name, vars(nn))
            raise NoMatch(f"no module is of type {name!r}{near}")


def _nothing(part: str | Mapping[str, Any], items: list[_Item], kind: str) -> str:
    if isinstance(part, Mapping):
        present = ", ".join(sorted({item.classes[0] for item in items}))
        return f"no {kind} is of type {' or '.join(_types(part))}; the types here are: {present}"
    names = [name for item in items for name in item.names]
    sample = ", ".join(names[:: max(1, len(names) // 4)][:4])
    near = _near_miss(part, items)
    return f"no {kind} matches {part!r}{near or '; names'} look like: {sample}, ..."


def _near_miss(part: str, items: list[_Item]) -> str:
    """Mend the literal words of a pattern, and show what would have matched."""
    known = sorted({word for item in items for name in item.names for word in name.split(".")})

    def closest(found: re.Match[str]) -> str:
        return next(iter(difflib.get_close_matches(found[0], known, n=1)), found[0])

    prefix, body = ("re:", part[3:]) if part.startswith("re:") else ("", part)
    mended = prefix + re.sub(r"(?<!\\)[A-Za-z_]\w+", closest, body)
    for attempt in (f"{part}.*", f"*.{part}", mended, f"{mended}.*", f"*.{mended}"):
        if any(map(_test(attempt), items)):
            return f"; did you mean {attempt!r}? Names"
    return ""
