"""What a config names is of its kind: nothing else of a project can be called by a config."""

from __future__ import annotations

import ast
import inspect
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, Sampler
from workplace import Workplace

from base.base_trainer import BaseTrainer
from base.callbacks import Callback
from base.errors import ConfigError
from base.names import registry
from base.names.construction import build
from base.names.discovery import FOLDERS, scan
from base.names.registry import NameFault, WrongKind, find, names
from base.names.torch_names import SOURCES

Write = Callable[[dict[str, str]], Path]
ROOT = Path(__file__).resolve().parents[3]

# A second reading of what each kind is, for classes.
PARENTS = {
    "model": nn.Module, "dataset": Dataset, "optimizer": Optimizer, "lr_scheduler": LRScheduler,
    "trainer": BaseTrainer, "callback": Callback,
}  # fmt: skip
# All functions of Kindling itself that a config reaches, by kind. None of them writes, deletes,
# downloads or is a command line; look at a new one before it is written down here.
REACHED = {
    "init": {"accuracy", "smooth_cross_entropy", "top_k_acc", "top_k_accuracy"},
    "loss": {"accuracy", "smooth_cross_entropy", "top_k_acc", "top_k_accuracy"},
    "metric": {"accuracy", "smooth_cross_entropy", "top_k_acc", "top_k_accuracy"},
    "model": {"timm"},  # weights are loaded elsewhere, and downloaded only if a config asks
    "optimizer": {"timm"},
}
ALL = [*registry.KINDS, "function"]


def definitions() -> list[str]:
    """Return each name at the top of a file of ours, read from the syntax trees."""
    found = set()
    for folder in (*FOLDERS, "base/datasets", "base/network"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                targets = node.targets if isinstance(node, ast.Assign) else [node]
                if isinstance(node, ast.ImportFrom):
                    found |= {each.asname or each.name for each in node.names}
                found |= {getattr(each, "name", getattr(each, "id", "")) for each in targets}
    return sorted(found - {""})


def is_of_kind(kind: str, named: Any) -> bool:
    if isinstance(named, type) and kind in PARENTS:
        return issubclass(named, PARENTS[kind])
    methods = {name for each in getattr(named, "__mro__", ()) for name in vars(each)}
    if kind == "data_loader":
        return isinstance(named, type) and "__iter__" in methods and not issubclass(named, Dataset)
    if kind == "sampler":
        return isinstance(named, type) and issubclass(named, Sampler)
    if kind == "transform":
        return isinstance(named, type) and bool(methods & {"__call__", "batch", "mix"})
    if isinstance(named, type):  # a loss, a metric
        if {"update", "compute"} <= methods:
            return kind == "metric"
        called = named.forward if "forward" in methods else named.__call__
        return len(inspect.signature(called).parameters) > 2
    return callable(named) and kind in REACHED


@pytest.mark.parametrize("kind", ALL)
def test_all_that_kindling_itself_defines_is_reached_as_its_kind_or_not_at_all(kind: str) -> None:
    assert len(definitions()) > 200
    functions = set()
    for name in definitions():
        try:
            named = find(kind, name)
        except NameFault:
            continue
        assert is_of_kind(kind, named), name
        if inspect.isroutine(named) and not named.__module__.startswith("torch"):
            functions.add(name)
    assert functions == REACHED.get(kind, set())


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if kind in PARENTS])
def test_all_that_is_reached_in_torch_is_of_its_kind(kind: str) -> None:
    members = {name: it for source in SOURCES[kind] for name, it in source.members().items()}
    assert members
    for name, member in members.items():
        is_network = kind == "model" and inspect.isfunction(member)
        if name == "timm":  # builds what its argument `name` selects
            assert inspect.isfunction(member)
        elif is_network:  # made by a function of torchvision, which says what it returns
            assert member.__module__.startswith("torchvision.models."), name
        else:
            assert issubclass(member, PARENTS[kind]), name


def test_no_command_line_of_a_file_can_be_named() -> None:
    mains = [each for folder in FOLDERS for each in scan(folder)[0] if each.name == "main"]
    assert mains == []
    assert "main" in definitions()


