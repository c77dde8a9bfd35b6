"""Look up `${a.b}`: alone it is the value itself, inside a text it is text; `$${` stays `${`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from base.config.kinds import REFERENCE, UNKNOWN, Keys, Run
from base.config.reader import MAX_DEPTH
from base.config.tree import Node, dotted, show
from base.config.writing import as_word
from base.errors import ConfigError, Problem, nearest

_TOKEN = re.compile(r"\$\$\{|\$\{[^{}]*\}|\$\{")


def has_references(node: Node) -> bool:
    """Say whether any text of the tree has something to look up, or an escape."""
    if isinstance(node.value, dict):
        return any(has_references(child) for child in node.value.values())
    if isinstance(node.value, list):
        return any(has_references(child) for child in node.value)
    return isinstance(node.value, str) and "${" in node.value


def interpolate(root: Node, problems: list[Problem]) -> Node:
    """Return the tree with every reference looked up in it; what fails is noted, and UNKNOWN."""
    return _Lookup(root, Run(problems)).resolve(root, ())


@dataclass
class _Lookup:
    root: Node
    run: Run
    active: list[str] = field(default_factory=list)  # the references being looked up
    budget: int = 4_000_000  # characters, and 20 a value

    def resolve(self, node: Node, keys: Keys, depth: int = 0) -> Node:
        self.budget -= 20 + (len(node.value) if isinstance(node.value, str) else 0)
        if self.budget < 0 or depth > MAX_DEPTH:
            fault = f"{dotted(keys[:4])}...: references make the config too large or too deep"
            raise ConfigError([Problem(str(node.where), fault)])

        if isinstance(node.value, dict):
            entries = node.value.items()
            named = {k: self.resolve(child, (*keys, k), depth + 1) for k, child in entries}
            return Node(named, node.where)
        if isinstance(node.value, list):
            items = enumerate(node.value)
            listed = [self.resolve(child, (*keys, i), depth + 1) for i, child in items]
            return Node(listed, node.where)
        if isinstance(node.value, str) and "${" in node.value:
            return self._text(node, keys, depth)
        return node

    def _text(self, node: Node, keys: Keys, depth: int) -> Node:
        if REFERENCE.fullmatch(node.value):
            return Node(self._target(node, node.value, keys, depth).value, node.where)

        failed = False

        def replace(match: re.Match[str]) -> str:
            nonlocal failed
            if match.group() == "$${":
                return "${"
            value = self._target(node, match.group(), keys, depth).value
            failed |= value is UNKNOWN
            if isinstance(value, dict | list):
                fault = f"{match.group()} is {show(value)} and cannot stand inside a text"
                self.run.problem(node, keys, fault)
            return value if isinstance(value, str) else as_word(value)

        text = _TOKEN.sub(replace, node.value)
        return Node(UNKNOWN if failed else text, node.where)

    def _target(self, node: Node, reference: str, keys: Keys, depth: int) -> Node:
        name = reference[2:-1].strip()
        if reference == "${":
            return self._fail(node, keys, "'${' without its '}'; a plain '${' is written '$${'")
        if name in self.active:
            circle = " -> ".join([*self.active[self.active.index(name) :], name])
            return self._fail(node, keys, f"goes round in a circle: {circle}")

        target = self.root
        for part in name.split("."):
            child = target.child(part)
            if child is None:
                known = target.value if isinstance(target.value, dict) else ()
                return self._fail(node, keys, f"{reference}: no {part!r} here{nearest(part, known)}")
            target = child

        self.active.append(name)
        found = self.resolve(target, keys, depth + 1)
        self.active.pop()
        return found

    def _fail(self, node: Node, keys: Keys, message: str) -> Node:
        self.run.problem(node, keys, message)
        return Node(UNKNOWN, node.where)
