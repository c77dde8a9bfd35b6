"""Reads YAML 1.2 or JSON into a tree of plain data, with size limits and located errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from base.config.tree import Keys, Node, Where, one_line, problem_at
from base.errors import ConfigError, Problem, nearest
from logger.files import NotAFileError, open_file

MAX_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_VALUES = 100_000  # aliases count at each use

_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # only its events are used
_UNREADABLE = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PAIR = re.compile(r"\\u[dD][89abAB]\w\w\\u[dD][c-fC-F]\w\w")  # a surrogate pair
# The meaning of unquoted words in YAML 1.2's core schema. All others are strings.
_WORDS: tuple[tuple[str, Callable[[str], Any]], ...] = (
    (r"|~|null|Null|NULL", lambda _: None),
    (r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    (r"[-+]?[0-9]+", int),
    (r"0o[0-7]+|0x[0-9a-fA-F]+", lambda text: int(text, 0)),
    (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", float),
    (r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", lambda text: float(text.replace(".", ""))),
)
_JSON_WORDS = ((r"NaN|-?Infinity", float), *_WORDS)  # as Python writes JSON


def read_file(path: Path, problems: list[Problem], asked: Where | None = None) -> Node:
    """Read a file. Raise ConfigError if it cannot be read; record other problems."""
    name = f": {path}" if asked else ""
    asked = asked or Where(one_line(path))
    try:
        if not path.exists():
            beside = islice(path.parent.iterdir(), 2000) if path.parent.is_dir() else ()
            near = nearest(path.name, [entry.name for entry in beside])
            raise ConfigError([problem_at(asked, (), f"no such file{name}{near}")])
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError("it is larger than 1 MB")
        text = data.decode("utf-8-sig")
    except NotAFileError as error:
        raise ConfigError([problem_at(asked, (), f"this is {error}{name}")]) from error
    except UnicodeDecodeError as error:
        where = Where(one_line(path), data[: error.start].count(b"\n") + 1, 1)
        raise ConfigError([problem_at(where, (), "not UTF-8; save it as UTF-8")]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError([problem_at(asked, (), f"cannot read {path}: {reason}")]) from error
    return read_text(text, Where(str(path), 1, 1), problems)


def read_text(text: str, start: Where, problems: list[Problem], depth: int = 0) -> Node:
    """Read a string like `read_file`. If `start` has no line, it is the location of all values."""
    if start.source.endswith(".json"):  # allowed in JSON but not in YAML
        text = _PAIR.sub(lambda pair: str(json.loads(f'"{pair[0]}"')), text.replace("\t", " "))
    return _Reader(text, start, problems).document(depth)


class _Reader:
    """Builds a tree from the parser's events, without recursion in the parser."""

    def __init__(self, text: str, start: Where, problems: list[Problem]) -> None:
        self.start = Where(one_line(start.source), start.line, start.column)
        self.problems = problems
        self.words = _JSON_WORDS if start.source.endswith(".json") else _WORDS
        self.anchors: dict[str, Node] = {}
        self.n_values = 0
        if bad := _UNREADABLE.search(text):
            *above, line = text[: bad.start()].split("\n")
            where = Where(self.start.source, self.start.line and len(above) + 1, len(line) + 1)
            raise self.fatal(where, f"the character {bad[0]!r} is not allowed in a config")
        if len(text) > MAX_BYTES:
            raise self.fatal(self.start, "longer than 1 MB")
        self.parser = _PARSER(text)

    def document(self, depth: int) -> Node:
        self.next()  # start of the stream
        if isinstance(self.next(), yaml.StreamEndEvent):
            return Node(None, self.start)
        node = self.node(self.next(), (), depth)
        self.next()  # end of the document
        if not isinstance(after := self.next(), yaml.StreamEndEvent):
            fault = "a second document starts here; a config is a single document"
            raise self.fatal(self.where(after.start_mark), fault)
        return node

    def next(self) -> Any:
        try:
            return self.parser.get_event()
        except yaml.MarkedYAMLError as error:
            where = self.where(error.problem_mark or error.context_mark)
            if "nesting depth" in str(error.problem or error.context):  # libyaml's own limit
                raise self.fatal(where, f"nested deeper than {MAX_DEPTH} levels") from error
            fault = " ".join(filter(None, ["not valid YAML:", error.context, error.problem]))
            raise self.fatal(where, fault) from error
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise self.fatal(self.start, f"not valid YAML: {error}") from error

    def node(self, event: Any, keys: Keys, depth: int, where: Where | None = None) -> Node:
        where = where or self.where(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, keys, depth, where)
        self.count(where, 1, depth)
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

    def scalar(self, event: Any, keys: Keys, where: Where) -> Any:
        words = self.words if event.implicit[0] else ()
        reads = (read for pattern, read in words if re.fullmatch(pattern, event.value))
        try:
            value = next(reads, str)(event.value)
            str(value).encode()
        except UnicodeEncodeError:
            self.problem(where, keys, "a lone surrogate is not a character")
        except ValueError:
            self.problem(where, keys, "a number with too many digits")
        else:
            return value

    def items(self, keys: Keys, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := self.next(), yaml.SequenceEndEvent):
            items.append(self.node(event, (*keys, len(items)), depth + 1))
        return items

    def entries(self, keys: Keys, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := self.next(), yaml.MappingEndEvent):
            where = self.where(event.start_mark)
            key = self.node(event, keys, depth + 1).value
            name = key if isinstance(key, str) else "?"
            value = self.node(self.next(), (*keys, name), depth + 1, where)
            if fault := self.fault_of_key(key, event):
                self.problem(where, keys, fault)
            elif name in entries:
                fault = f"duplicate key; first on line {entries[name].where.line}"
                self.problem(where, (*keys, name), fault)
            else:
                entries[name] = value
        return entries

    def fault_of_key(self, key: Any, event: Any) -> str:
        if not isinstance(key, str):
            word = f"{event.value[:60]} " if isinstance(event, yaml.ScalarEvent) else ""
            return f"the key {word}is not text; write a word, or put it in quotes"
        is_merge = key == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]
        return (
            "merge keys (<<) are not supported; use 'inherit: FILE' or '${a.b}'" if is_merge else ""
        )

    def alias(self, event: Any, keys: Keys, depth: int, where: Where) -> Node:
        if event.anchor not in self.anchors:
            self.problem(
                where, keys, f"the alias *{event.anchor} is used before or inside its anchor"
            )
            return Node(None, where)
        node = self.anchors[event.anchor]
        self.count(where, *extent(node, depth))
        return Node(node.value, where)

    def count(self, where: Where, n_values: int, depth: int) -> None:
        self.n_values += n_values
        if depth > MAX_DEPTH:
            raise self.fatal(where, f"nested deeper than {MAX_DEPTH} levels")
        if self.n_values > MAX_VALUES:
            raise self.fatal(where, f"more than {MAX_VALUES:,} values")

    def where(self, mark: Any) -> Where:
        if not (self.start.line and mark):
            return self.start
        return Where(self.start.source, mark.line + 1, mark.column + 1)

    def problem(self, where: Where, keys: Keys, message: str) -> None:
        self.problems.append(problem_at(where, keys, message))

    def fatal(self, where: Where, message: str) -> ConfigError:
        return ConfigError([problem_at(where, (), message)])


def extent(node: Node, depth: int) -> tuple[int, int]:
    """Return the number of values in a tree and the depth of the deepest."""
    inner = node.value.values() if isinstance(node.value, dict) else node.value
    if not isinstance(node.value, dict | list) or not node.value:
        return 1, depth
    sizes, depths = zip(*(extent(child, depth + 1) for child in inner), strict=True)
    return 1 + sum(sizes), max(depths)
