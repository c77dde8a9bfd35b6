"""Trainers of pytorch-template, recognised from their files before an import of theirs fails."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from logger.files import read_file

LOOP = "_train_epoch"  # what each generation of that template has a trainer override


def stock_trainers(root: Path, file: Path | None = None) -> Iterator[str]:
    """Yield a text for each class of a project's ``trainer/`` that has that template's loop.

    Args:
        file: the one file to look at, in place of all.
    """
    paths = sorted((root / "trainer").rglob("*.py")) if file is None else [file]
    for path in paths:
        try:
            tree = _parsed(read_file(path))
        except (SyntaxError, ValueError, RecursionError, OSError):
            continue  # who names something in there is told
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and LOOP in _methods(node):
                place = f"{path.relative_to(root).as_posix()}:{node.lineno}"
                yield (
                    f"{place}: {node.name} is a trainer for pytorch-template, with a loop of its "
                    f"own ({LOOP}), which is not called here. If it is that template's own, put "
                    "Kindling's trainer/ back in its place: its Trainer does the same. If you "
                    "wrote it, docs/from-pytorch-template.md, section 4, ports it"
                )


@functools.cache
def _parsed(content: bytes) -> ast.Module:
    return ast.parse(content)


def _methods(node: ast.ClassDef) -> set[str]:
    return {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