ATTACKS = {
    "data_loader": "data_loader: {{type: {0}, args: {{options: x, path: x, batch_size: 4}}}}",
    "dataset": (
        "data_loader: {{type: DatasetLoader, args: "
        "{{dataset: {{type: {0}, args: {{folder: x, path: x}}}}, batch_size: 4}}}}"
    ),
    "transform": (
        "data_loader: {{type: DatasetLoader, args: {{dataset: {{type: SyntheticDataset}}, "
        "transform: {{type: {0}, args: {{path: x}}}}, batch_size: 4}}}}"
    ),
    "collate_fn": (
        "data_loader: {{type: DatasetLoader, args: {{dataset: {{type: SyntheticDataset}}, "
        "collate_fn: {0}, batch_size: 4}}}}"
    ),
}


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("dataset", "main"), ("dataset", "write_shards"), ("data_loader", "main"),
        ("transform", "write_at"), ("collate_fn", "main"), ("collate_fn", "write_shards"),
    ],
)  # fmt: skip
def test_what_writes_in_kindling_is_refused_in_each_place(
    tmp_path: Path, place: str, name: str
) -> None:
    rest = (
        "name: x\nmodel: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}\n"
        "optimizer: {type: SGD, args: {lr: 0.1}}\nloss: cross_entropy\ntrainer: {epochs: 1}\n"
    )
    (tmp_path / "x.yaml").write_text(rest + ATTACKS[place].format(name))
    folder = Workplace(tmp_path)
    done = folder.run("-c", "x.yaml", "--dry-run")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"'{name}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert folder.files() == {"x.yaml"}


PROJECT = {
    "model/model.py": """
        from torch import nn
        from base.names.registry import MODELS
        class Net(nn.Linear): ...
        def bare_net(n): return nn.Linear(n, n)  # as in pytorch-template
        def bare_list(n): return [n]
        @MODELS.register("made-net")
        def build_net(n): return nn.Linear(n, n)
        @MODELS.register("no-net")
        def build_none(): return {"not": "a model"}
        """,
    "model/parts.py": """
        def make_net(n): ...
        """,
    "data_loader/loading.py": """
        def get_loader(batch_size): return []
        """,
    "model/loss.py": """
        import torch.nn.functional as F
        from torch import nn, Tensor
        from functools import partial
        def plain(output, target): return F.mse_loss(output, target)
        def weighted(output, target, weight=None, *, scale=1.0): return scale
        def of_batch(batch): return 0.0
        def keyed(output: dict[str, Tensor], target: "Tensor | None") -> Tensor: ...
        def open_ended(*args, **kwargs): return 0.0
        by_lambda = lambda output, target: F.l1_loss(output, target)
        by_partial = partial(F.cross_entropy, label_smoothing=0.1)
        instance = nn.BCELoss()
        class Dice(nn.Module):
            def forward(self, output, target): ...
        class Plain:
            def __call__(self, output, target): ...
        class Odd(nn.Module):
            def forward(self, x): ...
        def one(output): ...
        def adversarial(scores, is_real: bool): return 0.0
        def save(path: str, target): ...
        def log(output, target) -> None: ...
        """,
    "data_loader/data_loaders.py": """
        from collections import namedtuple
        from torch.utils.data import DataLoader, Dataset, IterableDataset
        from base.names.registry import DATA_LOADERS, DATASETS, TRANSFORMS
        class Own(DataLoader): ...
        class Iterates:
            def __iter__(self): return iter(())
        class Rows(Dataset): ...
        class Stream(IterableDataset): ...
        class Facts(namedtuple("Facts", "a b")): ...
        def bare_loader(batch_size): return DataLoader([1], batch_size)
        def get_data(): return Rows()
        @DATA_LOADERS.register("get-loader")
        def build_loader(batch_size): return DataLoader([1], batch_size)
        @DATASETS.register("get-data")
        def build_data(): return Rows()
        @DATASETS.register("no-data")
        def build_no_data(): return [1, 2]
        @TRANSFORMS.register("flipper")
        def build_transform(): return lambda image: image
        def flip(image): return image
        def pad(samples): return samples
        def pad_typed(samples: list[tuple[int, str]], value: int = 0): return samples
        def halve(epoch: int) -> float: return 0.5 ** epoch
        def clean(folder: str): ...
        def remove(names: list[str]): ...
        def write(descriptor: int, data) -> None: ...
        """,
    "trainer/optim.py": """
        class Warm:
            def step(self): ...
        class NoStep: ...
        def get_scheduler(optimizer): ...
        """,
}
TAKEN = [
    ("model", "Net made-net build_net no-net bare_net"),
    (
        "loss",
        "adversarial plain weighted of_batch keyed open_ended by_lambda by_partial instance Dice "
        "Plain Odd one",
    ),
    ("metric", "plain weighted keyed by_lambda instance Dice"),
    ("data_loader", "Own Iterates get-loader build_loader bare_loader"),
    ("dataset", "Rows Stream get-data"),
    ("transform", "flipper"),
    ("function", "pad pad_typed halve flip"),
    ("lr_scheduler", "Warm"),
]
REFUSED = [
    ("model", "make_net", r"it is a function, .*`@MODELS\.register\('make_net'\)` \(from base im"),
    ("metric", "Odd", r"it is not a class with `update` and `compute`, or called with two"),
    ("loss", "save", r"it is save\(path: .*str.*, target\); a loss is called with"),
    ("loss", "log", r"it is log\(output, target\) -> None"),
    ("metric", "one", r"it takes \(output\); a metric is called with \(output, target\)"),
    ("data_loader", "Rows", "it is not a class with `__iter__`"),
    ("data_loader", "Stream", "it is not a class with `__iter__`"),
    ("data_loader", "Facts", "it is not a class with `__iter__`"),
    ("data_loader", "get_loader", r"it is a func.*`@DATA_LOADERS\.register\('get_loader'\)`"),
    ("dataset", "Iterates", "it is not a subclass of torch's Dataset"),
    ("dataset", "Facts", "it is not a subclass of torch's Dataset"),
    ("dataset", "get_data", r"it is a func.*`@DATASETS\.register\('get_data'\)`"),
    ("transform", "flip", r"it is a func.*`@TRANSFORMS\.register\('flip'\)`"),
    ("transform", "Iterates", "it is not a class with `__call__`"),
    ("lr_scheduler", "NoStep", "it is not a class with `step`"),
    ("lr_scheduler", "get_scheduler", r"it is a func.*`@LR_SCHEDULERS\.register\('get_sched"),
    ("function", "clean", r"it is clean\(folder: .*str.*\); a function is called with"),
    ("function", "remove", r"it is remove\(names: .*\); a function is called with"),
    ("function", "write", r"it is write\(descriptor: .*\) -> None"),
]


