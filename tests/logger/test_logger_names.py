"""The names that the package offers are those that type checkers see, and load on first use."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

import logger

IMPORTS = [
    (alias.name, str(statement.module))
    for block in ast.parse(Path(str(logger.__file__)).read_text("utf-8")).body
    if isinstance(block, ast.If)
    for statement in block.body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
]


@pytest.mark.parametrize(("name", "module"), IMPORTS)
def test_each_name_is_the_object_of_its_module(name: str, module: str) -> None:
    assert getattr(logger, name) is getattr(import_module(module), name)


def test_both_lists_hold_the_same_names() -> None:
    assert sorted(logger._MODULES.items()) == sorted(IMPORTS)


def test_another_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Writter'"):
        _ = logger.Writter
