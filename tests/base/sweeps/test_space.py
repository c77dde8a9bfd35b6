"""What --sweep can say, and that draws are fair, without repetition and repeatable."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from base.config import load_config
from base.errors import UsageError
from base.sweeps.checks import overrides_of
from base.sweeps.space import Choices, Range, draws, grid, parse_space, split_values

LR = "optimizer.args.lr"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4,1e-3", ["1e-4", "1e-3"]),
        ("[32,64],[64]", ["[32,64]", "[64]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ('"a, ]b",{x: 1, y: [2,3]},null', ['"a, ]b"', "{x: 1, y: [2,3]}", "null"]),
        ("['a,b', c],d", ["['a,b', c]", "d"]),
        ("don't,do", ["don't", "do"]),
        ("one", ["one"]),
        ("../data,../other", ["../data", "../other"]),
    ],
)
def test_values_are_split_at_commas_outside_of_quotes_and_brackets(
    text: str, values: list[str]
) -> None:
    assert split_values(text) == values
    assert parse_space([f"x.y={text}"]) == [Choices("x.y", tuple(values))]


def test_keys_are_short_as_on_the_command_line() -> None:
    keys = [each.key for each in parse_space(["lr=1,2", "bs=1,2", "epochs=1,2", "arch.type=a,b"])]
    assert keys == [LR, "data_loader.args.batch_size", "trainer.epochs", "model.type"]


def test_ranges_are_read_with_their_kind() -> None:
    texts = ["a.x=1e-4..1e-1 log", "a.y=16..256", "a.z=0.0..0.5", "a.w=-1..2.5", "a.v=1..8", "log"]
    assert parse_space(texts) == [
        Range("a.x", 1e-4, 1e-1, is_log=True, is_whole=False),
        Range("a.y", 16, 256, is_log=False, is_whole=True),
        Range("a.z", 0.0, 0.5, is_log=False, is_whole=False),
        Range("a.w", -1, 2.5, is_log=False, is_whole=False),
        Range("a.v", 1, 8, is_log=True, is_whole=True),
    ]


@pytest.mark.parametrize(
    ("texts", "overrides", "words"),
    [
        (["lr"], [], "key=1,2,3"),
        (["=1,2"], [], "key=1,2,3"),
        (["lr=1,,2"], [], "a value is missing"),
        (["lr="], [], "a value is missing"),
        (["lr=1e-3,0.001"], [], "1e-3 and 0.001 are the same value"),
        (["lr=1..2,3"], [], "write a range alone"),
        (["lr=1..2 lin"], [], "write a range alone"),
        (["lr=1.."], [], "write a range alone"),
        (["lr=2..1"], [], "the lower one"),
        (["lr=0..1 log"], [], "above 0"),
        (["lr=[1,2"], [], "not valid YAML"),
        (["lr=1,2", f"{LR}=3,4"], [], "is swept already"),
        (["lr=1,2"], [f"{LR}=3"], f"overwrites --set {LR}=3"),
        (["optimizer={type: Adam},{type: SGD}"], [f"{LR}=3"], f"overwrites --set {LR}=3"),
    ],
)
def test_a_slip_is_one_line(texts: list[str], overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=r".*") as raised:
        parse_space(texts, overrides)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_true_and_1_are_two_values() -> None:
    assert parse_space(["x=true,1"]) == [Choices("x", ("true", "1"))]


def test_a_sweep_may_refine_what_set_gives() -> None:
    assert len(parse_space(["lr=1,2"], ["optimizer={type: Adam}"])) == 1


def test_a_grid_is_the_product() -> None:
    space = parse_space(["lr=1,2,3", "x=a,b"])
    wanted = [{LR: lr, "x": x} for lr in "123" for x in "ab"]
    assert grid(space) == wanted
    with pytest.raises(UsageError, match="--samples"):
        grid(parse_space(["lr=1,2", "x=1..3"]))
    with pytest.raises(UsageError, match="combinations"):
        grid(parse_space([f"x{n}={','.join(map(str, range(10)))}" for n in range(5)]))


def test_draws_of_a_grid_are_its_combinations_in_another_order() -> None:
    space = parse_space(["lr=1,2,3", "x=a,b", "y=1..4"])
    drawn = [tuple(each.values()) for each in draws(space, seed=1)]
    assert sorted(drawn) == sorted(itertools.product("123", "ab", "1234"))
    assert drawn != sorted(drawn)


def test_a_longer_search_begins_with_a_shorter_one() -> None:
    space = parse_space(["lr=1e-4..1e-1 log", "x=a,b"])
    ten = list(itertools.islice(draws(space, 3), 10))
    assert list(itertools.islice(draws(space, 3), 20))[:10] == ten
    assert list(itertools.islice(draws(space, 4), 10)) != ten


@pytest.mark.parametrize(
    ("text", "cumulative"),
    [
        ("x=1e-4..1e-1 log", lambda x: math.log(x / 1e-4) / math.log(1e3)),
        ("x=0.0..0.5", lambda x: 2 * x),
        ("x=1..1000", lambda x: x / 1000),
        ("x=1..1000 log", lambda x: math.log(x + 1) / math.log(1001)),
    ],
)
def test_draws_follow_their_distribution(text: str, cumulative: object) -> None:
    """The largest distance from the closed form, as of Kolmogorov and Smirnov, for 2000 draws."""
    assert callable(cumulative)
    space = parse_space([text])
    each = space[0]
    import random

    drawn = sorted(float(each.draw(random.Random(f"draw {n}"))) for n in range(2000))
    places = [(n + 1) / len(drawn) for n in range(len(drawn))]
    distances = [
        abs(place - cumulative(x))
        for place, x, after in zip(places, drawn, [*drawn[1:], math.inf], strict=True)
        if x != after  # the last of equal ones
    ]
    assert max(distances) < 1.63 / math.sqrt(len(drawn))  # exceeded in one of 100 trials


def test_a_drawn_number_is_of_the_kind_of_its_range(project_root: Path) -> None:
    space = parse_space(["lr=1..100.0", "model.args.width=4..64"])
    config = project_root / "config" / "digits.yaml"
    for settings in itertools.islice(draws(space, 1), 20):
        loaded = load_config(config, overrides_of([], settings))
        assert type(loaded["optimizer"]["args"]["lr"]) is float
        assert type(loaded["model"]["args"]["width"]) is int
        assert 1 <= loaded["optimizer"]["args"]["lr"] <= 100
