"""Presets set whole networks by a word; what they find nothing for is told before training."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from initialised import LAYERS, problems, schemes
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from base.config.schema import INIT_PRESETS
from base.errors import ConfigError
from base.names.registry import find
from base.network.initialization import initialise
from base.network.layers import Residual

DRAWN = ["kaiming", "xavier", "orthogonal", "truncated_normal"]


class Block(nn.Module):
    last_norm = "norm2"

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x):
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)
        self.theta = nn.Parameter(torch.ones(2))


def preset(model: nn.Module, name: str, match="*", **keys) -> dict[str, str]:
    return schemes(initialise(model, [{"match": match, "preset": name, **keys}], find))


def fault(model: nn.Module, *rules) -> str:
    ((where, message),) = problems(model, rules)
    assert where == f"init.{len(rules) - 1}"
    return message


def shake(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)


CUT = 1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))  # at two sigma: 0.774
VARIANCES = {
    "kaiming": lambda fan_in, fan_out, n_out: 2 / fan_in,
    "xavier": lambda fan_in, fan_out, n_out: 2 / (fan_in + fan_out),
    # Rows (or columns) of length 1: each number has a mean square of one over the longer side.
    "orthogonal": lambda fan_in, fan_out, n_out: 1 / max(fan_in, n_out),
    "truncated_normal": lambda fan_in, fan_out, n_out: CUT * 0.02**2,
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", DRAWN)
def test_mean_and_variance_of_a_preset_are_those_of_its_formula(name, layer):
    module, fan_in, fan_out = LAYERS[layer]
    model = nn.Sequential(copy.deepcopy(module))
    torch.manual_seed(0)
    preset(model, name)
    weight = model[0].weight.detach()
    n_out = getattr(module, "out_channels", getattr(module, "out_features", None))
    variance = VARIANCES[name](fan_in, fan_out, n_out)
    n = weight.numel()
    assert weight.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    assert abs(weight.mean().item()) < 5 * math.sqrt(variance / n)
    assert model[0].bias.count_nonzero() == 0
    if name == "truncated_normal":
        assert weight.abs().max().item() <= 0.04


@pytest.mark.parametrize("layer", LAYERS)
def test_kaiming_doubles_the_mean_square_in_every_kind_of_layer(layer):
    module = copy.deepcopy(LAYERS[layer][0])
    n_in = getattr(module, "in_channels", getattr(module, "in_features", None))
    n_dims = len(getattr(module, "kernel_size", ()))
    torch.manual_seed(0)
    preset(nn.Sequential(module), "kaiming")
    outputs = module(torch.randn(8, n_in, *([24] * n_dims))).detach()
    if n_dims:  # where the whole kernel lies in the image
        outputs = outputs[(..., *[slice(9, 15)] * n_dims)]
    assert outputs.square().mean().item() == pytest.approx(2, rel=0.15)


def test_kaiming_keeps_the_size_of_activations_through_a_deep_relu_net():
    widths = [128 * (1 + number % 2) for number in range(31)]
    layers = [nn.Linear(n, m, bias=False) for n, m in pairwise(widths)]
    model = nn.Sequential(*layers)

    def mean_squares() -> list[float]:
        x, found = torch.randn(64, widths[0]), []
        for layer in layers:
            x = layer(x).relu()
            found.append(x.square().mean().item())
        return found

    torch.manual_seed(0)
    assert mean_squares()[-1] < 1e-6  # torch's default: it vanishes
    preset(model, "kaiming")
    assert all(0.2 < size < 5 for size in mean_squares())


@pytest.mark.parametrize("name", DRAWN)
def test_a_preset_zeroes_biases_and_makes_norms_the_identity(name):
    model = Net()
    shake(model)
    records = preset(model, name)
    assert {records[n] for n in records if n.endswith("bias")} == {"zeros_"}
    assert {records[n] for n in records if "norm" in n and n.endswith("weight")} == {"ones_"}
    assert all(not p.any() for n, p in model.named_parameters() if n.endswith("bias"))
    assert all((p == 1).all() for n, p in model.named_parameters() if "norm" in n and "weight" in n)
    assert records["theta"] == "default"
    assert model.theta.tolist() == [7, 7]


def test_the_records_name_the_function_and_its_arguments():
    assert preset(Net(), "kaiming")["head.weight"] == "kaiming_normal_(nonlinearity=relu)"
    assert preset(Net(), "truncated_normal")["head.weight"] == (
        "trunc_normal_(std=0.02, a=-0.04, b=0.04)"
    )


def test_truncated_normal_sets_embeddings_and_the_bare_weights_of_attention():
    model = nn.Module()
    model.embedding = nn.Embedding(50, 16, padding_idx=0)
    model.same = nn.MultiheadAttention(16, 2)
    model.other = nn.MultiheadAttention(16, 2, kdim=8, vdim=8, add_bias_kv=True)
    shake(model)
    records = preset(model, "truncated_normal")
    scheme = "trunc_normal_(std=0.02, a=-0.04, b=0.04)"
    assert {n for n, text in records.items() if text == scheme} == {
        "embedding.weight",
        "same.in_proj_weight",
        "same.out_proj.weight",
        *(f"other.{one}_proj_weight" for one in "qkv"),
        "other.out_proj.weight",
    }
    assert {n for n, text in records.items() if text == "default"} == {
        "other.bias_k",
        "other.bias_v",
    }
    assert not model.same.in_proj_bias.any()
    assert not model.embedding.weight[0].any()
    assert 0 < model.same.in_proj_weight.abs().max() <= 0.04


def test_other_presets_leave_embeddings_as_they_are():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4))
    assert preset(model, "kaiming")["0.weight"] == "default"


def test_a_preset_knows_a_parametrised_layer():
    model = nn.Sequential(spectral_norm(nn.Conv2d(2, 2, 3)))
    records = preset(model, "orthogonal")
    assert records["0.parametrizations.weight.original"] == "orthogonal_"


def test_a_preset_means_torchs_function_also_where_a_project_has_one_of_that_name():
    model = nn.Sequential(nn.Linear(4, 4))
    initialise(model, [{"match": "*", "preset": "kaiming"}], lambda *_: nn.init.zeros_)
    assert model[0].weight.any()


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_makes_a_preset_repeatable(name):
    weights = []
    for seed in (3, 3, 4):
        model = Net()
        torch.manual_seed(seed)
        preset(model, name)
        weights.append(model.head.weight)
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_match_limits_a_preset():
    records = preset(Net(), "kaiming", match="encoder.0.*")
    assert {n for n, text in records.items() if text != "default"} == {
        n for n in records if n.startswith("encoder.0.")
    }


def test_keys_win_over_the_preset_of_their_rule_and_later_rules_over_earlier_ones():
    model = Net()
    rules = [
        {"match": "*", "preset": "xavier", "bias": 0.5},
        {"match": "*", "preset": "zero_last_norm"},
        {"match": "head.*", "preset": "orthogonal"},
        {"match": "encoder.1.*", "preset": "kaiming"},
    ]
    records = schemes(initialise(model, rules, find))
    assert records["norm.bias"] == "constant_(val=0.5)"
    assert records["head.weight"] == "orthogonal_"
    assert records["head.bias"] == "zeros_"
    assert records["encoder.0.norm2.weight"] == "zeros_"
    assert records["encoder.1.norm2.weight"] == "ones_"
    assert records["encoder.0.conv1.weight"] == "xavier_uniform_"
    assert records["encoder.1.conv1.weight"].startswith("kaiming_normal_")


def torchvision_block(name: str, *args):
    from torchvision.models import resnet

    return getattr(resnet, name)(*args)


LAYERS_OF_A_BLOCK = {"conv": nn.Conv2d(8, 8, 1), "norm": nn.GroupNorm(2, 8), "tail": nn.ReLU()}
BLOCKS = {
    "norm2": lambda: (Block(8), torch.relu),
    "bn2": lambda: (torchvision_block("BasicBlock", 8, 8), torch.relu),
    "bn3": lambda: (torchvision_block("Bottleneck", 8, 2), torch.relu),
    "layers.norm": lambda: (Residual(copy.deepcopy(LAYERS_OF_A_BLOCK)), lambda x: x),
}


@pytest.mark.parametrize("norm", BLOCKS)
def test_zero_last_norm_makes_a_residual_block_the_identity(norm):
    block, tail = BLOCKS[norm]()
    inputs = torch.randn(4, 8, 5, 5)
    assert not block(inputs).equal(tail(inputs))
    records = preset(nn.Sequential(block), "zero_last_norm")
    assert [n for n, text in records.items() if text == "zeros_"] == [f"0.{norm}.weight"]
    assert block(inputs).equal(tail(inputs))


def test_a_block_without_norm_and_a_layer_called_last_norm_are_passed_over():
    model = nn.Sequential(Block(), Residual({"conv": nn.Conv2d(4, 4, 1)}))
    model.last_norm = nn.LayerNorm(4)
    records = preset(model, "zero_last_norm")
    assert [n for n, text in records.items() if text != "default"] == ["0.norm2.weight"]


class Wrong(Block):
    last_norm = "norm3"


class Bare(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm2 = nn.BatchNorm2d(4, affine=False)


def test_a_preset_that_matches_nothing_shows_the_nearest_name():
    with pytest.raises(ConfigError, match=r"init\.0\.match: .*did you mean 'encoder\.\*'"):
        preset(Net(), "kaiming", match="encodr.*")


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("table", torch.zeros(2))

    def init_weights(self) -> None:
        nn.init.constant_(self.layer.weight, 0.25)
        self.layer.bias.data.zero_()  # torch does not count this as a change
        self.norm.weight.data.mul_(3)
        nn.init.ones_(self.scale)  # what it is already
        self.table.fill_(5)


OWN = {
    "layer.weight": "from_model",
    "layer.bias": "from_model",
    "norm.weight": "from_model",
    "norm.bias": "default",
    "scale": "from_model",
}


def test_from_model_calls_its_own_method_and_tells_what_that_set():
    model = Own()
    assert preset(model, "from_model") == {"scale": "from_model", **OWN}
    assert model.layer.weight.mean() == 0.25
    assert model.table.tolist() == [5, 5]


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Own()

    def init_weights(self) -> None:
        self.inner.scale.data.fill_(4)


def test_from_model_leaves_the_parts_to_a_model_with_a_method_of_its_own():
    records = preset(Around(), "from_model")
    assert [n for n, text in records.items() if text == "from_model"] == ["inner.scale"]


def test_from_model_asks_the_parts_where_the_model_has_no_method():
    model = nn.ModuleDict({"a": Own(), "b": nn.Linear(2, 2), "c": Own()})
    records = preset(model, "from_model")
    expected = {f"{part}.{name}": text for part in "ac" for name, text in OWN.items()}
    assert {name: text for name, text in records.items() if not name.startswith("b.")} == expected
    assert records["b.weight"] == "default"


def test_from_model_builds_on_earlier_rules_and_later_ones_win():
    model = Own()
    rules = [
        {"match": "*", "weight": 2, "bias": 1},
        {"match": "*", "preset": "from_model", "scale": 0.5},
        {"match": "layer.*", "weight": "ones_"},
    ]
    records = schemes(initialise(model, rules, find))
    assert records == {
        "scale": "constant_(val=0.5)",
        "layer.weight": "ones_",
        "layer.bias": "from_model",
        "norm.weight": "from_model",
        "norm.bias": "constant_(val=1)",
    }
    assert model.norm.weight.tolist() == [6, 6]  # 3 times what the first rule gave
    assert model.layer.weight.tolist() == [[1, 1], [1, 1]]
    assert model.layer.bias.tolist() == [0, 0]
    assert model.scale.tolist() == [0.5, 0.5]


def test_from_model_leaves_what_its_rule_does_not_match():
    model = Own()
    before = model.layer.bias.detach().clone()
    records = preset(model, "from_model", match="*.weight")
    assert records["layer.weight"] == "from_model"
    assert records["layer.bias"] == records["scale"] == "default"
    assert model.layer.bias.equal(before)


class Failing(Own):
    def init_weights(self, module=None) -> None:
        super().init_weights()
        raise RuntimeError("no such layer")


class PerModule(Own):
    def init_weights(self, module) -> None: ...


@pytest.mark.parametrize(
    ("model", "preset", "match", "parts"),
    [
        (nn.Sequential(nn.Linear(2, 2)), "zero_last_norm", "*",
         ["no residual block", 'write `last_norm = "norm2"`']),
        (Net(), "zero_last_norm", "head.*",
         ["excludes the last norms", "encoder.0.norm2.weight"]),
        (nn.Sequential(Wrong()), "zero_last_norm", "*",
         ["0: Wrong has last_norm = 'norm3'", "did you mean 'norm"]),
        (nn.Sequential(Bare()), "zero_last_norm", "*",
         ["0: Bare has last_norm = 'norm2', which has no weight"]),
        (Net(), "from_model", "*",
         ["Net and its children have no method `init_weights(self)`", "`init: kaiming`"]),
        (Failing(), "from_model", "*",
         ["init_weights() of Failing fails: RuntimeError: no such layer"]),
        (PerModule(), "from_model", "*", ["fails: TypeError", "'module'"]),
        (Own(), "from_model", "norm.bias", ["init_weights() sets none of norm.bias"]),
        (Net(), "kaiming", "theta",
         ["kaiming sets convolutions, Linear and norm layers, but matched theta"]),
        (nn.Sequential(nn.LSTM(2, 2)), "orthogonal", "*", ["but matched 0.weight_ih_l0"]),
    ],
)  # fmt: skip
def test_a_preset_that_cannot_be_says_why_and_changes_nothing(model, preset, match, parts):
    text = fault(model, {"match": match, "preset": preset})
    assert all(part in text for part in parts)


def test_a_later_fault_takes_back_what_the_model_did():
    text = fault(Own(), {"match": "*", "preset": "from_model"}, {"match": "*"})
    assert "sets nothing" in text


def test_the_schema_knows_these_presets():
    assert set(INIT_PRESETS) == {*DRAWN, "zero_last_norm", "from_model"}
