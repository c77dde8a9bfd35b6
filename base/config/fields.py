"""The field types of `schema.py`, each of which validates a tree."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from base.config.tree import Keys, Node, problem_at, show
from base.errors import Problem, nearest

ABSENT: Any = object()  # a default: the key is optional and is not filled in
REQUIRED: Any = object()  # a default: the key is required
SAME_AS_TYPE: Any = object()  # a default: the value of `type`
UNKNOWN: Any = object()  # a value that could not be looked up; it passes every check

REFERENCE = re.compile(r"\$\{[^{}]*\}")
MAX_PROBLEMS = 100  # reported in full
_TYPES: dict[str, tuple[type, ...]] = {
    **{"integer": (int,), "number": (int, float), "string": (str,), "boolean": (bool,)},
    "array": (list,),
}
_HUGE = 1e300  # larger, infinite and NaN values are outside of every range


@dataclass(frozen=True)
class Validation:
    """The options and the results of one pass over a tree."""

    problems: list[Problem]
    fill: bool = True  # fill in defaults; otherwise only expand short forms
    references: bool = False  # leave `${a.b}` alone, to be looked up later

    def problem(self, node: Node, keys: Keys, message: str) -> None:
        self.problems.append(problem_at(node.where, keys, message))

    def near(self, name: object, known: Iterable[object]) -> str:
        """Return the result of `nearest` for a limited number of names, for speed."""
        is_much = len(self.problems) > MAX_PROBLEMS
        words = (each for each in islice(known, 200) if isinstance(each, str))
        return "" if is_much else nearest(str(name)[:100], words)


class Field:
    """The valid values of a key: any plain data, unless a subclass restricts it."""

    def check(self, node: Node, keys: Keys, validation: Validation) -> Node:
        """Return the tree in its normal form and record its problems."""
        is_reference = isinstance(node.value, str) and REFERENCE.fullmatch(node.value)
        if node.value is UNKNOWN or (validation.references and is_reference):
            return node  # cannot be judged (yet)
        return self._check(node, keys, validation)

    def json_schema(self) -> dict[str, Any]:
        """Return JSON Schema (draft 7), short forms included."""
        return {}

    def _check(self, node: Node, keys: Keys, validation: Validation) -> Node:
        return node


@dataclass(frozen=True)
class Key:
    """A key of a section. With a default of None, null is valid."""

    field: Field
    default: Any
    doc: str

    def json_schema(self) -> dict[str, Any]:
        choices = [self.field.json_schema(), {"$ref": "#/definitions/reference"}]
        choices += [{"type": "null"}] if self.default is None else []
        schema = {"description": self.doc, "anyOf": choices}
        is_plain = isinstance(self.default, str | int | float | list | dict)
        return schema | ({"default": self.default} if is_plain else {})


@dataclass(frozen=True)
class Scalar(Field):
    """A single value that must match a JSON Schema."""

    expected: str  # described in errors
    schema: dict[str, Any]
    parse: Callable[[Any], object] | None = None  # further checks; raises ValueError

    def json_schema(self) -> dict[str, Any]:
        return dict(self.schema)

    def _check(self, node: Node, keys: Keys, validation: Validation) -> Node:
        try:
            if self.parse:
                self.parse(node.plain())
            elif not _accepts(self.schema, node.value):
                near = validation.near(node.value, self.schema.get("enum", ()))
                raise ValueError(f"expected {self.expected}, found {show(node.value)}{near}")
        except ValueError as error:
            validation.problem(node, keys, str(error))
        return node


@dataclass(frozen=True)
class Section(Field):
    """A mapping with known keys. Other keys are errors unless `others` defines their values."""

    keys: Mapping[str, Key]
    short: tuple[str, ...] = ()  # "string": a single word is the type; "number": constant_
    short_key: str = "type"  # the key of a short form's value; "match" takes every form of pattern
    others: Field | None = None
    names: str = ""  # the kind of the name in `type`
    exactly_one: tuple[str, ...] = ()
    never_both: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    meant_by: Callable[[str], str] | None = None  # maps an unknown key to a known one

    def check_entry(self, name: str, child: Node, keys: Keys, validation: Validation) -> Node:
        """Return an entry in its normal form and record its problems."""
        key = self.keys.get(name)
        found = key.field if key else self.others
        if found is None:
            meant = self.meant_by(name) if self.meant_by else ""
            near = f"; did you mean {meant!r}?" if meant else validation.near(name, self.keys)
            validation.problem(child, keys, f"unknown key{near or self._place_of_own()}")
            return child
        is_off = key and key.default is None and child.value is None
        return child if is_off else found.check(child, keys, validation)

    def _place_of_own(self) -> str:
        """Return a hint where to put the user's keys, if the section has such a place."""
        if "extra" in self.keys:
            return "; keys of your own go under `extra`"
        return "; arguments go under `args`" if "args" in self.keys else ""

    def json_schema(self) -> dict[str, Any]:
        properties = {name: key.json_schema() for name, key in self.keys.items()}
        schema: dict[str, Any] = {
            "type": ["object", "null"],
            "properties": properties | {old: properties[new] for old, new in self.aliases.items()},
            "additionalProperties": self.others.json_schema() if self.others else False,
        }
        if self.names:
            schema["allOf"] = [{"$ref": f"#/definitions/{self.names}"}]
        short: list[dict[str, Any]] = [{"type": list(self.short)}] if self.short else []
        if self.short_key == "match":  # {type: Conv2d} is a pattern too
            short.append({"type": "object", "required": ["type"], "maxProperties": 1})
        return {"anyOf": [*short, schema]} if short else schema

    def _check(self, node: Node, keys: Keys, validation: Validation) -> Node:
        value = self._expand(node)
        if not isinstance(value, dict):
            validation.problem(node, keys, f"expected a section of keys, found {show(value)}")
            return node

        entries: dict[str, Node] = {}
        for given, child in value.items():
            name = self.aliases.get(given, given)
            if child.value is None and name not in self.keys and isinstance(self.others, Section):
                # Null removes an inherited entry.
                entries |= {} if validation.fill else {name: child}
                continue
            if name != given and name in value:
                validation.problem(child, keys, f"{given!r} is an alias of {name!r}; give only one")
                entries[given] = child
            else:
                entries[name] = self.check_entry(name, child, (*keys, name), validation)
        if not validation.fill:
            return Node(entries, node.where)
        node = Node(self._with_defaults(entries, node, keys, validation), node.where)
        self._check_choices(node, keys, validation)
        return node

    def _expand(self, node: Node) -> Any:
        is_short = any(type(node.value) in _TYPES[name] for name in self.short)
        is_class = isinstance(node.value, dict) and [*node.value] == ["type"]
        if self.short_key != "type" and (is_short or (is_class and self.short_key == "match")):
            return {self.short_key: node}
        if "string" in self.short and isinstance(node.value, str):
            return {"type": node}
        if "number" in self.short and _accepts({"type": "number"}, node.value):
            return {"type": Node("constant_", node.where), "args": Node({"val": node}, node.where)}
        return {} if node.value is None else node.value

    def _with_defaults(
        self, entries: dict[str, Node], node: Node, keys: Keys, validation: Validation
    ) -> dict[str, Node]:
        complete: dict[str, Node] = {}
        for name, key in self.keys.items():
            if name in entries:
                complete[name] = entries[name]
            elif key.default is REQUIRED:
                validation.problem(
                    node, (*keys, name), f"missing; {key.doc[0].lower()}{key.doc[1:]}"
                )
            elif key.default is SAME_AS_TYPE:
                complete[name] = Node(entries["type"].value if "type" in entries else UNKNOWN)
            elif key.default is not ABSENT:
                value = key.default  # a scalar, a list of them, or an empty section
                default = Node([Node(item) for item in value] if isinstance(value, list) else value)
                complete[name] = self.check_entry(name, default, (*keys, name), validation)
        return {**complete, **entries}

    def _check_choices(self, node: Node, keys: Keys, validation: Validation) -> None:
        for group in (self.exactly_one, self.never_both):
            given = [name for name in group if node.value[name].value is not None]
            if len(given) > 1:
                places = " and ".join(f"{name!r} at {node.value[name].where}" for name in given)
                both = f"{places} are mutually exclusive; keep one (null turns the other off)"
                validation.problem(node.value[given[-1]], (*keys, given[-1]), both)
        if self.exactly_one and all(node.value[name].value is None for name in self.exactly_one):
            choice = " or ".join(repr(name) for name in self.exactly_one)
            validation.problem(node, keys, f"{choice} must be given")


