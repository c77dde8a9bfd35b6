"""Rules choose a scheme for every parameter; what they cannot do is told before any change."""

import copy
import math

import pytest
import torch
from initialised import LAYERS, problems, schemes
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from base.errors import ConfigError, Problem
from base.names.registry import UnknownName, find, names
from base.network.initialization import initialise


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)


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


def truncated(std: float, a: float, b: float) -> tuple[float, float]:
    """Mean and variance of a normal distribution that is cut at a and b."""
    low, high = a / std, b / std
    density = [math.exp(-x * x / 2) / math.sqrt(2 * math.pi) for x in (low, high)]
    mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
    shift = (density[0] - density[1]) / mass
    spread = 1 + (low * density[0] - high * density[1]) / mass - shift**2
    return std * shift, std**2 * spread


# Mean and variance by the formula of each paper, from the fans.
RANDOM = {
    "normal_": ({"mean": 0.1, "std": 0.02}, lambda fan_in, fan_out: (0.1, 0.02**2)),
    "uniform_": ({"a": -0.1, "b": 0.3}, lambda fan_in, fan_out: (0.1, 0.4**2 / 12)),
    "trunc_normal_": ({"std": 0.1, "a": -0.1, "b": 0.2}, lambda *_: truncated(0.1, -0.1, 0.2)),
    "xavier_uniform_": ({"gain": 2}, lambda fan_in, fan_out: (0, 4 * 2 / (fan_in + fan_out))),
    "xavier_normal_": ({}, lambda fan_in, fan_out: (0, 2 / (fan_in + fan_out))),
    "kaiming_uniform_": ({"a": 0.5}, lambda fan_in, fan_out: (0, 2 / (1 + 0.5**2) / fan_in)),
    "kaiming_normal_": (
        {"mode": "fan_out", "nonlinearity": "relu"},
        lambda fan_in, fan_out: (0, 2 / fan_out),
    ),
}
FIXED = {"constant_", "ones_", "zeros_", "eye_", "dirac_", "orthogonal_", "sparse_"}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scheme", RANDOM)
def test_mean_and_variance_of_a_scheme_are_those_of_its_formula(layer, scheme):
    module, *fans = LAYERS[layer]
    args, formula = RANDOM[scheme]
    model = nn.Sequential(copy.deepcopy(module))
    torch.manual_seed(0)
    rule = {"match": "*", "weight": {"type": scheme.rstrip("_"), "args": args}, "bias": 0}
    initialise(model, [rule], find)
    weight = model[0].weight.detach()
    mean, variance = formula(*fans)
    # Five standard errors of each estimate; a normal's variance has the widest.
    n = weight.numel()
    assert weight.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    assert weight.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))
    assert model[0].bias.count_nonzero() == 0


def test_no_scheme_of_torch_is_left_out_of_these_tests():
    assert set(names("init")) >= set(RANDOM) | FIXED
    assert {name for name in names("init") if name in vars(nn.init)} == set(RANDOM) | FIXED


@pytest.mark.parametrize("layer", LAYERS)
def test_orthogonal_maps_have_orthogonal_rows_or_columns(layer):
    module = copy.deepcopy(LAYERS[layer][0])
    rule = {"match": "*", "weight": {"type": "orthogonal", "args": {"gain": 2}}}
    initialise(nn.Sequential(module), [rule], find)
    weight = module.weight.detach()
    if "transposed" in layer:  # the rows are the outputs: all inputs of each, its groups in order
        parts = weight.chunk(module.groups)
        weight = torch.cat([part.transpose(0, 1) for part in parts])
    rows = weight.flatten(1)
    square = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    torch.testing.assert_close(square, 4 * torch.eye(len(square)), atol=1e-4, rtol=0)


def test_sparse_leaves_a_share_of_each_column_zero():
    model = nn.Sequential(nn.Linear(400, 100))
    torch.manual_seed(0)
    rule = {"match": "*", "weight": {"type": "sparse_", "args": {"sparsity": 0.25, "std": 0.1}}}
    initialise(model, [rule], find)
    weight = model[0].weight.detach()
    assert (weight == 0).sum(dim=0).tolist() == [25] * 400
    assert weight.var().item() == pytest.approx(0.75 * 0.1**2, rel=0.05)
    assert abs(weight.mean().item()) < 5 * math.sqrt(0.75 * 0.1**2 / weight.numel())


IDENTITIES = [
    (nn.Linear(6, 6), "eye_", {}, (6,)),
    (nn.Conv2d(6, 6, 3, padding=1, groups=3), "dirac_", {"groups": 3}, (6, 5, 5)),
    (nn.ConvTranspose1d(6, 6, 5, padding=2), "dirac_", {}, (6, 8)),
    (nn.ConvTranspose2d(6, 6, 3, padding=1, groups=2), "dirac_", {"groups": 2}, (6, 5, 5)),
    (nn.ConvTranspose3d(4, 4, 3, padding=1), "dirac_", {}, (4, 3, 3, 3)),
]


@pytest.mark.parametrize(("module", "scheme", "args", "shape"), IDENTITIES)
def test_identities_give_back_their_input(module, scheme, args, shape):
    rule = {"match": "*", "weight": {"type": scheme, "args": args}, "bias": 0}
    initialise(nn.Sequential(module), [rule], find)
    inputs = torch.randn(2, *shape)
    torch.testing.assert_close(module(inputs), inputs)


