"""Models find, freeze, replace and count their parts."""

import copy

import pytest
import torch
from torch import nn

from base import BaseModel
from base.base_model import (
    count_parameters,
    find_modules,
    find_parameters,
    freeze_parameters,
    replace_modules,
    unfreeze_parameters,
)
from base.network.patterns import NoMatch


class Net(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU())
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.stem(x))


def test_a_model_prints_its_trainable_parameters_as_pytorch_template_does():
    model = Net()
    assert str(model).endswith(f"\nTrainable parameters: {4 * 3 + 3 + 3 * 3 + 3 + 3 * 2 + 2}")
    model.freeze("stem.*")
    assert str(model).endswith("\nTrainable parameters: 8")


def test_a_model_without_forward_says_so():
    class Empty(BaseModel):
        pass

    with pytest.raises(NotImplementedError, match="Empty needs a method `forward`"):
        Empty()(torch.zeros(1))


def test_modules_and_parameters_are_found_by_name():
    model = Net()
    assert model.find({"type": "ReLU"}) == {"stem.1": model.stem[1], "stem.3": model.stem[3]}
    assert list(model.find_parameters("head.*")) == ["head.weight", "head.bias"]
    assert model.find_parameters("head.bias")["head.bias"] is model.head.bias


def test_frozen_parameters_keep_their_values_and_unfrozen_ones_learn_again():
    torch.manual_seed(0)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    assert model.freeze("stem.*") == [name for name in before if name.startswith("stem")]

    def step() -> set[str]:
        trained = [p for p in model.parameters() if p.requires_grad]
        model(torch.randn(8, 4)).square().sum().backward()
        torch.optim.SGD(trained, lr=0.1).step()
        return {name for name, now in model.state_dict().items() if not now.equal(before[name])}

    assert step() == {"head.weight", "head.bias"}
    model.unfreeze("stem.2.*")
    assert step() == {"head.weight", "head.bias", "stem.2.weight", "stem.2.bias"}


def test_parameters_are_counted_all_or_trainable_and_shared_ones_once():
    model = Net()
    model.other = nn.Linear(3, 2)
    model.other.weight = model.head.weight
    expected = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    assert model.n_parameters() == expected == 35 + 2
    model.freeze("head.*")
    assert model.n_parameters(trainable_only=True) == expected - 8


def test_a_class_a_function_or_a_module_replaces_what_matches():
    model = Net()
    assert model.replace({"type": "ReLU"}, nn.SiLU) == ["stem.1", "stem.3"]
    assert [type(layer) for layer in model.stem[1::2]] == [nn.SiLU, nn.SiLU]
    assert model.stem[1] is not model.stem[3]

    model.replace("head", lambda old: nn.Linear(old.in_features, 7))
    assert model(torch.zeros(1, 4)).shape == (1, 7)

    head = nn.Linear(3, 5)
    model.replace("head", head)
    assert model.head is head


def test_a_module_that_replaces_several_is_copied_not_shared():
    model, new = Net(), nn.PReLU()
    model.replace({"type": "ReLU"}, new)
    assert model.stem[1] is new
    assert isinstance(model.stem[3], nn.PReLU)
    assert model.stem[3] is not new


def test_a_replacement_keeps_the_mode_and_the_device_of_what_it_replaces():
    model = Net().to("meta").eval()
    model.replace("head", nn.Sequential(nn.Linear(3, 2), nn.Dropout()))
    assert not model.head.training
    assert model.head[0].weight.device.type == "meta"


def test_a_match_inside_a_replaced_module_goes_with_it_and_shared_modules_stay_shared():
    model = Net()
    model.again = model.head
    assert model.replace(["stem", "stem.*"], nn.Identity) == ["stem"]
    model.replace("head", nn.Identity)
    assert model.again is model.head
    assert type(model.head) is nn.Identity


def test_only_a_module_can_replace_a_module():
    with pytest.raises(TypeError, match="must be a module, not int"):
        Net().replace("head", lambda old: 3)


def test_plain_modules_are_handled_by_functions_of_the_same_kind():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert list(find_modules(model, "0")) == ["0"]
    assert list(find_parameters(model, "*.bias")) == ["0.bias"]
    assert freeze_parameters(model, "*") == ["0.weight", "0.bias"]
    assert unfreeze_parameters(model, "0.bias") == ["0.bias"]
    assert (count_parameters(model), count_parameters(model, trainable_only=True)) == (6, 2)
    replace_modules(model, "1", nn.Tanh)
    assert type(model[1]) is nn.Tanh
    with pytest.raises(NoMatch):
        find_modules(model, "2")
