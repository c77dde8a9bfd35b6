"""The layers of a model from input to output: against timm's, and against lists by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from base.network.layer_depth import layer_order
from base.network.layers import Networks
from model.model import MLP
from tests.base.toy import make

DECAY = 0.75


def depths(model: nn.Module) -> dict[str, int]:
    layers = layer_order(model, [name for name, _ in model.named_parameters()]).layers
    return {name: number for number, layer in enumerate(layers) for name in layer}


def beginnings(model: nn.Module, starts: list[tuple[str, ...]]) -> dict[str, int]:
    """Return the layer of each parameter by a list of the beginnings of their names."""
    found = {}
    for name, _ in model.named_parameters():
        at = [i for i, each in enumerate(starts) if any(f"{name}.".startswith(s) for s in each)]
        assert len(at) == 1, (name, at)
        found[name] = at[0]
    return found


def stages(*counts: int, form: str) -> list[tuple[str, ...]]:
    return [(form.format(i, j),) for i, n in enumerate(counts) for j in range(n)]


def features(*counts: int) -> list[tuple[str, ...]]:
    """Return ``features.0``, then blocks; a count of 0 stands for a module without blocks."""
    found: list[tuple[str, ...]] = []
    for i, n in enumerate(counts):
        found += [(f"features.{i}.{j}.",) for j in range(n)] or [(f"features.{i}.",)]
    return found


BY_HAND = {
    "resnet18": [
        ("conv1.", "bn1."),
        *[(f"layer{i}.{j}.",) for i in (1, 2, 3, 4) for j in (0, 1)],
        ("fc.",),
    ],
    "vit_b_32": [
        ("class_token.", "conv_proj.", "encoder.pos_embedding."),
        *[(f"encoder.layers.encoder_layer_{i}.",) for i in range(11)],
        ("encoder.layers.encoder_layer_11.", "encoder.ln."),
        ("heads.",),
    ],
    "convnext_tiny": [*features(0, 3, 0, 3, 0, 9, 0, 3), ("classifier.",)],
    "efficientnet_b0": [*features(0, 1, 2, 2, 3, 3, 4, 1, 0), ("classifier.",)],
    "swin_t": [
        *features(0, 2, 0, 2, 0, 6, 0, 1),
        ("features.7.1.", "norm."),
        ("head.",),
    ],
    "mobilenet_v3_small": [
        *[(f"features.{i}.",) for i in range(13)], ("classifier.0.",), ("classifier.3.",),
    ],
    "vgg11_bn": [
        *[(f"features.{i}.", f"features.{i + 1}.") for i in (0, 4, 8, 11, 15, 18, 22, 25)],
        ("classifier.0.",), ("classifier.3.",), ("classifier.6.",),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_the_layers_of_torchvisions_models(name: str) -> None:
    from torchvision.models import get_model

    with torch.device("meta"):
        model = get_model(name)
    assert depths(model) == beginnings(model, BY_HAND[name])


@pytest.mark.parametrize(
    "name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"]
)
def test_rates_are_those_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    from base.training.parameter_groups import parameter_groups

    with torch.device("meta"):
        model = timm.create_model(name)
    section = {
        "type": "SGD",
        "args": {"lr": 0.1},
        "params": "*",
        "param_groups": [],
        "layer_decay": DECAY,
    }
    names = {id(p): n for n, p in model.named_parameters()}
    ours = {n: g["lr"] for g in parameter_groups(model, section) for n, _ in g["params"]}
    theirs = {
        names[id(p)]: 0.1 * group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=DECAY)
        for p in group["params"]
    }
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert len(set(ours.values())) > 5


class Own(nn.Module):
    """An input norm, a parameter of its own, an encoder of equal blocks, a shared head."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(4)
        self.embed = nn.Linear(4, 4)
        layer = nn.TransformerEncoderLayer(4, 2, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_the_order_of_any_model_is_that_of_its_modules() -> None:
    model = Own()
    expected = [
        ("scale.", "norm.", "embed."),
        ("encoder.layers.0.",),
        ("encoder.layers.1.", "last."),
        ("head.",),
    ]
    assert depths(model) == beginnings(model, expected)


def test_of_several_networks_those_of_the_optimizer_count() -> None:
    model = Networks(one=MLP(2, [3, 3], 1), two=Own())
    claimed = [name for name, _ in model.named_parameters() if name.startswith("two.")]
    found = layer_order(model, claimed)
    assert len(found.layers) == 4
    assert all(name.startswith("two.") for layer in found.layers for name in layer)


def test_a_part_with_an_order_of_its_own_keeps_it() -> None:
    class Ordered(MLP):
        layer_order = ("hidden.*", "head.*")

    model = nn.ModuleDict({"body": Ordered(2, [3], 3), "top": nn.Linear(3, 1)})
    assert [layer[0] for layer in layer_order(model, list(depths(model))).layers] == [
        "body.hidden.0.weight",
        "body.head.weight",
        "top.weight",
    ]


def test_layer_decay_works_with_thawing_and_is_shown() -> None:
    from base.run.header import header_entries

    model = "model={type: Sequential, args: {layers: [Flatten, {type: Linear, name: a, args: "
    model += "{in_features: 5, out_features: 4}}, ReLU, {type: Linear, name: b, args: "
    model += "{in_features: 4, out_features: 3}}]}}"
    freeze = "freeze=[{match: a.*, until: 1 epoch}]"
    trainer = make(model, "optimizer.layer_decay=0.5", freeze)
    rates = {g["param_names"][0]: g["lr"] for g in trainer.optimizers["main"].param_groups}
    assert rates == {"a.weight": 0.05, "b.weight": 0.1}
    assert header_entries(trainer, None)["layers"] == "2, by the order of its modules: a, b"
