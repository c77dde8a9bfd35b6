"""What `model/loss.py` imports from the project's other folders can be named in a config."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from base.names import registry
from base.names.construction import build
from base.names.registry import NameFault, UnknownName, find, listed, set_project_root

Write = Callable[[dict[str, str]], Path]
DICE = "from torch import nn\nclass DiceLoss(nn.Module):\n    home = 'losses'\n"


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("from losses import DiceLoss", {"losses.py": DICE}),
        ("from losses.dice import DiceLoss", {"losses/dice.py": DICE}),
        ("from a import *", {"a/__init__.py": "from .dice import *", "a/dice.py": DICE}),
        (
            "from utils.losses import DiceLoss",
            {"utils/__init__.py": "", "utils/losses/__init__.py": "from ._d import DiceLoss",
             "utils/losses/_d.py": DICE},
        ),
        ("from losses import Dice as DiceLoss", {"losses.py": DICE.replace("DiceLoss", "Dice")}),
        ("from model.parts import DiceLoss", {"model/parts.py": DICE}),
        ("from .parts import DiceLoss", {"model/parts.py": DICE}),
    ],
)  # fmt: skip
def test_an_imported_name_is_found(project: Write, line: str, files: dict[str, str]) -> None:
    project({"model/loss.py": line, **files})
    assert find("loss", "DiceLoss").home == "losses"
    assert [each.name for each in listed("loss")] == ["DiceLoss"]


@pytest.mark.parametrize(
    "line", ["from helpers import write_text", "from sklearn.datasets import clear_data_home"]
)
def test_a_function_that_is_imported_builds_nothing_unless_decorated(
    project: Write, line: str
) -> None:
    """A config could else call a helper that the file imports for its own use."""
    helper = "def write_text(path): raise SystemExit"
    project({"model/model.py": line, "data_loader/data_loaders.py": line, "helpers.py": helper})
    for kind in ("model", "data_loader", "dataset"):
        with pytest.raises(NameFault, match="it is a function"):
            find(kind, line.split()[-1])


BUILDERS = """
import functools
from torch import nn
def made(n=2): return nn.Linear(n, n)
bound = functools.partial(nn.Linear, 2)
short = lambda n=2: nn.Linear(n, n)
Linear2 = nn.Linear
"""


@pytest.mark.parametrize(
    "line", ["from .nets import *", "from model.nets import made, bound, short, Linear2", BUILDERS]
)
def test_what_builds_a_model_needs_no_decorator_where_pytorch_template_looks(
    project: Write, line: str
) -> None:
    """As `getattr(module_arch, name)(**args)` finds it: in model.py, or in a file beside it."""
    project({"model/model.py": line, "model/nets.py": BUILDERS})
    for name, args in (
        ("made", {"n": 3}),
        ("bound", {"out_features": 3}),
        ("short", {"n": 3}),
        ("Linear2", {"in_features": 3, "out_features": 3}),
    ):
        built = build("model", {"type": name, "args": args})
        assert (type(built), built.out_features) == (nn.Linear, 3)


@pytest.mark.parametrize(
    ("files", "kind", "name", "message"),
    [
        *(({"model/model.py": "import model.nets", "model/nets.py": BUILDERS}, "model", name,
           "it is a function, not a subclass of Module") for name in ("made", "short")),
        ({"model/model.py": "from torch import nn\nnet = nn.Linear(2, 2)"}, "model", "net",
         "it is a Linear, not a class"),
        ({"model/loss.py": "", "model/dice_loss.py": DICE, "model/b_loss.py": DICE}, "loss",
         "DiceLoss", r"defined twice, in model/b_loss.py:2"),
    ],
    ids=["a function elsewhere", "a lambda elsewhere", "a model that is built", "two of a name"],
)  # fmt: skip
def test_what_is_no_builder_or_defined_twice_is_told(
    project: Write, files: dict[str, str], kind: str, name: str, message: str
) -> None:
    project(files)
    with pytest.raises(NameFault, match=message):
        find(kind, name)


def test_a_loader_that_a_function_of_a_neighbour_builds_is_found(project: Write) -> None:
    lines = (
        "from torch.utils.data import DataLoader\ndef get_loader(n): return DataLoader(range(n))"
    )
    project({"data_loader/data_loaders.py": "from .mnist import *", "data_loader/mnist.py": lines})
    assert len(build("data_loader", {"type": "get_loader", "args": {"n": 5}})) == 5


@pytest.mark.parametrize("where", ["model/loss.py", "losses.py"])
def test_definitions_within_try_and_if_are_found(project: Write, where: str) -> None:
    """As of projects that use a package where it is installed."""
    text = """
