"""Weights of many layers are loaded as torch does, without the square of their number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from base.checkpoint import state_dicts
from base.checkpoint.state_dicts import load_state_dicts, load_weights
from base.errors import CheckpointError


class Noted(nn.Linear):
    """A layer with a version and a state of its own."""

    _version = 3

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.extra, self.versions = 0, []

    def get_extra_state(self) -> int:
        return self.extra

    def set_extra_state(self, state: int) -> None:
        self.extra = state

    def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *others: Any) -> None:
        self.versions.append(local.get("version"))
        super()._load_from_state_dict(state, prefix, local, *others)


class Net(nn.Module):
    """Nested, tied, normalised, parametrised, and with a name that another one begins with."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a = nn.Sequential(Noted(), nn.BatchNorm1d(2), nn.Sequential(Noted()))
        self.ab = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        self.tied = self.a[2]
        self.none = None
        self.scale = nn.Parameter(torch.rand(3))
        self.register_buffer("count", torch.tensor(seed))
        self.a[0].extra = seed


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_dicts, "MANY_KEYS", 1)


def test_it_gives_what_torch_gives(always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Net(7).state_dict()
    expected, found, weights = Net(1), Net(2), Net(3)
    expected.load_state_dict(saved)
    with monkeypatch.context() as change:
        change.setattr(nn.Module, "load_state_dict", None)
        change.setattr(state_dicts, "_loads_as_torch", lambda _: True)
        load_state_dicts({"model": found}, {"model": saved})
        load_weights(weights, saved)
    for each in (found, weights):
        assert each.state_dict().keys() == expected.state_dict().keys()
        assert all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b))
            for a, b in zip(each.state_dict().values(), expected.state_dict().values(), strict=True)
        )
        assert each.a[0].versions == expected.a[0].versions == [3]
        assert each.a[0].extra == 7


def test_a_replaced_loading_and_hooks_are_called(always: None) -> None:
    saved = Net(7).state_dict()
    heard = Net(1)
    calls: list[str] = []
    heard.a[2].register_load_state_dict_post_hook(lambda *_: calls.append("hook"))
    load_weights(heard, saved)

    class Own(Net):
        def load_state_dict(self, *args: Any, **how: Any) -> Any:
            calls.append("own")
            return super().load_state_dict(*args, **how)

    load_weights(Own(1), saved)
    assert calls == ["hook", "hook", "own"]  # the hooked part has two names
    assert torch.equal(heard.scale, saved["scale"])


def test_what_cannot_be_loaded_is_said_in_torchs_words(always: None) -> None:
    class Picky(Noted):
        def _load_from_state_dict(self, *args: Any) -> None:
            args[-1].append("this layer takes nothing")

    model = nn.Sequential(Picky())
    with pytest.raises(CheckpointError, match=r"Sequential:\s*this layer takes nothing"):
        load_state_dicts({"model": model}, {"model": model.state_dict()})


def test_twice_the_layers_are_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Key(str):
        """A key that counts how often somebody looks for its beginning."""

        n_looks = 0
        __slots__ = ()

        def startswith(self, *args: Any) -> bool:
            Key.n_looks += 1
            return super().startswith(*args)

    found = []
    for n in (600, 1200):
        model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(n)))
        state = {Key(name): value for name, value in model.state_dict().items()}
        Key.n_looks = 0
        load_weights(model, state)
        found.append(Key.n_looks)
    assert found[1] <= 2.2 * found[0]


def test_parameters_of_an_optimizer_are_not_looked_for_in_lists() -> None:
    class Searched(list[int]):
        def __contains__(self, _: object) -> bool:
            raise AssertionError("a list is searched")

    def made(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        groups = [{"params": each.parameters(), "lr": 0.1 * (n + 1)} for n, each in
                  enumerate(model)]  # fmt: skip
        return model, torch.optim.AdamW(groups, lr=0.1 * seed)

    model, saved = made(1)
    model(torch.rand(3, 2)).sum().backward()
    saved.step()
    state = saved.state_dict()
    (_, expected), (_, found) = made(2), made(3)
    expected.load_state_dict(state)
    for group in state["param_groups"]:
        group["params"] = Searched(group["params"])
    load_state_dicts({"main": found}, {"main": state})
    assert str(found.state_dict()) == str(expected.state_dict())
