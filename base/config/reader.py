"""Read YAML 1.2 or JSON text into a tree: bounded, plain data only, every fault with its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from base.config.tree import Node, Where, dotted
from base.errors import ConfigError, Problem, nearest

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_NODES = 100_000  # with every alias counted as often as it is used
MAX_KEY = 100  # characters; YAML allows 1,024 for a key with all its escapes

_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its events are used
_UNPRINTABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = dict.fromkeys(["", "~", "null", "Null", "NULL"], None)
_WORDS |= dict.fromkeys(["true", "True", "TRUE"], True)
_WORDS |= dict.fromkeys(["false", "False", "FALSE"], False)
_PAIR = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)


def read_file(path: Path, problems: list[Problem], asked: Where | None = None) -> Node:
    """Read a file; raise ConfigError where nothing can be read, note lesser faults in problems."""
    asked = asked or Where(one_line(path))
    try:
        if not path.is_file():
            found = "this is no file" if path.exists() else "no such file"
            near = nearest(path.name, _names_beside(path))
            raise ConfigError([Problem(str(asked), f"{found}: {one_line(path)}{near}")])
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig") if len(data) <= MAX_BYTES else "x" * (MAX_BYTES + 1)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        raise ConfigError([_at(path, before, "not UTF-8; save the file as UTF-8")]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        fault = f"cannot read {one_line(path)}: {reason}"
        raise ConfigError([Problem(str(asked), fault)]) from error
    return read_text(text, str(path), problems)


def read_text(
    text: str, source: str, problems: list[Problem], *, depth: int = 0, has_lines: bool = True
) -> Node:
    """Read text as `read_file` does; without lines, every place is the source itself."""
    if len(text) > MAX_BYTES:
        raise ConfigError([Problem(one_line(source), "longer than 1 MB; a config is short")])
    if bad := _UNPRINTABLE.search(text):
        found = f"the character {bad.group()!r} cannot stand in a config"
        raise ConfigError([_at(source, text[: bad.start()], found)])
    if source.endswith(".json"):  # what JSON allows and YAML does not: tabs, halves of a character
        text = _PAIR.sub(_join_pair, text.replace("\t", " "))
    return _Reader(text, one_line(source), problems, has_lines).document(depth)


def scalar(text: str) -> Any:
    """Return what an unquoted word means in YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if re.fullmatch("0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _INFINITE.fullmatch(text) else text


class _Reader:
    """Builds a tree from the parser's events, which need no recursion of the parser's own."""

    def __init__(self, text: str, source: str, problems: list[Problem], has_lines: bool) -> None:
        self.parser = _PARSER(text)
        self.source, self.problems, self.has_lines = source, problems, has_lines
        self.anchors: dict[str, Node] = {}
        self.n_nodes = 0

    def document(self, depth: int) -> Node:
        self.next()  # start of the stream
        if isinstance(self.next(), yaml.StreamEndEvent):
            return Node(None, self.where(yaml.Event()))
        node = self.node(self.next(), (), depth)
        self.next()  # end of the document
        if not isinstance(after := self.next(), yaml.StreamEndEvent):
            raise self.fatal(after, "a second document begins here; a config is one document")
        return node

    def next(self) -> yaml.Event:
        try:
            return self.parser.get_event()
        except yaml.MarkedYAMLError as error:
            event = yaml.Event(error.problem_mark or error.context_mark)
            context = f" {error.context}" if error.context else ""
            raise self.fatal(event, f"not valid YAML{context}: {error.problem}") from error
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise self.fatal(yaml.Event(), f"not valid YAML: {error}") from error

    def node(
        self, event: Any, keys: tuple[str | int, ...], depth: int, where: Where | None = None
    ) -> Node:
        where = where or self.where(event)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, keys, depth, where)
        self.count(event, 1, depth)
        if event.tag is not None:
            self.problem(where, keys, f"the tag {event.tag!r} is not allowed; write plain values")

        if isinstance(event, yaml.ScalarEvent):
            node = Node(self.scalar(event, keys, where), where)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Node(self.items(keys, depth), where)
        else:
            node = Node(self.entries(keys, depth), where)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def scalar(self, event: Any, keys: tuple[str | int, ...], where: Where) -> Any:
        try:
            value = scalar(event.value) if event.implicit[0] else event.value
            str(value).encode()
        except UnicodeEncodeError:
            self.problem(where, keys, "half of a character (a lone surrogate) cannot stand here")
            return ""
        except ValueError:
            self.problem(where, keys, "a number with too many digits")
            return 0
        return value

    def items(self, keys: tuple[str | int, ...], depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := self.next(), yaml.SequenceEndEvent):
            items.append(self.node(event, (*keys, len(items)), depth + 1))
        return items

    def entries(self, keys: tuple[str | int, ...], depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := self.next(), yaml.MappingEndEvent):
            where = self.where(event)
            key = self.node(event, keys, depth + 1).value
            name = key if isinstance(key, str) else "?"
            value = self.node(self.next(), (*keys, name), depth + 1, where)
            if fault := self.fault_of_key(key, event):
                self.problem(where, keys, fault)
            elif name in entries:
                line = entries[name].where.line
                self.problem(where, (*keys, name), f"this key stands twice; first on line {line}")
            else:
                entries[name] = value
        return entries

    def fault_of_key(self, key: Any, event: Any) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            return "a key is a single word"
        if not isinstance(key, str):
            return f"the key {event.value[:60]} is not text; write it in quotes"
        if len(key) > MAX_KEY:
            return f"a key has at most {MAX_KEY} characters"
        if key == "<<" and event.implicit[0]:
            return "merge keys (<<) are not read; use 'inherit: FILE' or '${a.b}'"
        return ""

    def alias(
        self, event: Any, keys: tuple[str | int, ...], depth: int, where: Where
    ) -> Node:
        if event.anchor not in self.anchors:
            self.problem(where, keys, f"the alias *{event.anchor} stands before or in its anchor")
            return Node(None, where)
        node = self.anchors[event.anchor]
        self.count(event, *extent(node, depth))
        return Node(node.value, where)

    def count(self, event: Any, n_nodes: int, depth: int) -> None:
        self.n_nodes += n_nodes
        if depth > MAX_DEPTH:
            raise self.fatal(event, f"nested deeper than {MAX_DEPTH} levels")
        if self.n_nodes > MAX_NODES:
            raise self.fatal(event, f"more than {MAX_NODES:,} values")

    def where(self, event: Any) -> Where:
        if not self.has_lines:
            return Where(self.source)
        mark = event.start_mark
        return Where(self.source, *((mark.line + 1, mark.column + 1) if mark else (1, 1)))

    def problem(self, where: Where, keys: tuple[str | int, ...], message: str) -> None:
        text = f"{dotted(keys)}: {message}" if keys else message
        self.problems.append(Problem(str(where), one_line(text)))

    def fatal(self, event: Any, message: str) -> ConfigError:
        return ConfigError([Problem(str(self.where(event)), one_line(message))])


def extent(node: Node, depth: int = 0) -> tuple[int, int]:
    """Return the number of values in a tree and the depth of the deepest."""
    inner = node.value.values() if isinstance(node.value, dict) else node.value
    if not isinstance(node.value, dict | list) or not node.value:
        return 1, depth
    sizes, depths = zip(*(extent(child, depth + 1) for child in inner), strict=True)
    return 1 + sum(sizes), max(depths)


def _names_beside(path: Path) -> list[str]:
    return [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []


def _at(source: Path | str, before: str, message: str) -> Problem:
    line = before.count("\n") + 1
    return Problem(f"{one_line(source)}:{line}:{len(before) - before.rfind(chr(10))}", message)


def one_line(text: Path | str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def _join_pair(match: re.Match[str]) -> str:
    units = int(match[1], 16).to_bytes(2, "big") + int(match[2], 16).to_bytes(2, "big")
    return units.decode("utf-16-be")
