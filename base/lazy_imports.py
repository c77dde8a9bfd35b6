"""Imports the public names of a package on first use."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def lazy_imports(package: str) -> tuple[Callable[[str], Any], list[str]]:
    """Return ``__getattr__`` and ``__all__`` for a package, from its imports for type checking.

    Its ``__init__.py`` lists the names once, for readers, type checkers and editors::

        if TYPE_CHECKING:
            from base.network.patterns import matches as matches
        else:
            __getattr__, __all__ = lazy_imports(__name__)

    Importing the package then imports none of these modules (compare Scientific Python's SPEC 1).
    """

    def get(name: str) -> Any:
        if name not in exports(package):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = exports(package)[name]
        try:
            imported = import_module(module)
        except AttributeError as error:  # `from package import name` would hide its text
            raise ImportError(f"{module} cannot be imported: {error}", name=module) from error
        value = getattr(imported, attribute)
        setattr(sys.modules[package], name, value)
        return value

    return get, sorted(exports(package))


@functools.cache
def exports(package: str) -> dict[str, tuple[str, str]]:
    """Return the module and the attribute of each public name of a package."""
    source = Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8")
    return {
        alias.asname or alias.name: (str(statement.module), alias.name)
        for block in ast.parse(source).body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
