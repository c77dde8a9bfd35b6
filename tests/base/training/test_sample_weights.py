"""``batch.weight``: the loss of weighted samples is that of one closed formula over all of them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.data.batch import DEFAULT_RULES, target_of
from base.errors import TrainingError
from base.training.denominators import (
    SUM_REDUCTION,
    denominator_of,
    same_denominator_as,
    sample_losses_of,
)
from base.training.losses import WeightedLoss

RULES = DEFAULT_RULES | {"ids": True, "weight": "w"}
N = 6
torch.manual_seed(0)
WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 0.25])
CLASS_WEIGHTS = torch.tensor([0.2, 1.0, 5.0])
SCORES = torch.randn(N, 3, dtype=torch.float64).float()
CLASSES = torch.tensor([0, 2, 1, 2, 0, 1])
IGNORED = torch.tensor([0, 2, -100, 2, -100, 1])
MAPS = torch.randn(N, 3, 4, 2)
MASKS = torch.randint(3, (N, 4, 2)).masked_fill(torch.rand(N, 4, 2) < 0.3, -100)
SHARES = torch.rand(N, 3).softmax(1)
VALUES, OTHERS = torch.randn(N, 3), torch.randn(N, 3)
YES = torch.randint(2, (N, 3)).float()


def focal(output: Tensor, target: Tensor, gamma: float = 2.0, reduction: str = "mean") -> Tensor:
    loss = F.cross_entropy(output, target, reduction="none")
    loss = (1 - (-loss).exp()) ** gamma * loss
    return {"mean": loss.mean, "sum": loss.sum, "none": loss.clone}[reduction]()


def plain(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).abs().mean()


def of_each(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean(1)


@same_denominator_as(F.cross_entropy)
def smooth(
    output: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100
) -> Tensor:
    return F.cross_entropy(output, target, weight, ignore_index=ignore_index)


def taking(output: Tensor, target: Tensor, sample_weight: Tensor) -> Tensor:
    return ((output - target).square().mean(1) * sample_weight).sum() / sample_weight.sum()


class Held(nn.Module):
    """As focal losses are often written: how to reduce is an attribute."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return focal(output, target, reduction=self.reduction)


class Inner(nn.Module):
    """How to reduce is an attribute that nothing reads."""

    reduction = "mean"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(output, target)


def ratio(sums: Tensor, counts: Tensor) -> Tensor:
    """The formula: what each sample counts, by its weight."""
    return (WEIGHTS * sums).sum() / (WEIGHTS * counts).sum()


