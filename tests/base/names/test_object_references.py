"""What is built gets its arguments from what was built before it, in training, test and resume."""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from toy import CPU, assert_resumes, make, run, train_in

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.callbacks import Callback
from base.checkpoint.store import read_manifest
from base.config import load_config
from base.errors import ConfigError
from base.names.check import check_names
from base.names.object_references import attributes
from base.names.registry import CALLBACKS, DATA_LOADERS, LOSSES, METRICS, MODELS, TRAINERS
from base.run.build import build_experiment, build_trainer
from base.run.data_changes import references_to_resume
from base.run.testing import choose_checkpoint
from tests.base.run.test_testing import alone
from trainer.trainer import Trainer

CONFIG = """
name: references
seed: 3
model: {type: RefNet, args: {n_features: "${data_loader.dataset.tensors.0.shape.1}",
                             n_classes: "${data_loader.n_classes}"}}
init: [{match: "head.*", bias: {type: constant_, args: {val: "${data_loader.prior}"}}}]
data_loader: {type: RefLoader, args: {}}
valid_data_loader: {type: RefLoader, args: {scaler: "${data_loader.scaler}", part: 1}}
test_data_loader: {type: RefLoader, args: {part: 2, mean: "${data_loader.mean}"}}
optimizer: {type: SGD, args: {lr: "${model.rate}"},
            param_groups: [{match: "*.bias", lr: "${data_loader.stats.rate}"}]}
lr_scheduler: {type: StepLR, args: {step_size: "${data_loader.n_classes}", gamma: 0.5}}
loss: {type: cross_entropy, args: {weight: "${data_loader.class_weights}"}}
metrics: [{type: RefMetric, args: {counts: "${data_loader.counts}", of: "${valid_data_loader.part}"}}]
callbacks: [{type: RefCallback, args: {config: "${config}", note: "n=${data_loader.n_classes}"}}]
trainer: {type: RefTrainer, epochs: 2, args: {n: "${data_loader.n_classes}", own: {a: ["${model.rate}"]}},
          tensorboard: false, progress: false, verbosity: 0}
"""  # noqa: E501
N_CLASSES = 3


class Scaler:
    def __init__(self, mean: Tensor) -> None:
        self.mean = mean


