"""Resolves `${a.b}`: alone, to the value itself; within a string, to text. `$${` escapes `${`.

References to built objects are resolved later; see `base/config/references.py`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from base.config.fields import REFERENCE, UNKNOWN, Validation
from base.config.references import Reference, built_object, fault_of_reference
from base.config.tree import Keys, Node, problem_at, show
from base.config.yaml_reader import MAX_DEPTH
from base.config.yaml_writer import as_word
from base.errors import ConfigError, Problem

if TYPE_CHECKING:
    from base.config.config import Config

_TOKEN = re.compile(r"\$\$\{|\$\{[^{}]*\}|\$\{")


def interpolate(root: Node, problems: list[Problem]) -> Node:
    """Return the tree with all references resolved. Invalid references become UNKNOWN."""
    return _Lookup(root, Validation(problems)).resolve(root, (), 0)


def look_up(node: Node, config: Config, problems: list[Problem]) -> Node:
    """Resolve the references of a trainer's tree in a config."""
    return _Lookup(config.root, Validation(problems)).resolve(node, ("extra", "own"), 0)


class _Lookup:
    def __init__(self, root: Node, validation: Validation) -> None:
        self.root, self.validation = root, validation
        self.active: list[str] = []  # the nested references being resolved
        self.budget = 2_000_000  # for copies: their characters, and 20 per value

    def resolve(self, node: Node, keys: Keys, depth: int) -> Node:
        if self.active:
            self.budget -= 20 + (len(node.value) if isinstance(node.value, str) else 0)
        if self.budget < 0 or depth > MAX_DEPTH:
            fault = "references make the config too large or too deeply nested"
            raise ConfigError([problem_at(node.where, keys[:4], fault)])

        value = node.value
        if isinstance(value, dict):
            value = {k: self.resolve(child, (*keys, k), depth + 1) for k, child in value.items()}
        elif isinstance(value, list):
            value = [self.resolve(item, (*keys, i), depth + 1) for i, item in enumerate(value)]
        elif isinstance(value, str) and REFERENCE.fullmatch(value):
            value = self._target(node, value, keys, depth)
        elif isinstance(value, str) and "${" in value:
            parts = [self._part(node, token, keys, depth) for token in _TOKEN.finditer(value)]
            value = UNKNOWN if UNKNOWN in parts else _joined(value, parts)
        return Node(value, node.where)

    def _part(self, node: Node, token: re.Match[str], keys: Keys, depth: int) -> str:
        """Return the text that replaces a token within a string, or UNKNOWN."""
        if token.group() == "$${":
            return "${"
        value = self._target(node, token.group(), keys, depth)
        if isinstance(value, dict | list):
            fault = f"{token.group()} is {show(value)} and cannot be part of a string"
            value = self._fail(node, keys, fault)
        return value if isinstance(value, str) or value is UNKNOWN else as_word(value)

    def _target(self, node: Node, reference: str, keys: Keys, depth: int) -> Any:
        """Return the resolved value of a reference, or UNKNOWN."""
        name = reference[2:-1].strip()
        if name.startswith("config."):
            text = (
                f"{reference}: `${{config}}` alone is the whole config; for one value of it write"
            )
            return self._fail(node, keys, f"{text} `${{{name[7:]}}}`")
        if reference == "${":
            return self._fail(node, keys, "'${' without '}'; write '$${' for a literal '${'")
        if thing := built_object(name, self.root):
            name = f"model{name[4:]}" if name.startswith("arch.") else name
            fault = fault_of_reference(name, thing, keys)
            return self._fail(node, keys, fault) if fault else Reference(f"${{{name}}}")
        if not re.fullmatch(r"[\w\s.-]*", name):
            text = f"{reference}: not a name such as `${{data_loader.n_classes}}`; expressions"
            text += " are not evaluated: give the object an attribute that holds the value"
            return self._fail(node, keys, text)
        if name in self.active:
            circle = " -> ".join([*self.active[self.active.index(name) :], name])
            return self._fail(node, keys, f"is circular: {circle}")

        target = self.root
        for part in name.split("."):
            known = target.value if isinstance(target.value, dict) else ()
            child = target.child(part)
            if child is None:
                near = self.validation.near(part, known)
                return self._fail(node, keys, f"{reference}: no {part!r}{near}")
            target = child
        self.active.append(name)
        found = self.resolve(target, keys, depth + 1).value
        self.active.pop()
        return found

    def _fail(self, node: Node, keys: Keys, message: str) -> Any:
        self.validation.problem(node, keys, message)
        return UNKNOWN


def _joined(text: str, parts: list[str]) -> str:
    """Replace the tokens of a string. With references to objects, it keeps its escapes."""
    texts = iter(parts)
    if not any(isinstance(part, Reference) for part in parts):
        return _TOKEN.sub(lambda _: next(texts), text)

    def replace(token: re.Match[str]) -> str:
        part = next(texts)
        return part if isinstance(part, Reference) else part.replace("${", "$${")

    return Reference(_TOKEN.sub(replace, text))
