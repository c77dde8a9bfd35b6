"""timm's models by name: their weights against timm's own loading, and no network."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from base.config import load_config
from base.errors import ConfigError
from base.names.check import check_names
from base.run.build import resolve_normalize
from tests.base.toy import CONFIG, assert_resumes, assert_same, make, run

RESNET, VIT = "test_resnet", "test_vit"
IMAGES = "data_loader.args.shape=[3, 32, 32]"
GREY = "data_loader.args.shape=[1, 32, 32]"


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fail on any connection, and let the caches be empty folders."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    if "huggingface_hub" in sys.modules:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def model(name: str, args: str = "", section: str = "") -> str:
    return f"model={{type: timm, args: {{name: {name}, n_classes: 3{args}}}{section}}}"


def saved(timm: Any, path: Path, name: str = RESNET, **options: Any) -> dict[str, Tensor]:
    """Write the weights of a model to a file; return them."""
    torch.manual_seed(5)
    state = timm.create_model(name, **options).state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.uniform_(0.1, 1)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)
    return dict(state)


# --- Names and arguments --------------------------------------------------------------------------


def test_a_model_is_that_of_timm(timm: Any) -> None:
    trainer = make(model(RESNET, ", in_chans: 1"), GREY)
    torch.manual_seed(trainer.config["seed"])
    twin = timm.create_model(RESNET, num_classes=3, in_chans=1)
    assert trainer.model.num_classes == 3
    assert list(trainer.model.state_dict()) == list(twin.state_dict())
    shapes = [value.shape for value in trainer.model.state_dict().values()]
    assert shapes == [value.shape for value in twin.state_dict().values()]


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (model("resnet81"), r"args\.name: timm has no model 'resnet81'; did you mean 'resnet18'"),
        (model("hf-hub:a/b"), r"args\.name: timm has no model"),
        (model("resnet18.a1_in2k"), "timm has no weights .*did you mean 'resnet18.a1_in1k'"),
        (model(RESNET, ", num_classes: 3"), "num_classes: this argument is called 'n_classes'"),
        (model(RESNET, ", drop_rat: 0.1"), "args.drop_rat: .*did you mean 'drop_rate'"),
        (model(RESNET, ", download: true"), "args.download: it downloads what `pretrained: true`"),
        (model(RESNET, ", pretrained: true, weights: a.pth"), "pretrained: `weights` names a file"),
        ("model={type: timm}", "timm needs argument name"),
        ("optimizer={type: timm, args: {name: lanb}}", "no optimizer 'lanb'; did you mean 'lamb'"),
        ("optimizer={type: timm, args: {name: lamb, bettas: [0.9, 0.9]}}", "did you mean 'betas'"),
        ("optimizer={type: timm, args: {name: adahessian}}", "gradients of gradients"),
    ],
)
@pytest.mark.usefixtures("timm")
def test_a_mistake_is_one_clear_line(section: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        check_names(load_config(None, [section], text=CONFIG))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", [model(RESNET), "optimizer={type: timm, args: {name: lamb}}"])
def test_without_timm_the_message_says_what_to_install(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm is not installed: pip install -r requirements-ex"):
        check_names(load_config(None, [section], text=CONFIG))


# --- Weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_all_weights_of_a_file_are_loaded(ending: str, timm: Any, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    expected = saved(timm, path, num_classes=3)
    trainer = make(model(RESNET, f", weights: {path}"), IMAGES)
    assert_same(dict(trainer.model.state_dict()), expected)


def test_a_head_for_other_classes_is_new(timm: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    expected = saved(timm, path, num_classes=7)
    trainer = make(model(RESNET, f", weights: {path}"), IMAGES, "init={match: fc.*, bias: ones_}")
    found = trainer.model.state_dict()
    assert all(found[name].equal(value) for name, value in expected.items() if "fc." not in name)
    assert found["fc.bias"].equal(torch.ones(3))
    report = trainer.experiment.loaded[""]
    assert report.missing == ["fc.weight", "fc.bias"]
    assert len(report.loaded) == len(expected) - 2
    assert "missing         2  fc.weight, fc.bias" in report.table()


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        (RESNET, {"in_chans": 1}, "[1, 32, 32]"),
        (VIT, {"img_size": 64}, "[3, 64, 64]"),
        ("test_convnext", {"in_chans": 4}, "[4, 32, 32]"),
    ],
)
def test_weights_are_converted_as_timm_does(
    name: str, options: dict[str, int], shape: str, timm: Any, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    saved(timm, path, name)
    overlay = {"file": str(path)}
    twin = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3, **options
    )
    more = "".join(f", {key}: {value}" for key, value in options.items())
    trainer = make(model(name, f"{more}, weights: {path}"), f"data_loader.args.shape={shape}")
    head = twin.pretrained_cfg["classifier"]
    found = trainer.model.state_dict()
    for key, value in twin.state_dict().items():
        if not key.startswith(head):
            assert found[key].equal(value), key


def test_the_section_weights_works_for_timm_too(timm: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    expected = saved(timm, path, num_classes=7)
    section = f", weights: {{file: {path}, skip: 'fc.*'}}"
    found = make(model(RESNET, "", section), IMAGES).model.state_dict()
    assert found["conv1.0.weight"].equal(expected["conv1.0.weight"])
    with pytest.raises(ConfigError, match="loads a file already"):
        make(model(RESNET, f", weights: {path}", section), IMAGES)


def test_a_file_of_another_model_is_one_clear_error(timm: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    saved(timm, path, VIT)
    with pytest.raises(ConfigError, match=r"model\.args\.weights: .*weights\.pth"):
        make(model(RESNET, f", weights: {path}"), IMAGES)
    with pytest.raises(ConfigError, match=r"model\.args\.weights: .*none\.pth: no such file"):
        make(model(RESNET, f", weights: {tmp_path}/none.pth"), IMAGES)


def test_a_resumed_run_needs_no_file_of_weights(timm: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    saved(timm, path, num_classes=3)
    section = model(RESNET, f", weights: {path}")
    run(tmp_path / "run", section, IMAGES, "trainer.epochs=1", stop_at=2)
    path.unlink()
    run(tmp_path / "run", section, IMAGES, "trainer.epochs=1", resume=True)


# --- The local cache, and downloads ---------------------------------------------------------------


@pytest.fixture
def hub(timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which Hugging Face's library keeps the files of a model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = timm.get_pretrained_cfg(RESNET).hf_hub_id
    return tmp_path / "hub" / f"models--{repository.replace('/', '--')}"


def test_weights_are_found_in_the_cache_of_hugging_face(timm: Any, hub: Path) -> None:
    snapshot = hub / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc")
    blob = hub / "blobs" / "1234.safetensors"
    blob.parent.mkdir()
    expected = saved(timm, blob)
    (snapshot / "model.safetensors").symlink_to(blob.rename(blob.with_suffix("")))
    found = make(model(RESNET, ", pretrained: true"), IMAGES).model.state_dict()
    assert all(found[name].equal(value) for name, value in expected.items() if "fc." not in name)


@pytest.mark.usefixtures("hub")
def test_nothing_is_downloaded_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **_: calls.append(a))
    told = r"model.args.pretrained: the weights of test_resnet \(timm/test_resnet.r160_in1k, "
    told += r"model.safetensors\) are not in the local cache, .*add `download: true`, or give a fi"
    with pytest.raises(ConfigError, match=told):
        make(model(RESNET, ", pretrained: true"), IMAGES)
    assert not calls


@pytest.mark.usefixtures("hub")
def test_a_download_is_made_if_asked_for(
    timm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = saved(timm, tmp_path / "sent.safetensors")
    calls: list[Any] = []

    def send(*asked: Any, **_: Any) -> str:
        calls.append(asked)
        return str(tmp_path / "sent.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", send)
    section = model(RESNET, ", pretrained: true, download: true")
    found = make(section, IMAGES).model.state_dict()
    assert calls == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert found["conv1.0.weight"].equal(expected["conv1.0.weight"])

    def fail(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ConfigError, match="cannot be downloaded: OSError: no route to host"):
        make(section, IMAGES)


# --- Data and training ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "mean"),
    [
        (model("resnet18"), [0.485, 0.456, 0.406]),
        (model("resnet18", ", in_chans: 1"), [0.449]),
        ("model={type: resnet18}", [0.485, 0.456, 0.406]),
    ],
)
@pytest.mark.usefixtures("timm")
def test_normalize_follows_the_model(section: str, mean: list[float]) -> None:
    loader = "data_loader={type: DatasetLoader, args: {batch_size: 4, normalize: model}}"
    config = load_config(None, [section, loader], text=CONFIG)
    resolve_normalize(config)
    assert config["data_loader"]["args"]["normalize"]["mean"] == mean
    again = load_config(None, [], text=config.to_yaml())
    assert again["data_loader"] == config["data_loader"]


def test_normalize_needs_a_model_that_expects_something() -> None:
    loader = "data_loader={type: DatasetLoader, args: {batch_size: 4, normalize: model}}"
    with pytest.raises(ConfigError, match="and MLP is none"):
        resolve_normalize(load_config(None, [loader], text=CONFIG))


@pytest.mark.parametrize("name", ["lamb", "nadamw", "lion", "adopt", "madgrad", "laprop", "muon"])
@pytest.mark.usefixtures("timm")
def test_an_optimizer_of_timm_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    rules = "param_groups: [no_decay, {match: head.*, lr: 0.02}]"
    section = f"optimizer={{type: timm, args: {{name: {name}, lr: 0.01}}, {rules}}}"
    assert_resumes(tmp_path, section, "lr_scheduler={type: StepLR, args: {step_size: 1}}")


@pytest.mark.parametrize("name", ["lamb", "nadamw", "adamw", "sgd"])
def test_an_optimizer_makes_the_steps_of_timm(name: str, timm: Any) -> None:
    from timm.optim import create_optimizer_v2
    from torch.nn import functional as F

    from tests.base.toy import batches, train_in

    section = f"optimizer={{type: timm, args: {{name: {name}, lr: 0.01, weight_decay: 0.1}}}}"
    trainer = make(section, "memory.fused=false")
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    by_hand = create_optimizer_v2([*twin.parameters()], opt=name, lr=0.01, weight_decay=0.1)
    for inputs, target in batches(trainer):
        by_hand.zero_grad()
        F.cross_entropy(twin(inputs), target).backward()
        by_hand.step()
    train_in(trainer)
    assert_same(trainer.model.state_dict(), twin.state_dict())


@pytest.mark.usefixtures("timm")
def test_a_fused_optimizer_is_used_where_torch_has_one() -> None:
    trainer = make("optimizer={type: timm, args: {name: adamw, lr: 0.01}}", "memory.fused=true")
    assert trainer.optimizers["main"].param_groups[0]["fused"]


@pytest.mark.usefixtures("timm")
def test_a_model_of_timm_freezes_and_resumes(tmp_path: Path) -> None:
    frozen = "freeze=[{match: 'layer1.*', until: 3 steps}]"
    decay = "optimizer.layer_decay=0.5"
    assert_resumes(tmp_path, model(RESNET), IMAGES, frozen, decay, stop_at=2)


class Recorded:
    """A loader that offers the record of its data."""

    def __init__(self, **record: Any) -> None:
        self._record = record

    def record(self) -> dict[str, Any]:
        return self._record

    def use_record(self, record: Any) -> None: ...


EXPECTED = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@pytest.mark.parametrize(
    ("normalize", "record", "told"),
    [
        ("null", {}, "those here are not normalized: write `normalize: model`"),
        ("auto", {"mean": [0.1] * 3, "std": [0.3] * 3}, r"normalized with mean \[0.1, 0.1, 0.1\]"),
        ("{mean: 0.5, std: 0.5}", {}, "normalized with mean 0.5, std 0.5"),
        ("auto", EXPECTED, ""),
        ("imagenet", {}, ""),
        (str(EXPECTED), {}, ""),
    ],
)
@pytest.mark.usefixtures("timm")
def test_other_statistics_than_those_of_the_weights_are_a_warning(
    normalize: str, record: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    from base.run.model_data import warn_of_other_statistics

    args = f"{{dataset: x, batch_size: 4, normalize: {normalize}}}"
    sections = [
        model("resnet18", ", pretrained: true"),
        f"data_loader={{type: DatasetLoader, args: {args}}}",
    ]
    warn_of_other_statistics(load_config(None, sections, text=CONFIG), Recorded(**record))
    if told:
        assert re.search(told, caplog.text)
    assert bool(told) == bool(caplog.records)
