"""Finds the project's definitions in the syntax trees of its files, without importing them."""

from __future__ import annotations

import ast
import functools
import re
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from base.errors import ConfigError
from base.names.shipped import FOLDERS, is_shipped
from base.system.places import PROJECT
from logger.files import read_file

ENGINE = ("base", "logger")
_FOR_OTHERS = re.compile("__name__|TYPE_CHECKING")  # conditions of scripts and type checkers


class Imported(NamedTuple):
    """A top-level definition and the name under which a file imports it."""

    name: str
    attribute: str
    file: Path  # the file that defines it, relative to the project's root
    node: ast.stmt


def top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that run on import, including those in `try`, `with` and `if`."""
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
    """Yield the names that a file imports from other files of the project.

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
    """Return the names that can be imported from a file: definitions and imports."""
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
    """Return the project's file that a ``from ... import`` reads; None for other packages."""
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


# The kind suggested by the last word of a base class, or else by a file's path.
_BASE_WORDS = {
    "Dataset": "dataset",
    "DataLoader": "data_loader",
    "Sampler": "sampler",
    "Optimizer": "optimizer",
    "LRScheduler": "lr_scheduler",
    "Trainer": "trainer",
    "Callback": "callback",
    "Transform": "transform",
    "Loss": "loss",
    "Metric": "metric",
    **dict.fromkeys(("NamedTuple", "Enum", "Protocol", "TypedDict", "Error", "Exception"), ""),
}
_PATH_WORDS = {"optim": "optimizer", "sched": "lr_scheduler", "augment": "transform"}
_PATH_WORDS |= {k: k for k in ("loss", "metric", "init", "transform", "dataset", "callback")}

# Packages whose names are allow-listed in `torch_names.py`, or that define no layers, losses, data.
_COMMON = frozenset(("torch", "torchvision", "numpy", "base", "logger"))

# The only files in which pytorch-template looks for each kind. Their definitions take precedence.
_FIRST = {
    "model/model.py": "model",
    "model/loss.py": "loss",
    "model/metric.py": "metric",
    "data_loader/data_loaders.py": "data_loader",
}


class Definition(NamedTuple):
    """A top-level definition in a file of the project."""

    name: str  # the name in a config
    attribute: str  # the name in the module
    file: str  # relative to the project's root
    line: int
    form: str  # "class", "function", "value", or "import" from an installed package
    likely_kind: str
    registry: str = ""  # such as MODELS, if a decorator gave the name
    is_shipped: bool = False  # its file is part of Kindling and unchanged
    first_for: str = ""  # the kind for which it takes precedence
    imported_by: tuple[str, ...] = ()  # other files of its folder
    may_be_any: bool = False  # a class whose names suggest no kind

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def folder(self) -> str:
        return self.file.partition("/")[0]


def project_root() -> Path:
    """Return the folder that contains ``model/``, ``data_loader/`` and ``trainer/``."""
    return _root


def set_project_root(path: Path | str) -> None:
    """Look for names in another folder, and unload the modules of the previous one."""
    global _root
    _parked[_root] = {name: sys.modules.pop(name) for name in _modules_of_project()}
    sys.path[:] = [entry for entry in sys.path if entry != str(_root) or _root == PROJECT]
    _root = Path(path).resolve()
    sys.path.insert(0, str(_root))
    sys.modules.update(_parked.get(_root, {}))
    scan.cache_clear()


def _modules_of_project() -> list[str]:
    """Return the loaded modules to unload: those in the three folders, or beside them."""
    tops = set(FOLDERS)
    if _root != PROJECT:
        files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
        own = [name for name, file in files.items() if file and _is_own(Path(file))]
        tops |= {name.partition(".")[0] for name in own}
    return [name for name in sys.modules if name.partition(".")[0] in tops]


def _is_own(file: Path) -> bool:
    return file.is_relative_to(_root) and "site-packages" not in file.parts


_root = PROJECT
_parked: dict[Path, dict[str, ModuleType]] = {}


@functools.cache
def scan(folder: str) -> tuple[list[Definition], list[str]]:
    """Return the definitions in a folder of the project, and its files with syntax errors."""
    definitions: dict[tuple[str, str], Definition] = {}
    imported: list[Definition] = []
    broken = []
    for path in sorted((_root / folder).rglob("*.py")):
        file = path.relative_to(_root)
        if "." in path.stem or any(part.startswith(".") for part in file.parts):
            continue
        try:
            content = read_file(path)
            tree = ast.parse(content)
        except (SyntaxError, ValueError, RecursionError, OSError) as error:
            broken.append(f"{file.as_posix()} ({error})")
            continue
        came_with_us = is_shipped(file.as_posix(), content)
        for node in top_level(tree):
            for each in _definitions(node, file):
                # As in Python, the last definition wins.
                definitions[each.file, each.name] = each._replace(is_shipped=came_with_us)
        if not came_with_us:
            found = [*_imported_definitions(tree, file), *_of_packages(tree, file)]
            imported += [it for it in found if (file.as_posix(), it.name) not in definitions]
    for each in imported:
        known = definitions.get((each.file, each.name), each)
        definitions[each.file, each.name] = known._replace(
            first_for=known.first_for or each.first_for,
            imported_by=(*known.imported_by, *each.imported_by),
        )
    return list(definitions.values()), broken


