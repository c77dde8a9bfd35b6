"""A config's names mean what the project defines, then what torch allows, and nothing else."""

import inspect
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional, init
from torch.optim import Optimizer, lr_scheduler

from base.errors import ConfigError, nearest_name
from base.names import registry
from base.names.registry import KINDS, NameFault, Registry, UnknownName, find, names
from base.names.torch_names import LOSS_FUNCTIONS, SOURCES
from base.system.places import PROJECT

Write = Callable[[dict[str, str]], Path]


NET = "from torch import nn\nclass Net(nn.Module):\n    '''A net.'''\n"


def test_a_class_is_found_by_its_own_name_in_any_depth(project: Write) -> None:
    project({"model/model.py": NET, "model/parts/deep.py": NET.replace("Net", "Deep")})
    assert issubclass(find("model", "Net"), nn.Module)
    assert find("model", "Deep").__module__ == "model.parts.deep"
    assert [name for name in names("model") if name in ("Net", "Deep")] == ["Deep", "Net"]


def test_only_the_file_that_is_named_is_imported(project: Write) -> None:
    project(
        {
            "model/model.py": NET,
            "model/heavy.py": "import time\ntime.sleep(60)\nclass Heavy: pass",
            "model/fails.py": "import no_such_package\nclass Fails: pass",
            "model/broken.py": "class Broken(:",
            "model/stops.py": "raise SystemExit\nclass Stops: pass",
        }
    )
    started = time.perf_counter()
    assert find("model", "Net").__name__ == "Net"
    assert {"Heavy", "Fails", "Stops"} <= set(names("model"))
    assert time.perf_counter() - started < 5
    assert "model.stops" not in sys.modules


def test_what_a_file_imports_is_not_its_own(project: Write) -> None:
    project({"model/model.py": "from collections import OrderedDict, Counter as Count"})
    for name in ("OrderedDict", "Count", "Counter"):
        with pytest.raises(UnknownName):
            find("model", name)


def test_private_names_and_inner_classes_are_not_named(project: Write) -> None:
    project({"model/model.py": "class _Hidden:\n    class Inner: pass\ndef _f(): pass"})
    assert not {"_Hidden", "Inner", "_f"} & set(names("model"))
    for name in ("_Hidden", "Inner"):
        with pytest.raises(NameFault):
            find("model", name)


def test_base_classes_and_files_say_what_is_listed_for_which_kind(project: Write) -> None:
    source = """
        from typing import NamedTuple
        from torch.utils.data import Dataset
        class Facts(NamedTuple): ...
        class Digits(Dataset[int]): ...
        class FirstDigitsDataset(Digits): ...
        class Loader: ...
        def pad(samples): ...
        """
    project(
        {
            "data_loader/loaders.py": source,
            "data_loader/transforms.py": "class Shift: ...\ndef flip(image): ...",
            "model/model.py": "class Net: ...\ndef helper(): ...",
            "model/definitions.py": "class Other: ...",
            "model/losses/focal.py": "class Focal: ...\ndef dice(output, target): ...",
            "trainer/callbacks.py": "class Watch: ...\ndef helper(): ...",
            "trainer/trainer.py": "class Coach: ...",
        }
    )
    expected = {
        "data_loader": ["Loader"],
        "dataset": ["Digits", "FirstDigitsDataset"],
        "transform": ["Shift"],
        "model": ["Net", "Other"],
        "loss": ["Focal", "dice"],
        "callback": ["Watch"],
        "trainer": ["Coach"],
    }
    for kind in KINDS:
        assert [each.name for each in registry.listed(kind)] == expected.get(kind, []), kind


def test_the_projects_own_name_wins_over_torchs(project: Write) -> None:
    source = "from torch.optim import Adam as A\nclass Adam(A): pass"
    project({"trainer/optim.py": source, "model/loss.py": "def mse_loss(output, target): ..."})
    assert find("optimizer", "Adam").__module__ == "trainer.optim"
    assert find("loss", "mse_loss").__module__ == "model.loss"
    assert names("optimizer").count("Adam") == 1


