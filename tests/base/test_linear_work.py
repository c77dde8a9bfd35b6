"""Parts of the engine take work in proportion to their input: twice the size, twice the work."""

from __future__ import annotations

from typing import Any

import pytest
from counted import LINEAR, growth
from torch import nn

from base.network.activations import checkpoint_activations
from base.network.initialization import call_init_weights, initialise
from base.prediction.output import _cut
from base.prediction.predictions import _distinct
from base.sweeps.space import parse_space
from base.training.parameter_groups import parameter_groups
from logger.console import text_width


def test_the_values_of_a_sweep() -> None:
    assert growth(lambda n: parse_space([f"lr={','.join(map(str, range(n)))}"]), 200) < LINEAR


@pytest.mark.parametrize("values", ["1,2,1", "1,1.0", "[1],[1.0]", "{a: 1},{a: 1.0}", "x,x"])
def test_equal_values_of_a_sweep_are_refused(values: str) -> None:
    with pytest.raises(Exception, match="are the same value"):
        parse_space([f"key={values}"])


@pytest.mark.parametrize("values", ["1,true", "0,false,null", "[1],[2]", "{a: 1},{b: 1}", "1,'1'"])
def test_different_values_of_a_sweep_are_kept(values: str) -> None:
    (choices,) = parse_space([f"key={values}"])
    assert choices.size == values.count(",") + 1


@pytest.mark.parametrize("is_repeated", [False, True])
def test_the_names_of_predicted_columns(is_repeated: bool) -> None:
    names = (lambda n: ["a"] * n) if is_repeated else (lambda n: [f"c{k}" for k in range(n)])
    assert growth(_distinct, 200, prepare=names) < LINEAR
    assert len(set(_distinct(names(200)))) == 200


def test_repeated_columns_are_numbered_past_names_that_are_taken() -> None:
    assert _distinct(["a", "a_2", "a", "b", "a"]) == ["a", "a_2", "a_3", "b", "a_4"]


def test_a_long_name_is_cut_in_front() -> None:
    assert growth(lambda text: _cut(text, 20), 2_000, prepare=lambda n: "x" * n) < LINEAR
    assert _cut("images/正解/0001.png", 9) == "…0001.png"
    assert text_width(_cut("images/正解/0001.png", 12)) <= 12


class Names(list[str]):
    """Names that are not searched one by one."""

    def __contains__(self, name: object) -> bool:
        raise AssertionError(f"{name!r} is searched in a list")


def test_the_names_that_an_initialisation_may_set() -> None:
    class Model(nn.Sequential):
        def init_weights(self) -> None:
            nn.init.ones_(self[0].weight)

    names = Names(["0.weight", "1.weight"])
    assert call_init_weights(Model(nn.Linear(2, 2), nn.Linear(2, 2)), names) == ["0.weight"]


def test_modules_whose_activations_are_recomputed() -> None:
    def deep(n: int) -> nn.Module:
        return nn.Sequential(*(nn.Sequential(nn.Linear(1, 1)) for _ in range(n)))

    assert growth(lambda model: checkpoint_activations(model, ["*"]), 100, prepare=deep) < LINEAR
    model = deep(2)
    checkpoint_activations(model, ["*"])
    inner = dict(model.named_modules())
    is_wrapped = {name: "forward" in vars(each) for name, each in inner.items() if name}
    assert is_wrapped == {"0": True, "0.0": False, "1": True, "1.0": False}


def test_layer_decay() -> None:
    """The rates of n layers, of which each has its own."""
    section = {"type": "SGD", "args": {"lr": 1.0}, "params": "*", "param_groups": []}

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        return parameter_groups(model, {**section, "layer_decay": 0.9})

    def deep(n: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(1, 1) for _ in range(n)))

    assert growth(groups, 200, prepare=deep) < LINEAR
    rates = [group["lr"] for group in groups(deep(3))]
    assert rates == pytest.approx([0.81, 0.9, 1.0])


def test_many_rules_walk_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    n_walks = 0
    walk = nn.Module.named_parameters

    def counting(module: nn.Module, *args: Any, **how: Any) -> Any:
        nonlocal n_walks
        n_walks += 1
        return walk(module, *args, **how)

    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    monkeypatch.setattr(nn.Module, "named_parameters", counting)
    found = []

    def find(kind: str, name: str) -> Any:
        return getattr(nn.init, name)

    for n_rules in (5, 20):
        n_walks = 0
        rules = [{"match": f"{number}.*", "lr": number / 10} for number in range(n_rules)]
        section = {"type": "SGD", "args": {"lr": 1.0}, "params": "*", "param_groups": rules}
        groups = parameter_groups(model, {**section, "layer_decay": None})
        initialise(model, [{"match": rule["match"], "weight": 0.0} for rule in rules], find)
        assert len({group.get("lr") for group in groups}) == n_rules + (n_rules < 20)
        found.append(n_walks)
    assert found[0] == found[1]