@pytest.mark.parametrize(("kind", "taken"), TAKEN)
def test_what_projects_define_is_taken(project: Write, kind: str, taken: str) -> None:
    project(PROJECT)
    for name in taken.split():
        assert find(kind, name) is not None


@pytest.mark.parametrize(("kind", "name", "text"), REFUSED)
def test_what_is_of_another_kind_is_refused_with_what_to_do(
    project: Write, kind: str, name: str, text: str
) -> None:
    project(PROJECT)
    with pytest.raises(WrongKind, match=rf"\.py:\d+: '{name}' cannot be a {kind}: {text}"):
        find(kind, name)


def test_a_builder_that_returns_another_thing_is_told(project: Write) -> None:
    project(PROJECT)
    assert isinstance(build("model", {"type": "made-net", "args": {"n": 2}}), nn.Linear)
    assert isinstance(build("dataset", {"type": "get-data"}), Dataset)
    with pytest.raises(ConfigError, match="no-net is not a model: it returned a dict"):
        build("model", {"type": "no-net"}, where="x.yaml:1:1: model")
    with pytest.raises(ConfigError, match="bare_list is not a model: it returned a list"):
        build("model", {"type": "bare_list", "args": {"n": 2}})
    with pytest.raises(ConfigError, match="no-data is not a dataset: it returned a list"):
        build("dataset", {"type": "no-data"})


# --- What torchvision unpickles ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LSUN", "LSUNClass"])
def test_data_sets_that_unpickle_whatever_is_there_cannot_be_named(name: str) -> None:
    with pytest.raises(NameFault, match=f"there is no dataset '{name}'"):
        find("dataset", name)
    assert name not in names("dataset")


def test_the_data_sets_that_unpickle_are_known() -> None:
    """Those of CIFAR do, after they have compared the MD5 of each file; no others may."""
    from torchvision import datasets

    unpickle = set()
    for source in SOURCES["dataset"]:
        for name, member in source.members().items():
            source = inspect.getsource(inspect.getmodule(member))  # type: ignore[arg-type]
            for node in ast.walk(ast.parse(source)):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                words = {each.arg: ast.unparse(each.value) for each in node.keywords}
                is_unsafe = called == "torch.load" and "weights_only" not in words
                may_be_pickle = words.get("allow_pickle", "False") != "False"
                if is_unsafe or called in ("pickle.load", "pickle.loads") or may_be_pickle:
                    unpickle.add(name)
    assert unpickle == {"CIFAR10", "CIFAR100"}
    assert "_check_integrity()" in inspect.getsource(datasets.CIFAR10.__init__)


class MakesFolder:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_forged_file_of_cifar_is_not_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(MakesFolder(tmp_path / "sentinel")))
    with pytest.raises(ConfigError, match="not found or corrupted"):
        build("dataset", {"type": "CIFAR10", "args": {"root": str(tmp_path)}})
    assert not (tmp_path / "sentinel").exists()


def test_weights_of_torchvision_are_loaded_as_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the cache is not compared with the hash in its name, by torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"a": MakesFolder(tmp_path / "sentinel")}, folder / "squeezenet1_1-b8a52dc0.pth")
    section = {"type": "squeezenet1_1", "args": {"weights": "IMAGENET1K_V1"}}
    with pytest.raises(ConfigError, match="squeezenet1_1 cannot be built") as raised:
        build("model", section)
    assert not (tmp_path / "sentinel").exists()
    assert "weights_only" not in str(raised.value)
    assert "safe_globals" not in str(raised.value)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_transform_that_takes_a_function_cannot_be_named() -> None:
    with pytest.raises(NameFault, match="there is no transform 'Lambda'"):
        find("transform", "Lambda")
