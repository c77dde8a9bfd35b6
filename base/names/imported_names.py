"""Names that a file imports from other files of the project.

``from losses import DiceLoss`` in ``model/loss.py`` makes `DiceLoss` a loss of the project, as it
did for pytorch-template, which read the attributes of that file. Nothing is imported here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from logger.files import read_file

ENGINE = ("base", "logger")
_FOR_OTHERS = re.compile("__name__|TYPE_CHECKING")  # what scripts and type checkers see


class Imported(NamedTuple):
    """A top-level definition, and the name under which a file imports it."""

    name: str
    attribute: str
    file: Path  # that defines it, relative to the project's root
    node: ast.stmt


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run on import, those within `try`, `with` and `if` as well."""
    return _within(tree.body)


def _within(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        yield node
        if isinstance(node, ast.If) and _FOR_OTHERS.search(ast.unparse(node.test)):
            continue
        if isinstance(node, ast.If | ast.Try | ast.With):
            for part in ("body", "handlers", "orelse", "finalbody"):
                for inner in getattr(node, part, []):
                    is_handler = isinstance(inner, ast.ExceptHandler)
                    yield from _within(inner.body if is_handler else [inner])


def imported_names(tree: ast.Module, file: Path, root: Path) -> Iterator[Imported]:
    """Yield what the file's ``from ... import`` lines bring in from other files of the project.

    Args:
        file: relative to the root.
    """
    return _imports(tree, file, root, seen=(file,))


def _imports(
    tree: ast.Module, file: Path, root: Path, seen: tuple[Path, ...]
) -> Iterator[Imported]:
    for node in top_level(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        source = _source(node, file, root)
        if source is None or source in seen or source.parts[0] in ENGINE:
            continue
        offered = _offered(source, root, (*seen, source))
        for alias in node.names:
            if alias.name == "*":
                yield from (each for name, each in offered.items() if not name.startswith("_"))
            elif alias.name in offered:
                yield offered[alias.name]._replace(name=alias.asname or alias.name)


def _offered(file: Path, root: Path, seen: tuple[Path, ...]) -> dict[str, Imported]:
    """Return what can be imported from a file: its own definitions, and what it imports itself."""
    try:
        tree = ast.parse(read_file(root / file))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return {}
    offered = {each.name: each for each in _imports(tree, file, root, seen)}
    for node in top_level(tree):
        for name in _defined(node):
            offered[name] = Imported(name, name, file, node)
    return offered


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _source(node: ast.ImportFrom, file: Path, root: Path) -> Path | None:
    """Return the file of the project that a ``from ... import`` reads, or None: it is another's."""
    parts = tuple(node.module.split(".")) if node.module else ()
    if node.level:
        folders = file.parts[: -node.level]
        parts = folders + parts if len(file.parts) >= node.level else ()
    if not parts:
        return None
    for path in (Path(*parts).with_suffix(".py"), Path(*parts, "__init__.py")):
        if (root / path).is_file():
            return path
    return None
