"""Recognizes trainers of pytorch-template by their files, which cannot be imported here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from logger.files import read_file

LOOP = "_train_epoch"  # the method that trainers of all its versions override


def stock_trainers(root: Path) -> Iterator[str]:
    """Yield a message for each class in a project's ``trainer/`` with that template's loop."""
    for path in sorted((root / "trainer").rglob("*.py")):
        try:
            tree = ast.parse(read_file(path))
        except (SyntaxError, ValueError, RecursionError, OSError):
            continue  # importing it reports the error
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and LOOP in _methods(node):
                place = f"{path.relative_to(root).as_posix()}:{node.lineno}"
                yield (
                    f"{place}: {node.name} is a trainer for pytorch-template, with its own loop "
                    f"({LOOP}), which is not called here. If it is that template's original, "
                    "replace it by Kindling's trainer/, whose Trainer does the same. If you "
                    "wrote it, docs/from-pytorch-template.md, section 4, ports it"
                )


def _methods(node: ast.ClassDef) -> set[str]:
    return {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
