"""Losses that are no numbers, or too large: nothing of them is ever saved."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from digest import digest
from faults.injections import Both, DieAtCall, LossTimes
from faults.runs import AUTO, SAVING, check_failed, check_goes_on, last_run
from faults.table import Trials
from workplace import N_STEPS, Workplace

from base.checkpoint.store import read

pytestmark = pytest.mark.end_to_end
CASES = [
    pytest.param("F16", math.nan, marks=pytest.mark.fault("F16")),
    pytest.param("F16", math.inf, marks=pytest.mark.fault("F16")),
    pytest.param("F17", 1e30, marks=pytest.mark.fault("F17")),
]


def check_finite(folder: Path) -> None:
    """Every weight of every checkpoint is a number."""
    for path in (folder / "checkpoints").glob("step-*"):
        for name, tensor in read(path)["model"].items():
            assert torch.isfinite(tensor.float()).all(), (path, name)


@pytest.mark.parametrize(("row", "factor"), CASES)
def test_a_run_stops_before_the_step_and_goes_on_to_the_same_bits_without_the_fault(
    whole: str, trials: Trials, row: str, factor: float
) -> None:
    draw = random.Random(row)
    for _ in range(trials.count(1, 20)):
        step = draw.randint(3, N_STEPS)  # the one before is saved
        with trials.trial_in_folder(f"step {step}") as place:
            done = place.run("-c", "tiny.yaml", "--set", SAVING, inject=LossTimes(factor, (step,)))
            check_failed(done, "not finite", r"(at|after) step \d+")
            check_finite(last_run(place))
            check_goes_on(place, whole)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize(("row", "factor"), CASES)
def test_a_run_that_drops_the_step_ends_and_resumes_exactly(
    tmp_path_factory: pytest.TempPathFactory, trials: Trials, row: str, factor: float, policy: str
) -> None:
    draw = random.Random(row + policy)
    for _ in range(trials.count(1, 10)):
        steps = tuple(sorted(draw.sample(range(2, N_STEPS + 1), 2)))
        with trials.trial(f"steps {steps}"):
            words = (SAVING, f"trainer.on_nonfinite={policy}")
            fault = LossTimes(factor, steps)
            place = Workplace(tmp_path_factory.mktemp("unbroken"))
            unbroken = place.train("--set", *words, inject=fault)
            check_finite(unbroken)
            assert read(unbroken)["progress"]["skipped"] == 2
            place = Workplace(tmp_path_factory.mktemp("broken"))
            killed = place.run(
                *AUTO, *words, inject=Both(fault, DieAtCall(draw.randint(20, 60), 20))
            )
            assert killed.returncode in (0, -9), killed.stderr
            done = place.run(*AUTO, *words, inject=fault)
            assert done.returncode == 0, done.stderr
            check_finite(last_run(place))
            assert digest(last_run(place)) == digest(unbroken)
