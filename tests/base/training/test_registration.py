"""What is registered has a name of its own and a state, or it is an error at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from toy import make, run

from base.checkpoint.store import read
from base.errors import ConfigError
from base.run import testing
from trainer.trainer import Trainer


class Bank(dict):  # type: ignore[type-arg]
    """A dict that has a state of its own."""

    def state_dict(self) -> dict[str, Any]:
        return dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.update(state)


def registering(name: Any, value: Any) -> type[Trainer]:
    class Mine(Trainer):
        def __init__(self, experiment: Any) -> None:
            super().__init__(experiment)
            before = dict(self.stateful)
            try:
                self.register(name, value)
            except ConfigError:
                assert self.stateful == before
                raise

    return Mine


RESERVED_NAMES = ["model", "optimizer", "optimizer.main", "monitor", "meters", "progress", "random"]
RESERVED_NAMES += ["metric", "metric.accuracy", "callback", "callback.StopAfter", "scaler", "ema"]
RESERVED_NAMES += ["schedule", "loss.new", "metric.new", "bad_samples", "epoch_start"]
OPTIONS = ("metrics=[accuracy]", "callbacks=[{type: StopAfter, args: {minutes: 9}}]")
OPTIONS += ("trainer.ema={decay: 0.9}", "lr_scheduler={type: StepLR, args: {step_size: 1}}")


@pytest.mark.parametrize("name", RESERVED_NAMES)
def test_a_name_of_the_engine_is_taken(name: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer: Mine: register\(.*name is taken.*another one"):
        make(*OPTIONS, trainer=registering(name, nn.Linear(2, 2)))


def test_a_name_of_ones_own_is_taken_once() -> None:
    class Twice(registering("mine", nn.Linear(2, 2))):  # type: ignore[misc]
        def __init__(self, experiment: Any) -> None:
            super().__init__(experiment)
            self.register("mine", nn.Linear(2, 2))

    with pytest.raises(ConfigError, match=r"register\('mine', ...\): this name is taken"):
        make(trainer=Twice)


def test_a_dict_is_taken_whole_or_not_at_all() -> None:
    with pytest.raises(ConfigError, match=r"register\('heads.b', ...\): a int has no state_dict"):
        make(trainer=registering("heads", {"a": nn.Linear(2, 2), "b": 3}))


@pytest.mark.parametrize("name", ["", "  ", None, 3, ("a",), b"a"])
def test_a_name_is_a_text(name: Any) -> None:
    with pytest.raises(ConfigError, match="the name must be a non-empty string"):
        make(trainer=registering(name, nn.Linear(2, 2)))


class Half:
    def state_dict(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.zeros(3), "a Tensor has no .*buffer of a module"),
        (nn.Parameter(torch.zeros(3)), "a Parameter has no .*buffer of a module"),
        (3, "a int has no .*need 10, shows one"),
        (0.5, "a float has no"),
        (None, "None has no"),
        ([nn.Linear(2, 2)], "a list has no"),
        (np.zeros(3), "a ndarray has no"),
        ("text", "a str has no"),
        (Half(), "a Half has no state_dict and load_state_dict"),
        (nn.Linear, "the class Linear itself has no .*register an object of this class"),
        ({"a": torch.zeros(3)}, r"register\('mine.a', ...\): a Tensor has no"),
        ({"a": {"b": nn.Linear(2, 2)}}, "a dict has no .*no dicts"),
        ({}, "the dict is empty"),
        ({"": nn.Linear(2, 2)}, "is not a valid name"),
    ],
)
def test_what_has_no_state_is_refused_with_what_to_do(value: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(trainer=registering("mine", value))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (nn.Linear(2, 2), ["mine"]),
        (Bank(a=torch.zeros(2)), ["mine"]),
        ({"a": nn.Linear(2, 2), 0: Bank()}, ["mine.a", "mine.0"]),
        (torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1), ["mine"]),
    ],
)
def test_what_has_one_is_saved_by_its_name(value: Any, names: list[str], tmp_path: Path) -> None:
    run(tmp_path, trainer=registering("mine", value))
    assert [name for name in read(tmp_path) if name.startswith("mine")] == names


def test_an_average_of_ones_own_may_be_called_ema() -> None:
    assert "ema" in make(trainer=registering("ema", nn.Linear(2, 2))).stateful


@pytest.mark.parametrize("name", ["randomness", "progress_of_mine", "meters_2", "monitoring"])
def test_a_name_that_begins_like_one_of_the_engine_is_ones_own(name: str) -> None:
    """What a test restores, and a rollback puts back, was told by the beginning of the name."""
    trainer = make("trainer.on_nonfinite=rollback", trainer=registering(name, nn.Linear(2, 2)))
    assert name in testing.tested_state(trainer)
    assert name in trainer.recovery._rolled_back()


def test_a_call_before_that_of_the_base_is_told() -> None:
    class Early(Trainer):
        def __init__(self, experiment: Any) -> None:
            self.register("mine", nn.Linear(2, 2))
            super().__init__(experiment)

    with pytest.raises(ConfigError, match=r"call super\(\).__init__\(experiment\) before"):
        make(trainer=Early)
