"""Names and arguments are held against signatures before anything is built."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from base.config import load_config
from base.errors import ConfigError
from base.names.check import check_names
from base.names.construction import build
from base.names.listing import describe, type_schemas
from base.names.registry import KINDS, WrongKind, find, names
from base.names.signatures import FILLED_IN, signature, value_fault

Write = Callable[[dict[str, str]], Path]

PLAIN = {
    "model": "{type: Linear, args: {in_features: 3, out_features: 2}}",
    "data_loader": "{type: Loader}",
    "optimizer": "{type: Adam}",
    "loss": "cross_entropy",
    "trainer": "{type: Coach, epochs: 1}",
}
FILES = {
    "data_loader/loaders.py": """
        from base.base_data_loader import BaseDataLoader
        class Loader(BaseDataLoader):
            def __init__(self, dataset=None, transform=None, collate_fn=None): ...
        def pad(samples): ...
        """,
    "trainer/trainer.py": """
        from base.base_trainer import BaseTrainer
        class Coach(BaseTrainer):
            def __init__(self, experiment, patience: int = 3):
                super().__init__(experiment)
        """,
    "model/loss.py": """
        def weighted(output, target, factor: float = 1.0, bias=None): return factor * output.mean()
        """,
    "trainer/schedules.py": """
        def halve(epoch): return 0.5 ** epoch
        """,
}


@pytest.fixture
def faults(project: Write) -> Callable[..., list[str]]:
    """Check a config that is plain but for the sections given, and return what is wrong with it."""
    project(FILES)

    def check(**sections: str) -> list[str]:
        lines = [f"{name}: {text}" for name, text in {**PLAIN, **sections}.items() if text]
        config = load_config(None, text="\n".join(["name: test", *lines]))
        try:
            check_names(config)
        except ConfigError as error:
            return [str(problem) for problem in error.problems]
        return []

    return check


Faults = Callable[..., list[str]]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"trainer": "{type: Coach, args: {patience: 5}, epochs: 1}"},
        {"model": "{type: resnet18, args: {num_classes: 10, weights: null}}"},
        {"data_loader": "{type: Loader, args: {dataset: {type: csv, path: x}, transform: own}}"},
    ],
    ids=["plain", "a trainer's argument", "torchvision", "mappings of the project's own form"],
)
def test_a_config_without_faults_passes(faults: Faults, sections: dict[str, str]) -> None:
    assert faults(**sections) == []


def test_the_shipped_config_passes(project_root: Path) -> None:
    for path in sorted((project_root / "config").glob("*.yaml")):
        check_names(load_config(path))


def test_all_faults_come_together_each_with_its_place(faults: Faults) -> None:
    sections = {
        "model": "{type: Linaer}",
        "optimizer": "{type: Adam, args: {lrr: 0.1, eps: tiny, params: 3}}",
        "loss": "[{type: weighted, args: {factr: 2}}, nothing_like_it]",
        "trainer": "{type: Coch, epochs: 1}",
    }
    found = faults(**sections)
    words = [(2, "model", "type"), (4, "optimizer", "lrr"), (4, "optimizer", "eps")]
    words += [(4, "optimizer", "params"), (5, "loss", "factr"), (5, "loss", "nothing_like_it")]
    words += [(6, "trainer", "type")]
    places = [
        f"config:{line}:{f'{section}: {sections[section]}'.index(word) + 1}"
        for line, section, word in words
    ]
    assert [each.split(": ", 1)[0] for each in found] == places
    assert "model.type: there is no model 'Linaer'; did you mean 'Linear'?" in found[0]
    assert "optimizer.args.lrr: unknown argument for Adam; did you mean 'lr'?" in found[1]
    assert "optimizer.args.eps: expected a number, found 'tiny'" in found[2]
    assert "optimizer.args.params: 'params' is passed by Kindling; remove it" in found[3]
    assert "loss.0.args.factr: unknown argument for weighted; did you mean 'factor'?" in found[4]
    assert "there is no loss 'nothing_like_it' (looked in model/, torch.nn" in found[5]


@pytest.mark.parametrize("name", sorted(FILLED_IN))
def test_what_the_framework_fills_in_may_be_left_out(faults: Faults, name: str) -> None:
    others = "max_lr: 0.1" if name == "OneCycleLR" else ""
    assert faults(lr_scheduler=f"{{type: {name}, args: {{{others}}}}}") == []


def test_lengths_of_schedulers_may_be_durations(faults: Faults) -> None:
    for text in ("T_max: 5 epochs", "T_max: 10%", "T_max: 7"):
        assert faults(lr_scheduler=f"{{type: CosineAnnealingLR, args: {{{text}}}}}") == []
    milestones = "{type: MultiStepLR, args: {milestones: [3 epochs, 50%, 9]}}"
    assert faults(lr_scheduler=milestones) == []
    (fault,) = faults(lr_scheduler="{type: StepLR, args: {step_size: 3 furlongs}}")
    assert "lr_scheduler.args.step_size: expected a duration" in fault
    (fault,) = faults(lr_scheduler="{type: StepLR, args: {step_size: 1.5}}")
    assert "lr_scheduler.args.step_size: expected a whole number, found 1.5" in fault


def test_a_function_of_the_project_can_be_an_argument(faults: Faults) -> None:
    assert faults(lr_scheduler="{type: LambdaLR, args: {lr_lambda: halve}}") == []
    assert faults(lr_scheduler="{type: LambdaLR, args: {lr_lambda: [halve, halve]}}") == []
    assert faults(data_loader="{type: Loader, args: {collate_fn: pad}}") == []
    (fault,) = faults(lr_scheduler="{type: LambdaLR, args: {lr_lambda: os.system}}")
    assert "lr_scheduler.args.lr_lambda: 'os.system' is not a valid name of a function" in fault
    (fault,) = faults(data_loader="{type: Loader, args: {collate_fn: pat}}")
    assert "data_loader.args.collate_fn: there is no function 'pat'; did you mean 'pad'" in fault


FAULTS = {
    "required and missing": (
        {"model": "{type: Linear, args: {bias: false}}", "lr_scheduler": "{type: StepLR}"},
        ["Linear needs arguments in_features, out_features", "StepLR needs argument step_size"],
    ),
    "a far name": (
        {"optimizer": "{type: Rprop, args: {zzz: 1}}"},
        ["unknown argument for Rprop (it takes lr, etas, step_sizes, "],
    ),
    "schedulers within a scheduler": (
        {"lr_scheduler": """
  type: SequentialLR
  args:
    schedulers:
      [{type: LinearLR, args: {total_itres: 3}}, {type: CosineAnnealingLR}, {type: SteppLR}]
    milestones: [2, 4]"""},
        ["args.schedulers.0.args.total_itres: unknown argument for LinearLR",
         "args.schedulers.2.type: there is no lr_scheduler 'SteppLR'"],
    ),
    "chained schedulers": (
        {"lr_scheduler": "{type: ChainedScheduler, args: {schedulers: [{type: LinearLR}], "
                         "optimizer: x}}"},
        ["'optimizer' is passed by Kindling"],
    ),
    "data sets and transforms": (
        {"data_loader": """
  type: Loader
  args:
    dataset: {type: MNIST, args: {transform: [{type: ToImage}, {type: Normalise}]}}
    transform: {type: RandomCrop, args: {siez: 3}}"""},
        ["data_loader.args.dataset.type: MNIST needs argument root",
         "args.dataset.args.transform.1.type: there is no transform 'Normalise'",
         "data_loader.args.transform.type: RandomCrop needs argument size",
         "data_loader.args.transform.args.siez: unknown argument for RandomCrop"],
    ),
    "parameter groups": (
        {"optimizer": """
  type: AdamW
  param_groups:
    - {match: "*", lr: 0.1, weight_decay: 0}
    - {match: "*", momentum: 0.9, freeze: true}
    - {match: "*", lr: fast}
    - {match: "*", params: x}"""},
        ["param_groups.1.momentum: unknown argument for AdamW",
         "param_groups.2.lr: expected a number or a list of numbers, found 'fast'",
         "param_groups.3.params: 'params' is passed by Kindling"],
    ),
    "initialisers": (
        {"init": """
  - {match: "*", weight: {type: kaiming_normal_, args: {nonlinearty: relu}}, bias: zeros}
  - {match: "*", weight: {type: normal_, args: {std: 0.1, tensor: 1}}, bias: 0.5}
  - {match: "*", weight: from_model}"""},
        ["init.0.weight.args.nonlinearty: unknown argument for kaiming_normal_",
         "init.1.weight.args.tensor: 'tensor' is passed by Kindling",
         "init.2.weight.type: there is no init 'from_model'"],
    ),
    "several optimizers": (
        {"optimizer": "", "optimizers": """
  first: {type: Adam, params: "a.*", args: {lrr: 1}}
  second: {type: SGD, params: "b.*", lr_scheduler: {type: StepLR, args: {gama: 1}}}"""},
        ["optimizers.first.args.lrr: unknown argument for Adam",
         "optimizers.second.lr_scheduler.type: StepLR needs argument step_size",
         "optimizers.second.lr_scheduler.args.gama: unknown argument for StepLR"],
    ),
    "a trainer, without the experiment": (
        {"trainer": "{type: Coach, args: {experiment: 1, patence: 5}, epochs: 1}"},
        ["trainer.args.experiment: 'experiment' is passed by Kindling",
         "trainer.args.patence: unknown argument for Coach; did you mean 'patience'?"],
    ),
    "a network of torchvision": (
        {"model": "{type: resnet18, args: {num_clases: 10}}"},
        ["unknown argument for resnet18; did you mean 'num_classes'?"],
    ),
    "an argument that torchvision's builder gives": (
        {"model": "{type: resnet18, args: {layers: [2, 2, 2, 2]}}"},
        ["unknown argument for resnet18"],
    ),
    "a value for the class of such a network": (
        {"model": "{type: resnet18, args: {num_classes: ten}}"},
        ["model.args.num_classes: expected a whole number, found 'ten'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_told_in_order_with_their_place(faults: Faults, name: str) -> None:
    sections, expected = FAULTS[name]
    for fault, text in zip(faults(**sections), expected, strict=True):
        assert text in fault


def test_a_list_of_datasets_is_checked_and_built(faults: Faults, project: Write) -> None:
    project({"data_loader/loaders.py": DATA})
    parts = "[{type: Numbers, args: {n: 2}}, {type: Numbers, args: {m: 3}}, {type: Nmbers}]"
    joined = f"{{type: Joined, args: {{datasets: {parts}}}}}"
    found = faults(data_loader=f"{{type: Loader, args: {{dataset: {joined}}}}}")
    where = "data_loader.args.dataset.args.datasets"
    assert f"{where}.1.type: Numbers needs argument n" in found[0]
    assert f"{where}.1.args.m: unknown argument for Numbers" in found[1]
    assert f"{where}.2.type: there is no dataset 'Nmbers'; did you mean 'Numbers'?" in found[2]
    assert len(found) == 3
    sections = [{"type": "Numbers", "args": {"n": n}} for n in (2, 3)]
    joined = build("dataset", {"type": "Joined", "args": {"datasets": sections}})
    assert [len(part) for part in joined.datasets] == [2, 3]


CLASSES = """
from torch import nn
class Base(nn.Module):
    def __init__(self, width: int, depth: int = 2):
        super().__init__()