def test_a_name_defined_twice_is_an_error_with_both_places(project: Write) -> None:
    project({"model/a.py": "\n" + NET, "model/b.py": NET})
    with pytest.raises(NameFault, match=r"twice, in model/a\.py:3 and model/b\.py:2"):
        find("model", "Net")


def test_the_file_meant_for_the_kind_decides_between_two(project: Write) -> None:
    source = "def nll(output, target): ..."
    project({"model/loss.py": source, "model/metric.py": source})
    assert find("loss", "nll").__module__ == "model.loss"
    assert find("metric", "nll").__module__ == "model.metric"


def test_losses_and_metrics_may_be_objects_of_the_module(project: Write) -> None:
    loss = """
        import torch.nn.functional as F
        from torch import nn
        EPSILON = 1e-6
        my_loss = nn.BCELoss()
        criterion: nn.Module = nn.L1Loss()
        loss = F.mse_loss
        twice = lambda output, target: 2 * F.l1_loss(output, target)
    """
    project({"model/loss.py": loss})
    assert isinstance(find("loss", "my_loss"), nn.BCELoss)
    assert isinstance(find("loss", "criterion"), nn.L1Loss)
    assert find("loss", "loss") is functional.mse_loss
    assert find("loss", "twice")(torch.zeros(1), torch.ones(1)) == 2
    with pytest.raises(UnknownName):
        find("loss", "EPSILON")


def test_a_decorator_gives_another_name_before_its_file_is_imported(project: Write) -> None:
    source = "from base.names.registry import MODELS\n" + NET.replace(
        "class", "@MODELS.register('other-net')\nclass"
    )
    project({"model/model.py": source, "trainer/odd.py": source.replace("other-net", "odd")})
    assert {"other-net", "Net", "odd"} <= set(names("model"))
    assert "model.model" not in sys.modules
    assert find("model", "other-net") is find("model", "Net") is sys.modules["model.model"].Net
    assert find("model", "odd").__module__ == "trainer.odd"
    assert registry.MODELS.registered["other-net"] is find("model", "Net")


def test_a_registered_name_is_taken(project: Write) -> None:
    names_of_models = Registry("model")
    names_of_models.register("small")(nn.Linear)
    names_of_models.register("small")(nn.Linear)  # again, as a module that is loaded anew does
    with pytest.raises(NameFault, match=r"model 'small' is already .*Linear"):
        names_of_models.register("small")(nn.Conv2d)
    with pytest.raises(NameFault, match="cannot be registered"):
        names_of_models.register("os.system")
    first = "from base.names.registry import MODELS\n@MODELS.register('Net')\nclass First: ..."
    project({"model/a.py": first, "model/b.py": NET})
    with pytest.raises(NameFault, match=r"model/a\.py:3 and model/b\.py:2"):
        find("model", "Net")


def test_a_name_registered_outside_the_project_is_found() -> None:
    try:
        registry.LOSSES.register("outside")(functional.l1_loss)
        assert find("loss", "outside") is functional.l1_loss
        assert "outside" in names("loss")
    finally:
        registry.LOSSES.registered.pop("outside")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_package", "model/model.py:1: ModuleNotFoundError: No module named"),
        ("\nraise ValueError('no luck')", "model/model.py:2: ValueError: no luck"),
        ("import model.broken", "model/broken.py:2: SyntaxError: "),
        ("import sys\nsys.exit('bye')", "model/model.py:2: SystemExit: bye"),
        ("import json\njson.loads('{')", "model/model.py:2: JSONDecodeError: "),
    ],
)
def test_a_failing_import_is_told_with_file_and_line(
    project: Write, source: str, expected: str
) -> None:
    project({"model/model.py": f"{source}\nclass Net: ...", "model/broken.py": "\ndef f(:"})
    with pytest.raises(NameFault) as raised:
        find("model", "Net")
    assert str(raised.value).startswith(expected)
    assert isinstance(raised.value, ConfigError)
    assert isinstance(raised.value, LookupError)


def test_a_file_that_does_not_parse_is_mentioned_when_a_name_is_missing(project: Write) -> None:
    project({"model/broken.py": "\nclass Net(:"})
    with pytest.raises(UnknownName, match=r"does not parse: model/broken\.py \(.*line 2"):
        find("model", "Net")


