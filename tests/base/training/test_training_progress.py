"""Progress, the best epoch, patience, averaged weights: small things that a resume brings back."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy import assert_same, make, train_in, weights

from base.callbacks import Callback
from base.training.ema import ExponentialMovingAverage
from base.training.progress import Monitor, Progress, RandomState, Stateful

NAN = float("nan")


def test_all_have_a_state() -> None:
    model = nn.Linear(2, 2)
    for thing in (
        Progress(),
        RandomState(),
        Monitor("off"),
        ExponentialMovingAverage(dict(model.named_parameters()), 0.9),
        model,
        torch.optim.SGD(model.parameters()),
    ):
        assert isinstance(thing, Stateful)


def test_progress_counts_and_comes_back() -> None:
    progress = Progress()
    for _ in range(2):
        for n in (4, 4, 2):
            progress.advance(n)
        progress.start_next_epoch()
    progress.advance(4)
    assert progress == Progress(epoch=2, batch=1, step=0, samples=24, batches_total=7)
    other = Progress()
    other.load_state_dict(progress.state_dict())
    assert other == progress


def test_random_streams_go_on_from_where_they_were_saved() -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), torch.rand(()).item()]

    state = copy.deepcopy(RandomState().state_dict())
    first = draw()
    assert draw() != first
    RandomState().load_state_dict(state)
    assert draw() == first


# --- The best epoch -------------------------------------------------------------------------------


def follow(rule: str, values: list[float | None], patience: int | None = None) -> Monitor:
    monitor = Monitor(rule, patience)
    for epoch, value in enumerate(values, start=1):
        monitor.update({} if value is None else {"valid/loss": value}, epoch)
    return monitor


numbers = st.lists(st.floats(width=32) | st.sampled_from([0.5, 1.0]), min_size=1, max_size=8)


@given(values=numbers, mode=st.sampled_from(["min", "max"]))
def test_the_best_is_that_of_python(values: list[float], mode: str) -> None:
    monitor = follow(f"{mode} valid/loss", values)
    worst = math.inf if mode == "min" else -math.inf
    usable = [value for value in values if not math.isnan(value) and value != worst]
    if usable:
        best = min(usable) if mode == "min" else max(usable)
        assert monitor.best == best
        assert monitor.best_epoch == values.index(best) + 1, "the first of equal ones"
    else:
        assert monitor.best_epoch == 0


@given(values=numbers)
def test_the_least_is_the_greatest_of_the_negated(values: list[float]) -> None:
    least, most = Monitor("min valid/loss"), Monitor("max valid/loss")
    for epoch, value in enumerate(values):
        ours = least.update({"valid/loss": value}, epoch)
        assert ours == most.update({"valid/loss": -value}, epoch)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nan_is_never_best(mode: str) -> None:
    monitor = Monitor(f"{mode} valid/loss")
    assert not monitor.update({"valid/loss": NAN}, 1)
    assert monitor.update({"valid/loss": 1.0}, 2)
    assert not monitor.update({"valid/loss": NAN}, 3)
    assert (monitor.best, monitor.best_epoch) == (1.0, 2)


def test_off_watches_nothing() -> None:
    monitor = follow("off", [3.0, 2.0, 1.0], patience=1)
    assert monitor.is_off
    assert not monitor.is_exhausted
    assert monitor.best_epoch == 0


@pytest.mark.parametrize(
    ("values", "patience", "ends_after"),
    [
        ([3, 2, 2, 2, 2], 2, 4),
        ([3, 2, 4, 1, 2, 3, 4], 3, 7),
        ([1, 1], 1, 2),
        ([NAN, NAN, NAN], 2, 2),
        ([3, 2, 1, 0], 1, None),
        ([2, None, 2, None, 2, None], 4, 5),  # epochs that are not validated count as well
        ([2, None, 1, None, 2, None, 2], 2, 5),
        ([2, 3, 4], None, None),
    ],
)
def test_patience_is_counted_in_epochs(
    values: list[Any], patience: int | None, ends_after: int | None
) -> None:
    lengths = range(1, len(values) + 1)
    over = [n for n in lengths if follow("min valid/loss", values[:n], patience).is_exhausted]
    assert (over[0] if over else None) == ends_after


def test_a_monitor_resumes_with_its_best_and_its_patience() -> None:
    values = [3.0, 1.0, 2.0, 2.0]
    whole = follow("min valid/loss", values, patience=2)
    half = follow("min valid/loss", values[:2], patience=2)
    rest = Monitor("min valid/loss", 2)
    rest.load_state_dict(half.state_dict())
    for epoch, value in enumerate(values[2:], start=3):
        rest.update({"valid/loss": value}, epoch)
    assert vars(rest) == vars(whole)
    assert rest.is_exhausted


def test_another_value_to_watch_begins_anew() -> None:
    accuracy = Monitor("max valid/accuracy")
    accuracy.load_state_dict(follow("min valid/loss", [3.0]).state_dict())
    assert vars(accuracy) == vars(Monitor("max valid/accuracy"))


# --- Averaged weights -----------------------------------------------------------------------------


def closed_form(history: list[torch.Tensor], decay: float) -> torch.Tensor:
    """Return the average as one sum over all weights seen, the first being those of the start."""
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(1, len(history))]
    total = history[0].double() * math.prod(decays)
    for n, weight in enumerate(history[1:]):
        total += weight.double() * (1 - decays[n]) * math.prod(decays[n + 1 :])
    return total


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_the_average_is_that_of_the_closed_form(decay: float) -> None:
    model = nn.Linear(3, 2)
    average = ExponentialMovingAverage(dict(model.named_parameters()), decay)
    history = [model.weight.detach().clone()]
    for _ in range(30):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        average.update()
        history.append(model.weight.detach().clone())
    torch.testing.assert_close(average.averages["weight"].double(), closed_form(history, decay))


class History(Callback):
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_start(self, trainer: Any) -> None:
        self.on_step_end(trainer)

    def on_step_end(self, trainer: Any) -> None:
        self.seen.append(trainer.model.head.weight.detach().clone())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loop_averages_once_a_step(accumulate: int) -> None:
    trainer = make("trainer.ema={decay: 0.6}", f"memory.accumulate={accumulate}")
    trainer.callbacks["history"] = history = History()
    train_in(trainer)
    assert trainer.ema.n_updates == trainer.progress.step == (10 if accumulate == 1 else 6)
    found = trainer.ema.averages["head.weight"]
    torch.testing.assert_close(found.double(), closed_form(history.seen, 0.6))


def test_validation_sees_the_averages_and_training_does_not() -> None:
    plain, averaged = make(), make("trainer.ema={decay: 0.9}")
    train_in(plain)
    values = train_in(averaged)
    assert_same(weights(averaged), weights(plain))

    for name, average in averaged.ema.averages.items():
        averaged.model.get_parameter(name).data.copy_(average)
    inputs, target = next(iter(averaged.valid_loader.batches(0, 1)))
    by_hand = nn.functional.cross_entropy(averaged.model.eval()(inputs), target)
    assert values["valid/loss"] == pytest.approx(by_hand.item())


def test_the_weights_are_back_after_an_exception() -> None:
    model = nn.Linear(3, 2)
    average = ExponentialMovingAverage(dict(model.named_parameters()), 0.9)
    with torch.no_grad():
        model.weight += 1
    before, kept = model.weight.detach().clone(), next(iter(average.averages.values())).clone()
    with pytest.raises(RuntimeError, match="multiplied"), average.swapped_in():
        model(torch.ones(1, 7))
    assert torch.equal(model.weight, before)
    assert torch.equal(next(iter(average.averages.values())), kept)


def test_swapping_touches_no_graph_and_no_memory_of_the_optimizer() -> None:
    """An optimizer holds the very tensors: they must stay the same objects, in the same place."""
    model = nn.Linear(3, 2)
    average = ExponentialMovingAverage(dict(model.named_parameters()), 0.9)
    pointers = [p.data_ptr() for p in model.parameters()]
    loss = model(torch.ones(1, 3)).sum()
    with average.swapped_in(), torch.inference_mode():
        model(torch.ones(1, 3))
    loss.backward()
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert model.weight.grad is not None


def test_frozen_and_tied_weights_are_averaged_once_or_not_at_all() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    average = ExponentialMovingAverage(dict(model.named_parameters()), 0.9)
    assert list(average.averages) == ["0.weight", "0.bias", "1.bias"]
    frozen = make("trainer.ema={decay: 0.9}", "freeze=hidden.*")
    assert list(frozen.ema.averages) == ["head.weight", "head.bias"]


def test_averages_of_another_model_are_refused() -> None:
    one = ExponentialMovingAverage(dict(nn.Linear(3, 2).named_parameters()), 0.9)
    for other in (nn.Linear(3, 2, bias=False), nn.Linear(1, 2)):
        state = ExponentialMovingAverage(dict(other.named_parameters()), 0.9).state_dict()
        with pytest.raises(ValueError, match="do not match the trained weights"):
            one.load_state_dict(state)


# --- A value that is not finite -------------------------------------------------------------------


def test_the_first_value_that_is_not_finite_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    monitor = follow("min valid/loss", [1.0, NAN, NAN])
    assert [record.message for record in caplog.records] == [
        "valid/loss is nan in epoch 2, not a finite number: such an epoch is not the best"
    ]
    assert (monitor.n_nonfinite, monitor.was_never_finite) == (2, False)


@pytest.mark.parametrize("values", [[NAN, NAN], [math.inf, None, NAN]])
def test_a_monitor_that_was_never_finite_knows_it_after_a_resume(values: list[Any]) -> None:
    assert not follow("min valid/loss", [None, None]).was_never_finite
    resumed = Monitor("min valid/loss", 2)
    resumed.load_state_dict(follow("min valid/loss", values, patience=2).state_dict())
    assert resumed.was_never_finite
    resumed.update({"valid/loss": 3.0}, 4)
    assert not resumed.was_never_finite


def test_a_state_from_before_these_were_counted_is_read() -> None:
    state = follow("min valid/loss", [2.0, 1.0]).state_dict()
    del state["n_nonfinite"]
    resumed = Monitor("min valid/loss")
    resumed.load_state_dict(state)
    assert (resumed.best, resumed.n_nonfinite) == (1.0, 0)
