"""A config as a tree in which every value has a location."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from base.errors import Problem


class Where(NamedTuple):
    """A location in a file, with lines and columns counted from 1, or an option's text (line 0)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


DEFAULT = Where("default")
Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Node:
    """A scalar, ``dict[str, Node]`` or ``list[Node]``. An entry of a dict is located at its key."""

    value: Any
    where: Where = DEFAULT

    def plain(self) -> Any:
        """Return the value without locations."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        """Return the entry for a name or index (possibly as text), or None."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and str(key).isdecimal() and len(str(key)) < 9:
            return self.value[int(key)] if int(key) < len(self.value) else None
        return None


def as_tree(value: Any) -> Node:
    """Convert plain data to a tree without locations."""
    if isinstance(value, Mapping):
        return Node({name: as_tree(item) for name, item in value.items()})
    return Node([as_tree(item) for item in value] if isinstance(value, list) else value)


def dotted(keys: Keys) -> str:
    """Return the dotted name: ``optimizer.args.lr``."""
    return ".".join(str(key) for key in keys)


def leaves(value: Any, keys: Keys = ()) -> Iterator[tuple[str, Any]]:
    """Yield all leaves of nested data by dotted name. Empty containers are leaves."""
    items: Any = value.items() if isinstance(value, Mapping) else ()
    items = enumerate(value) if isinstance(value, list | tuple) else items
    for key, item in items:
        yield from leaves(item, (*keys, key))
    if not isinstance(value, Mapping | list | tuple) or not value:
        yield dotted(keys), value


def problem_at(where: Where | str, keys: Keys, message: str) -> Problem:
    """Return a problem with the entry under these keys. Quoted text stays on one line."""
    name = f"{one_line(dotted(keys))}: " if keys else ""
    return Problem(str(where), name + "\n".join(map(one_line, message.split("\n"))))


def one_line(text: object) -> str:
    """Return text with invisible characters escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def show(value: Any) -> str:
    """Describe a value for an error message."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the text {value[:60]!r}"
    return "null" if value is None else str(value).lower()[:60]