@pytest.mark.parametrize(
    ("kind", "file", "source"),
    [
        ("model", "model/model.py", "class Wrong: ..."),
        ("optimizer", "model/optim.py", "class Wrong: ..."),
        ("trainer", "trainer/trainer.py", "class Wrong: ..."),
        ("callback", "trainer/callbacks.py", "class Wrong: ..."),
        ("loss", "model/loss.py", "Wrong = dict()"),
    ],
)
def test_a_thing_of_another_kind_is_refused(
    project: Write, kind: str, file: str, source: str
) -> None:
    project({file: source})
    with pytest.raises(NameFault, match=rf"{file}:1: 'Wrong' cannot be a {kind}: it is "):
        find(kind, "Wrong")


def test_a_module_of_that_name_elsewhere_is_told(project: Write) -> None:
    root = project({"model/model.py": NET})
    (root / "model" / "__init__.py").unlink()
    (root / "elsewhere" / "model").mkdir(parents=True)
    (root / "elsewhere" / "model" / "__init__.py").touch()
    (root / "elsewhere" / "model" / "model.py").write_text(NET)
    sys.path.insert(0, str(root / "elsewhere"))
    try:
        with pytest.raises(NameFault, match=r"model/model\.py is hidden by .*elsewhere"):
            find("model", "Net")
    finally:
        sys.path.remove(str(root / "elsewhere"))


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("acuracy", "accuracy"), ("Acuracy", "Accuracy"), ("ccuracy", "accuracy"), ("zzz", None)],
)
def test_of_names_that_differ_in_case_the_nearer_is_meant(name: str, nearest: str | None) -> None:
    """torchmetrics has an Accuracy, and Kindling an accuracy; the first is meant if both fit."""
    assert nearest_name(name, ["accuracy", "Accuracy", "F1"]) == nearest


def test_an_unknown_name_gives_the_nearest_and_the_places() -> None:
    with pytest.raises(UnknownName) as raised:
        find("optimizer", "AdmaW")
    assert str(raised.value) == (
        "there is no optimizer 'AdmaW'; did you mean 'AdamW'? (looked in model/, trainer/,"
        " torch.optim, base.training.muon, base.training.timm_optimizers;"
        " `python train.py --list optimizer` lists all)"
    )
    with pytest.raises(NameFault, match=r"no kind 'modle'; did you mean 'model'\?"):
        find("modle", "Net")


def _torch_classes(module: object, parent: type) -> set[str]:
    return {
        name
        for name, member in vars(module).items()
        if inspect.isclass(member) and issubclass(member, parent) and member is not parent
        if not name.startswith("_")
    }


def test_all_of_torchs_optimizers_and_schedulers_can_be_named() -> None:
    schedulers = _torch_classes(lr_scheduler, lr_scheduler.LRScheduler)
    assert {name for name in names("optimizer") if name[0].isupper()} >= _torch_classes(
        torch.optim, Optimizer
    )
    assert schedulers <= set(names("lr_scheduler"))
    assert {"OneCycleLR", "ReduceLROnPlateau"} <= schedulers
    for kind, base in (("optimizer", "Optimizer"), ("lr_scheduler", "LRScheduler")):
        with pytest.raises(UnknownName):
            find(kind, base)


def test_all_of_torchs_initialisers_can_be_named_with_and_without_underscore() -> None:
    expected = {name for name in vars(init) if name.endswith("_") and name[0] != "_"}
    assert {name for name in names("init") if hasattr(init, name)} == expected
    for name in expected:
        assert find("init", name) is find("init", name[:-1]) is getattr(init, name)
    with pytest.raises(UnknownName):
        find("init", "calculate_gain")


def test_the_list_of_loss_functions_is_complete(project: Write) -> None:
    project({})
    takes_reduction = {
        name
        for name, member in vars(functional).items()
        if not name.startswith("_") and inspect.isfunction(member)
        if "reduction" in inspect.signature(member).parameters
    }
    # The C functions among them show no signature, but end alike.
    others = {name for name in vars(functional) if name.endswith("_loss") and name[0] != "_"}
    assert {name for name in LOSS_FUNCTIONS if hasattr(functional, name)} == (
        takes_reduction | others
    )
    assert all(find("loss", name) is vars(functional)[name] for name in takes_reduction)
    classes = {name for name in vars(nn) if name.endswith("Loss")}
    assert classes <= set(names("loss"))