def test_dirac_passes_the_first_channels_where_a_transposed_convolution_widens():
    module = nn.ConvTranspose2d(2, 5, 3, padding=1)
    initialise(nn.Sequential(module), [{"match": "*", "weight": "dirac_", "bias": 0}], find)
    inputs = torch.randn(1, 2, 4, 4)
    outputs = module(inputs)
    torch.testing.assert_close(outputs[:, :2], inputs)
    assert outputs[:, 2:].count_nonzero() == 0


def test_a_padding_row_of_an_embedding_stays_zero():
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=1))
    initialise(model, [{"match": "*", "weight": "normal_"}], find)
    assert (model[0].weight == 0).all(dim=1).tolist() == [False, True, False, False, False]


def test_a_parametrised_weight_is_a_weight():
    model = nn.Sequential(spectral_norm(nn.Linear(4, 4)))
    records = initialise(model, [{"match": {"type": "Linear"}, "weight": "eye_"}], find)
    assert schemes(records)["0.parametrizations.weight.original"] == "eye_"
    assert model[0].parametrizations.weight.original.equal(torch.eye(4))


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


def test_a_function_of_the_project_gets_a_transposed_convolutions_weight_as_it_is():
    shapes = []

    def note(tensor):
        shapes.append(tuple(tensor.shape))

    model = nn.Sequential(nn.ConvTranspose2d(6, 4, 3, groups=2))
    initialise(model, [{"match": "*.weight", "weight": "note"}], lambda kind, name: note)
    assert shapes == [(6, 2, 3, 3)]


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
        "init.0.match",
        "init.1.weigth",
        "init.3.bias",
        "init.5.weight",
        "init.2.weight",
        "init.4.weight",
    ]
    text = "\n".join(message for _, message in found)
    assert "did you mean 'head.*'?" in text
    assert "no matched parameter has this name; did you mean 'weight'?" in text
    assert "'zeros_'" in text
    assert "kaiming_normal_ cannot set 'stem.1.weight' of shape (8,): Fan in" in text
    assert "normal_(sdt=1) cannot set 'head.weight' of shape (4, 8)" in text


@pytest.mark.parametrize(
    "rules",
    [
        [{"match": "*", "preset": "orthogonal"}],
        [{"match": {"type": "Linear"}, "weight": "orthogonal_", "bias": 0}],
    ],
)
def test_a_weight_with_weight_norm_is_what_the_layer_then_computes(rules):
    model = nn.Sequential(weight_norm(nn.Linear(8, 4)), nn.Linear(4, 4))
    records = schemes(initialise(model, rules, find))
    torch.testing.assert_close(model[0].weight @ model[0].weight.T, torch.eye(4))
    parts = ["0.parametrizations.weight.original0", "0.parametrizations.weight.original1"]
    assert [records[name] for name in parts] == ["orthogonal_", "orthogonal_"]
    assert records["0.bias"] in ("zeros_", "constant_(val=0)")


def test_a_part_of_such_a_weight_may_have_a_rule_of_its_own():
    model = nn.Sequential(weight_norm(nn.Linear(8, 4)))
    rules = [{"match": "*", "original0": 3}, {"match": "*", "weight": "orthogonal_"}]
    initialise(model, [{**rules[1], **rules[0]}], find)
    torch.testing.assert_close(model[0].weight @ model[0].weight.T, 9 * torch.eye(4))


def test_a_value_that_weight_norm_cannot_give_is_refused():
    model = nn.Sequential(weight_norm(nn.Linear(8, 4)))
    ((where, text),) = problems(model, [{"match": "*", "weight": 0}])
    assert where == "init.0.weight"
    assert "its parametrization cannot represent these values" in text


def test_a_layer_without_bias_does_not_make_the_usual_rule_fail():
    model = nn.Sequential(nn.Linear(2, 2, bias=False))
    records = initialise(model, [{"match": {"type": "Linear"}, "weight": 1, "bias": 0}], find)
    assert schemes(records) == {"0.weight": "constant_(val=1)"}


def test_a_scheme_that_gives_another_shape_is_refused():
    rules = [{"match": "head.weight", "weight": "row"}]

    with pytest.raises(ConfigError, match=r"weight' of shape \(4, 8\): it returns shape \(8,\)"):
        initialise(Net(), rules, lambda kind, name: lambda tensor: tensor[0])


def test_a_lazy_layer_is_named_rather_than_a_crash():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ConfigError, match=r"cannot set '0\.weight'"):
        initialise(model, [{"match": "*", "weight": 0}], find)
    assert initialise(model, [], find)[0].scheme == "default"


def test_a_rule_that_sets_nothing_is_told_so():
    assert problems(Net(), [{"match": "head.*"}]) == [
        ("init.0", "it sets nothing; add `preset: kaiming` or `weight: 0`")
    ]


def test_the_caller_may_place_the_problems_in_a_file():
    def at_line_3(keys, message):
        return Problem(f"x.yaml:3: {'/'.join(map(str, keys))}", message)

    with pytest.raises(ConfigError, match=r"x\.yaml:3: init/0/match: no parameter matches"):
        initialise(Net(), [{"match": "haed.*", "weight": 0}], find, at_line_3)


def test_an_unknown_scheme_gets_the_nearest_name():
    with pytest.raises(UnknownName):
        find("init", "kaiming_nromal_")
    assert "kaiming_normal_" in problems(Net(), [{"match": "*", "weight": "kaiming_nromal_"}])[0][1]
