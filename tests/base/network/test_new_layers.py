"""Models make no layers in forward: on the first batch each is reported with its line."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as hooks

from base.errors import TrainingError
from base.network.new_layers import forbid_new_layers


class LateNet(nn.Module):
    """Does in forward what a test asks for."""

    def __init__(self, act) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = act

    def forward(self, x):
        return self.act(self, self.linear(x))


def caught(act) -> str:
    with pytest.raises(TrainingError) as raised, forbid_new_layers(model := LateNet(act)):
        model(torch.ones(2, 4))
    return str(raised.value)


def test_a_layer_made_in_forward_is_caught_by_class_and_line():
    text = caught(lambda self, x: nn.BatchNorm1d(4)(x))
    assert text.startswith("BatchNorm1d(4, ")
    assert "is created in LateNet.<lambda> (network/test_new_layers.py:" in text
    assert text.endswith("create them in __init__ and only call them in forward")


def keep_layer(self, x):
    self.late = nn.Linear(4, 4)
    return self.late(x)


def keep_parameter(self, x):
    self.scale = nn.Parameter(torch.ones(4))
    return x * self.scale


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (keep_layer, "late: Linear(in_features=4, "),
        (keep_parameter, "scale: a parameter of shape (4,) is created in LateNet."),
        (lambda self, x: nn.Dropout(0.5)(x), "Dropout(p=0.5"),
        (lambda self, x: nn.Linear(4, 4, device="meta")(x), "Linear("),
    ],
    ids=["a layer kept", "a parameter kept", "dropout ignores eval", "a layer that fails at once"],
)
def test_what_is_made_in_forward_is_caught_by_its_name(act, text):
    assert caught(act).startswith(text)


def test_what_each_call_makes_anew_is_told_once():
    model = LateNet(keep_parameter)
    with pytest.raises(TrainingError) as raised, forbid_new_layers(model):
        model(model(torch.ones(2, 4)))
    (line, _) = str(raised.value).splitlines()
    assert line.startswith("scale: a parameter of shape (4,) ")


def test_a_block_is_told_once_and_not_by_its_parts():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])

    def act(self, x):
        Block()
        nn.Sequential(nn.Linear(4, 4), nn.Dropout())
        return x

    text = caught(act)
    assert [line.split()[0] for line in text.splitlines()[:-1]] == ["Block", "Sequential"]


def test_other_errors_pass_unchanged():
    with pytest.raises(ZeroDivisionError), forbid_new_layers(model := LateNet(lambda *_: 1 / 0)):
        model(torch.ones(2, 4))


def test_lazy_layers_parametrised_ones_and_what_a_loss_makes_are_left_alone():
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    model.append(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    with forbid_new_layers(model):
        output = model(torch.ones(2, 4))
        nn.CrossEntropyLoss(weight=torch.ones(2))(output, torch.tensor([0, 1]))
        nn.Parameter(torch.ones(1))
    assert output.shape == (2, 2)


def call_a_copy(self, x):  # which torch makes itself
    return F.relu(torch.func.functional_call(self.linear, dict(self.linear.state_dict()), x))


def keep_a_buffer_and_share_a_parameter(self, x):
    self.register_buffer("mask", torch.ones(4))
    self.tied = self.linear.weight
    return F.linear(x * self.mask, self.tied)


class Teacher(nn.Module):
    """A frozen network beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, x):
        return self.dropout(x)


TEACHER = Teacher()


def drop_out_in_a_teacher(self, x):
    return x + TEACHER(x)


def call_a_layer_without_state(self, x):
    return nn.ReLU()(x)


@pytest.mark.parametrize(
    "act",
    [
        call_a_copy,
        keep_a_buffer_and_share_a_parameter,
        drop_out_in_a_teacher,
        call_a_layer_without_state,
    ],
)
def test_what_is_no_new_layer_of_the_model_is_left_alone(act):
    with forbid_new_layers(model := LateNet(act)):
        model(torch.ones(2, 4))


def test_no_hook_stays():
    caught(lambda self, x: nn.Linear(4, 4)(x))
    with forbid_new_layers(LateNet(lambda self, x: x)):
        pass
    assert not hooks._global_parameter_registration_hooks
    assert not hooks._global_buffer_registration_hooks
    assert not hooks._global_module_registration_hooks
    assert not hooks._global_forward_pre_hooks
