"""Loads a config: reads, inherits, overrides, interpolates and validates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from base.config.config import Config
from base.config.fields import MAX_PROBLEMS, Validation
from base.config.interpolation import interpolate
from base.config.pytorch_template import is_template, translate
from base.config.schema import ROOT
from base.config.tree import Keys, Node, Where, dotted, one_line, show
from base.config.yaml_reader import MAX_DEPTH, read_file, read_text
from base.errors import ConfigError, Problem

MAX_FILES = 64


def load_config(
    path: Path | None, overrides: Sequence[str] = (), text: str | None = None
) -> Config:
    """Load a YAML or JSON file, or a string with its content, and apply `a.b=value` overrides.

    A single ConfigError lists all faults. torch is not imported.
    """
    sources = _Sources()
    try:
        root = sources.load(Path(path or "config"), text if path else text or "", None, ())
        for override in overrides:
            root = _expanded(_override(root, override, sources.problems))
        root = _checked(root, sources.problems)
    except ConfigError as error:
        raise _error([*sources.problems, *error.problems]) from error
    if sources.problems:
        raise _error(sources.problems)
    changed = _changed(overrides, root)
    return Config(root, path, sources.notes, sources.is_template, changed)


def merge(parent: Node, child: Node) -> Node:
    """Merge two trees recursively. Lists are replaced; a new `type` drops the parent's `args`."""
    if not (isinstance(parent.value, dict) and isinstance(child.value, dict)):
        return child
    merged = dict(parent.value)
    old, new = merged.get("type"), child.value.get("type")
    if old and new and old.value != new.value:
        merged.pop("args", None)
    for name, node in child.value.items():
        merged[name] = merge(merged[name], node) if name in merged else node
    return Node(merged, child.where)


class _Sources:
    """Loads a file and the files that it inherits from."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.is_template = False
        self.n_files = 0

    def load(
        self, path: Path, text: str | None, asked: Where | None, above: tuple[Path, ...]
    ) -> Node:
        """Return the merged tree of a file. `asked` is the location of its name in another file."""
        self.n_files += 1
        if self.n_files > MAX_FILES:
            raise ConfigError([Problem(str(asked), f"inherit: more than {MAX_FILES} files")])
        if text is not None:
            root = read_text(text, Where(str(path), 1, 1), self.problems)
        else:
            root = read_file(path, self.problems, asked)
        if not isinstance(root.value, dict | None):
            fault = f"a config is a section of keys, found {show(root.value)}"
            raise ConfigError([Problem(str(root.where), fault)])

        root = Node(root.value or {}, root.where)
        if is_template(root, path):
            self.is_template = True
            root, notes = translate(root)
            self.notes += notes
        above = (*above, path.resolve())
        if above[-1] in above[:-1]:
            names = " -> ".join(file.name for file in above)
            raise ConfigError([Problem(str(asked), f"inherit: is circular: {names}")])
        return self._inherit(_expanded(root), path, above)

    def _inherit(self, root: Node, path: Path, above: tuple[Path, ...]) -> Node:
        entries = dict(root.value)
        names = entries.pop("inherit", Node(None))
        faults: list[Problem] = []
        names = ROOT.check_entry("inherit", names, ("inherit",), Validation(faults))
        if faults:
            raise ConfigError(faults)
        merged = Node({}, root.where)
        for name in names.value or []:
            merged = merge(merged, self.load(path.parent / name.value, None, name.where, above))
        return merge(merged, Node(entries, root.where))


def _override(root: Node, text: str, problems: list[Problem]) -> Node:
    """Apply one `a.b=value` to the tree and record problems."""
    try:
        keys, new = _read_override(text, problems)
        return _put(root, keys, new, ())
    except ValueError as error:
        problems.append(Problem(str(_place(text)), str(error)))
    except ConfigError as error:
        problems += error.problems
    return root


def _place(override: str) -> Where:
    return Where(one_line(f"--set {override[:200]}"))


def _read_override(text: str, problems: list[Problem]) -> tuple[tuple[str, ...], Node]:
    """Return the keys and the value of `a.b=value`; raise ValueError or ConfigError."""
    where = _place(text)
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    keys[0] = ROOT.aliases.get(keys[0], keys[0])
    if not equals or not all(key and key.isprintable() for key in keys):
        raise ValueError("write it as key=value or section.key=value")
    if keys[0] == "inherit" or len(keys) > MAX_DEPTH:
        raise ValueError(f"{dotted((*keys[:4],))} cannot be set from here")
    try:
        if value in ("|", ">"):  # YAML would read an empty block of text
            raise ConfigError([Problem(str(where), "not valid YAML: a block of text without text")])
        new = read_text(value, where, problems, depth=len(keys))
    except ConfigError as error:
        place, text = error.problems[0]
        if len(value) == 1 and value.isprintable():
            text += f"; quote the character: '{path}=\"{value}\"'"
        raise ConfigError([Problem(place, text)]) from error
    if "\n" in value and isinstance(new.value, str) and value[0] not in "\"'|>":
        new = Node(value, new.where)  # may be a path; YAML would turn newlines into spaces
    return tuple(keys), new


def _changed(overrides: Sequence[str], root: Node) -> dict[str, Any]:
    """Return the values that valid overrides set, by dotted key, as they stand in the config.

    A section or a list stays as it was given, without its defaults.
    """
    changed: dict[str, Any] = {}
    for text in overrides:
        keys, new = _read_override(text, [])
        above = f"{dotted(keys)}."
        changed = {key: value for key, value in changed.items() if not f"{key}.".startswith(above)}
        changed.update(_settings(new, keys, root))
    return changed


def _settings(given: Node, keys: Keys, root: Node | None) -> Iterator[tuple[str, Any]]:
    """Yield what an override set: each entry of a section, any other value as a whole."""
    if isinstance(given.value, dict) and given.value:
        for name, child in given.value.items():
            yield from _settings(child, (*keys, name), root)
        return
    found = root
    for key in keys:
        found = found and found.child(key)
    is_value = found is not None and not isinstance(found.value, dict | list)
    yield dotted(keys), (found if is_value and found else given).plain()


def _put(node: Node, keys: tuple[str, ...], new: Node, above: tuple[str, ...]) -> Node:
    if not keys:
        return new
    key, here = keys[0], (*above, keys[0])
    child = node.child(key)
    if isinstance(node.value, list):
        if child is None:
            raise ValueError(f"{dotted(above)} has {len(node.value)} items; there is no {key!r}")
        items = list(node.value)
        items[int(key)] = _put(child, keys[1:], new, here)
        return Node(items, node.where)
    if not isinstance(node.value, dict | None):
        raise ValueError(f"{dotted(above)} is {show(node.value)}, not a section")
    inner = _put(child or Node(None, new.where), keys[1:], new, here)
    return Node({**(node.value or {}), key: inner}, node.where)


def _expanded(root: Node) -> Node:
    return ROOT.check(root, (), Validation([], fill=False, references=True))


def _checked(root: Node, problems: list[Problem]) -> Node:
    """Fill in the defaults and references of the tree and record problems."""
    faults: list[Problem] = []
    filled = ROOT.check(root, (), Validation(faults, references=True))
    if "${" not in str(filled.plain()):  # no references
        problems += faults
        return filled
    return ROOT.check(interpolate(filled, problems), (), Validation(problems))


def _error(problems: list[Problem]) -> ConfigError:
    rest = len(problems) - MAX_PROBLEMS
    more = [Problem("", f"and {rest} more problems")] if rest > 0 else []
    return ConfigError([*problems[:MAX_PROBLEMS], *more])