def test_models_are_torchs_layers_and_torchvisions_networks() -> None:
    from torchvision import models

    assert find("model", "Linear") is nn.Linear
    assert issubclass(find("model", "Sequential"), nn.Sequential)
    assert find("model", "resnet18") is models.resnet18
    assert set(models.list_models()) <= set(names("model"))
    for name in ("Module", "get_model", "list_models", "ResNet18_Weights", "BCELoss"):
        with pytest.raises(UnknownName):
            find("model", name)


def test_datasets_transforms_and_callbacks_can_be_named() -> None:
    assert find("dataset", "CIFAR10").__module__ == "torchvision.datasets.cifar"
    assert find("transform", "RandomCrop").__module__.startswith("torchvision.transforms.v2")
    assert find("callback", "StopAfter").__module__ == "base.callbacks"
    assert find("data_loader", "BaseDataLoader").__module__ == "base.base_data_loader"


def test_torchvision_is_not_imported_for_the_projects_own_names(project: Write) -> None:
    root = project({"model/model.py": NET})
    program = (
        "import sys; from base.names.registry import find, set_project_root\n"
        f"assert 'torch' not in sys.modules; set_project_root({str(root)!r})\n"
        "find('model', 'Net'); find('model', 'Linear'); find('optimizer', 'Adam')\n"
        "sys.exit('torchvision' in sys.modules)"
    )
    home = PROJECT
    done = subprocess.run([sys.executable, "-c", program], cwd=home, check=False)
    assert done.returncode == 0


# fmt: off
ATTACKS = [
    "os.system", "logging.os.system", "builtins.eval", "torch.hub.load", "torch.load", "load",
    "__import__", "eval", "exec", "os", "system", "__class__", "nn.__builtins__", "__builtins__",
    "../x", "/etc/passwd", "../model/model.py", "open", "torch.nn.init.os", "Net.__init__",
    "model.model.Net", "hub.load", "Popen", "import_module", "get_model_builder", "sys",
    "find_spec", "load_state_dict_from_url", "", " ", "a b", "os;system", "x\n", "é.x",
]
# fmt: on

seen: list[str] = []
is_watching = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if is_watching and event.split(".")[0] in ("import", "exec", "open", "os", "subprocess"):
        seen.append(f"{event} {arguments[:1]}")


sys.addaudithook(_watch)


@pytest.mark.parametrize("kind", [*KINDS, "function"])
def test_nothing_but_a_plain_allowed_name_is_ever_looked_at(kind: str) -> None:
    global is_watching
    with pytest.raises(UnknownName):
        find(kind, "no_such_name")  # reads the project's files and imports torch's modules, once
    for name in ATTACKS:
        seen.clear()
        is_watching = True
        try:
            with pytest.raises(NameFault):
                find(kind, name)
        finally:
            is_watching = False
        searches = ("os.listdir", "os.scandir")  # for a torchmetrics that is not installed
        assert [event for event in seen if not event.startswith(searches)] == [], name


@given(name=st.text() | st.sampled_from(dir(nn) + dir(torch) + dir(init) + dir(torch.optim)))
@pytest.mark.parametrize("kind", ["model", "init", "loss", "optimizer", "lr_scheduler"])
def test_any_text_is_refused_or_leads_to_an_allowed_thing(kind: str, name: str) -> None:
    try:
        found = find(kind, name)
    except NameFault:
        return
    places = [*(source.package for source in SOURCES[kind]), "model.", "trainer."]
    assert found.__module__.startswith(tuple(places))
    assert inspect.isroutine(found) or inspect.isclass(found)


def test_a_broken_torchvision_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(Exception, match=r"torchvision.datasets cannot be imported") as raised:
        find("dataset", "MNIST")
    assert raised.value.exit_code == 1
