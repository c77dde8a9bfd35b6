"""An exported file computes what the model does, for any number of samples."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exported_models import FILES, OWN, arrays, call_export, loaded_model, train_model
from torch import Tensor
from torch.utils._pytree import tree_leaves

from base.errors import UsageError
from base.prediction.export import ExportMismatchError

LAYERS = [
    {"type": "Conv2d", "args": {"in_channels": 1, "out_channels": 4, "kernel_size": 3}},
    {"type": "BatchNorm2d", "args": {"num_features": 4}},
    {"type": "ReLU"},
    {"type": "AdaptiveAvgPool2d", "args": {"output_size": 1}},
    {"type": "Flatten"},
    {"type": "Linear", "args": {"in_features": 4, "out_features": 3}},
]
KINDS = {
    "convolutions": {},
    "sequential": {"model": {"type": "Sequential", "args": {"layers": LAYERS}}},
    "lazy": {"model": {"type": "Lazy"}},
    "shared weights": {"model": {"type": "Tied"}},
    "two inputs": {"model": {"type": "TwoInputs"}, "data_loader": OWN["ages"]},
    "named inputs": {"model": {"type": "TwoInputs"}, "data_loader": OWN["named"]},
    "integers": {"model": {"type": "Words"}, "data_loader": OWN["texts"]},
    "masks": {"model": {"type": "Mask"}, "data_loader": arrays("masks")},
    "options of a training": {
        "memory": {"precision": "bf16", "inplace": True, "channels_last": True},
        "trainer": {"epochs": 2, "ema": {"decay": 0.5}},
    },
}
SHAPES = {"two inputs": [(1, 8, 8), ()], "named inputs": [(1, 8, 8), ()], "integers": [(5,)]}


def random_inputs(kind: str, n_samples: int) -> list[Tensor]:
    if kind == "integers":
        return [torch.randint(7, (n_samples, 5))]
    return [torch.randn(n_samples, *shape) for shape in SHAPES.get(kind, [(1, 8, 8)])]


def opened(path: Path) -> Callable[..., Tensor]:
    """Load an exported graph without Kindling's code; return a function of its inputs."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]

    def call(*inputs: Tensor, **keywords: Tensor) -> Tensor:
        given = dict(zip(names, inputs, strict=False)) | keywords
        found = session.run(None, {name: value.numpy() for name, value in given.items()})
        return torch.from_numpy(found[0])

    return call


QUICK = [("convolutions", ".pt2"), ("named inputs", ".pt2")]
GRAPHS = [
    pytest.param(kind, suffix, marks=() if (kind, suffix) in QUICK else pytest.mark.slow)
    for kind in KINDS
    for suffix in (".pt2", ".onnx")
]


@pytest.mark.parametrize(("kind", "suffix"), GRAPHS)
def test_a_graph_computes_what_the_model_does(kind, suffix, project, monkeypatch) -> None:
    folder = project(FILES)
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    run = train_model(folder, monkeypatch, **KINDS[kind])
    model = loaded_model(run)
    assert call_export("-r", run, "-o", f"net{suffix}") == 0
    graph = opened(folder / f"net{suffix}")
    for n_samples in (1, 2, 7):
        inputs = random_inputs(kind, n_samples)
        keywords = {}
        if kind == "named inputs":
            inputs, keywords = [], dict(zip(["image", "age"], inputs, strict=True))
        with torch.no_grad():
            found, wanted = graph(*inputs, **keywords), model(*inputs, **keywords)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_outputs_keep_their_structure(project, monkeypatch) -> None:
    folder = project({**FILES, "trainer/own.py": """
        from base import BaseTrainer


        class Scores(BaseTrainer):
            def compute_losses(self, outputs, batch):
                return super().compute_losses(outputs["scores"], batch)

            def predict(self, outputs):
                return outputs["scores"]
    """})  # fmt: skip
    run = train_model(folder, monkeypatch, model={"type": "DictOutput"},
                      trainer={"type": "Scores", "epochs": 1})  # fmt: skip
    assert call_export("-r", run, "-o", "net.pt2") == 0
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        found = torch.export.load("net.pt2").module()(images)
        wanted = loaded_model(run)(images)
    assert found.keys() == wanted.keys()
    assert isinstance(found["parts"], tuple)
    for one, other in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(one, other)


