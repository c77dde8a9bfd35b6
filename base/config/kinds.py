"""The forms that `schema.py` declares a config with; each checks a tree and explains itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from base.config.tree import Node, dotted, from_plain, show
from base.errors import Problem, nearest

ABSENT: Any = object()  # a default: the key may be missing, and stays so
REQUIRED: Any = object()  # a default: the key must be given
SAME_AS_TYPE: Any = object()  # a default: what `type` says
UNKNOWN: Any = object()  # a value that could not be looked up; it passes every check

REFERENCE = re.compile(r"\$\{[^{}]*\}")
_TYPES: dict[str, Any] = {"integer": int, "number": int | float, "string": str, "boolean": bool}

Keys = tuple[str | int, ...]


@dataclass(frozen=True)
class Run:
    """What a check is to do: only expand short forms, or fill in the defaults too."""

    problems: list[Problem]
    fill: bool = True
    references: bool = False  # values `${a.b}` are still to be looked up, and left alone

    def problem(self, node: Node, keys: Keys, message: str) -> None:
        where = f"{dotted(keys)}: " if keys else ""
        self.problems.append(Problem(str(node.where), where + message))


class Kind(Protocol):
    """What may stand under a key."""

    def check(self, node: Node, keys: Keys, run: Run) -> Node:
        """Return the tree in its normal form, and note what is wrong with it."""
        ...

    def json_schema(self) -> dict[str, Any]:
        """Return JSON Schema (draft 7), short forms included."""
        ...


@dataclass(frozen=True)
class Key:
    """One key of a section; a default of None means that null may be written."""

    kind: Kind
    default: Any
    doc: str


@dataclass(frozen=True)
class Scalar:
    """A single value: what an error says was expected, and the JSON Schema that it must meet."""

    expected: str
    schema: Mapping[str, Any]
    parse: Callable[[Any], object] | None = None  # a ValueError from it is the problem

    def check(self, node: Node, keys: Keys, run: Run) -> Node:
        if _is_open(node, run):
            return node
        try:
            if self.parse:
                self.parse(node.value)
            elif not _accepts(self.schema, node.value):
                near = nearest(str(node.value), map(str, self.schema.get("enum", ())))
                raise ValueError(f"expected {self.expected}, found {show(node.value)}{near}")
        except ValueError as error:
            run.problem(node, keys, str(error))
        return node

    def json_schema(self) -> dict[str, Any]:
        return dict(self.schema)


@dataclass(frozen=True)
class Anything:
    """Any plain data."""

    def check(self, node: Node, keys: Keys, run: Run) -> Node:
        return node

    def json_schema(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Section:
    """A mapping with known keys; others are errors, unless `others` says what they hold."""

    keys: Mapping[str, Key]
    short: tuple[str, ...] = ()  # "string": the word alone is the type; "number": constant_
    others: Kind | None = None
    names: str = ""  # the kind of thing that `type` names
    exactly_one: tuple[str, ...] = ()
    never_both: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def check(self, node: Node, keys: Keys, run: Run) -> Node:
        if _is_open(node, run):
            return node
        value = self._expand(node)
        if not isinstance(value, dict):
            run.problem(node, keys, f"expected a section of keys, found {show(value)}")
            return node

        entries: dict[str, Node] = {}
        for given, child in value.items():
            name = self.aliases.get(given, given)
            if name in value and name != given:
                run.problem(child, keys, f"{given!r} is another name for {name!r}; give one")
                name = given
            entries[name] = self.check_entry(name, child, (*keys, name), run)
        node = Node(entries, node.where)
        return self._complete(node, keys, run) if run.fill else node

    def json_schema(self) -> dict[str, Any]:
        properties = {name: key_schema(key) for name, key in self.keys.items()}
        properties |= {alias: properties[name] for alias, name in self.aliases.items()}
        others = self.others.json_schema() if self.others else False
        schema = {"type": "object", "properties": properties, "additionalProperties": others}
        if self.names:
            schema["allOf"] = [{"$ref": f"#/definitions/{self.names}"}]
        return {"anyOf": [{"type": list(self.short)}, schema]} if self.short else schema

    def _expand(self, node: Node) -> Any:
        value = {} if node.value is None else node.value
        if isinstance(value, str) and "string" in self.short:
            return {"type": node}
        if "number" in self.short and _accepts({"type": "number"}, value):
            return {"type": Node("constant_", node.where), "args": Node({"val": node}, node.where)}
        return value

    def check_entry(self, name: str, child: Node, keys: Keys, run: Run) -> Node:
        key = self.keys.get(name)
        kind = key.kind if key else self.others
        if kind is None:
            if name not in self.aliases:
                run.problem(child, keys, f"unknown key{nearest(name, self.keys)}")
            return child
        if key and child.value is None and key.default is None:
            return child
        return kind.check(child, keys, run)

    def _complete(self, node: Node, keys: Keys, run: Run) -> Node:
        entries: dict[str, Node] = {}
        for name, key in self.keys.items():
            if name in node.value:
                entries[name] = node.value[name]
            elif key.default is REQUIRED:
                run.problem(node, (*keys, name), f"missing; {key.doc[0].lower()}{key.doc[1:]}")
            elif key.default is not ABSENT:
                same = key.default is SAME_AS_TYPE
                default = node.child("type") or Node(UNKNOWN) if same else from_plain(key.default)
                entries[name] = self.check_entry(name, Node(default.value), (*keys, name), run)
        node = Node({**entries, **node.value}, node.where)

        for group in filter(None, (self.exactly_one, self.never_both)):
            given = [name for name in group if node.value[name].value is not None]
            if len(given) > 1:
                places = ", ".join(f"{name!r} at {node.value[name].where}" for name in given)
                both = f"{places} exclude each other; keep one (null switches the other off)"
                run.problem(node.value[given[-1]], (*keys, given[-1]), both)
            elif not given and group is self.exactly_one:
                choice = " or ".join(repr(name) for name in group)
                run.problem(node, keys, f"one of {choice} must be given")
        return node


@dataclass(frozen=True)
class ListOf:
    """A list; null is an empty one, and with `single` one item stands for a list of one."""

    item: Kind
    single: bool = False
    unique: str = ""  # the key in which no two items may agree

    def check(self, node: Node, keys: Keys, run: Run) -> Node:
        if _is_open(node, run):
            return node
        value = [] if node.value is None else node.value
        if not isinstance(value, list):
            if not self.single:
                run.problem(node, keys, f"expected a list, found {show(value)}")
                return node
            value = [node]
        items = [self.item.check(item, (*keys, i), run) for i, item in enumerate(value)]

        seen: dict[Any, int] = {}
        for i, item in enumerate(items if self.unique and run.fill else []):
            name = item.child(self.unique)
            if name and isinstance(name.value, str) and seen.setdefault(name.value, i) != i:
                two = f"{name.value!r} is taken by item {seen[name.value]}; give another name"
                run.problem(item, (*keys, i, self.unique), two)
        return Node(items, node.where)

    def json_schema(self) -> dict[str, Any]:
        item = self.item.json_schema()
        schema = {"type": ["array", "null"], "items": item}
        return {"anyOf": [schema, item]} if self.single else schema


@dataclass(frozen=True)
class OneOf:
    """The first of several kinds that fits."""

    expected: str
    kinds: tuple[Kind, ...]

    def check(self, node: Node, keys: Keys, run: Run) -> Node:
        for kind in self.kinds:
            problems: list[Problem] = []
            checked = kind.check(node, keys, replace(run, problems=problems))
            if not problems:
                return checked
        run.problem(node, keys, f"expected {self.expected}, found {show(node.value)}")
        return node

    def json_schema(self) -> dict[str, Any]:
        return {"anyOf": [kind.json_schema() for kind in self.kinds]}


def key_schema(key: Key) -> dict[str, Any]:
    """Return the JSON Schema of one key: its kind, null or a reference, default and doc."""
    choices = [key.kind.json_schema(), {"$ref": "#/definitions/reference"}]
    choices += [{"type": "null"}] if key.default is None else []
    known = key.default is not None and all(
        key.default is not mark for mark in (ABSENT, REQUIRED, SAME_AS_TYPE)
    )
    return {"description": key.doc, "anyOf": choices} | ({"default": key.default} if known else {})


def _is_open(node: Node, run: Run) -> bool:
    """Say whether a value cannot be judged (yet)."""
    is_reference = isinstance(node.value, str) and REFERENCE.fullmatch(node.value)
    return node.value is UNKNOWN or bool(run.references and is_reference)


def _accepts(schema: Mapping[str, Any], value: Any) -> bool:
    """Check a single value as JSON Schema does, but strictly: true is no 1, and 1.0 no integer."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(
        isinstance(value, _TYPES[name]) and (isinstance(value, bool) <= (name == "boolean"))
        for name in types
    ):
        return False
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and value in schema.get("enum", [value])
    return (
        abs(value) <= 1e300  # so neither infinite nor not-a-number
        and value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and value > schema.get("exclusiveMinimum", -math.inf)
        and value < schema.get("exclusiveMaximum", math.inf)
    )
