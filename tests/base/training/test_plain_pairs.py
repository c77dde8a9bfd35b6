"""A loss of a whole output and target takes a shorter way, with the same result."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.data.batch import DEFAULT_RULES
from base.errors import TrainingError
from base.training.denominators import denominator_of
from base.training.losses import WeightedLoss
from base.training.selection import Selection

LOGITS = torch.linspace(-2, 2, 24, dtype=torch.float64).view(8, 3)
CLASSES = torch.tensor([0, 1, 2, -100, 1, 0, 2, -100])
NUMBERS = LOGITS.flip(0)
WEIGHT = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def of_project(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().max()


def of_terms(output: Tensor, target: Tensor) -> dict[str, Tensor]:
    return {"near": (output - target).abs().mean(), "far": (output - target).square().mean()}


def with_reduction(output: Tensor, target: Tensor, reduction: str = "sum") -> Tensor:
    return getattr((output - target).square(), reduction)()


FUNCTIONS: dict[str, tuple[Any, Tensor]] = {
    "classes": (F.cross_entropy, CLASSES),
    "probabilities": (F.cross_entropy, NUMBERS.softmax(1)),
    "module": (nn.CrossEntropyLoss(), CLASSES),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHT), CLASSES),
    "ignored": (partial(F.cross_entropy, ignore_index=2), CLASSES.clamp(0)),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), CLASSES),
    "each": (nn.CrossEntropyLoss(reduction="none"), CLASSES),
    "legacy sum": (partial(F.mse_loss, size_average=False, reduce=True), NUMBERS),
    "numbers": (F.mse_loss, NUMBERS),
    "batchmean": (nn.KLDivLoss(reduction="batchmean"), NUMBERS.softmax(1)),
    "rows": (F.multilabel_soft_margin_loss, (NUMBERS > 0).double()),
    "nothing counted": (F.cross_entropy, torch.full((8,), -100)),
    "project": (of_project, NUMBERS),
    "terms": (of_terms, NUMBERS),
    "own reduction": (with_reduction, NUMBERS),
}


def number_of(counted: Any) -> Any:
    return counted if counted is None else (*counted[:1], str(counted[1]), *counted[2:])


def leaves(value: Any) -> dict[str, Tensor]:
    return dict(value) if isinstance(value, dict) else {"": value}


@pytest.mark.filterwarnings("ignore:size_average")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_denominator_are_those_of_the_long_way(name: str) -> None:
    function, target = FUNCTIONS[name]
    loss = WeightedLoss("x", function)
    assert loss._takes_whole_pairs
    short, long = loss(LOGITS, target), loss._of_arguments((LOGITS, target), None, {})
    assert type(short) is type(long)
    assert leaves(short).keys() == leaves(long).keys()
    for one, other in zip(leaves(short).values(), leaves(long).values(), strict=True):
        one, other = getattr(one, "value", one), getattr(other, "value", other)
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
        assert one.isnan().equal(other.isnan())
        assert one.shape == other.shape
        assert number_of(denominator_of(one)) == number_of(denominator_of(other))


def wrong_shape(output: Tensor, target: Tensor) -> Tensor:
    return output - target


def not_a_tensor(output: Tensor, target: Tensor) -> str:
    return "0.5"


@pytest.mark.parametrize(
    "case",
    [
        (F.cross_entropy, CLASSES + 9),
        (F.cross_entropy, CLASSES[:5]),
        (wrong_shape, NUMBERS),
        (not_a_tensor, NUMBERS),
    ],
)
def test_errors_are_those_of_the_long_way(case: tuple[Any, Tensor]) -> None:
    function, target = case
    loss = WeightedLoss("x", function)
    texts = []
    for call in (
        lambda: loss(LOGITS, target),
        lambda: loss._of_arguments((LOGITS, target), None, {}),
    ):
        with pytest.raises(TrainingError) as caught:
            call()
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "'x'" in texts[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"selection": Selection(output="a")},
        {"selection": Selection(target=1)},
        {"rules": {**DEFAULT_RULES, "weight": "w"}},
        {"needs_sample_losses": True},
    ],
)
def test_a_loss_that_selects_or_weighs_does_not_take_it(settings: dict[str, Any]) -> None:
    assert WeightedLoss("x", F.mse_loss)._takes_whole_pairs
    assert not WeightedLoss("x", F.mse_loss, **settings)._takes_whole_pairs


def test_class_weights_that_are_replaced_count_at_once() -> None:
    loss = WeightedLoss("x", nn.CrossEntropyLoss(weight=WEIGHT.clone()))
    loss.load_state_dict({"weight": WEIGHT * 3})
    counted = denominator_of(loss(LOGITS, CLASSES))
    kept = CLASSES[CLASSES != -100]
    assert counted is not None
    assert float(counted.number) == float((WEIGHT * 3)[kept].sum())
