"""What a loss keeps in plain attributes is resumed."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from base.training.loss_attributes import LossAttributes
from base.training.losses import WeightedLoss


class Running(nn.Module):
    """Keeps a running target of each sample, as ELR does: no buffer."""

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.target, self.share = torch.zeros(4, 2), share
        self.history: list[float] = []

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.target = self.target * self.share + output.detach()
        self.history.append(float(output.detach().sum()))
        self.last = len(self.history)
        return (output - self.target).pow(2).mean() + target.sum() * 0


class Called:
    """The same as an object that is called."""

    def __init__(self) -> None:
        self.target = torch.zeros(4, 2)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.target[1] += output.detach()[1]
        return (output - self.target).pow(2).mean()


class Outer(nn.Module):
    """Has such a loss as a part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Running()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.inner(output, target)


def attributes(function: Any) -> LossAttributes:
    return LossAttributes({"it": WeightedLoss("it", function)}, "cpu")


@pytest.mark.parametrize("cls", [Running, Called, Outer])
def test_a_loss_continues_as_it_was(cls: type) -> None:
    outputs = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(4)
    whole, cut = cls(), cls()
    saved = attributes(cut)
    assert saved.state_dict() == {}
    expected = [float(whole(output, target)) for output in outputs]
    cut(outputs[0], target)
    state = copy.deepcopy(saved.state_dict())
    cut(outputs[2], target)
    saved.load_state_dict(state)  # a rollback in the same process
    resumed = cls()
    attributes(resumed).load_state_dict(state)
    for function in (cut, resumed):
        assert [float(function(output, target)) for output in outputs[1:]] == expected[1:]


def test_what_the_config_says_now_is_not_overwritten() -> None:
    before, after = Running(share=0.5), Running(share=0.9)
    saved, loaded = attributes(before), attributes(after)
    saved.state_dict()
    before(torch.ones(4, 2), torch.zeros(4))
    loaded.load_state_dict(saved.state_dict())
    assert after.share == 0.9
    assert torch.equal(after.target, torch.ones(4, 2))


def test_what_was_added_after_a_save_is_removed_again() -> None:
    function = Running()
    saved = attributes(function)
    state = saved.state_dict()
    function(torch.ones(4, 2), torch.zeros(4))
    saved.load_state_dict(state)
    assert not hasattr(function, "last")
    assert function.history == []


@pytest.mark.parametrize("function", [nn.functional.mse_loss, nn.MSELoss(), SimpleNamespace])
def test_losses_of_torch_and_functions_have_none(function: Any) -> None:
    assert attributes(function).state_dict() == {}
