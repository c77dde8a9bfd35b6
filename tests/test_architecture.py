"""The house holds: who may import whom, and what loads without torch.

All is read from syntax trees, so nothing is imported here. A project made from the template keeps
the rules of the engine (base/ and logger/); what its owner adds beside them is the owner's affair.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IS_THE_TEMPLATE = (ROOT / "new_project.py").exists()  # new_project.py does not copy itself

# Who may import whom, besides itself. What is not named here is not ours, and free to all.
ARROWS = {
    "logger": set(),
    "base": {"logger"},
    "model": {"base"},
    "data_loader": {"base"},
    "trainer": {"base", "logger"},
    "train": {"base", "logger", "model", "data_loader", "trainer"},
    "test": {"base", "logger", "model", "data_loader", "trainer"},
}
ENGINE = ["base", "logger"]
HELD = list(ARROWS) if IS_THE_TEMPLATE else ENGINE

# A structural error in a config must be told in under 0.3 s, so these load without torch.
TORCH_FREE = [
    "base",
    "base.config",
    "base.errors",
    "base.names.registry",
    "base.config.command_line",
]

DRAWERS = ("util", "utils", "helper", "helpers", "misc", "common")  # they fill up unseen


def files_of(part: str) -> list[Path]:
    """The files of a package, or the one file of a module."""
    folder = ROOT / part
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [ROOT / f"{part}.py"]


def imports_in(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The full name of each module that the nodes import, in whatever way it is written."""
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


def parts_used(path: Path, source: str) -> set[str]:
    """Our own parts that a file imports: at its top, within functions, and for types alone."""
    names = imports_in(path, ast.walk(ast.parse(source)))
    return {name.split(".")[0] for name in names} & ARROWS.keys()


def loaded_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is loaded: no function bodies, nothing under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if is_typing or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield node
        yield from loaded_nodes(node)


def path_of(module: str) -> Path | None:
    """The file of one of our modules; None for a name that is no module of ours."""
    place = ROOT / Path(*module.split("."))
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def loaded_with(module: str) -> dict[str, str]:
    """Every module that loading this one loads, ours followed further: name -> loaded by."""
    found = {module: ""}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = path_of(name)
        if path is None:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = list(imports_in(path, loaded_nodes(tree)))
        imported += [each.rpartition(".")[0] for each in imported if "." in each]
        new = [each for each in imported if each not in found]
        found.update(dict.fromkeys(new, name))
        waiting += new
    return found


@pytest.mark.parametrize("part", HELD)
def test_imports_follow_the_arrows(part: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {sorted(beyond)}"
        for path in files_of(part)
        if (beyond := parts_used(path, path.read_text("utf-8")) - ARROWS[part] - {part})
    ]
    assert not wrong, f"{part} may import only {sorted(ARROWS[part])} of ours"


@pytest.mark.parametrize(
    "source",
    [
        "import trainer.trainer",
        "from trainer import Trainer",
        "def f():\n    from trainer.trainer import Trainer",
        "if TYPE_CHECKING:\n    from trainer import Trainer",
        "from .. import trainer",
        "import_module('trainer.trainer')",
    ],
)
def test_an_arrow_is_seen_however_it_is_written(source: str) -> None:
    assert parts_used(ROOT / "base/somewhere.py", source) == {"trainer"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_config_is_checked_without_torch(module: str) -> None:
    loaded = loaded_with(module)
    heavy = [name for name in loaded if name.split(".")[0] in ("torch", "torchvision", "numpy")]
    assert not heavy, f"{heavy[0]} is loaded by {loaded[heavy[0]]}"


def test_python_agrees_that_torch_is_not_loaded() -> None:
    program = f"import sys, {', '.join(TORCH_FREE)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def calls_in(path: Path, function: str) -> tuple[set[str], set[str]]:
    """What a function calls (the last word of each call), and its decorators."""
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


@pytest.mark.skipif(not IS_THE_TEMPLATE, reason="a ported project may bring its own")
def test_there_is_no_drawer_without_a_keeper() -> None:
    folders = [ROOT, *(ROOT / part for part in HELD)]
    found = [path for folder in folders for path in folder.glob("*") if path.stem in DRAWERS]
    assert not found
