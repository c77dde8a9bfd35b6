"""Patterns name parameters and modules; what matches nothing is told with what is there."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from base.network.patterns import (
    NoMatch,
    match_modules,
    match_names,
    match_parameters,
    owner_and_leaf,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.head = nn.Linear(2, 2)
        self.theta = nn.Parameter(torch.zeros(1))


STEM = ["stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"]
HEAD = ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["theta", *STEM, *HEAD]),
        ("head.*", HEAD),
        ("*.bias", ["stem.0.bias", "stem.1.bias", "head.bias"]),
        ("stem.[0]*", ["stem.0.weight", "stem.0.bias"]),
        (r"re:stem\.\d\.weight", ["stem.0.weight", "stem.1.weight"]),
        ({"type": "Conv2d"}, ["stem.0.weight", "stem.0.bias"]),
        ({"type": ["Linear", "Conv2d"]}, ["stem.0.weight", "stem.0.bias", *HEAD]),
        ({"type": "_BatchNorm"}, ["stem.1.weight", "stem.1.bias"]),  # subclasses count
        ({"type": "Net"}, ["theta"]),  # the class that owns it, not what lies around it
        (["head.bias", {"type": "BatchNorm2d"}, "*.1.*"], [*STEM[2:], "head.bias"]),
    ],
)
def test_a_pattern_gives_parameters_in_the_models_order(pattern, names):
    assert match_parameters(Net(), pattern) == names


def test_modules_are_matched_by_the_same_language_and_the_model_itself_is_none():
    assert match_modules(Net(), "*") == ["stem", "stem.0", "stem.1", "head"]
    assert match_modules(Net(), [{"type": "Linear"}, "re:stem"]) == ["stem", "head"]


def test_a_regular_expression_must_fit_the_whole_name():
    with pytest.raises(NoMatch):
        match_parameters(Net(), "re:head")
    assert match_parameters(Net(), "re:head.*") == HEAD


def test_a_shared_parameter_counts_once_and_answers_to_each_of_its_names():
    model = Net()
    model.tied = nn.Linear(2, 2)
    model.tied.weight = model.head.weight
    assert match_parameters(model, "*.weight").count("head.weight") == 1
    assert "tied.weight" not in match_parameters(model, "*")
    assert match_parameters(model, "tied.*") == ["head.weight", "tied.bias"]


def test_a_shared_module_counts_once():
    model = Net()
    model.again = model.head
    assert match_modules(model, {"type": "Linear"}) == ["head"]
    assert match_modules(model, "again") == ["head"]


def test_a_parametrised_weight_belongs_to_its_layer():
    model = nn.Sequential(weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    lone = weight_norm(nn.Conv1d(2, 2, 1))
    assert len(match_parameters(model, {"type": "Linear"})) == 5
    assert len(match_parameters(lone, {"type": "Conv1d"})) == 3


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("theta", ("", "theta")),
        ("stem.0.weight", ("stem.0", "weight")),
        ("head.parametrizations.weight.original", ("head", "weight")),
        ("head.parametrizations.weight.original0", ("head", "original0")),
        ("parametrizations.weight.original", ("", "weight")),
    ],
)
def test_a_name_is_split_into_that_of_the_layer_and_its_own(name, parts):
    assert owner_and_leaf(name) == parts


NAMES = [*Net().state_dict(), "old.weight"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*running*", ["stem.1.running_mean", "stem.1.running_var"]),
        ({"type": "BatchNorm2d"}, [name for name in NAMES if name.startswith("stem.1.")]),
        ([{"type": "Linear"}, "old.*"], [*HEAD, "old.weight"]),
        (r"re:.*\.weight", ["stem.0.weight", "stem.1.weight", "head.weight", "old.weight"]),
    ],
)
def test_names_of_a_file_are_matched_by_the_same_language(pattern, names):
    assert match_names(NAMES, pattern, Net()) == names


def test_each_name_of_a_file_stands_for_itself():
    model = Net()
    model.tied = model.head
    names = list(model.state_dict())
    assert match_names(names, "*.bias", model)[-2:] == ["head.bias", "tied.bias"]
    assert match_names(names, {"type": "Linear"}, model)[2:] == ["tied.weight", "tied.bias"]


def test_names_alone_have_no_types():
    assert match_names(["a.weight", "b.weight"], "b.*") == ["b.weight"]
    with pytest.raises(NoMatch, match="no weight is of type Linear; the types here are: none"):
        match_names(["a.weight"], {"type": "Linear"})


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


def test_a_type_that_only_holds_other_modules_is_told_with_what_is_in_them():
    model = nn.Sequential(nn.ReLU(), Block(), Block())
    with pytest.raises(NoMatch, match=r"is of type Block: .* match their parts: '1\.\*'"):
        match_parameters(model, {"type": "Block"})
    assert match_parameters(model, "1.*") == ["1.layer.weight", "1.layer.bias"]


@pytest.mark.parametrize(
    ("pattern", "suggestion"), [("head.weight", "head"), ("model.stem.0", "stem.0")]
)
def test_a_module_is_found_from_its_parameter_and_from_a_longer_name(pattern, suggestion):
    with pytest.raises(NoMatch) as raised:
        match_modules(Net(), pattern)
    assert f"did you mean {suggestion!r}?" in str(raised.value)
    assert match_modules(Net(), suggestion)


@pytest.mark.parametrize(
    ("pattern", "suggestion"),
    [
        ("haed.*", "head.*"),
        ("head", "head.*"),  # a module where a parameter is meant
        ("bias", "*.bias"),
        ("stem.0.wieght", "stem.0.weight"),
        (r"re:haed\..*", r"re:head\..*"),
        (["*.bias", "steam.*"], "stem.*"),
        ("module.head.*", "head.*"),  # a prefix that another program gave
    ],
)
def test_a_pattern_that_matches_nothing_is_told_with_one_that_would(pattern, suggestion):
    with pytest.raises(NoMatch) as raised:
        match_parameters(Net(), pattern)
    text = str(raised.value)
    assert f"did you mean {suggestion!r}?" in text
    assert "ames look like: theta, " in text
    assert match_parameters(Net(), suggestion)


@pytest.mark.parametrize("pattern", ["encoder.*", "encoder.*.weight", "*.gamma", r"re:(gru.x)"])
def test_without_a_near_miss_the_names_are_shown(pattern):
    with pytest.raises(NoMatch) as raised:
        match_parameters(Net(), pattern)
    text = f"no parameter matches {pattern!r}; names look like: theta"
    assert str(raised.value).startswith(text)


@pytest.mark.parametrize(
    ("model", "pattern", "message"),
    [
        (Net(), "Head.*", r"did you mean 'head\.\*'"),
        (Net(), ["*.bias", "*norm*"], r"'\*norm\*'"),
        (Net(), "re:(", r"'re:\(' is not a regular expression: .*unterminated"),
        (nn.ReLU(), "*", r"^no parameter matches '\*': there are none$"),
    ],
    ids=["another case", "one of a list", "a broken expression", "no parameters"],
)
def test_what_matches_nothing_is_told_with_the_reason(model, pattern, message):
    with pytest.raises(NoMatch, match=message):
        match_parameters(model, pattern)


def test_types_that_torch_knows_may_be_absent_but_misspelt_ones_may_not():
    assert match_parameters(Net(), {"type": ["LSTM", "Linear"]}) == HEAD
    with pytest.raises(NoMatch, match=r"'Conv2D'; did you mean 'Conv2d'"):
        match_parameters(Net(), {"type": ["Conv2D", "Linear"]})
    with pytest.raises(NoMatch, match=r"no module is of type LSTM; .* BatchNorm2d, Conv2d, Linear"):
        match_modules(Net(), {"type": "LSTM"})


NO_PATTERNS = ["", [], None, 3, {}, {"type": None}, {"type": []}, {"type": [1]}, {"kind": "Conv2d"}]


@pytest.mark.parametrize("pattern", [*NO_PATTERNS, ["*", 1]], ids=repr)
def test_what_is_no_pattern_is_refused_with_the_form_it_should_have(pattern):
    with pytest.raises(NoMatch, match=r"a pattern (is a name|by class)"):
        match_parameters(Net(), pattern)
