"""Writes a tree as block YAML that loads as an equal tree, optionally with origins."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from base.config.references import Reference
from base.config.tree import Node

_PLAIN = re.compile(r"[A-Za-z_][\w./-]*( [\w./-]+)*|[0-9]+ (steps?|epochs?)", re.ASCII)
_TAKEN = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}  # YAML 1.1's words too


def to_lines(node: Node, *, origins: bool = False) -> Iterator[str]:
    """Yield the lines of a mapping or list, optionally with the origin of each value."""
    is_list = isinstance(node.value, list)
    pairs = [("-", item) for item in node.value] if is_list else node.value.items()
    for name, child in pairs:
        head = "-" if is_list else f"{_quoted(name)}:"
        if _fits_a_line(child):
            comment = f"  # {_origin(child)}" if origins else ""
            yield f"{head} {as_word(child.plain())}{comment}"
            continue
        if not is_list:
            yield head
        for i, line in enumerate(to_lines(child, origins=origins)):
            yield f"- {line}" if is_list and i == 0 else f"  {line}"


def as_word(value: Any) -> str:
    """Return single-line YAML for a scalar, a list of scalars or an empty mapping."""
    if isinstance(value, list):
        return f"[{', '.join(as_word(item) for item in value)}]"
    if isinstance(value, float):
        word = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
        return word if "." in word else word.replace("e", ".0e")  # valid in YAML 1.1 too
    if not isinstance(value, str):
        return json.dumps(value) if isinstance(value, bool | int | None) else "{}"
    return _quoted(as_source(value))


def as_source(value: Any) -> Any:
    """Escape the strings in plain data, so that loading restores them."""
    if isinstance(value, dict):
        return {name: as_source(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_source(item) for item in value]
    is_text = isinstance(value, str) and not isinstance(value, Reference)
    return value.replace("${", "$${") if is_text else value


def _quoted(text: str) -> str:
    """Return a string as YAML, quoted if needed."""
    if _PLAIN.fullmatch(text) and text.lower() not in _TAKEN:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)


def _fits_a_line(node: Node) -> bool:
    if isinstance(node.value, list):
        return not any(isinstance(item.value, dict | list) for item in node.value)
    return not (isinstance(node.value, dict) and node.value)


def _origin(node: Node) -> str:
    return f"{node.where.source}:{node.where.line}" if node.where.line else node.where.source
