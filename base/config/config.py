"""The config as a mapping of plain values, which records where each value was set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from base.config.tree import DEFAULT, Keys, Node, as_tree, leaves, problem_at
from base.config.yaml_writer import to_lines
from base.errors import ConfigError, Problem


class Config(Mapping[str, Any]):
    """The resolved config with all defaults: ``config["trainer"]["epochs"]``."""

    def __init__(
        self,
        root: Node,
        path: Path | None,
        notes: Sequence[str] = (),
        is_template: bool = False,
        changed: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.notes = list(notes)  # lines to log at the start
        self.is_template = is_template  # whether it was in pytorch-template's format
        self.changed = dict(changed or {})  # what the command line set, by dotted key
        self._root = root
        self._values: dict[str, Any] = root.plain()

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Config({str(self.path)!r}, name={self['name']!r})"

    def resolve(self, *keys: str, value: Any) -> None:
        """Replace a value such as ``auto`` by the one that the run determined and saves."""
        values, entries = self._values, self._root.value
        for key in keys[:-1]:
            values, entries = values[key], entries[key].value
        values[keys[-1]] = value
        entries[keys[-1]] = Node(as_tree(value).value, entries[keys[-1]].where)

    @property
    def root(self) -> Node:
        """The config as a tree with the location of each value."""
        return self._root

    @property
    def extra(self) -> dict[str, Any]:
        """The user's sections and keys."""
        extra: dict[str, Any] = self["extra"]
        return extra

    def where(self, *keys: str | int) -> str:
        """Return the location of an entry, or of the nearest enclosing one that was set."""
        node, where = self._root, self._root.where
        for key in keys:
            child = node.child(key)
            if child is None:
                break
            node, where = child, where if child.where == DEFAULT else child.where
        return str(where)

    def problem(self, keys: Keys, message: str) -> Problem:
        """Return a problem located at the entry under these keys."""
        return problem_at(self.where(*keys), keys, message)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Add file, line and column to errors that name only a key, such as ``loss.0.output``."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError([self._placed(problem) for problem in error.problems]) from error

    def _placed(self, problem: Problem) -> Problem:
        keys = [int(key) if key.isdigit() else key for key in problem.where.split(".")]
        return self.problem(tuple(keys), problem.message) if keys[0] in self else problem

    def to_yaml(self) -> str:
        """Return the whole config as YAML. Loading it gives an equal config."""
        return "\n".join(to_lines(self._root)) + "\n"

    def describe(self) -> str:
        """Return the config as YAML with a comment on the origin of each value."""
        return "\n".join(to_lines(self._root, origins=True)) + "\n"

    def difference(self, other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Return (dotted key, value here, value there) for each difference; None means absent."""
        ours, theirs = dict(leaves(self)), dict(leaves(other))
        keys = [*ours, *(key for key in theirs if key not in ours)]
        pairs = [(key, ours.get(key), theirs.get(key)) for key in keys]
        return [pair for pair in pairs if pair[1] != pair[2]]
