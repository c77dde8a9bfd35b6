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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    classes = _classes(model)
    items: dict[int, _Item] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        item = items.setdefault(id(parameter), _Item([], []))
        item.names.append(name)
        item.classes.extend(classes[owner_and_leaf(name)[0]])
    return _select(pattern, list(items.values()), "parameter", classes)


def match_modules(model: nn.Module, pattern: Pattern) -> list[str]:
    """Return the names of the modules below the model that match, a shared one once."""
    classes = _classes(model)
    items: dict[int, _Item] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name:
            items.setdefault(id(module), _Item([], classes[name])).names.append(name)
    return _select(pattern, list(items.values()), "module", classes)


def match_names(
    names: Iterable[str], pattern: Pattern, model: nn.Module | None = None
) -> list[str]:
    """Return those of the names that match, as of a file of weights; each stands for itself.

    With a model, the parameters and buffers that it has answer to their owner's type too.
    """
    classes = {} if model is None else _classes(model)
    items = [_Item([name], classes.get(owner_and_leaf(name)[0], [])) for name in names]
    return _select(pattern, items, "weight", classes)


def owner_and_leaf(name: str) -> tuple[str, str]:
    """Split a parameter's name into that of its module and its own.

    A parametrised weight belongs to its layer, not to the list that keeps its parts:
    ``head.parametrizations.weight.original`` is the ``weight`` of ``head``.
    """
    owner, _, leaf = name.rpartition(".")
    owner, *inner = re.split(r"\.?\bparametrizations\.", owner)
    return owner, inner[0] if inner and leaf == "original" else leaf


def whole_of(name: str) -> str:
    """Return a parameter's own name; for a part of a weight, as with weight_norm, the weight's."""
    found = re.search(r"\bparametrizations\.(\w+)\.original\d+$", name)
    return found[1] if found else owner_and_leaf(name)[1]


def _classes(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of each module's class and of those it derives from."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: [cls.__name__ for cls in type(module).__mro__] for name, module in modules}


def _select(
    pattern: Pattern, items: list[_Item], kind: str, classes: Mapping[str, list[str]]
) -> list[str]:
    """Choose among items; ``classes`` are those of all modules by name, for what is at fault."""
    chosen: set[int] = set()
    for part in _parts(pattern):
        test = _test(part)
        found = [index for index, item in enumerate(items) if test(item)]
        if isinstance(part, Mapping):
            _refuse_unknown_types(_types(part), classes)
            if not found:
                raise NoMatch(_no_such_type(_types(part), items, kind, classes))
        elif not found:
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


def _refuse_unknown_types(types: list[str], classes: Mapping[str, list[str]]) -> None:
    """A class that is absent here may stand in a list of types; one that nobody knows may not."""
    from torch import nn

    present = {name for each in classes.values() for name in each}
    for name in types:
        if name not in present and not hasattr(nn, name):
            near = nearest(name, present) or nearest(name, vars(nn))
            raise NoMatch(f"no module is of type {name!r}{near}")


def _no_such_type(
    types: list[str], items: list[_Item], kind: str, classes: Mapping[str, list[str]]
) -> str:
    text = f"no {kind} is of type {' or '.join(types)}"
    for name, each in classes.items():
        if name and not set(types).isdisjoint(each):
            return f"{text}: such modules hold none themselves; name what is in them: '{name}.*'"
    present = ", ".join(sorted({item.classes[0] for item in items if item.classes}))
    return f"{text}; the types here are: {present or 'none'}"


def _nothing(part: str, items: list[_Item], kind: str) -> str:
    names = [name for item in items for name in item.names]
    if not names:
        return f"no {kind} matches {part!r}: there are none"
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
    attempts = [f"{part}.*", f"*.{part}", mended, f"{mended}.*", f"*.{mended}"]
    # A parameter where its module is meant, and a prefix that belongs to another program.
    others = () if prefix else (part.rpartition(".")[0], part.partition(".")[2])
    attempts += [each for each in others if re.match(r"\w", each)]
    for attempt in attempts:
        if any(map(_test(attempt), items)):
            return f"; did you mean {attempt!r}? Names"
    return ""