@dataclass(frozen=True)
class Either(Field):
    """A section if a mapping is given, otherwise a plain value."""

    plain: Scalar
    section: Section

    def json_schema(self) -> dict[str, Any]:
        return {"anyOf": [self.plain.json_schema(), self.section.json_schema()]}

    def _check(self, node: Node, keys: Keys, validation: Validation) -> Node:
        chosen = self.section if isinstance(node.value, dict) else self.plain
        return chosen.check(node, keys, validation)


@dataclass(frozen=True)
class OneOrNamed(Field):
    """One item, or several: a mapping from names to items, or a list of names."""

    item: Scalar
    taken: Mapping[str, str] = field(default_factory=dict)  # reserved names

    def json_schema(self) -> dict[str, Any]:
        item = self.item.json_schema()
        names = {"type": "array", "items": {"type": "string"}, "minItems": 1}
        named = {"type": "object", "additionalProperties": item, "minProperties": 1}
        return {"anyOf": [item, names, named]}

    def _check(self, node: Node, keys: Keys, validation: Validation) -> Node:
        value = node.value
        if not isinstance(value, dict | list):
            return self.item.check(node, keys, validation)
        if not value:
            validation.problem(node, keys, "expected at least one name")
        if isinstance(value, list):
            if not all(isinstance(item.value, str) for item in value):
                text = "expected names, found a position: name each, as in {label: 1, mask: 2}"
                validation.problem(node, keys, text)
                return node
            if not validation.fill:
                return node  # a list replaces the inherited value
            value = {item.value: item for item in value}
        for name in value.keys() & self.taken.keys():
            validation.problem(value[name], (*keys, name), self.taken[name])
        entries = {
            name: self.item.check(item, (*keys, name), validation) for name, item in value.items()
        }
        return Node(entries, node.where)


