"""Optuna's draws and verdicts, from the record of a sweep, against a study of Optuna itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from base.errors import UsageError
from base.sweeps.optuna_search import OptunaSearch
from base.sweeps.record import Plan, Sweep, TrialRecord, read_sweep
from base.sweeps.space import parse_space

optuna = pytest.importorskip("optuna")

TEXTS = ["lr=1e-4..1e-1 log", "model.args.width=4..64", "optimizer.type=SGD,AdamW"]
LR, WIDTH, TYPE = "optimizer.args.lr", "model.args.width", "optimizer.type"


def value_of(settings: dict[str, str]) -> float:
    return float(settings[LR]) + int(settings[WIDTH]) / 100 + (settings[TYPE] == "SGD")


def searched(folder: Path, n_trials: int, *, killed: bool, **options: Any) -> list[dict[str, str]]:
    """Draw one trial after the other; if `killed`, all that is left after each is sweep.json."""
    space = parse_space(TEXTS)
    folder.mkdir()
    sweep = Sweep(folder, Plan("c", [], TEXTS))
    search = OptunaSearch(space, 42, "min", **options)
    for number in range(1, n_trials + 1):
        if killed:
            sweep.save()
            sweep = read_sweep(folder)
            search = OptunaSearch(space, 42, "min", **options)
        settings, attributes = search.draw(sweep)
        trial = TrialRecord(number, settings, "finished", attributes=attributes)
        trial.value = value_of(settings)
        sweep.trials.append(trial)
    return [trial.settings for trial in sweep.trials]


@pytest.mark.parametrize(
    "sampler", ["tpe:n_startup_trials=3", "random", "qmc", "nsgaii", "TPESampler"]
)
def test_a_killed_search_draws_what_the_whole_one_does(sampler: str, tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole", 8, killed=False, sampler=sampler)
    assert searched(tmp_path / "killed", 8, killed=True, sampler=sampler) == whole
    assert len({json.dumps(each) for each in whole}) > 4
    for each in whole:
        assert 1e-4 <= float(each[LR]) <= 1e-1
        assert each[WIDTH].isdecimal()
        assert each[TYPE] in ("SGD", "AdamW")


def test_tpe_draws_as_a_study_of_optuna_does(tmp_path: Path) -> None:
    """The same sampler, asked and told by hand, with the values rounded as in a config."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize")
    wanted = []
    for number in range(6):
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=2, seed=42 + 7919 * number)
        trial = study.ask()
        lr = trial.suggest_float(LR, 1e-4, 1e-1, log=True)
        width = trial.suggest_int(WIDTH, 4, 64)
        kind = trial.suggest_categorical(TYPE, ("SGD", "AdamW"))
        wanted.append((float(f"{lr:.4g}"), width, kind))
        study.tell(trial, value_of({LR: f"{lr:.4g}", WIDTH: str(width), TYPE: kind}))
    found = searched(tmp_path / "x", 6, killed=False, sampler="tpe:n_startup_trials=2")
    drawn = [(float(each[LR]), int(each[WIDTH]), each[TYPE]) for each in found]
    assert drawn[:3] == wanted[:3]
    for (lr, width, kind), (lr2, width2, kind2) in zip(drawn, wanted, strict=True):
        assert lr == pytest.approx(lr2, rel=0.02)  # later ones depend on the rounded earlier ones
        assert (width, kind) == (width2, kind2)


@pytest.mark.parametrize(
    ("text", "pruner"),
    [
        ("median:n_startup_trials=2", optuna.pruners.MedianPruner(n_startup_trials=2)),
        ("percentile:percentile=50,n_startup_trials=1",
         optuna.pruners.PercentilePruner(50, n_startup_trials=1)),
        ("successivehalving:min_resource=1,reduction_factor=2",
         optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)),
        ("hyperband", optuna.pruners.HyperbandPruner(max_resource=9)),
    ],
)  # fmt: skip
def test_a_pruner_stops_what_it_stops_in_a_study_of_optuna(
    text: str, pruner: Any, tmp_path: Path
) -> None:
    """Each trial has a level, and gets worse or better; sweep.json is all that is kept."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=pruner, study_name="sweep")
    space = parse_space(["x=0.0..1.0"])
    sweep, n_pruned = Sweep(tmp_path, Plan("c", [], ["x=0.0..1.0"])), 0
    levels = [0.5, 0.2, 0.7, 0.1, 0.6, 0.9, 0.3, 0.8]
    for number, level in enumerate(levels, start=1):
        theirs = study.ask()
        theirs.suggest_float("x", 0.0, 1.0)
        sweep.trials.append(TrialRecord(number, {"x": str(level)}, "running"))
        for epoch in range(1, 10):
            value = level + 0.01 * epoch * (1 if number % 2 else -1)
            theirs.report(value, epoch)
            sweep.save()
            sweep = read_sweep(tmp_path)
            search = OptunaSearch(space, 1, "max", pruner=text, n_epochs=9)
            ours = sweep.trials[-1]
            ours.values[str(epoch)] = value
            stops = search.is_to_stop(sweep, ours)
            assert stops == theirs.should_prune(), (number, epoch)
            if stops:
                break
        ours.state, ours.value = ("pruned" if stops else "finished"), value
        n_pruned += stops
        state = optuna.trial.TrialState.PRUNED if stops else optuna.trial.TrialState.COMPLETE
        study.tell(theirs, None if stops else value, state=state)
    assert 0 < n_pruned < len(levels)


def test_a_value_that_is_no_number_is_pruned(tmp_path: Path) -> None:
    search = OptunaSearch(
        parse_space(["x=1,2"]), 1, "max", pruner="median:n_startup_trials=1", n_epochs=3
    )
    done = TrialRecord(1, {"x": "1"}, "finished", value=0.5, values={"1": 0.5})
    bad = TrialRecord(2, {"x": "2"}, "running", values={"1": None})
    assert search.is_to_stop(Sweep(tmp_path, Plan("c", [], []), [done, bad]), bad)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"pruner": "medain"}, "did you mean 'median'"),
        ({"pruner": "median:n_startup=3"}, "did you mean 'n_startup_trials'"),
        ({"pruner": "percentile"}, "percentile"),
        ({"sampler": "tpe:n_startup_trials=[1"}, "not valid YAML"),
        ({"sampler": "grid_"}, "Optuna has"),
    ],
)
def test_a_slip_is_one_line(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        OptunaSearch(parse_space(["x=1,2"]), 1, "max", **options)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_optuna_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(UsageError, match=r"--sampler tpe: needs Optuna.*requirements-extra\.txt"):
        OptunaSearch(parse_space(["x=1,2"]), 1, "max", sampler="tpe")
