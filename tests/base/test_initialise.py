"""Rules choose a scheme for every parameter; what they cannot do is told before any change."""

import copy
import math

import pytest
import torch
from torch import nn

from base.errors import ConfigError
from base.initialise import initialise
from base.registry import UnknownName, find


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)


def schemes(records) -> dict[str, str]:
    return {record.name: record.scheme for record in records}


def problems(model: nn.Module, rules) -> list[tuple[str, str]]:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError) as raised:
        initialise(model, rules, find)
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), "nothing may change where a rule is at fault"
    return [(problem.where, problem.message) for problem in raised.value.problems]


def test_without_rules_all_keep_torchs_default_and_the_report_says_so():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    records = initialise(model, [], find)
    assert [(r.name, r.shape, r.scheme) for r in records] == [
        (name, tuple(p.shape), "default") for name, p in model.named_parameters()
    ]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_later_rules_win_key_by_key():
    rules = [
        {"match": {"type": ["Conv2d", "Linear"]}, "weight": "ones_", "bias": "zeros_"},
        {"match": "head.*", "weight": {"type": "constant_", "args": {"val": 3}}},
        {"match": ["*.1.*"], "bias": 0.5},
    ]
    model = Net()
    records = initialise(model, rules, find)
    assert schemes(records) == {
        "stem.0.weight": "ones_",
        "stem.0.bias": "zeros_",
        "stem.1.weight": "default",
        "stem.1.bias": "constant_(val=0.5)",
        "head.weight": "constant_(val=3)",
        "head.bias": "zeros_",
    }
    values = {name: set(p.flatten().tolist()) for name, p in model.named_parameters()}
    assert values["stem.0.weight"] == {1.0}
    assert values["head.weight"] == {3.0}
    assert values["head.bias"] == values["stem.0.bias"] == {0.0}
    assert values["stem.1.bias"] == {0.5}


