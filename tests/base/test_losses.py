"""Losses from a config: functions, classes, modules of a project, torch's own by name."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from base.errors import ConfigError, TrainingError
from base.losses import WeightedLoss, build_losses

torch.manual_seed(0)
OUTPUT, TARGET = torch.randn(6, 3), torch.randint(0, 3, (6,))


def section(type_name: str, *, name: str = "", weight: float = 1.0, **args):
    return {"type": type_name, "args": args, "name": name or type_name, "weight": weight}


def margin(output, target, size=1.0):
    return F.relu(size - output.gather(1, target[:, None])).mean()


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, output, target):
        return F.cross_entropy(output, target) * self.factor


class Halfway:
    pass


KNOWN = {"margin": margin, "Scaled": Scaled, "module": Scaled(3.0), "Halfway": Halfway}


def build(kind, part, *, where=""):
    """Stand in for base.names.build."""
    named = KNOWN[part["type"]]
    if isinstance(named, type):
        return named(**part["args"])
    return functools.partial(named, **part["args"]) if part["args"] else named


def test_functions_classes_and_modules_give_what_they_give_by_hand():
    sections = [section("margin", size=2.0), section("Scaled", factor=2.0), section("module")]
    losses = build_losses(sections, build)
    entropy = F.cross_entropy(OUTPUT, TARGET)
    assert list(losses) == ["margin", "Scaled", "module"]
    assert losses["margin"](OUTPUT, TARGET).equal(margin(OUTPUT, TARGET, 2.0))
    assert losses["Scaled"](OUTPUT, TARGET).item() == pytest.approx(2 * entropy.item())
    assert losses["module"](OUTPUT, TARGET).item() == pytest.approx(3 * entropy.item())


def test_torchs_functions_and_classes_can_be_named_with_lists_for_class_weights():
    args = {"weight": [1.0, 2.0, 4.0], "label_smoothing": 0.1}
    sections = [
        section("cross_entropy", name="plain"),
        section("cross_entropy", name="function") | {"args": args},
        section("CrossEntropyLoss", name="class", weight=0.5) | {"args": args},
    ]
    losses = build_losses(sections)
    weight = torch.tensor([1.0, 2.0, 4.0])
    expected = F.cross_entropy(OUTPUT, TARGET, weight, label_smoothing=0.1)
    assert losses["plain"](OUTPUT, TARGET).equal(F.cross_entropy(OUTPUT, TARGET))
    assert losses["function"](OUTPUT, TARGET).equal(expected)
    assert losses["class"](OUTPUT, TARGET).equal(expected)
    assert [loss.weight for loss in losses.values()] == [1.0, 1.0, 0.5]


def test_the_weight_is_left_to_whoever_sums():
    loss = build_losses([section("margin", weight=0.25)], build)["margin"]
    assert loss.weight == 0.25
    assert loss(OUTPUT, TARGET).equal(margin(OUTPUT, TARGET))


def test_gradients_flow():
    output = OUTPUT.clone().requires_grad_()
    build_losses([section("margin")], build)["margin"](output, TARGET).backward()
    assert output.grad is not None


def test_a_loss_moves_its_own_tensors():
    losses = build_losses([section("Scaled", factor=2.0), section("margin")], build)
    assert losses["Scaled"].to("meta").function.factor.device.type == "meta"
    losses["margin"].to("meta")
    weights = functools.partial(F.cross_entropy, weight=torch.ones(3), reduction="sum")
    moved = WeightedLoss("x", weights).to("meta").function
    assert moved.keywords["weight"].device.type == "meta"
    assert moved.keywords["reduction"] == "sum"


def test_a_loss_with_state_is_resumed():
    old, new = WeightedLoss("x", Scaled(5.0)), WeightedLoss("x", Scaled(1.0))
    new.load_state_dict(old.state_dict())
    assert new.function.factor == 5
    plain = WeightedLoss("x", margin)
    assert plain.state_dict() == {}
    plain.load_state_dict({})


def test_a_loss_of_one_element_is_a_scalar_and_other_shapes_are_named():
    assert WeightedLoss("x", lambda output, target: output[:1, 0])(OUTPUT, TARGET).shape == ()
    per_sample = WeightedLoss("per_sample", functools.partial(F.cross_entropy, reduction="none"))
    with pytest.raises(TrainingError, match=r"loss 'per_sample' must .*, not shape \(6,\)"):
        per_sample(OUTPUT, TARGET)
    with pytest.raises(TrainingError, match=r"loss 'x' must give one number as a tensor, not 0\.5"):
        WeightedLoss("x", lambda output, target: 0.5)(OUTPUT, TARGET)


def test_faults_are_told_together():
    sections = [
        section("margin", name="a"),
        section("margin", name="a"),
        section("margin", name="loss"),
        section("Halfway", name="b"),
    ]
    with pytest.raises(ConfigError) as raised:
        build_losses(sections, build)
    assert [str(problem) for problem in raised.value.problems] == [
        "loss[1].name: 'a' is taken by another loss",
        "loss[2].name: 'loss' is taken by the sum of all",
        "loss[3]: Halfway cannot be called with (output, target): it is no loss",
    ]
    assert list(build_losses([section("margin", name="loss")], build)) == ["loss"]