def test_a_network_for_images_of_any_size_is_exported_for_any_size(project, monkeypatch) -> None:
    run = train_model(project(FILES), monkeypatch)
    assert call_export("-r", run, "-o", "net.pt2") == 0
    images = torch.randn(1, 1, 11, 30)
    with torch.no_grad():
        found = torch.export.load("net.pt2").module()(images)
        torch.testing.assert_close(found, loaded_model(run)(images))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("kind", ["convolutions", "shared weights"])
def test_weights_are_those_of_the_model_bit_by_bit(kind, suffix, project, monkeypatch) -> None:
    run = train_model(project(FILES), monkeypatch, **KINDS[kind])
    assert call_export("-r", run, "-o", f"net{suffix}") == 0
    if suffix == ".safetensors":
        from safetensors import safe_open
        from safetensors.torch import load_file

        found = load_file(f"net{suffix}")
        with safe_open(f"net{suffix}", "pt") as file:
            about = json.loads(file.metadata()["kindling"])
    else:
        saved = torch.load(f"net{suffix}", weights_only=True)
        found, about = saved["state_dict"], saved["metadata"]
    model = loaded_model(run)
    wanted = model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    model.load_state_dict(found)
    assert about["task"]["name"] == "classification"
    assert about["preprocessing"]["mean"] == about["record"]["mean"]
    assert about["torch"] == torch.__version__


def test_exported_weights_can_start_another_training(project, monkeypatch) -> None:
    folder = project(FILES)
    run = train_model(folder, monkeypatch)
    for name in ("net.pt", "net.safetensors"):
        assert call_export("-r", run, "-o", name, "--overwrite") == 0
        train_model(folder, monkeypatch, model={"type": "Net", "weights": name})


def test_averaged_or_trained_weights_are_exported(project, monkeypatch) -> None:
    run = train_model(project(FILES), monkeypatch, **KINDS["options of a training"])
    for name, words in {"a": [], "b": ["--ema"], "c": ["--no-ema"]}.items():
        assert call_export("-r", run, "-o", f"{name}.pt", *words) == 0
    a, b, c = (torch.load(f"{x}.pt", weights_only=True) for x in "abc")
    assert torch.equal(a["state_dict"]["head.weight"], b["state_dict"]["head.weight"])
    assert not torch.equal(a["state_dict"]["head.weight"], c["state_dict"]["head.weight"])
    assert [each["metadata"]["weights"] for each in (a, c)] == ["averaged", "trained"]


def test_a_part_of_several_networks_is_exported(project, monkeypatch) -> None:
    from base.system.places import PROJECT

    files = {
        **FILES,
        "model/gan.py": (PROJECT / "model/gan.py").read_text("utf-8"),
        "model/layers.py": (PROJECT / "model/layers.py").read_text("utf-8"),
        "trainer/gan.py": (PROJECT / "trainer/gan_trainers.py").read_text("utf-8"),
    }
    networks = {
        "generator": {"type": "DCGANGenerator", "args": {"latent_size": 5, "width": 2}},
        "discriminator": {"type": "DCGANDiscriminator", "args": {"width": 2}},
    }
    optimizers = {
        name: {"type": "Adam", "args": {"lr": 1e-3}, "params": f"{name}.*"} for name in networks
    }
    run = train_model(
        project(files), monkeypatch, model={"type": "Networks", "args": networks},
        optimizer=None, optimizers=optimizers, loss=[],
        trainer={"type": "GANTrainer", "epochs": 1, "monitor": "off"},
    )  # fmt: skip
    with pytest.raises(UsageError, match="--module generator or discriminator"):
        call_export("-r", run, "-o", "gan.pt2")
    with pytest.raises(UsageError, match="did you mean 'generator'"):
        call_export("-r", run, "-o", "gan.pt2", "--module", "generatr")
    assert call_export("-r", run, "-o", "g.pt2", "--module", "generator") == 0
    noise = torch.randn(3, 5)
    with torch.no_grad():
        found = torch.export.load("g.pt2").module()(noise)
        torch.testing.assert_close(found, loaded_model(run, "generator")(noise))
    shape = ("--module", "discriminator", "--input-shape", "1,8,8")
    assert call_export("-r", run, "-o", "d.pt2", *shape) == 0
    assert call_export("-r", run, "-o", "all.safetensors") == 0