class CollatingLoader(BaseDataLoader):
    """Calls on each batch what it is given."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        collate([])
        super().__init__(TensorDataset(torch.randn(24, 4), torch.arange(24) % 3), 4, True, 0.0, 0)


class RefLoader(BaseDataLoader):
    is_there = True  # the training data
    rate = 0.3

    def __init__(self, part: int = 0, scaler: Any = None, mean: Any = None) -> None:
        if part < 2 and not self.is_there:
            raise FileNotFoundError("the training data are gone")
        generator = torch.Generator().manual_seed(part)
        x = torch.randn(24, 4, generator=generator)
        y = torch.arange(24) * 7 % 5 % N_CLASSES
        if part == 0:
            self.scaler, self.mean = Scaler(x.mean(0)), x.mean(0)
        self.given = scaler if part == 1 else mean
        self.part, self.stats = part, {"rate": self.rate}
        self.prior = np.float32(0.25)
        self.counts = np.bincount(y, minlength=N_CLASSES)
        self.class_weights = 24 / (N_CLASSES * torch.bincount(y).float())
        super().__init__(TensorDataset(x, y), 4, True, 0.0, 0)

    def pairs(self, samples: list[Any]) -> list[Any]:
        return samples

    @property
    def n_classes(self) -> int:
        return N_CLASSES

    @property
    def broken(self) -> int:
        return self._nothing


class RefNet(nn.Module):
    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(n_features, n_classes)
        self.rate = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class RefMetric:
    def __init__(self, counts: Any, of: int) -> None:
        self.counts, self.of = counts, of
        self.reset()

    def reset(self) -> None:
        self.n = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        self.n += len(target)

    def compute(self) -> float:
        return float(self.counts.sum()) + self.of


class RefCallback(Callback):
    def __init__(self, config: dict, note: str) -> None:
        self.config, self.note = config, note


class RefTrainer(Trainer):
    def __init__(self, experiment: Any, n: int, own: Any) -> None:
        super().__init__(experiment)
        self.n, self.own = n, own


@pytest.fixture(autouse=True)
def registered() -> Any:
    registries = (MODELS, DATA_LOADERS, METRICS, CALLBACKS, TRAINERS)
    for registry, named in zip(
        registries, (RefNet, RefLoader, RefMetric, RefCallback, RefTrainer), strict=True
    ):
        registry.registered[named.__name__] = named
    DATA_LOADERS.registered["CollatingLoader"] = CollatingLoader
    LOSSES.registered["ref_loss"] = ref_loss
    yield
    for registry in (*registries, LOSSES):
        registry.registered.clear()


def ref_loss(output: Tensor, target: Tensor, weight: Any = None, ignore_index: int = -100) -> Any:
    return F.cross_entropy(output, target, weight, ignore_index=ignore_index)


def built(*overrides: str, text: str = CONFIG) -> Any:
    config = load_config(None, overrides, text=text)
    check_names(config)
    torch.manual_seed(3)
    return build_trainer(config, build_experiment(config, CPU))


# --- The objects, whatever they are used for ------------------------------------------------------


def test_each_section_gets_what_the_built_object_has() -> None:
    trainer = built()
    loader = trainer.train_loader
    assert trainer.model.head.weight.shape == (3, 4)
    assert trainer.model.head.bias.tolist() == [0.25] * 3
    assert trainer.valid_loader.given is loader.scaler  # no plain value: the object itself
    groups = {len(g["params"]): g["lr"] for g in trainer.optimizers["main"].param_groups}
    assert sorted(g["lr"] for g in trainer.optimizers["main"].param_groups) == [0.1, 0.3], groups
    assert trainer.schedules["main"].scheduler.step_size == 3
    assert torch.equal(trainer.losses["cross_entropy"].function.keywords["weight"],
                       loader.class_weights)  # fmt: skip
    metric = trainer.metrics["RefMetric"].instance
    assert (metric.counts.tolist(), metric.of) == (loader.counts.tolist(), 1)
    callback = trainer.callbacks["RefCallback"]
    assert callback.note == "n=3"
    assert callback.config["trainer"]["epochs"] == 2
    assert type(callback.config) is dict
    assert (trainer.n, trainer.own) == (3, {"a": [0.1]})


def test_the_same_weights_come_of_a_config_with_the_values_in_it(tmp_path: Path) -> None:
    loader = RefLoader()
    values = {
        "${data_loader.dataset.tensors.0.shape.1}": 4,
        "${data_loader.n_classes}": 3,
        "${data_loader.prior}": 0.25,
        "${model.rate}": 0.1,
        "${data_loader.stats.rate}": 0.3,
        "${data_loader.class_weights}": [float(w) for w in loader.class_weights],
        "${data_loader.counts}": loader.counts.tolist(),
        "${valid_data_loader.part}": 1,
        "${data_loader.scaler}": 0,
        "${data_loader.mean}": 0,
        "${config}": {},
    }
    text = CONFIG.replace("n=${data_loader.n_classes}", "x")
    text = text.replace("RefMetric, args", "accuracy}]\nextra: [{x")
    for reference, value in values.items():
        text = text.replace(f'"{reference}"', str(value))
    text = text.replace("extra: [{x", "extra: {x: [{x").replace("of: 1}}]", "of: 1}}]}")
    by_hand, by_reference = built(text=text), built("metrics=[accuracy]")
    for trainer in (by_hand, by_reference):
        train_in(trainer)
    pairs = zip(by_hand.model.parameters(), by_reference.model.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "model.args.n_classes=${data_loader.n_clases}",
            "model.args.n_classes: ${data_loader.n_clases}: data_loader, a RefLoader, has no "
            "'n_clases'; did you mean 'n_classes'? (it has ",
        ),
        ("model.args.n_classes=${data_loader.scaler.men}", "data_loader.scaler, a Scaler, has no"),
        ("model.args.n_classes=${data_loader.stats.n}", "stats, a dict, has no 'n' (it has rate)"),
        ("model.args.n_classes=${data_loader.mean.9}", "a Tensor, has no item 9"),
        ("model.args.n_classes=${data_loader.broken}", "raises for 'broken': "),
        ("model.args.n_classes=${data_loader.scaler}", "expected a whole number, found a Scaler"),
        ("model.args.n_classes=${data_loader.mean}", "expected a whole number, found a Tensor"),
        ("model.args.n_classes=${data_loader.arg}", "did you mean 'args'?"),
        ("optimizer.args.lr=${data_loader.part}", ""),
        ("optimizer.args.weight_decay=${data_loader.mean.0}", "Invalid weight_decay"),
        ("optimizer.param_groups.0.lr=${data_loader.scaler}", "optimizer.param_groups.0.lr: "),
        ("lr_scheduler.args.step_size=${data_loader.scaler}", "lr_scheduler.args.step_size: "),
        ("lr_scheduler.args.gamma=${data_loader.scaler}", "lr_scheduler"),
        ("metrics.0.args.of=${model.rate.x}", "model.rate, a float, has no 'x'"),
        ("trainer.args.n=${data_loader.dataset.nothing}", "trainer.args.n: "),
        (
            "callbacks.0.args.note=a${data_loader.mean}",
            "is a Tensor and cannot be part of a string",
        ),
    ],
)
def test_a_slip_is_told_with_its_place(override: str, expected: str) -> None:
    if not expected:
        built(override)
        return
    with pytest.raises(ConfigError) as caught:
        built(override)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "data_loader.file.unlink",
            "Path.unlink, a library function: write a function of your own",
        ),
        ("data_loader.counts.tofile", "ndarray.tofile, a library function"),
        ("data_loader.mean.numpy", "a library function"),
        ("data_loader.library", "data_loader.library is the module os"),
        ("data_loader.library.remove", "data_loader.library is the module os"),
    ],
)
def test_no_function_of_a_library_is_reached(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    file.touch()
    monkeypatch.setattr(RefLoader, "file", file, raising=False)
    monkeypatch.setattr(RefLoader, "library", os, raising=False)
    override = f"valid_data_loader={{type: CollatingLoader, args: {{collate: '${{{name}}}'}}}}"
    with pytest.raises(ConfigError) as caught:
        built(override, "test_data_loader=null", "metrics=[]")
    assert expected in str(caught.value)
    assert file.exists()


def test_a_function_of_the_project_is_reached() -> None:
    override = "valid_data_loader={type: CollatingLoader, args: {collate: '${data_loader.pairs}'}}"
    trainer = built(override, "test_data_loader=null", "metrics=[]")
    assert trainer.valid_loader.collate == trainer.train_loader.pairs


def test_without_validation_data_there_is_no_such_loader() -> None:
    override = ("valid_data_loader=null", "test_data_loader=null", "metrics=[]")
    with pytest.raises(
        ConfigError, match=r"\$\{valid_data_loader.part\}: the config has no valid_data"
    ):
        built(*override, "model.args.n_classes=${valid_data_loader.part}")


def test_an_unknown_argument_is_told_before_anything_is_built() -> None:
    config = load_config(None, ["model.args.n_clases=${data_loader.n}"], text=CONFIG)
    with pytest.raises(ConfigError, match="did you mean 'n_classes'"):
        check_names(config)


def test_the_list_of_attributes_begins_with_the_users_own() -> None:
    names = attributes(RefLoader())
    assert not [name for name in names if name.startswith("_")]
    assert "split_validation" not in names  # a method
    engines = names.index("batch_size")
    own = {"prior", "counts", "class_weights", "mean", "scaler", "n_classes"}
    assert own <= set(names[:engines])
    assert attributes(RefNet(2, 2)) == ["rate", "head"]


# --- Test and resume ------------------------------------------------------------------------------


def test_a_test_needs_no_training_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = functools.partial(run, trainer=made_by_name, text=CONFIG)
    trained = train(tmp_path)
    expected = alone(tmp_path, made_by_name)
    kept = read_manifest(choose_checkpoint(tmp_path))["facts"]["data"]["references"]
    assert kept["data_loader.n_classes"] == 3
    assert "data_loader.scaler" not in kept
    assert "model.rate" not in kept
    monkeypatch.setattr(RefLoader, "is_there", False)
    assert alone(tmp_path, made_by_name) == expected
    # The second way: the weights on the test data, by hand.
    test = RefLoader(2)
    x, y = test.dataset.tensors
    loss = F.cross_entropy(trained.model(x), y, trained.train_loader.class_weights)
    best = read_manifest(choose_checkpoint(tmp_path))["step"]
    if best == trained.progress.step:
        assert expected["loss"] == pytest.approx(loss.item(), rel=1e-5)
    # What JSON cannot hold is an error that says what is missing, not another number.
    with pytest.raises(FileNotFoundError, match="training data are gone"):
        alone(tmp_path, made_by_name, "test_data_loader.args.mean=${data_loader.scaler}")


def made_by_name(experiment: Any) -> Any:
    return build_trainer(experiment.config, experiment)


def test_a_run_is_resumed_exactly(tmp_path: Path) -> None:
    assert_resumes(tmp_path, trainer=made_by_name, text=CONFIG)


@pytest.mark.parametrize("has_other_section", [False, True])
def test_a_resume_keeps_the_value_and_says_where_it_differs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    has_other_section: bool,
) -> None:
    (tmp_path / "run.json").write_text("{}")
    run(tmp_path, trainer=made_by_name, text=CONFIG, stop_at=3)
    (tmp_path / "config.yaml").write_text(load_config(None, text=CONFIG).to_yaml())
    monkeypatch.setattr(RefLoader, "rate", 0.7)
    more = ["data_loader.args.mean=3"] if has_other_section else []
    config = load_config(None, more, text=CONFIG)
    references = references_to_resume(config, tmp_path)
    experiment = build_experiment(config, CPU, weights=False, references=references)
    trainer = build_trainer(config, experiment)
    rates = sorted(g["lr"] for g in trainer.optimizers["main"].param_groups)
    assert rates == ([0.1, 0.7] if has_other_section else [0.1, 0.3])
    with caplog.at_level(logging.WARNING, "kindling"):
        train_in(trainer, tmp_path, tmp_path)
    effect = "the new value is used" if has_other_section else "the run keeps its value"
    assert (
        "${data_loader.stats.rate} was 0.3 at the start of the run, and is now 0.7: "
        f"{effect}" in caplog.text
    )
    assert caplog.text.count("at the start of the run") == 1


# --- Sections of a trainer's own ------------------------------------------------------------------

OWN = CONFIG.replace("RefTrainer", "OwnTrainer").replace("own: {a", "aux: AUX, own: {a")
AUX = "{type: cross_entropy, name: aux, weight: 0.5, args: {ignore_index: 1, weight: WEIGHT}}"
OWN = OWN.replace("AUX", AUX.replace("WEIGHT", '"${data_loader.class_weights}"'))


class OwnTrainer(Trainer):
    def __init__(self, experiment: Any, n: int, aux: Any, own: Any) -> None:
        super().__init__(experiment)
        self.aux = self.build("loss", aux)

    def compute_losses(self, outputs: Any, batch: Any) -> Any:
        main = self.losses["cross_entropy"](outputs, batch[1])
        return {"cross_entropy": main, "aux": self.aux(outputs, batch[1])}


@pytest.fixture
def own(registered: None) -> Any:
    TRAINERS.registered["OwnTrainer"] = OwnTrainer
    return functools.partial(built, text=OWN)


@pytest.mark.parametrize("memory", ["{micro_batch: 1}", "{micro_batch: 3}", "{accumulate: 4}"])
def test_an_own_loss_has_the_denominators_of_a_configured_one(own: Any, memory: str) -> None:
    n_epochs = "trainer.epochs=2"
    trained = own(f"memory={memory}", n_epochs)
    train_in(trained)
    # The second way: the same loss named in the config.
    named = AUX.replace("WEIGHT", '"${data_loader.class_weights}"')
    main = '{type: cross_entropy, args: {weight: "${data_loader.class_weights}"}}'
    loss = f"loss=[{main}, {named}]"
    expected = built(f"memory={memory}", n_epochs, loss)
    train_in(expected)
    for ours, theirs in zip(trained.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    # And without any cutting, where parts of a batch are what is cut.
    if "micro" in memory:
        uncut = own(n_epochs)
        train_in(uncut)
        for ours, theirs in zip(trained.model.parameters(), uncut.model.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_own_loss_is_what_the_trainers_losses_are(own: Any) -> None:
    trainer = own()
    assert type(trainer.aux) is type(trainer.losses["cross_entropy"])
    assert (trainer.aux.name, trainer.aux.weight) == ("aux", 0.5)
    assert set(trainer.losses) == {"cross_entropy"}
    again = trainer.build("loss", "cross_entropy")
    assert again.name == "cross_entropy_2"


def test_each_kind_is_built_with_the_references_of_the_config(own: Any) -> None:
    trainer = own(
        "extra.teacher={type: RefNet, args: {n_features: 2, n_classes: '${model.head.out_features}'"
        "}}"
    )
    teacher = trainer.build("model", trainer.config["extra"]["teacher"])
    assert teacher.head.weight.shape == (3, 2)
    in_python = {
        "type": "RefNet",
        "args": {"n_features": "${data_loader.n_classes}", "n_classes": 1},
    }
    assert trainer.build("model", in_python).head.weight.shape == (1, 3)
    assert trainer.build("metric", "accuracy").name == "accuracy"
    loader = trainer.build("data_loader", {"type": "RefLoader", "args": {"part": 1}})
    assert len(list(loader.batches(0, 2))) == 2
    assert trainer.build("callback", {"type": "RefCallback", "args": {"config": {}, "note": ""}})
    assert callable(trainer.build("transform", "RandomHorizontalFlip"))
    assert trainer.build("init", "zeros_") is nn.init.zeros_


@pytest.mark.parametrize(
    ("kind", "section", "expected"),
    [
        ("los", "mse_loss", "self.build('los', ...): unknown kind; use loss, metric"),
        ("optimizer", "SGD", "name several in `optimizers:` of the config"),
        ("trainer", "Trainer", "there is only one"),
        (["loss"], "mse_loss", "unknown kind"),
        ("loss", "mse_los", "self.build('loss').type: there is no loss 'mse_los'; did you mean"),
        ("loss", 5, "self.build('loss'): expected a section of keys, found 5"),
        ("loss", None, "self.build('loss').type: missing"),
        ("loss", {"type": "ref_loss", "arg": {}}, "self.build('loss').arg: unknown key"),
        ("loss", {"type": "ref_loss", "args": {"weigh": 1}}, "did you mean 'weight'?"),
        ("loss", {"type": "ref_loss", "args": {"weight": "${model.x}"}}, "has no 'x'"),
        ("model", {"type": "RefNet"}, "RefNet needs arguments n_features, n_classes"),
        ("model", {"type": "LazyLinear", "args": {"out_features": 2}}, "set their sizes"),
        (
            "metric",
            {"type": "RefMetric", "name": "loss", "args": {"counts": 1, "of": 1}},
            "choose another",
        ),
    ],
)
def test_a_wrong_kind_name_or_argument_is_a_config_error(
    own: Any, kind: Any, section: Any, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        own().build(kind, section)
    assert expected in str(caught.value)


def test_a_section_of_extra_is_told_with_its_place(own: Any) -> None:
    trainer = own("extra.aux={type: ref_loss, args: {weigh: 3}}")
    with pytest.raises(ConfigError) as caught:
        trainer.build("loss", trainer.config["extra"]["aux"])
    assert str(caught.value) == (
        "--set extra.aux={type: ref_loss, args: {weigh: 3}}: extra.aux.args.weigh: unknown argument"
        " for ref_loss; did you mean 'weight'?"
    )


def test_the_trainers_arguments_keep_their_place(own: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        own("trainer.args.aux.args.ignore_index=x")
    assert "trainer.args.aux.args.ignore_index: expected a whole number" in str(caught.value)


def test_it_is_told_that_the_trainer_is_not_ready_yet(own: Any) -> None:
    class Early(Trainer):
        def __init__(self, experiment: Any) -> None:
            self.loss = self.build("loss", "mse_loss")
            super().__init__(experiment)

    with pytest.raises(ConfigError, match=r"call super\(\).__init__\(experiment\) before"):
        make(trainer=Early)


def test_build_is_final() -> None:
    assert getattr(BaseTrainer.build, "__final__", False)


def test_the_toy_has_none() -> None:
    assert make().experiment.references.values == {}