@dataclass(frozen=True)
class ListOf(Field):
    """A list. Null is an empty list, and with `single` an item is a list of one."""

    item: Field
    single: bool = False
    unique: str = ""  # the key whose values must be unique

    def json_schema(self) -> dict[str, Any]:
        item = self.item.json_schema()
        schema = {"type": ["array", "null"], "items": item}
        return {"anyOf": [schema, item]} if self.single else schema

    def _check(self, node: Node, keys: Keys, validation: Validation) -> Node:
        value = [] if node.value is None else node.value
        if not isinstance(value, list):
            if not self.single:
                validation.problem(node, keys, f"expected a list, found {show(value)}")
                return node
            value = [node]
        items = [self.item.check(item, (*keys, i), validation) for i, item in enumerate(value)]

        seen: dict[Any, int] = {}
        for i, item in enumerate(items if self.unique and validation.fill else []):
            name = item.child(self.unique)
            if name and isinstance(name.value, str) and seen.setdefault(name.value, i) != i:
                two = f"{name.value!r} is already item {seen[name.value]}; choose another name"
                validation.problem(item, (*keys, i, self.unique), two)
        return Node(items, node.where)


def _accepts(schema: Mapping[str, Any], value: Any) -> bool:
    """Check a value against a JSON Schema, strictly: true is not 1, and 1.0 is not an integer."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if type(value) not in [known for name in types for known in _TYPES[name]]:
        return False
    if isinstance(value, str):
        is_long_enough = len(value) >= schema.get("minLength", 0)
        fits = re.search(schema.get("pattern", ""), value) is not None
        return is_long_enough and fits and value in schema.get("enum", [value])
    low, high = schema.get("minimum", -_HUGE), schema.get("maximum", _HUGE)
    over, under = schema.get("exclusiveMinimum", -_HUGE), schema.get("exclusiveMaximum", _HUGE)
    return bool(low <= value <= high and over < value < under)
