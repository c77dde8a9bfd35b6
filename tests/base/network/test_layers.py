"""A network written whole in a config is the one that would be written in Python."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from toy import CONFIG, make, run

from base.config import load_config
from base.errors import ConfigError, TrainingError
from base.names.check import check_names
from base.names.construction import build
from base.names.registry import MODELS
from base.network.layers import MirrorAverage, NoForward

PLAIN = re.sub("model: .*\n", "", CONFIG)  # all but the model
MODEL = """
model:
  type: Sequential
  args:
    layers:
      - {type: Conv2d, name: stem, args: {in_channels: 1, out_channels: 4, kernel_size: [1, 3]}}
      - ReLU
      - type: Residual
        name: block
        args:
          layers:
            - {type: Conv2d, name: conv, args: {in_channels: 4, out_channels: 4, kernel_size: 1}}
            - {type: BatchNorm2d, args: {num_features: 4}}
      - Flatten
      - {type: Linear, name: head, args: {in_features: 12, out_features: 3}}
"""
LAYERS = PLAIN + MODEL
LAZY = LAYERS.replace(
    "Conv2d, name: stem, args: {in_channels: 1, ", "LazyConv2d, name: stem, args: {"
)
LAZY = LAZY.replace(
    "Linear, name: head, args: {in_features: 12, ", "LazyLinear, name: head, args: {"
)


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, (1, 3))
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head((x + self.norm(self.conv(x))).flatten(1))


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        make(text=text)
    return str(raised.value).splitlines()


def test_it_computes_what_the_same_layers_do_by_hand() -> None:
    model, by_hand = make("memory.channels_last=false", text=LAYERS).model, ByHand()
    values = [value.clone() for value in model.state_dict().values()]
    by_hand.load_state_dict(dict(zip(by_hand.state_dict(), values, strict=True)))
    images = torch.randn(4, 1, 1, 5)
    assert torch.equal(model(images), by_hand(images))


def test_layers_go_by_their_names_and_numbers() -> None:
    model = make(text=LAYERS).model
    assert list(dict(model.named_children())) == ["stem", "1", "block", "3", "head"]
    assert "block.layers.conv.weight" in model.state_dict()
    assert model.block.last_norm == "layers.1"


def test_a_mirror_average_looks_twice_in_evaluation_only() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(48, 3))
    model, images = MirrorAverage({"inner": layers}), torch.randn(6, 1, 5, 6)
    kept = layers[1].state_dict()
    once = model(images)
    layers[1].load_state_dict(kept)
    assert torch.equal(once, layers(images))
    mirrored = torch.stack([image[..., list(range(5, -1, -1))] for image in images])
    model.eval()
    expected = torch.stack([layers(images), layers(mirrored)]).mean(0)
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model(mirrored), expected)


def test_lazy_layers_take_their_shapes_from_the_data_and_then_train(tmp_path: Any) -> None:
    before = torch.random.get_rng_state()
    model = make(text=LAZY).model
    plain = make(text=LAYERS).model
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    assert model.block.layers[1].num_batches_tracked == 0, "the batch left a trace"
    assert type(model.stem) is nn.Conv2d
    torch.random.set_rng_state(before)
    trained = run(tmp_path / "run", text=LAZY)
    assert trained.progress.step == 10


def test_what_no_batch_gives_a_shape_is_named(monkeypatch: Any) -> None:
    text = LAZY.replace("- ReLU", "- {type: Forgets, name: forgets}")

    class Forgets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LazyLinear(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    monkeypatch.setitem(MODELS.registered, "Forgets", Forgets)
    (line,) = problems(text)
    assert "forgets.inner.weight, forgets.inner.bias: no shape" in line


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("- ReLU", "- ReLo", "no model 'ReLo'; did you mean 'ReLU'"),
        ("- ReLU", "- 3", "expected a layer: its type, or {type, name, args}"),
        ("- ReLU", "- {name: x}", "expected a layer: its type, or {type, name, args}"),
        ("- ReLU", "- {type: ReLU, nam: x}", "unknown key of a layer; did you mean 'name'"),
        ("- ReLU", "- {type: ReLU, name: stem}", "'stem' is already the name of an earlier layer"),
        ("- ReLU", "- {type: ReLU, name: a.b}", "'a.b' is not a valid name of a layer"),
        ("- ReLU", "- {type: ReLU, name: '0'}", "'0' is not a valid name of a layer"),
        ("- ReLU", "- {type: ReLU, name: train}", "'train' is not a valid name of a layer"),
        ("kernel_size: 1", "kernl_size: 1", "unknown argument for Conv2d; did you mean 'kernel_s"),
        ("num_features: 4", "num_features: x", "expected a whole number, found 'x'"),
    ],
)
def test_each_slip_is_told_with_its_place(old: str, new: str, expected: str) -> None:
    assert old in LAYERS
    lines = problems(LAYERS.replace(old, new))
    assert any(expected in line for line in lines), lines
    assert "model.args.layers" in lines[0]


def test_an_argument_annotated_as_a_module_takes_a_section(monkeypatch: Any) -> None:
    class Wrapper(nn.Module):
        def __init__(self, encoder: nn.Module, heads: list[nn.Module], size: int = 1) -> None:
            super().__init__()
            self.encoder, self.heads = encoder, nn.ModuleList(heads)

    monkeypatch.setitem(MODELS.registered, "Wrapper", Wrapper)
    inner = "{type: Wrapper, args: {encoder: {type: Linear, args: {in_features: 5, "
    inner += "out_features: 3}}, heads: [ReLU, {type: Sequential, args: {layers: [Tanh]}}]}}"
    model = make(text=f"{PLAIN}model: {inner}\n").model
    assert isinstance(model.encoder, nn.Linear)
    assert next(type(head) for head in model.heads) is nn.ReLU
    assert isinstance(model.heads[1][0], nn.Tanh)


NETWORKS = PLAIN
NETWORKS += "model: {type: Networks, args: {small: {type: Linear, args: {in_features: 2, "
NETWORKS += "out_features: 3}}, big: {type: LeNet}}}\n"


def test_several_networks_are_found_by_their_names() -> None:
    model = make(text=NETWORKS).model
    assert isinstance(model.small, nn.Linear)
    assert list(dict(model.named_children())) == ["small", "big"]
    with pytest.raises(NoForward, match="Networks contains small, big"):
        model(torch.zeros(1))
    assert issubclass(NoForward, TrainingError)  # told in one line, as by a trainer for one network


def test_a_slip_within_a_network_is_told() -> None:
    (line,) = problems(NETWORKS.replace("in_features: 2", "in_feature: 2, in_features: 2"))
    assert "model.args.small.args.in_feature: unknown argument for Linear" in line


def test_same_padding_goes_with_a_stride() -> None:
    text = LAYERS.replace(
        "kernel_size: [1, 3]}", "kernel_size: [1, 3], stride: [1, 2], padding: same}"
    )
    model = make(text=text).model
    assert isinstance(model.stem, nn.Conv2d)
    assert model(torch.zeros(2, 1, 1, 5)).shape == (2, 3)  # 5 columns became 3


def test_a_lazy_buffer_that_no_batch_reaches_is_named_too(monkeypatch: Any) -> None:
    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.norm = nn.Linear(5, 3), nn.LazyBatchNorm2d(affine=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1))

    monkeypatch.setitem(MODELS.registered, "Skips", Skips)
    (line,) = problems(f"{PLAIN}model: Skips\n")
    assert "norm.running_mean, norm.running_var: no shape" in line


def test_lazy_layers_in_networks_are_told() -> None:
    lazy = "small: {type: LazyLinear, args: {out_features: 3}}"
    old = "small: {type: Linear, args: {in_features: 2, out_features: 3}}"
    assert old in NETWORKS
    (line,) = problems(NETWORKS.replace(old, lazy))
    assert "its lazy layers cannot infer their shapes from a batch: set their sizes" in line


def test_torchs_transformer_is_built_of_its_layer() -> None:
    layer = "{type: TransformerEncoderLayer, args: {d_model: 4, nhead: 2, batch_first: true}}"
    args = f"{{encoder_layer: {layer}, num_layers: 2}}"
    config = load_config(None, text=f"{PLAIN}model: {{type: TransformerEncoder, args: {args}}}\n")
    check_names(config)
    model = build("model", config["model"])
    assert isinstance(model, nn.TransformerEncoder)
    assert len(model.layers) == 2