class Child(Base):
    def __init__(self, heads=4, **kwargs):
        super().__init__(**kwargs)
class Picky(Base):
    def __init__(self, **kwargs):
        self.secret = kwargs.pop("secret", None)
        super().__init__(**kwargs)
class Own(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.settings = settings
class Plain(nn.Module):
    pass
class ByPosition(nn.Module):
    def __init__(self, width, /, depth=1):
        super().__init__()
"""


@pytest.mark.parametrize(
    ("name", "args", "fault"),
    [
        ("Child", "width: 3, heads: 2", None),
        ("Child", "wdth: 3", "did you mean 'width'?"),
        ("Child", "width: broad", "expected a whole number, found 'broad'"),
        ("Picky", "secret: 3, width: 1", None),
        ("Own", "anything: goes", None),
        ("Own", "self: 1", "'self' is passed"),
        ("Plain", "", None),
        ("Plain", "any: 1", "unknown argument for Plain (it takes none)"),
        ("ByPosition", "width: 1", "positional-only"),
    ],
)
def test_arguments_that_are_passed_on_are_followed(
    faults: Faults, project: Write, name: str, args: str, fault: str | None
) -> None:
    project({"model/model.py": CLASSES})
    found = faults(model=f"{{type: {name}, args: {{{args}}}}}")
    assert found == [] if fault is None else fault in found[-1]


@pytest.mark.parametrize(
    ("annotation", "default", "value", "is_fault"),
    [
        (int, 1, 2, False),
        (int, 1, 2.5, True),
        (int, 1, True, True),
        (int, 0.5, 2.5, False),  # a wrong annotation: the default shows what is meant
        (float, 1.0, 2, False),
        (float, 1.0, "1e-3", True),
        (float, 1.0, None, True),
        (float, None, None, False),
        (bool, False, 1, False),
        (bool, False, "yes", True),
        (str, "a", 3, True),
        (int | None, None, None, False),
        (int | None, None, "x", True),
        ("float | None", None, "x", True),
        ("Optional[int]", None, 3, False),
        ("Optional[int]", None, "x", True),
        (float | torch.Tensor, 0.1, 1, False),
        (float | torch.Tensor, 0.1, "x", True),
        (list[int], None, "x", False),
        (tuple[float, float], (0.9, 0.99), [0.5, 0.9], False),
        (Any, None, "x", False),
        (inspect.Parameter.empty, 3, "x", False),
        (Callable[[int], int], None, "x", False),
        ("SomeType", None, "x", False),
    ],
)
def test_values_are_judged_by_simple_annotations_only(
    annotation: Any, default: Any, value: Any, is_fault: bool
) -> None:
    parameter = inspect.Parameter(
        "x", inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
    assert bool(value_fault(parameter, value)) == is_fault


@pytest.mark.parametrize("kind", KINDS)
def test_every_default_is_a_valid_value(kind: str) -> None:
    for name in names(kind):
        try:
            found = find(kind, name)
        except WrongKind:
            continue  # a helper beside those
        takes = signature(kind, found)
        for parameter in takes.parameters.values():
            if parameter.default is not parameter.empty:
                assert not value_fault(parameter, parameter.default), (name, parameter)
        assert set(takes.required) <= set(takes.parameters)
        assert not set(takes.injected) & set(takes.parameters)


SAMPLES = {
    "ChainedScheduler": {"schedulers": [{"type": "LinearLR"}]},
    "SequentialLR": {
        "schedulers": [{"type": "LinearLR"}, {"type": "ExponentialLR", "args": {"gamma": 0.9}}],
        "milestones": [2],
    },
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 5},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0},
    "ExponentialLR": {"gamma": 0.9},
    "LambdaLR": {"lr_lambda": "halve"},
    "MultiplicativeLR": {"lr_lambda": "halve"},
    "MultiStepLR": {"milestones": [1]},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 5},
    "StepLR": {"step_size": 2},
}


@pytest.mark.parametrize("name", [name for name in names("lr_scheduler") if name[0].isupper()])
def test_every_scheduler_of_torch_is_built(project: Write, name: str) -> None:
    project(FILES)
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9)
    section = {"type": name, "args": SAMPLES.get(name, {})}
    found = find("lr_scheduler", name)
    assert set(signature("lr_scheduler", found).required) <= set(section["args"])
    assert isinstance(build("lr_scheduler", section, optimizer=optimizer), LRScheduler)


@pytest.mark.parametrize("name", [name for name in names("optimizer") if name[0].isupper()])
def test_every_optimizer_of_torch_is_built(name: str) -> None:
    assert signature("optimizer", find("optimizer", name)).required == ()
    weights = [nn.Parameter(torch.ones(2, 2))]
    optimizer = build("optimizer", {"type": name, "args": {"lr": 0.125}}, params=weights)
    assert isinstance(optimizer, Optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize("name", [name for name in names("init") if hasattr(nn.init, name)])
def test_every_initialiser_of_torch_is_bound(name: str) -> None:
    args = {"constant_": {"val": 2.0}, "sparse_": {"sparsity": 0.5}}.get(name, {})
    assert set(signature("init", find("init", name)).required) <= set(args)
    tensor = torch.full((3, 3, 3) if name == "dirac_" else (3, 3), 7.0)
    build("init", {"type": name, "args": args})(tensor)
    assert not torch.equal(tensor, torch.full_like(tensor, 7.0))


def test_a_loss_function_gets_its_arguments_bound() -> None:
    output, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    bound = build("loss", {"type": "cross_entropy", "args": {"label_smoothing": 0.1}})
    expected = nn.CrossEntropyLoss(label_smoothing=0.1)(output, target)
    assert torch.equal(bound(output, target), expected)
    weights = build("loss", {"type": "CrossEntropyLoss", "args": {"weight": [1, 2, 3]}}).weight
    assert torch.equal(weights, torch.tensor([1.0, 2.0, 3.0]))


DATA = """
from torch.utils.data import Dataset
class Numbers(Dataset):
    def __init__(self, n: int, transform=None):
        self.n, self.transform = n, transform
    def __len__(self): return self.n
class Joined(Dataset):
    def __init__(self, datasets): self.datasets = datasets
class Loader:
    def __iter__(self): return iter(())
    def __init__(self, dataset, transforms=(), collate_fn=None, own=None):
        self.__dict__.update(dataset=dataset, transforms=transforms, collate_fn=collate_fn, own=own)
def pad(samples): return samples
"""


def test_what_is_inside_args_is_built_first(project: Write) -> None:
    project({"data_loader/data.py": DATA})
    args = {
        "dataset": {
            "type": "Numbers",
            "args": {"n": 5, "transform": [{"type": "ToImage"}, {"type": "RandomHorizontalFlip"}]},
        },
        "transforms": [{"type": "ToDtype", "args": {"dtype": "float32", "scale": True}}, "own"],
        "collate_fn": "pad",
        "own": {"type": "as it is"},
    }
    loader = build("data_loader", {"type": "Loader", "args": args})
    assert isinstance(loader.dataset, Dataset)
    assert len(loader.dataset) == 5
    assert [type(each).__name__ for each in loader.dataset.transform.transforms] == [
        "ToImage",
        "RandomHorizontalFlip",
    ]
    assert loader.transforms[0].dtype == torch.float32
    assert loader.transforms[1] == "own"
    assert loader.collate_fn([1]) == [1]
    assert loader.own == {"type": "as it is"}


def test_a_constructors_refusal_is_a_config_error_with_its_place(project: Write) -> None:
    source = """
        from torch import nn
        class Net(nn.Module):
            def __init__(self, width=3):
                raise ValueError("width is odd")
        class Other(nn.Module):
            def __init__(self):
                raise RuntimeError("our own slip")
        class Late(nn.Module):
            def __init__(self):
                self.head = nn.Linear(2, 2)
        """
    project({"model/model.py": source})
    with pytest.raises(ConfigError, match=r"Late cannot be built: model/model\.py:11: Attrib"):
        build("model", {"type": "Late"})
    with pytest.raises(ConfigError) as raised:
        build("model", {"type": "Net", "args": {}}, where="x.yaml:3:8")
    expected = "x.yaml:3:8: Net cannot be built: model/model.py:5: ValueError: width is odd"
    assert str(raised.value) == expected
    assert isinstance(raised.value.__cause__, ValueError)
    with pytest.raises(ConfigError, match=r"^x\.yaml:3:8: Net cannot be built: TypeError: .*wdth"):
        build("model", {"type": "Net", "args": {"wdth": 3}}, where="x.yaml:3:8")
    with pytest.raises(RuntimeError, match="our own slip"):
        build("model", {"type": "Other"})
    width = {"in_features": -1, "out_features": 2}
    with pytest.raises(ConfigError, match=r"^Linear cannot be built: RuntimeError: .*negative"):
        build("model", {"type": "Linear", "args": width})
    with pytest.raises(ConfigError, match=r"^x\.yaml:3:8: there is no model 'Nott'"):
        build("model", {"type": "Nott"}, where="x.yaml:3:8")


def test_the_list_shows_arguments_origin_and_purpose(project: Write) -> None:
    source = """
        from torch import nn
        class Net(nn.Module):
            '''A net.

            More about it.
            '''
            def __init__(self, width, depth=2, **others): ...
        """
    project({"model/model.py": source, "model/fails.py": "import nothing_here\nclass Fails: ..."})
    lines = describe("model").splitlines()
    assert lines[0] == "model:"
    fault = "model/fails.py:1: ModuleNotFoundError: No module named 'nothing_here'"
    assert lines[1] == f"  Fails    cannot be used: {fault}"
    assert lines[2:4] == ["  Net(width, depth=2, **others)    model/model.py:3", "      A net."]
    optimizers = describe("optimizer")
    assert "AdamW(lr=0.001, betas=(0.9, 0.999), " in optimizers
    assert "    torch.optim.adamw\n      Implements AdamW" in optimizers


def test_schemas_accept_defaults_and_refuse_slips(project: Write) -> None:
    from jsonschema import Draft7Validator

    project(FILES)
    schemas = type_schemas()
    assert set(schemas) == set(KINDS)
    for kind in ("optimizer", "lr_scheduler", "loss", "init"):
        listed = {entry["name"]: entry for entry in schemas[kind]}
        assert set(listed) == set(names(kind))
        for entry in listed.values():
            Draft7Validator.check_schema(entry["args_schema"])
    adam = Draft7Validator(
        next(e for e in schemas["optimizer"] if e["name"] == "Adam")["args_schema"]
    )
    assert adam.is_valid({"lr": 1, "betas": [0.9, 0.99], "fused": None})
    assert not adam.is_valid({"lrr": 1})
    assert not adam.is_valid({"eps": "small"})
    step = Draft7Validator(
        next(e for e in schemas["lr_scheduler"] if e["name"] == "StepLR")["args_schema"]
    )
    assert step.is_valid({"step_size": "3 epochs"})
    assert not step.is_valid({})
