"""The house: which folder may import which, that no files import in a circle, what needs no torch.

All is read from syntax trees, so nothing is imported here. Imports for type checking and inside
functions count as any other.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From top to bottom: a part imports what stands on a lower line, never from its own line or above.
STOREYS: list[set[str]] = [
    {"train", "test", "predict", "export"},
    {"model", "data_loader", "trainer"},  # the user's
    {"base"},  # what a user's folder needs
    {"base.doctor", "base.shards", "base.from_python", "base.__main__"},  # commands
    {"base.sweeps"},
    {"base.prediction"},
    {"base.run"},
    {"base.callbacks"},
    {"base.base_trainer"},
    {"base.datasets"},
    {"base.training"},
    {"base.base_model", "base.base_data_loader"},
    {"base.data"},
    {"base.names"},
    {"base.report"},
    {"base.runs"},
    {"base.checkpoint"},
    {"base.distributed"},
    {"base.network"},
    {"base.config"},
    {"base.system"},
    {"base.errors"},
    {"logger", "base.lazy_imports"},
]
STOREY = {part: number for number, parts in enumerate(STOREYS) for part in parts}
USERS = ("model", "data_loader", "trainer")

# A structural error in a config must be reported in under 0.3 s, so these load without torch.
TORCH_FREE = [
    "base", "base.config", "base.errors", "base.names.registry", "base.config.command_line",
    "base.runs.facts", "base.runs.listing",
]  # fmt: skip

DRAWERS = ("util", "utils", "helper", "helpers", "misc", "common")  # which fill up unseen


def modules() -> dict[str, Path]:
    """Return our modules by their full names."""
    paths = [ROOT / f"{script}.py" for script in ("train", "test", "predict", "export")]
    paths = [path for path in paths if path.is_file()]
    for folder in ("base", "logger", *USERS):
        paths += sorted((ROOT / folder).rglob("*.py"))
    return {name_of(path): path for path in paths}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return the part of the house that a module stands in; `python -m base.x` is a command."""
    first, *rest = module.split(".")
    if first == "base" and rest[-1:] == ["__main__"]:
        return "base.__main__"
    return f"{first}.{rest[0]}" if first == "base" and rest else first


def imports_in(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Yield the full name of each module that the nodes import, however it is written."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            names = [each.value for each in node.args[:1] if isinstance(each, ast.Constant)]
            if called in ("import_module", "__import__") and names:
                yield str(names[0])


def imported_by(path: Path, source: str, known: dict[str, Path]) -> set[str]:
    """Return our own modules that a file imports."""
    found = set(imports_in(path, ast.walk(ast.parse(source))))
    # `from base.data import batch` names the package too, which only leads to the module.
    deepest = {
        each for each in found if not any(f"{each}." in f"{o}" for o in found & known.keys())
    }
    return (deepest & known.keys()) - {name_of(path)}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {m: imported_by(path, path.read_text("utf-8"), known) for m, path in known.items()}


def test_every_part_has_its_place(graph: dict[str, set[str]]) -> None:
    assert {part_of(module) for module in graph} - {"base"} <= STOREY.keys()


def test_imports_point_down(graph: dict[str, set[str]]) -> None:
    wrong = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if part_of(module) != part_of(other)
        and STOREY[part_of(other)] <= STOREY[part_of(module)]
        and module != "base"
    ]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    left = {module: set(others) for module, others in graph.items()}
    while leaves := [module for module, others in left.items() if not others & left.keys()]:
        for module in leaves:
            del left[module]
    assert not left, f"{len(left)} files lie on circles or above them: {sorted(left)}"


@pytest.mark.parametrize("folder", USERS)
def test_a_users_folder_imports_from_base_alone(folder: str, graph: dict[str, set[str]]) -> None:
    deep = {
        f"{module} imports {other}"
        for module, others in graph.items()
        if module.split(".")[0] == folder
        for other in others
        if other.startswith(("base.", "logger")) or other.split(".")[0] in {*USERS} - {folder}
    }
    assert not deep


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import base.run.session", "base.run.session"),
        ("from base.run import session", "base.run.session"),
        ("from base.run.session import open_run", "base.run.session"),
        ("def f():\n    from base.run.session import open_run", "base.run.session"),
        ("if TYPE_CHECKING:\n    from base.run.session import open_run", "base.run.session"),
        ("from ..run import session", "base.run.session"),
        ("import_module('base.run.session')", "base.run.session"),
        ("from base.run import open_run", "base.run"),
        ("from base import BaseTrainer", "base"),
    ],
)
def test_an_import_is_seen_however_it_is_written(source: str, seen: str) -> None:
    assert imported_by(ROOT / "base/data/somewhere.py", source, modules()) == {seen}