def cross_entropy(scores: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Written out with a softmax, entry by entry."""
    logs = scores.double().softmax(1).log().movedim(1, -1)
    sums, counts = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    for place in range(N):
        entries = logs[place].reshape(-1, 3)
        for entry, label in zip(entries, target[place].reshape(-1).tolist(), strict=True):
            if label != -100:
                c = 1.0 if weight is None else float(weight[label])
                sums[place] += -c * entry[label]
                counts[place] += c
    return ratio(sums, counts)


def rows(values: Tensor) -> Tensor:
    """The mean over samples that all count alike."""
    return ratio(values.double().flatten(1).mean(1), torch.ones(N))


CASES: dict[str, tuple[Any, Any, Any, Any]] = {
    "classes": (F.cross_entropy, SCORES, CLASSES, lambda: cross_entropy(SCORES, CLASSES)),
    "class weights, ignored": (
        functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS), SCORES, IGNORED,
        lambda: cross_entropy(SCORES, IGNORED, CLASS_WEIGHTS),
    ),
    "module": (
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), SCORES, IGNORED,
        lambda: cross_entropy(SCORES, IGNORED, CLASS_WEIGHTS),
    ),
    "masks": (
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), MAPS, MASKS,
        lambda: cross_entropy(MAPS, MASKS, CLASS_WEIGHTS),
    ),
    "nll": (
        F.nll_loss, SCORES.log_softmax(1), IGNORED, lambda: cross_entropy(SCORES, IGNORED)
    ),
    "shares": (
        F.cross_entropy, SCORES, SHARES,
        lambda: ratio(-(SHARES * SCORES.log_softmax(1)).sum(1), torch.ones(N)),
    ),
    "squares": (F.mse_loss, VALUES, OTHERS, lambda: rows((VALUES - OTHERS) ** 2)),
    "absolute": (nn.L1Loss(), VALUES, OTHERS, lambda: rows((VALUES - OTHERS).abs())),
    "labels": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0, 1, 1])), VALUES, YES,
        lambda: rows(-(YES * torch.tensor([2.0, 1, 1]) * VALUES.sigmoid().log()
                       + (1 - YES) * (-VALUES).sigmoid().log())),
    ),
    "kl, batchmean": (
        nn.KLDivLoss(reduction="batchmean"), SCORES.log_softmax(1), SHARES,
        lambda: ratio((SHARES * (SHARES.log() - SCORES.log_softmax(1))).sum(1), torch.ones(N)),
    ),
    "cosine": (
        None, None, None, None,
    ),
    "own, reduction": (
        functools.partial(focal, gamma=1.5), SCORES, CLASSES,
        lambda: rows(focal(SCORES, CLASSES, 1.5, "none")[:, None]),
    ),
    "own module, reduction": (
        Held(), SCORES, CLASSES, lambda: rows(focal(SCORES, CLASSES, reduction="none")[:, None])
    ),
    "own module, one by one": (Inner(), VALUES, OTHERS, lambda: rows((VALUES - OTHERS).abs())),
    "own, one by one": (plain, VALUES, OTHERS, lambda: rows((VALUES - OTHERS).abs())),
    "own, each": (of_each, VALUES, OTHERS, lambda: rows((VALUES - OTHERS) ** 2)),
    "own, denominator": (
        functools.partial(smooth, weight=CLASS_WEIGHTS), SCORES, IGNORED,
        lambda: cross_entropy(SCORES, IGNORED, CLASS_WEIGHTS),
    ),
    "own, takes weights": (taking, VALUES, OTHERS, lambda: rows((VALUES - OTHERS) ** 2)),
}  # fmt: skip
del CASES["cosine"]


def batch_of(output: Tensor, target: Tensor, begin: int = 0, end: int = N) -> list[Tensor]:
    ids = torch.arange(N)
    return [each[begin:end] for each in (output, target, ids, WEIGHTS)]


@pytest.mark.parametrize("needs_sample_losses", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_and_its_gradient_are_those_of_the_formula(
    case: str, needs_sample_losses: bool
) -> None:
    function, output, target, formula = CASES[case]
    loss = WeightedLoss("it", function, rules=RULES, needs_sample_losses=needs_sample_losses)
    output = output.clone().requires_grad_()
    value = loss(output, target, batch=batch_of(output, target))
    torch.testing.assert_close(value.double(), formula().double(), rtol=2e-5, atol=1e-6)

    whole = torch.autograd.grad(value, output)[0]
    sums = torch.zeros_like(output)
    counted = loss.counted_in(batch_of(output, target), RULES)
    number = counted.number if counted else None
    torch.testing.assert_close(denominator_of(value).number, torch.as_tensor(number))
    for begin, end in ((0, 2), (2, 3), (3, 6)):  # parts, as of a micro_batch, by their shares
        part = loss(
            output[begin:end], target[begin:end], batch=batch_of(output, target, begin, end)
        )
        own = denominator_of(part).number
        share = own / number
        sums += torch.autograd.grad(part * share, output)[0]
    torch.testing.assert_close(sums, whole, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_equal_weights_change_nothing(case: str) -> None:
    function, output, target, _ = CASES[case]
    if case == "own, takes weights":
        return
    weighted = WeightedLoss("it", function, rules=RULES)
    batch = [output, target, torch.arange(N), torch.full((N,), 3.0)]
    plain = function(output, target).mean()
    torch.testing.assert_close(weighted(output, target, batch=batch), plain)


def test_a_sum_stays_one() -> None:
    for function in (
        functools.partial(F.cross_entropy, weight=CLASS_WEIGHTS, reduction="sum"),
        nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, reduction="sum"),
    ):
        loss = WeightedLoss("it", function, rules=RULES)
        value = loss(SCORES, IGNORED, batch=batch_of(SCORES, IGNORED))
        each = F.cross_entropy(SCORES, IGNORED, CLASS_WEIGHTS, reduction="none")
        torch.testing.assert_close(value, (WEIGHTS * each).sum())
        assert denominator_of(value).number is SUM_REDUCTION
    loss = WeightedLoss("it", functools.partial(focal, reduction="sum"), rules=RULES)
    value = loss(SCORES, CLASSES, batch=batch_of(SCORES, CLASSES))
    torch.testing.assert_close(value, (WEIGHTS * focal(SCORES, CLASSES, reduction="none")).sum())


@pytest.mark.parametrize("case", CASES)
def test_weights_of_zero_give_no_nan(case: str) -> None:
    function, output, target, _ = CASES[case]
    loss = WeightedLoss("it", function, rules=RULES)
    output = output.clone().requires_grad_()
    value = loss(output, target, batch=[output, target, torch.arange(N), torch.zeros(N)])
    value.backward()
    assert value == 0
    assert (output.grad == 0).all()
    assert denominator_of(value).number == 0


def test_the_lengths_of_sequences_divide_their_losses() -> None:
    scores = torch.randn(9, N, 4).log_softmax(2)
    targets, lengths = torch.randint(1, 4, (N, 5)), torch.tensor([5, 2, 3, 1, 4, 5])
    n_inputs = torch.full((N,), 9)
    loss = WeightedLoss("it", F.ctc_loss, rules=RULES)
    batch = [scores, targets, torch.arange(N), WEIGHTS]
    each = F.ctc_loss(scores, targets, n_inputs, lengths, reduction="none") / lengths
    for value in (
        loss(scores, targets, n_inputs, lengths, batch=batch),
        loss(scores, targets, input_lengths=n_inputs, target_lengths=lengths, batch=batch),
    ):
        torch.testing.assert_close(value, ratio(each, torch.ones(N)))


def test_rows_that_are_compared_count_once() -> None:
    target = torch.tensor([1.0, -1, 1, 1, -1, -1])

    def cosine(output: Any, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cosine_embedding_loss(*output, target, reduction=reduction)

    loss = WeightedLoss("it", cosine, rules=RULES)
    value = loss((VALUES, OTHERS), target, batch=batch_of(VALUES, target))
    torch.testing.assert_close(
        value, ratio(cosine((VALUES, OTHERS), target, "none"), torch.ones(N))
    )


def test_a_denominator_may_take_more_of_the_batch() -> None:
    def masked(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return ((output - target).square().sum(1) * mask).sum() / mask.sum()  # 0 / 0 by itself

    masked.denominator = lambda target, mask: mask.sum()  # type: ignore[attr-defined]
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1])
    rules = RULES | {"target": {"target": 1, "mask": 2}}
    loss = WeightedLoss("it", masked, rules=rules)
    batch = [VALUES, OTHERS, mask, torch.arange(N), WEIGHTS]
    output = VALUES.clone().requires_grad_()
    value = loss(output, target_of(batch, rules), batch=batch)
    value.backward()
    assert output.grad.isfinite().all()
    torch.testing.assert_close(value, ratio(mask * (VALUES - OTHERS).square().sum(1), mask))
    counted = loss.counted_in(batch, rules)
    assert counted is not None
    torch.testing.assert_close(counted.number, (WEIGHTS * mask).sum())


def test_terms_are_weighted_each() -> None:
    def two(output: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"a": plain(output, target), "b": (output - target).square().mean()}

    loss = WeightedLoss("it", two, rules=RULES)
    terms = loss(VALUES, OTHERS, batch=batch_of(VALUES, OTHERS))
    torch.testing.assert_close(terms["a"].double(), rows((VALUES - OTHERS).abs()).double())
    torch.testing.assert_close(terms["b"].double(), rows((VALUES - OTHERS) ** 2).double())


def test_the_loss_of_each_sample_is_noted() -> None:
    function, rules = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), RULES | {"weight": None}
    loss = WeightedLoss("it", function, rules=rules, needs_sample_losses=True)
    batch = [SCORES, IGNORED, torch.arange(N)]
    value = loss(SCORES.requires_grad_(), IGNORED, batch=batch)
    each = sample_losses_of(value)
    assert each is not None
    assert not each.requires_grad
    expected = F.cross_entropy(SCORES, IGNORED, reduction="none").detach()
    torch.testing.assert_close(each, expected)
    torch.testing.assert_close(value, F.cross_entropy(SCORES, IGNORED, CLASS_WEIGHTS))


def test_one_by_one_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    loss = WeightedLoss("it", plain, rules=RULES)
    with caplog.at_level("INFO", logger="kindling"):
        for _ in range(3):
            loss(VALUES, OTHERS, batch=batch_of(VALUES, OTHERS))
    assert len(caplog.records) == 1
    assert "loss 'it' is called once for each sample" in caplog.text


def test_a_call_without_the_batch_says_what_to_give() -> None:
    loss = WeightedLoss("it", F.mse_loss, rules=RULES)
    with pytest.raises(TrainingError, match=r"pass `batch=batch`.*`sample_weight=None`"):
        loss(VALUES, OTHERS)
    torch.testing.assert_close(loss(VALUES, OTHERS, sample_weight=None), F.mse_loss(VALUES, OTHERS))
    value = loss(VALUES, OTHERS, sample_weight=WEIGHTS)
    torch.testing.assert_close(value.double(), rows((VALUES - OTHERS) ** 2).double())


def test_rows_that_are_no_samples_are_told() -> None:
    loss = WeightedLoss("it", F.cross_entropy, rules=RULES)
    flat = MAPS.movedim(1, -1).reshape(-1, 3)
    with pytest.raises(
        TrainingError, match=r"returns \(48\) for 6 samples|returns \(48,\) for 6 samples"
    ):
        loss(flat, MASKS.reshape(-1), batch=batch_of(MAPS, MASKS))


# --- Losses that are no mean over samples ---------------------------------------------------------


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output @ target.T, torch.arange(len(output)))


def standardised(output: Tensor, target: Tensor) -> Tensor:
    return ((output - output.mean(0)) / output.std(0, correction=0) - target).square().mean()


def dice(output: Tensor, target: Tensor) -> Tensor:
    shares = output.sigmoid()
    return 1 - 2 * (shares * target).sum() / (shares.sum() + target.sum())


BATCH = {"w": WEIGHTS, "ids": torch.arange(N)}


@pytest.mark.parametrize("function", [contrastive, standardised])
def test_a_loss_that_compares_samples_has_none_for_each(function: Any) -> None:
    loss = WeightedLoss("mine", function, rules=RULES)
    with pytest.raises(TrainingError, match="'mine' compares the samples of a batch with each"):
        loss(VALUES, OTHERS, batch=BATCH)


def test_a_loss_that_is_no_mean_over_samples_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for function, number in ((dice, 1), (plain, 0), (of_each, 0)):
        caplog.clear()
        loss = WeightedLoss("mine", function, rules=RULES)
        with caplog.at_level("WARNING", logger="kindling"):
            for _ in range(2):
                loss(VALUES, YES, batch=BATCH)
        assert caplog.text.count("'mine' is not a mean over samples") == number
    whole, each = dice(VALUES, YES), [dice(VALUES[i], YES[i]) for i in range(N)]
    caplog.clear()
    WeightedLoss("mine", dice, rules=RULES)(VALUES, YES, batch=BATCH)
    numbers = f"{float(whole):.4g} for a batch, and {float(sum(each) / N):.4g} as the mean"
    assert numbers in caplog.text


def test_a_loss_is_evaluated_alike_with_and_without_a_sampler_that_learns() -> None:
    rules = DEFAULT_RULES | {"ids": True}
    loss = WeightedLoss("mine", dice, rules=rules, needs_sample_losses=True)
    with torch.no_grad():
        assert loss(VALUES, YES, batch=BATCH).equal(dice(VALUES, YES))
    assert sample_losses_of(loss(VALUES, YES, batch=BATCH)) is not None