UNFIT = {
    "a branch on values": (
        "Branch", ".pt2", r"cannot trace Branch \(model/model.py:\d+: `if scores.sum\(\) > 0:`\)"),
    "an operation that ONNX lacks": ("Inverse", ".onnx", r"no operation for aten.*svd.*Inverse"),
    "random numbers": ("Sampled", ".pt2", "draws at random"),
    "a number of samples in the code": ("Pair", ".pt2", r"constant|fails on a batch"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_exported_is_named_and_nothing_written(kind, project, monkeypatch) -> None:
    model, suffix, text = UNFIT[kind]
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    run = train_model(project(FILES), monkeypatch, model={"type": model})
    before = {*Path().rglob("*")}
    with pytest.raises((UsageError, ExportMismatchError), match=text) as caught:
        call_export("-r", run, "-o", f"net{suffix}")
    assert "\n" not in str(caught.value)
    assert {*Path().rglob("*")} == before


def test_a_file_that_differs_from_the_model_is_removed(project, monkeypatch) -> None:
    import base.prediction.export as module

    run = train_model(project(FILES), monkeypatch)
    before = {*Path().rglob("*")}
    real = module.run_pt2

    def wrong(path):
        found, by = real(path)
        return lambda args, kwargs: [1.01 * each for each in found(args, kwargs)], by

    monkeypatch.setattr(module, "run_pt2", wrong)
    with pytest.raises(ExportMismatchError, match=r"differ by 1\.0e-02") as caught:
        call_export("-r", run, "-o", "net.pt2")
    assert caught.value.exit_code == 1
    assert {*Path().rglob("*")} == before


BAD = [
    (["-o", "net.onx"], r"must end in .*did you mean '\.onnx'"),
    (["-o", "net"], r"must end in \.pt2, \.onnx"),
    (["-o", "saved"], r"this is a folder"),
    (["-o", "nowhere/net.pt2"], r"there is no folder nowhere; make it first"),
    (["-o", "images.npz"], r"must end in"),
    (["-o", "old.pt2"], r"already exists"),
    (["-o", "net.pt2", "--opset", "20"], r"--opset is for \.onnx"),
    (["-o", "net.pt", "--preprocessing"], r"needs a graph"),
    (["-o", "net.pt2", "--ema"], r"no averaged weights"),
    (["-o", "net.pt2", "--module", "heda"], r"did you mean 'head'"),
    (["-o", "net.pt2", "--input-shape", "3,8"], r"cannot be called on inputs 2x3x8"),
    (["-o", "net.pt2", "--input-shape", "3,x"], r"3,224,224"),
    (["-o", "net.pt2", "--opsett", "3"], r"did you mean '--opset'"),
    (["-o", "net.pt2", "-d", "tpu"], r"no such device"),
]


def test_a_slip_on_the_command_line_is_one_line(project, monkeypatch) -> None:
    run = train_model(project(FILES), monkeypatch)
    Path("old.pt2").touch()
    before = {*Path().rglob("*")}
    for words, text in BAD:
        with pytest.raises(UsageError, match=text) as caught:
            call_export("-r", run, *words)
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2
    assert {*Path().rglob("*")} == before
    assert call_export("-r", run, "-o", "old.pt2", "--overwrite") == 0


def test_a_run_without_a_checkpoint_is_named(project, monkeypatch) -> None:
    import shutil

    run = train_model(project(FILES), monkeypatch)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UsageError, match="no complete checkpoint"):
        call_export("-r", run, "-o", "net.pt2")


def test_without_onnxscript_the_package_is_named(project, monkeypatch) -> None:
    run = train_model(project(FILES), monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"onnxscript.*requirements-extra"):
        call_export("-r", run, "-o", "net.onnx")


def test_a_run_of_an_earlier_version_needs_the_shape(project, monkeypatch) -> None:
    from base.prediction.trained_run import TrainedRun

    run = train_model(project(FILES), monkeypatch)
    monkeypatch.setattr(TrainedRun, "example", property(lambda _: {}))
    monkeypatch.setattr(TrainedRun, "record", property(lambda _: {}))
    with pytest.raises(UsageError, match="--input-shape"):
        call_export("-r", run, "-o", "net.pt2")
    assert call_export("-r", run, "-o", "net.pt2", "--input-shape", "1,8,8") == 0


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_model_of_torchvision_is_exported(suffix, project, monkeypatch) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    folder = project(FILES)
    sizes = [{"type": "RGB"}, {"type": "Resize", "args": {"size": [32, 32]}}]
    run = train_model(
        folder, monkeypatch, model={"type": "resnet18", "args": {"num_classes": 3}},
        data_loader=arrays(transforms=sizes, valid_transforms=sizes, normalize="imagenet"),
    )  # fmt: skip
    assert call_export("-r", run, "-o", f"net{suffix}") == 0