def exported(package: str) -> dict[str, str]:
    """Return the public names of a package and the modules they come from."""
    tree = ast.parse(modules()[package].read_text("utf-8"))
    return {
        alias.asname: str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None
    }


ROOMS = sorted(part for part in STOREY if (ROOT / part.replace(".", "/")).is_dir())


@pytest.mark.parametrize("package", ["base", *(each for each in ROOMS if each.startswith("base."))])
def test_a_folder_says_what_it_is_for_and_what_it_offers(package: str) -> None:
    path = modules()[package]
    assert len(ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "") > 40
    names, files = exported(package), {each.stem for each in path.parent.iterdir()}
    assert not names.keys() & files, "Python gives the module, not the name"
    for name, module in names.items():
        tree = ast.parse(modules()[module].read_text("utf-8"))
        bound = {getattr(node, "name", "") for node in tree.body}
        bound |= {n.id for each in tree.body for n in ast.walk(each) if isinstance(n, ast.Name)}
        assert name in bound | exported(module).keys(), f"{module} has no {name}"


def loaded_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs when a module is loaded: no functions, nothing under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if is_typing or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield node
        yield from loaded_nodes(node)


def loaded_with(module: str) -> dict[str, str]:
    """Return every module that loading this one loads, by name, with the one that loads it."""
    known, found, waiting = modules(), {module: ""}, [module]
    while waiting:
        name = waiting.pop()
        path = known.get(name)
        if path is None:
            continue
        imported = list(imports_in(path, loaded_nodes(ast.parse(path.read_text("utf-8")))))
        imported += [each.rpartition(".")[0] for each in imported if "." in each]
        new = [each for each in imported if each not in found]
        found.update(dict.fromkeys(new, name))
        waiting += new
    return found


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_config_is_checked_without_torch(module: str) -> None:
    loaded = loaded_with(module)
    heavy = [name for name in loaded if name.split(".")[0] in ("torch", "torchvision", "numpy")]
    assert not heavy, f"{heavy[0]} is loaded by {loaded[heavy[0]]}"


def test_python_agrees_that_torch_is_not_loaded() -> None:
    program = f"import sys, {', '.join(TORCH_FREE)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def calls_in(path: Path, function: str) -> tuple[set[str], set[str]]:
    """Return what a function calls (the last word of each call), and its decorators."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if getattr(node, "name", None) == function]
    assert len(found) == 1, f"{path.name}: {function} stands there {len(found)} times"
    (node,) = found
    assert isinstance(node, ast.FunctionDef)
    calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
    called = {getattr(func, "attr", getattr(func, "id", "")) for func in calls}
    return called, {ast.unparse(each) for each in node.decorator_list}


def test_from_main_to_backward_is_five_calls() -> None:
    chain = ["main", "train", "train_epoch", "train_step", "backward"]
    loop = ROOT / "base/base_trainer.py"
    places = [ROOT / "train.py", loop, loop, loop, loop]
    for path, caller, callee in zip(places, chain, [*chain[1:], "backward"], strict=True):
        called, decorators = calls_in(path, caller)
        assert callee in called, f"{path.name}: {caller} does not call {callee} itself"
        assert ("final" in decorators) == (caller in ("train", "train_epoch", "backward"))


BELOW_THE_LOOP = [
    "training",
    "data",
    "datasets",
    "names",
    "checkpoint",
    "network",
    "config",
    "system",
]


@pytest.mark.parametrize("folder", BELOW_THE_LOOP)
def test_nothing_below_the_loop_takes_a_trainer(folder: str) -> None:
    """Data go down, behaviour stays up: a function is given values."""
    callbacks = {"check", "on_start", "on_epoch_start", "on_step_end", "on_epoch_end", "on_end"}
    taken = [
        f"{path.name}: {node.name}"
        for path in sorted((ROOT / "base" / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name not in callbacks
        for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if each.arg == "trainer" or "Trainer" in ast.unparse(each.annotation or ast.Constant(""))
    ]
    assert not taken


def test_there_is_no_drawer_without_a_keeper() -> None:
    folders = [ROOT / part for part in ("base", "logger", *USERS)]
    found = [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    assert not [path for path in found if path.stem in DRAWERS]
