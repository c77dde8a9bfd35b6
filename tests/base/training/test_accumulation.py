"""Windows and durations come due where a list of all steps says they do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from base.config.durations import RunLength
from base.data.batch import DEFAULT_RULES, SampleCount
from base.training.accumulation import Every, Window, _scale


def window_of(accumulate: int, first: int, n_batches: int) -> Window:
    """A window that reads batches of one sample ahead, from one position of an epoch to its end."""
    window = Window(accumulate, None, {}, SampleCount(DEFAULT_RULES))
    batches = iter([[torch.ones(1), torch.ones(1)]] * (n_batches - first))
    window.batches = window.read_ahead(batches, first)
    return window


def state_of(window: Window) -> dict[str, object]:
    return {name: value for name, value in vars(window).items() if name not in ("batches", "count")}


@given(accumulate=st.integers(1, 6), n_windows=st.integers(1, 5), missing=st.integers(0, 5))
def test_windows_are_the_chunks_of_an_epoch(accumulate: int, n_windows: int, missing: int) -> None:
    n_batches = max(1, accumulate * n_windows - missing)
    numbers = list(range(n_batches))
    chunks = [numbers[i : i + accumulate] for i in range(0, n_batches, accumulate)]
    window = window_of(accumulate, 0, n_batches)
    for chunk in chunks:
        for number in chunk:
            next(window.batches)
            window.place(number, n_batches)
            assert window.size == len(chunk)
            assert window.is_full == (number == chunk[-1])


@given(accumulate=st.integers(1, 6), done=st.integers(0, 4), n_batches=st.integers(1, 30))
def test_a_resumed_epoch_has_the_windows_of_a_whole_one(
    accumulate: int, done: int, n_batches: int
) -> None:
    first = min(done * accumulate, n_batches)
    whole, rest = window_of(accumulate, 0, n_batches), window_of(accumulate, first, n_batches)
    for number in range(n_batches):
        next(whole.batches)
        whole.place(number, n_batches)
        if number >= first:
            next(rest.batches)
            rest.place(number - first, n_batches - first)
            assert state_of(rest) == state_of(whole)


def due(text: str, steps_per_epoch: int = 4, total: int = 40) -> tuple[list[int], list[int]]:
    every = Every(text, RunLength(steps_per_epoch, total))
    steps = [step for step in range(1, total + 1) if every.is_due_at_step(step)]
    epochs = [n for n in range(1, total // steps_per_epoch + 1) if every.is_due_after_epoch(n)]
    return steps, epochs


@pytest.mark.parametrize(
    ("text", "steps", "epochs"),
    [
        ("15 steps", [15, 30], []),
        ("1 step", list(range(1, 41)), []),
        ("1 epoch", [], list(range(1, 11))),
        ("3 epochs", [], [3, 6, 9]),
        ("25%", [10, 20, 30, 40], []),
        ("100%", [40], []),
        ("0.5 epochs", list(range(2, 41, 2)), []),
        ("1.5 epochs", [6, 12, 18, 24, 30, 36], []),
        ("0.001 epochs", list(range(1, 41)), []),
        ("50 steps", [], []),
    ],
)
def test_what_comes_due_when(text: str, steps: list[int], epochs: list[int]) -> None:
    assert due(text) == (steps, epochs)


class Clocks:
    """A clock that only goes on, and one that people and daylight saving set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1000.0
        self.wall = 1e9
        monkeypatch.setattr("base.training.accumulation.time.monotonic", lambda: self.seconds)
        monkeypatch.setattr("base.training.accumulation.time.time", lambda: self.wall)


def test_minutes_are_counted_from_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    every = Every("1.5 minutes", RunLength(4, 40))
    found = []
    for step in range(1, 40):
        clocks.seconds += 20
        if every.is_due_at_step(step):
            found.append(step)
    assert found == [5, 10, 15, 20, 25, 30, 35], "at the first step of 90 s or more"
    assert not any(every.is_due_after_epoch(epoch) for epoch in range(1, 11))


@pytest.mark.parametrize("jump", [-1e8, -3600, 3600, 1e8])
def test_a_clock_that_is_set_changes_nothing(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks(monkeypatch)
    every = Every("10 minutes", RunLength(4, 40))
    clocks.wall += jump
    clocks.seconds += 599
    assert not every.is_due_at_step(1)
    clocks.wall += jump
    clocks.seconds += 1
    assert every.is_due_at_step(2)
    assert not every.is_due_at_step(3)


@given(
    value=st.floats(0.125, 1024, width=32),
    count=st.integers(1, 1 << 26),
    whole=st.integers(1, 1 << 26),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_a_share_of_a_loss_has_the_bits_of_a_tensor_times_a_tensor(
    value: float, count: int, whole: int, dtype: torch.dtype
) -> None:
    share = torch.tensor(count) / float(whole)
    losses = [torch.tensor(value, dtype=dtype, requires_grad=True) for _ in range(2)]
    found, expected = _scale(losses[0], share), losses[1] * share
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    found.backward()
    expected.backward()
    assert losses[0].grad is not None
    assert losses[1].grad is not None
    assert torch.equal(losses[0].grad, losses[1].grad)