def _definitions(node: ast.stmt, file: Path) -> Iterator[Definition]:
    kind, place = _likely_kind(node, file), (file.as_posix(), node.lineno)
    first_for = _FIRST.get(file.as_posix(), "")
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        form = "class" if isinstance(node, ast.ClassDef) else "function"
        if not node.name.startswith("_") and node.name != "main":  # a script's command line
            plain = _says_no_kind(node, file, kind)
            yield Definition(
                node.name, node.name, *place, form, kind, first_for=first_for, may_be_any=plain
            )
        for registry, name in _decorated_names(node):
            yield Definition(name, node.name, *place, form, kind, registry)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if isinstance(node.value, ast.Call | ast.Attribute | ast.Name | ast.Lambda):
            for target in targets:
                if isinstance(target, ast.Name) and not target.id.startswith("_"):
                    name = target.id
                    yield Definition(name, name, *place, "value", kind, first_for=first_for)


def _of_packages(tree: ast.Module, file: Path) -> Iterator[Definition]:
    """Yield the names that a file imports from installed packages, as its definitions."""
    path, first_for = file.as_posix(), _FIRST.get(file.as_posix(), "")
    for node in top_level(tree):
        if isinstance(node, ast.ImportFrom) and _is_installed(node):
            kind = _likely_kind(node, file)
            for name in (alias.asname or alias.name for alias in node.names):
                if not name.startswith(("_", "*")):
                    place = (path, node.lineno)
                    yield Definition(name, name, *place, "import", kind, first_for=first_for)


def _is_installed(node: ast.ImportFrom) -> bool:
    """Return whether names come from a package other than the project and the standard library."""
    package = (node.module or "").partition(".")[0]
    ours = any((_root / name).exists() for name in (package, f"{package}.py"))
    return not (node.level or ours or package in _COMMON or package in sys.stdlib_module_names)


def _imported_definitions(tree: ast.Module, file: Path) -> Iterator[Definition]:
    """Yield the names that a file imports from other files of the project."""
    for found in imported_names(tree, file, _root):
        for each in _definitions(found.node, found.file):
            if each.attribute == found.attribute and not each.registry:
                kind, first_for = _likely_kind(found.node, file), _FIRST.get(file.as_posix(), "")
                each = each._replace(name=found.name, likely_kind=kind, first_for=first_for)
                is_near = found.file.parts[0] == file.parts[0]
                yield each._replace(imported_by=(file.as_posix(),) if is_near else ())


def _decorated_names(node: ast.ClassDef | ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Yield the registry's variable and the name of each ``@MODELS.register("name")``."""
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            names = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
            if call.func.attr == "register" and names and isinstance(names[0], str):
                yield ast.unparse(call.func.value).rpartition(".")[2], names[0]


def _likely_kind(node: ast.stmt, file: Path) -> str:
    """Guess the kind of a definition from its base classes, its name, its file and its folder."""
    if isinstance(node, ast.ClassDef):
        bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
        for word in (*bases, node.name):
            for ending, kind in _BASE_WORDS.items():
                if word.endswith(ending):
                    return kind
    for word in re.findall(r"[a-z]+", "/".join(file.parts[1:]).replace("__init__", "").lower()):
        for beginning, kind in _PATH_WORDS.items():
            if word.startswith(beginning):
                return kind
    return file.parts[0] if isinstance(node, ast.ClassDef) else "function"


def _says_no_kind(node: ast.stmt, file: Path, kind: str) -> bool:
    """Return whether a class has the kind of its folder only because no name suggests another."""
    folder = file.parts[0]
    if not isinstance(node, ast.ClassDef) or kind != folder:
        return False
    common = {"object"} if folder == "model" else {"object", "Module"}
    return {ast.unparse(base).rpartition(".")[2] for base in node.bases} <= common


def load(found: Definition) -> Any:
    """Import the file of a definition and return the object with its name.

    Raises:
        ImportError: the file raises an error on import.
        ConfigError: a class in it overrides a final method.
    """
    parts = Path(found.file).with_suffix("").parts
    module_name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if str(_root) not in sys.path:
        sys.path.insert(0, str(_root))
    invalidate_caches()
    try:
        module = import_module(module_name)
    except ConfigError as error:
        if all(problem.where for problem in error.problems):
            raise  # it names the line
        raise ImportError(describe_error(error)) from error
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ImportError(describe_error(error)) from error
    if Path(module.__file__ or "").resolve() != (_root / found.file).resolve():
        text = f"is hidden by {module.__file__}, which Python imports instead; rename one of them"
        raise ImportError(f"{found.file} {text}")
    if not hasattr(module, found.attribute):
        raise ImportError(f"{found}: {found.attribute!r} is not defined after importing the file")
    return getattr(module, found.attribute)


def is_shipped_definition(named: Any) -> bool:
    """Return whether an imported class or function is defined in an unchanged file of Kindling."""
    file = getattr(sys.modules.get(getattr(named, "__module__", "")), "__file__", None)
    path = Path(file or "").resolve()
    if not path.is_file() or not path.is_relative_to(_root):
        return False
    return is_shipped(path.relative_to(_root).as_posix(), path.read_bytes())


def describe_error(error: BaseException) -> str:
    """Return ``model/model.py:12: ValueError: text``, with the innermost line in the project."""
    stack = traceback.extract_tb(error.__traceback__)
    places: list[tuple[str, int | None]] = [(frame.filename, frame.lineno) for frame in stack]
    text = str(error)
    if isinstance(error, SyntaxError):
        places.append((error.filename or "", error.lineno))
        text = error.msg
    for filename, line in reversed(places):
        path = Path(filename)
        if path.is_relative_to(_root):
            within = path.relative_to(_root)
            if within.parts[0] not in ("base", "logger") and "site-packages" not in within.parts:
                return f"{within.as_posix()}:{line}: {type(error).__name__}: {text}"
    return f"{type(error).__name__}: {text}"
