"""A name that the project defines itself stands before the same name in a file of Kindling's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from base.config import load_config
from base.errors import ConfigError
from base.names import registry
from base.names import shipped as own_files
from base.names.check import check_names
from base.names.listing import describe
from base.names.registry import NameFault, find, listed
from base.names.shipped import LIST, hash_files

Write = Callable[[dict[str, str]], Path]
ROOT = Path(__file__).resolve().parents[3]

# A file of the project's own for each kind, beside a file of Kindling's with the same name in it.
OWN = {
    "model": ("UNet", "model/model.py", "from torch import nn\nclass {name}(nn.Module): ..."),
    "loss": ("FocalLoss", "model/criterion.py", "def {name}(output, target): ..."),
    "metric": (
        "Dice",
        "model/my_metrics.py",
        "class {name}:\n    def update(self, output, target): ...\n    def compute(self): ...\n"
        "    def reset(self): ...",
    ),
    "data_loader": (
        "DigitsDataLoader",
        "data_loader/my_data.py",
        "class {name}:\n    def __iter__(self): ...\n    def __len__(self): ...",
    ),
    "dataset": (
        "CsvDataset",
        "data_loader/my_data.py",
        "from torch.utils.data import Dataset\nclass {name}(Dataset): ...",
    ),
    "transform": (
        "RandomFlip",
        "data_loader/my_transforms.py",
        "class {name}:\n    def __call__(self, image): ...",
    ),
    "trainer": (
        "GANTrainer",
        "trainer/my_trainer.py",
        "from base import BaseTrainer\nclass {name}(BaseTrainer): ...",
    ),
    "callback": (
        "GeneratedSamples",
        "trainer/my_callbacks.py",
        "from base.callbacks import Callback\nclass {name}(Callback): ...",
    ),
}


@pytest.fixture
def shipped(project: Write) -> Callable[[dict[str, str]], Path]:
    """Lay files over a copy of Kindling's own, as `cp -r` does."""

    def write(files: dict[str, str]) -> Path:
        root = project({})
        for folder in ("model", "data_loader", "trainer"):
            shutil.copytree(ROOT / folder, root / folder, dirs_exist_ok=True)
        return project(files)

    return write


def test_the_list_of_shipped_files_is_true() -> None:
    assert json.loads(LIST.read_text()) == hash_files(ROOT), "run `python -m base.names.shipped`"


@pytest.mark.parametrize("kind", OWN)
def test_the_projects_own_definition_wins(shipped: Write, kind: str) -> None:
    shipped({})
    name, file, source = OWN[kind]
    theirs = [each for each in listed(kind) if each.is_shipped and each.name == name]
    if theirs:
        aside, theirs_in = f"at {theirs[0]}", theirs[0].file.removesuffix(".py").replace("/", ".")
    else:  # in the engine
        aside, theirs_in = "in base.datasets", "base.datasets."
    assert find(kind, name).__module__.startswith(theirs_in)
    shipped({file: source.replace("{name}", name)})
    module = file.removesuffix(".py").replace("/", ".")
    assert find(kind, name).__module__ == module
    (line,) = [each for each in describe(kind).splitlines() if each.startswith(f"  {name}(")]
    assert line.endswith(f"{registry.definition(kind, name)} (not Kindling's {aside})")
    note = f"{kind} {name!r} is yours, {file}:"
    assert registry.override_note(kind, name).startswith(note)


@pytest.mark.parametrize(
    ("kind", "name", "source"),
    [
        ("transform", "RandomFlip", "class RandomFlip: ..."),
        ("transform", "RandomFlip", "class RandomFlip(object): ..."),
        ("transform", "RandomFlip", "from torch import nn\nclass RandomFlip(nn.Module): ..."),
        ("dataset", "CsvDataset", "class CsvDataset:\n    def __len__(self): ..."),
        ("metric", "Dice", "class Dice:\n    def update(self, output, target): ..."),
    ],
)
def test_so_does_a_class_of_which_no_word_says_the_kind(
    shipped: Write, kind: str, name: str, source: str
) -> None:
    folder = "model" if kind == "metric" else "data_loader"
    shipped({f"{folder}/mine.py": source})
    chosen = registry.definition(kind, name)
    assert chosen is not None
    assert chosen.file == f"{folder}/mine.py"
    assert " is yours, " in registry.override_note(kind, name)


