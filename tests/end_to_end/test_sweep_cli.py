"""Sweeps as a user runs them: ordinary runs, a table at the end, and a kill at any moment."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from typing import Any

import pytest
from processes import Done, Script
from workplace import Workplace

pytestmark = pytest.mark.end_to_end

TWO_EPOCHS = ("-c", "tiny.yaml", "--set", "trainer.epochs=2", "lr_scheduler=null")
LR = "optimizer.args.lr"
GRID = ["--sweep", "lr=1e-3,1e-2"]
LIMITS = ["--sweep", "lr=1e-4..1e-2 log", "--samples", "3"]


class Swept:
    """What a sweep has left in ``saved/``."""

    def __init__(self, place: Workplace, name: str = "tiny") -> None:
        self.root = place.folder
        (self.folder,) = (place.folder / "saved" / name / "sweeps").glob("*/")

    @property
    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "sweep.json").read_text())
        return content

    @property
    def trials(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.record["trials"]
        return found

    @property
    def table(self) -> list[dict[str, str]]:
        with (self.folder / "table.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def results(self) -> list[tuple[Any, ...]]:
        """Return what an interrupted sweep must have in common with a whole one."""
        return [
            (each["settings"], each["state"], each["value"], each["epoch"], self.rows(each))
            for each in self.trials
        ]

    def rows(self, trial: dict[str, Any]) -> list[dict[str, str]]:
        """Return the metrics of a trial but for what is measured."""
        with (self.root / trial["folder"] / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        measured = ("seconds", "samples_per_second", "memory_mb", "wait")
        return [
            {k: v for k, v in row.items() if k not in measured and not k.startswith("time/")}
            for row in rows
        ]


def children(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(word) for word in found.stdout.split()]


def start_until_saved(place: Workplace, *words: str) -> Script:
    """Start a sweep; return it once the first trial has a checkpoint."""
    script = place.start(*words)
    pattern = "saved/tiny/2*/checkpoints/step-*"
    script.wait_until(lambda: any(place.folder.glob(pattern)))
    return script


def resume(place: Workplace) -> Done:
    done = place.run("-r", str(Swept(place).folder.relative_to(place.folder)))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The results of the random sweep that nothing interrupted."""
    place = Workplace(tmp_path_factory.mktemp("whole"))
    done = place.run(*TWO_EPOCHS, *LIMITS)
    assert done.returncode == 0, done.stdout + done.stderr
    return Swept(place).results()


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Swept, str]:
    """A sweep that nothing interrupted, two trials at once, and what it has printed."""
    place = Workplace(tmp_path_factory.mktemp("grid"))
    done = place.run(*TWO_EPOCHS, *GRID, "--jobs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return place, Swept(place), done.stdout


def test_a_trial_is_the_ordinary_run_of_its_command(grid: tuple[Workplace, Swept, str]) -> None:
    place, swept, printed = grid
    assert [each["settings"] for each in swept.trials] == [{LR: "1e-3"}, {LR: "1e-2"}]
    run = place.train(*TWO_EPOCHS[2:], "--lr", "1e-2")
    ours = {"folder": str(run)}
    assert swept.rows(swept.trials[1]) == swept.rows(ours)
    # the loss is monitored, as the config names nothing else
    best = min(float(row["valid/loss"]) for row in swept.rows(ours))
    assert swept.trials[1]["value"] == best
    ranked = [float(row["valid/loss"]) for row in swept.table]
    assert ranked == sorted(ranked)
    assert (swept.folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(swept.folder.glob("*.err"))
    assert f"--set trainer.epochs=2 lr_scheduler=null {LR}={swept.table[0][LR]}" in printed
    # the sweep is no run: -r finds the newest of them
    assert str(run.relative_to(place.folder)) in place.run("-r").stdout


def test_killed_with_its_trial_a_sweep_ends_as_the_whole_one(
    place: Workplace, grid: tuple[Workplace, Swept, str]
) -> None:
    script = start_until_saved(place, *TWO_EPOCHS, *GRID)
    trials = children(script.pid)
    script.kill()
    for pid in trials:
        os.kill(pid, signal.SIGKILL)
    assert len(trials) == 1
    resume(place)
    assert Swept(place).results() == grid[1].results()
    assert len(list(place.folder.glob("saved/tiny/2*"))) == 2  # none was begun again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "seconds"), [("sweep", 0.5), ("sweep", 8), ("trial", 5), ("both", 4), ("both", 11)]
)
def test_killed_at_any_moment_a_sweep_ends_as_the_whole_one(
    victim: str, seconds: float, place: Workplace, whole: list[tuple[Any, ...]]
) -> None:
    script = place.start(*TWO_EPOCHS, *LIMITS)
    script.wait_until(lambda: any(place.folder.glob("saved/tiny/sweeps/*/sweep.json")))
    time.sleep(seconds)
    trials = children(script.pid)
    if victim != "trial":
        script.kill()
    for pid in trials if victim != "sweep" else ():
        os.kill(pid, signal.SIGKILL)
    if victim == "trial":  # the sweep goes on with the others
        done = script.wait()
        assert done.returncode == (1 if trials else 0)
        assert ("interrupted (-9)" in done.stdout) == bool(trials)
    resume(place)
    assert Swept(place).results() == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_trials_with_their_save(
    number: signal.Signals, place: Workplace, whole: list[tuple[Any, ...]]
) -> None:
    script = start_until_saved(place, *TWO_EPOCHS, *LIMITS, "--jobs", "2")
    script.signal(number)
    done = script.wait()
    swept = Swept(place)
    command = f"python train.py -r {swept.folder.relative_to(place.folder)}"
    assert done.returncode == 128 + number
    assert done.stderr == (
        f"stopped by {number.name}: 0 of 3 trials are done, the others are saved; "
        f"resume by: {command}\n"
    )
    assert {each["state"] for each in swept.trials} <= {"interrupted", "waiting"}
    resume(place)
    assert swept.results() == whole
    again = resume(place)  # nothing is left to do
    assert "3 of them done" in again.stdout
    assert "trial 1 of 3:" not in again.stdout


@pytest.mark.slow
def test_the_same_command_with_r_resumes_and_more_samples_add_trials(
    place: Workplace, whole: list[tuple[Any, ...]]
) -> None:
    fewer = [*LIMITS[:-1], "2"]
    assert place.run(*TWO_EPOCHS, *fewer, "-r", "auto").returncode == 0
    assert place.run(*TWO_EPOCHS, *fewer, "-r").returncode == 0
    swept = Swept(place)  # one sweep
    assert swept.results() == whole[:2]
    path = str(swept.folder.relative_to(place.folder))
    assert place.run("-r", path, "--samples", "3", "--jobs", "2").returncode == 0
    assert swept.results() == whole


@pytest.mark.slow
def test_a_failing_trial_is_recorded_and_the_others_continue(place: Workplace) -> None:
    done = place.run(*TWO_EPOCHS, "--sweep", "lr=1e30,1e-3", "--set", "model.args.dropout=0")
    assert done.returncode == 1
    swept = Swept(place)
    assert [(each["state"], each["code"]) for each in swept.trials] == [
        ("failed", 1),
        ("finished", 0),
    ]
    assert "lr=1e30" in done.stdout
    assert "failed (1): the loss is not finite" in done.stdout
    assert "not finite" in (swept.folder / "trial-1.err").read_text()
    assert swept.table[1]["state"] == "failed"
    path = str(swept.folder.relative_to(place.folder))
    assert place.run("-r", path).returncode == 1  # it is not repeated
    assert len(list(place.folder.glob("saved/tiny/2*"))) == 2


@pytest.mark.slow
def test_a_misspelt_monitor_is_an_error_before_the_first_trial(place: Workplace) -> None:
    monitor = "trainer.monitor=max valid/acuracy"
    done = place.run(*TWO_EPOCHS, "--set", monitor, "--sweep", "lr=1e-4,1e-3")
    assert done.returncode == 2
    assert "did you mean 'valid/accuracy'" in done.stderr
    assert done.stdout == ""
    assert place.files() == set()


@pytest.mark.slow
def test_an_error_in_the_config_of_a_trial_stops_the_sweep(place: Workplace) -> None:
    """Its folder stays, as the command that resumes it has been printed."""
    without = ["data_loader.args.validation_split=0.0", "trainer.monitor=max valid/accuracy"]
    done = place.run(*TWO_EPOCHS, *without, *GRID)
    assert done.returncode == 2
    assert "trial 2" not in done.stdout
    folder = Swept(place).folder.relative_to(place.folder)
    assert f"train.py -r {folder}" in done.stdout
    assert f"train.py -r {folder}" in done.stderr


@pytest.mark.slow
def test_optuna_draws_and_prunes_the_same_after_a_kill(
    place: Workplace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("optuna")
    words = [*LIMITS[:-1], "4", "--sampler", "tpe:n_startup_trials=1"]
    words += ["--pruner", "median:n_startup_trials=1", "--set", "trainer.epochs=3"]
    other = Workplace(tmp_path_factory.mktemp("other"))
    assert other.run(*TWO_EPOCHS, *words).returncode == 0
    results = Swept(other).results()
    assert "pruned" in {each[1] for each in results}

    script = start_until_saved(place, *TWO_EPOCHS, *words)
    for seconds in (3, 6):
        time.sleep(seconds)
        trials = children(script.pid)
        script.kill()
        for pid in trials:
            os.kill(pid, signal.SIGKILL)
        script = place.start("-r", str(Swept(place).folder.relative_to(place.folder)))
    done = script.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    assert Swept(place).results() == results
    # a pruned trial is an ordinary run, stopped at the end of an epoch
    pruned = next(each for each in Swept(place).trials if each["state"] == "pruned")
    assert len(Swept(place).rows(pruned)) == pruned["epoch"] < 3
    assert place.run("-r", pruned["folder"]).returncode == 0
    assert len(Swept(place).rows(pruned)) == 3
