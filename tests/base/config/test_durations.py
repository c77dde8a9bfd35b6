"""Durations: one reader, three units."""

from __future__ import annotations

import re

import pytest

from base.config import Duration, RunLength, parse_duration
from base.config.durations import DURATION_PATTERN, MINUTES_PATTERN


@pytest.mark.parametrize(
    ("text", "amount", "unit", "steps"),
    [
        ("500 steps", 500, "steps", 500),
        ("1 step", 1, "steps", 1),
        ("1 epoch", 1, "epochs", 40),
        ("2 epochs", 2, "epochs", 80),
        ("0.5 epochs", 0.5, "epochs", 20),
        ("5%", 5, "%", 20),
        ("100 %", 100, "%", 400),
        ("0.01%", 0.01, "%", 1),
        ("7steps", 7, "steps", 7),
    ],
)
def test_a_duration_is_read_and_counted_in_steps(text, amount, unit, steps):
    duration = parse_duration(text)
    assert duration == Duration(amount, unit)
    assert duration.in_steps(RunLength(steps_per_epoch=40, total_steps=400)) == steps
    assert parse_duration(str(duration)) == duration
    assert re.match(DURATION_PATTERN, text)


@pytest.mark.parametrize("value", [5, 0.5])
def test_a_bare_number_is_told_to_add_its_unit(value):
    with pytest.raises(ValueError, match=rf"needs a unit: '{value} steps'"):
        parse_duration(value)


NO_DURATIONS = (
    "", "5", "steps", "-1 steps", "0 steps", "0%", "101%", "1.5 steps", "1e3 steps", "1  step",
    "1 step\n2 steps", "1 stepss", "१ steps", "9" * 50 + " steps", None, True, [], "0.0 epochs",
)  # fmt: skip
NO_TIMES = ("0 minutes", "minutes", "10 min", "-1 minutes", "1 hour", "5")


@pytest.mark.parametrize(
    ("text", "with_time"),
    [*((text, False) for text in NO_DURATIONS), *((text, True) for text in NO_TIMES)],
)
def test_what_is_no_duration_is_refused(text, with_time):
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text, with_time)


@pytest.mark.parametrize(
    ("text", "amount"), [("10 minutes", 10), ("1 minute", 1), ("0.5 minutes", 0.5), ("7minutes", 7)]
)
def test_minutes_are_read_where_time_may_be_given(text, amount):
    duration = parse_duration(text, with_time=True)
    assert duration == Duration(amount, "minutes")
    assert parse_duration(str(duration), with_time=True) == duration
    assert re.match(MINUTES_PATTERN, text)
    with pytest.raises(ValueError, match="would make results depend on time: give steps"):
        parse_duration(text)