LAYERS = {
    "conv": (nn.Conv2d(16, 32, 3), 16 * 9, 32 * 9),
    "grouped": (nn.Conv2d(16, 64, 3, groups=2), 8 * 9, 64 * 9),
    "transposed": (nn.ConvTranspose2d(32, 16, 3), 16 * 9, 32 * 9),
    "linear": (nn.Linear(100, 50), 100, 50),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("scheme", "variance"),
    [
        ({"type": "normal_", "args": {"std": 0.02}}, lambda fan_in, fan_out: 0.02**2),
        ({"type": "uniform_", "args": {"a": -0.3, "b": 0.3}}, lambda fan_in, fan_out: 0.6**2 / 12),
        ("xavier_uniform_", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("xavier_normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("kaiming_uniform_", lambda fan_in, fan_out: 2 / fan_in),
        (
            {"type": "kaiming_normal", "args": {"mode": "fan_out"}},
            lambda fan_in, fan_out: 2 / fan_out,
        ),
        ({"type": "trunc_normal_", "args": {"std": 0.1, "a": -9, "b": 9}}, lambda *_: 0.1**2),
    ],
)
def test_the_variance_of_a_scheme_is_that_of_its_formula(layer, scheme, variance):
    module, fan_in, fan_out = LAYERS[layer]
    model = nn.Sequential(copy.deepcopy(module))
    torch.manual_seed(0)
    initialise(model, [{"match": "*", "weight": scheme, "bias": 0}], find)
    weight = model[0].weight.detach()
    expected = variance(fan_in, fan_out)
    n = weight.numel()
    assert weight.var().item() == pytest.approx(expected, rel=6 * math.sqrt(2 / n))
    assert abs(weight.mean().item()) < 4 * math.sqrt(expected / n)
    assert model[0].bias.count_nonzero() == 0


def test_orthogonal_rows_are_orthogonal():
    model = nn.Sequential(nn.Linear(20, 10))
    initialise(model, [{"match": "*", "weight": {"type": "orthogonal", "args": {"gain": 2}}}], find)
    weight = model[0].weight.detach()
    torch.testing.assert_close(weight @ weight.T, 4 * torch.eye(10), atol=1e-5, rtol=0)


def test_a_seed_makes_it_repeatable():
    rules = [{"match": "*.weight", "weight": "normal_"}]
    weights = []
    for _ in range(2):
        model = Net()
        torch.manual_seed(7)
        initialise(model, rules, find)
        weights.append(model.head.weight)
    assert weights[0].equal(weights[1])


def test_any_parameter_can_be_named_also_by_a_glob():
    model = nn.Module()
    model.theta = nn.Parameter(torch.ones(3))
    model.rnn = nn.LSTM(2, 3)
    rules = [
        {"match": "theta", "theta": 0.25},
        {"match": {"type": "LSTM"}, "weight_hh_*": "orthogonal_", "bias_*": 0},
    ]
    records = schemes(initialise(model, rules, find))
    assert records["rnn.weight_hh_l0"] == "orthogonal_"
    assert records["rnn.weight_ih_l0"] == "default"
    assert model.theta.tolist() == [0.25] * 3
    assert model.rnn.bias_hh_l0.count_nonzero() == 0


def test_a_function_of_the_project_may_change_the_tensor_or_return_a_new_one():
    def find_own(kind, name):
        return {"halve": lambda tensor: tensor.mul_(0.5), "fill": lambda t, x: t * 0 + x}[name]

    model = Net()
    before = model.head.weight.detach().clone()
    rules = [{"match": "head.*", "weight": "halve", "bias": {"type": "fill", "args": {"x": 2}}}]
    initialise(model, rules, find_own)
    assert model.head.weight.equal(before * 0.5)
    assert model.head.bias.tolist() == [2.0] * 4


def test_a_shared_parameter_is_set_once():
    model = Net()
    model.tied = nn.Linear(8, 4)
    model.tied.weight = model.head.weight
    initialise(model, [{"match": "tied.weight", "weight": 1}], find)
    assert model.head.weight.mean() == 1
    assert model.tied.weight is model.head.weight


def test_gradients_and_training_state_are_untouched():
    model = Net()
    model.head.weight.requires_grad_(False)
    initialise(model, [{"match": "*.weight", "weight": 0.1}], find)
    assert not model.head.weight.requires_grad
    assert model.stem[0].weight.requires_grad
    assert model.stem[0].weight.is_leaf


def test_all_faults_are_told_together():
    rules = [
        {"match": "haed.*", "weight": "zeros_"},
        {"match": "head.*", "weigth": "zeros_"},
        {"match": "*", "weight": "kaiming_normal_"},
        {"match": "head.*", "bias": "zeors_"},
        {"match": "head.*", "weight": {"type": "normal_", "args": {"sdt": 1}}},
        {"match": "*.bias", "weight": 0},
    ]
    found = problems(Net(), rules)
    told = [(where, message.split("; did")[0].split(":")[0]) for where, message in found]
    assert [where for where, _ in told] == [
        "init[0].match",
        "init[1].weigth",
        "init[3].bias",
        "init[5].weight",
        "init[2].weight",
        "init[4].weight",
    ]
    text = "\n".join(message for _, message in found)
    assert "did you mean 'head.*'?" in text
    assert "no matched parameter has that name; did you mean 'weight'?" in text
    assert "'zeros_'" in text
    assert "kaiming_normal_ cannot set 'stem.1.weight' of shape (8,): Fan in" in text
    assert "normal_(sdt=1) cannot set 'head.weight' of shape (4, 8)" in text


def test_a_layer_without_bias_does_not_make_the_usual_rule_fail():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    records = initialise(model, [{"match": {"type": "Linear"}, "weight": 1, "bias": 0}], find)
    assert schemes(records) == {"0.weight": "constant_(val=1)"}


def test_a_scheme_that_gives_another_shape_is_refused():
    rules = [{"match": "head.weight", "weight": "row"}]

    with pytest.raises(
        ConfigError, match=r"'head.weight' of shape \(4, 8\): it gives shape \(8,\)"
    ):
        initialise(Net(), rules, lambda kind, name: lambda tensor: tensor[0])


def test_a_lazy_layer_is_named_rather_than_a_crash():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ConfigError, match=r"cannot set '0\.weight'"):
        initialise(model, [{"match": "*", "weight": 0}], find)
    assert initialise(model, [], find)[0].scheme == "default"


def test_an_unknown_scheme_gets_the_nearest_name():
    with pytest.raises(UnknownName):
        find("init", "kaiming_nromal_")
    assert "kaiming_normal_" in problems(Net(), [{"match": "*", "weight": "kaiming_nromal_"}])[0][1]
