"""`freeze:` keeps parameters and statistics as they are, for good or for a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import assert_resumes, make, run, weights

from base.base_model import check_model
from base.config.durations import RunLength
from base.errors import ConfigError
from base.network.freezing import Freezing
from logger.epoch_table import EpochTable

LATER = "freeze=[{match: 'hidden.*', until: 1 epoch}]"  # 5 steps an epoch, 2 epochs


def changed(folder: Path, *overrides: str) -> set[str]:
    before = weights(make(*overrides))
    after = weights(run(folder, *overrides))
    return {name for name in before if not before[name].equal(after[name])}


def test_what_is_frozen_for_good_never_moves(tmp_path: Path) -> None:
    assert changed(tmp_path, "freeze=hidden.*") == {"head.weight", "head.bias"}


def test_what_thaws_stands_still_until_then_and_moves_after(tmp_path: Path) -> None:
    all_names = {"head.weight", "head.bias", "hidden.0.weight", "hidden.0.bias"}
    assert changed(tmp_path / "two", LATER) == all_names
    one = [LATER, "trainer.epochs=1"]
    assert changed(tmp_path / "one", *one) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("stop_at", [3, 5, 7])
def test_thawing_survives_a_resume(tmp_path: Path, stop_at: int) -> None:
    adam = "optimizer={type: Adam, args: {lr: 0.01}}"
    assert_resumes(tmp_path, LATER, adam, stop_at=stop_at)


def test_what_thaws_is_averaged_too(tmp_path: Path) -> None:
    trainer = run(tmp_path, LATER, "trainer.ema={decay: 0.5}")
    average = trainer.ema.averages
    assert set(average) == set(weights(trainer))
    start = weights(make(LATER))
    assert not average["hidden.0.weight"].equal(start["hidden.0.weight"])
    assert not average["hidden.0.weight"].equal(weights(trainer)["hidden.0.weight"])


def test_the_console_shows_the_highest_rate_of_what_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    lines = EpochTable.lines
    monkeypatch.setattr(
        EpochTable, "lines", lambda self, v, b: (shown.append(v), lines(self, v, b))[1]
    )
    rates = "optimizer.param_groups=[{match: 'hidden.*', lr: 0.5}, {match: 'head.*', lr: 0.01}]"
    run(tmp_path, LATER, rates, "trainer.epochs=2")
    assert [values["lr"] for values in shown] == [0.01, 0.5]
    assert not [name for values in shown for name in values if name.startswith("lr/")]
    rows = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    assert {"lr/0", "lr/1"} < set(rows[0].split(","))


def test_of_several_rules_the_last_one_counts() -> None:
    rules = [rule("*"), rule("head.*", "50%"), rule("hidden.0.bias", "2 steps")]
    freezing = Freezing(make().model, rules, RunLength(5, 10))
    assert freezing.frozen_until == {
        "head.weight": "50%", "head.bias": "50%", "hidden.0.bias": "2 steps",
    }  # fmt: skip


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x))


def rule(match: Any, until: str | None = None) -> dict[str, Any]:
    return {"match": match, "until": until}


def moved(model: Normed) -> list[bool]:
    """Tell for each BatchNorm whether a training batch moves its statistics."""
    before = [model.stem[1].running_mean.clone(), model.head[1].running_mean.clone()]
    model(torch.randn(8, 4) + 3)
    after = [model.stem[1].running_mean, model.head[1].running_mean]
    return [not a.equal(b) for a, b in zip(before, after, strict=True)]


def test_frozen_batch_norm_stays_in_evaluation_until_it_thaws() -> None:
    model = Normed()
    freezing = Freezing(model, [rule("stem.*", "3 steps")], RunLength(5, 10))
    freezing.begin_epoch(0)
    assert moved(model) == [False, True]
    freezing.after_step(2)
    assert moved(model) == [False, True]
    freezing.after_step(3)
    assert moved(model) == [True, True]
    freezing.begin_epoch(2)  # as a resume from before would
    assert moved(model) == [False, True]


@pytest.mark.parametrize(
    ("match", "affine", "expected"),
    [("*.1.weight", True, [True, True]), ("stem.*", False, [False, True])],
    ids=["it keeps a trained parameter", "without parameters it goes with those around it"],
)
def test_what_moves_the_statistics_of_a_norm(
    match: str, affine: bool, expected: list[bool]
) -> None:
    model = Normed()
    model.stem[1] = nn.BatchNorm1d(4, affine=affine)
    Freezing(model, [rule(match)], RunLength(5, 10)).begin_epoch(0)
    assert moved(model) == expected


def test_a_rule_that_matches_nothing_is_an_error_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"freeze: no parameter matches 'hiden\.\*'; did you"):
        make("freeze=hiden.*")


@pytest.mark.parametrize(
    ("overrides", "until"),
    [
        (["freeze={match: 're:(?!classifier).*', until: 1 epoch}"], "1 epoch"),
        (["freeze={match: '*', until: 3 steps}", "optimizer={type: LBFGS}"], "3 steps"),
        (["freeze=['hidden.*', {match: 'head.*', until: 50%}]"], "50%"),
        (
            ["freeze=[{match: 'hidden.*', until: 1 epoch}, {match: 'head.*', until: 2 steps}]"],
            "1 epoch or 2 steps",
        ),
    ],
)
def test_nothing_to_train_at_the_first_step_is_an_error(overrides: list[str], until: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make(*overrides)
    (problem,) = raised.value.problems
    text = f"freeze: no parameter is left to train: all are frozen until {until}. The model ends"
    assert problem.message.startswith(text)
    assert " with hidden.0, head: let `match` leave out" in problem.message


@pytest.mark.parametrize("container", [list, tuple, dict])
def test_a_module_hidden_in_a_plain_container_is_named(container: type) -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    inner = [nn.ReLU(), nn.Linear(2, 2)]
    model[0].blocks = dict(enumerate(inner)) if container is dict else container(inner)
    expected = "ModuleDict" if container is dict else "ModuleList"
    with pytest.raises(ValueError, match=rf"0\.blocks of Linear is a plain .* nn\.{expected}"):
        check_model(model)


def test_what_hides_deeper_or_alone_is_named_too() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    model.rows = [[nn.Linear(1, 1)], {"a": nn.Linear(1, 1)}]
    model.scales = [nn.Parameter(torch.ones(1))]
    model.rows.append(model.rows)  # no end
    with pytest.raises(ValueError, match="plain list") as raised:
        check_model(model)
    rows, scales, _ = str(raised.value).splitlines()
    assert rows.startswith("rows of Sequential is a plain list of Linear,")
    assert scales.endswith("of Parameter, whose parameters torch does not find; make it an "
                           "nn.ParameterList")  # fmt: skip


def test_a_weight_that_an_lstm_computes_is_not_hidden() -> None:
    check_model(nn.utils.parametrizations.weight_norm(nn.LSTM(2, 2), "weight_hh_l0"))


def test_a_hidden_module_that_is_known_or_frozen_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    model.again = [model[0], nn.ReLU()]
    model.teacher = [nn.Linear(1, 1).requires_grad_(False)]
    check_model(model)