import torch
try:
    import not_installed
    def fast(output, target): return "installed"
except ImportError:
    def fast(output, target): return "own"
if torch.__version__:
    with torch.no_grad():
        def nested(output, target): return "nested"
if __name__ == "__main__":
    def script(output, target): return "script"
"""
    project({"model/loss.py": "from losses import *", where: text})
    assert [find("loss", name)(0, 0) for name in ("fast", "nested")] == ["own", "nested"]
    with pytest.raises(NameFault, match="there is no loss 'script'"):
        find("loss", "script")


def test_files_that_import_each_other_end(project: Write) -> None:
    project(
        {
            "model/loss.py": "from losses.one import *",
            "losses/one.py": f"from losses.two import *\n{DICE}",
            "losses/two.py": "from losses.one import *\ndef bce(output, target): ...",
        }
    )
    assert {each.name for each in listed("loss")} == {"DiceLoss", "bce"}


def test_what_the_file_defines_itself_is_taken_first(project: Write) -> None:
    own = DICE.replace("losses", "own")
    project({"model/loss.py": f"from losses import DiceLoss\n{own}", "losses.py": DICE})
    assert find("loss", "DiceLoss").home == "own"


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("from torch import nn\nclass DiceLoss(nn.Module): ...", "model/model.py"),
        ("from .v2 import DiceLoss", "model/v2.py"),
        ("from model.v2 import DiceLoss", "model/v2.py"),
        ("from .v2 import Newest as DiceLoss", "model/v2.py"),
        ("from networks import DiceLoss", "networks.py"),
    ],
)
def test_the_file_that_pytorch_template_reads_decides_between_two(
    project: Write, model: str, file: str
) -> None:
    other = DICE + "class Newest(nn.Module): ..."
    project(
        {"model/model.py": model, "model/old.py": DICE, "model/v2.py": other, "networks.py": DICE}
    )
    found = registry.definition("model", "DiceLoss")
    assert found is not None
    assert found.file == file
    assert issubclass(find("model", "DiceLoss"), nn.Module)
    assert f"is that of {found}, not model/old.py:2" in registry.override_note("model", "DiceLoss")


@pytest.mark.parametrize(
    "line",
    [
        "from collections import OrderedDict as DiceLoss",
        "from base.errors import ConfigError as DiceLoss",
        "from losses import _hidden as DiceLoss",
        "import losses",
        "from losses import missing as DiceLoss",
        "from broken import DiceLoss",
        "from ... import DiceLoss",
    ],
)
def test_other_imports_name_nothing(project: Write, line: str) -> None:
    project({"model/loss.py": line, "losses.py": DICE + "def _hidden(): ...", "broken.py": "def ("})
    with pytest.raises(UnknownName):
        find("loss", "DiceLoss")


def test_a_name_of_an_installed_package_is_found_where_a_file_imports_it(project: Write) -> None:
    project(
        {
            "model/loss.py": "from sklearn.metrics import hinge_loss, log_loss as entropy",
            "model/model.py": "from torch import nn\nfrom PIL import Image",
        }
    )
    from sklearn.metrics import hinge_loss, log_loss

    assert find("loss", "hinge_loss") is hinge_loss
    assert find("loss", "entropy") is log_loss
    for kind, name in (("loss", "log_loss"), ("model", "nn"), ("model", "Image")):
        with pytest.raises(NameFault):
            find(kind, name)


def test_modules_of_two_projects_are_kept_apart(project: Write) -> None:
    files = {"model/loss.py": "from losses import *", "losses.py": DICE}
    root = project(
        {f"other/{path}": text.replace("'losses'", "'b'") for path, text in files.items()}
    )
    project(files)
    assert find("loss", "DiceLoss").home == "losses"
    set_project_root(root / "other")
    assert find("loss", "DiceLoss").home == "b"