def test_a_callback_named_as_one_of_the_engine_is_noted(shipped: Write) -> None:
    source = "from base.callbacks import Callback\nclass ImageSamples(Callback): ..."
    assert registry.override_note("callback", "ImageSamples") == ""
    shipped({"trainer/mine.py": source})
    note = "callback 'ImageSamples' is yours, trainer/mine.py:2, not Kindling's in base.callbacks"
    assert registry.override_note("callback", "ImageSamples") == note


def test_one_line_of_the_log_names_both_places(shipped: Write, tmp_path: Path) -> None:
    unet = "from torch import nn\n\nclass UNet(nn.Module):\n    def __init__(self, depth): ..."
    shipped({"model/model.py": unet})
    config = tmp_path / "config.yaml"
    rest = "data_loader: DigitsDataLoader\noptimizer: SGD\nloss: mse_loss\ntrainer: {epochs: 1}\n"
    config.write_text("name: x\nmodel: {type: UNet, args: {depth: 3}}\n" + rest)
    loaded = load_config(config)
    check_names(loaded)
    check_names(loaded)
    (place,) = [
        str(each) for each in registry.listed("model") if each.is_shipped and each.name == "UNet"
    ]
    assert loaded.notes == [f"model 'UNet' is yours, model/model.py:3, not Kindling's at {place}"]
    loaded = load_config(config, ["model.args={depht: 3}"])
    with pytest.raises(ConfigError, match="did you mean 'depth'"):  # held against the own one
        check_names(loaded)


@pytest.mark.parametrize("own_first", [True, False])
def test_a_decorated_name_too(shipped: Write, own_first: bool) -> None:
    source = """
        from torch import nn
        from base.names.registry import MODELS
        @MODELS.register("u-net")
        class {name}(nn.Module): ...
    """
    root = shipped({"model/b.py": source.replace("{name}", "Theirs")})
    files = hash_files(root)
    registry.set_project_root(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("base.names.shipped.shipped_files", lambda: files)
        shipped({"model/a.py": source.replace("{name}", "Own")})
        for name in ("Own", "Theirs") if own_first else ("Theirs", "Own"):
            find("model", name)  # imports the file
        assert find("model", "u-net").__name__ == "Own"
        assert registry.MODELS.registered["u-net"].__name__ == "Own"


def test_two_of_the_projects_own_are_an_error_and_so_is_an_edited_one(shipped: Write) -> None:
    net = "from torch import nn\nclass UNet(nn.Module): ..."
    shipped({"model/mine.py": net, "model/other.py": net})
    with pytest.raises(NameFault, match=r"twice, in model/mine\.py:2 and model/other\.py:2"):
        find("model", "UNet")
    edited = (ROOT / "model" / "unet.py").read_text() + "\n# mine\n"
    shipped({"model/mine.py": net, "model/other.py": "", "model/unet.py": edited})
    with pytest.raises(NameFault, match=r"twice, in model/mine\.py:2 and model/unet\.py"):
        find("model", "UNet")


def test_line_endings_and_a_copy_elsewhere_change_nothing(shipped: Write) -> None:
    text = (ROOT / "model" / "unet.py").read_text()
    root = shipped({"model/model.py": text})
    (root / "model" / "unet.py").write_bytes(text.replace("\n", "\r\n").encode())
    registry.set_project_root(root)
    assert find("model", "UNet").__module__ == "model.model"  # a copy is the project's own


def test_what_is_meant_for_another_kind_does_not_stand_before(shipped: Write) -> None:
    shipped({"model/model.py": "from torch import nn\nclass Dice(nn.Module): ..."})
    assert find("metric", "Dice").__module__ == "model.metric"
    assert registry.override_note("metric", "Dice") == ""
    assert find("model", "Dice").__module__ == "model.model"


def test_an_error_of_own_code_is_told_from_one_of_shipped_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "data_loader" / "own.py"
    own.parent.mkdir()
    own.write_text("def fail():\n    raise RuntimeError\n")
    for is_shipped in (False, True):
        hashes = {"data_loader/own.py": own_files.digest(own.read_bytes())} if is_shipped else {}
        monkeypatch.setattr(own_files, "PROJECT", tmp_path)
        monkeypatch.setattr(own_files, "shipped_files", lambda hashes=hashes: hashes)
        names: dict[str, Any] = {}
        exec(compile(own.read_text(), str(own), "exec"), names)
        with pytest.raises(RuntimeError) as caught:
            names["fail"]()
        assert own_files.passed_own_code(caught.value) is not is_shipped
