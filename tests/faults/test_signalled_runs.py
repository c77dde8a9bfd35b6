"""Asked to stop, at whatever it is doing, a run saves, ends, and goes on to the same bits."""

from __future__ import annotations

import random
import re
import shlex
import signal
import time

import pytest
from digest import digest
from faults.injections import SignalIn
from faults.runs import SAVING, WORKERS, check_goes_on, processes_in
from faults.table import Trials
from processes import Done
from workplace import N_STEPS, Workplace

pytestmark = pytest.mark.end_to_end
TRAINER = "base.base_trainer.BaseTrainer"
PHASES = {
    "a step": f"{TRAINER}.train_step",
    "a save": "base.checkpoint.store.write_state",
    "validation": f"{TRAINER}.valid_step",
    "the start of workers": "multiprocessing.process.BaseProcess.start",
    "the end of an epoch": f"{TRAINER}.end_epoch",
    "a prune": "base.checkpoint.store.CheckpointStore._prune",
}


def go_on(place: Workplace, done: Done) -> None:
    """Type the command that an interrupted run has printed; without a run yet, the first one."""
    commands = re.findall(r"resume by: python train\.py (.+)", done.stderr)
    assert commands or re.fullmatch(r"stopped by SIG\w+, nothing more was saved\n", done.stderr)
    command = commands[0] if commands else "-c tiny.yaml"
    done = place.run(*shlex.split(command))
    assert (done.returncode, done.stderr) == (0, "")


def moments(trials: Trials, draw: random.Random, few: int, many: int) -> list[tuple[str, int]]:
    """Return phases, and at which entry into each the signal comes."""
    names = list(PHASES)
    chosen = [names[number % len(names)] for number in range(trials.count(few, many))]
    most = {"a save": 6, "a prune": 6, "the start of workers": 6, "the end of an epoch": 2}
    return [(name, draw.randint(1, most.get(name, N_STEPS - 1))) for name in chosen]


@pytest.mark.parametrize(
    ("row", "number", "code"),
    [
        pytest.param("F07", signal.SIGTERM, 143, marks=pytest.mark.fault("F07")),
        pytest.param("F08", signal.SIGINT, 130, marks=pytest.mark.fault("F08")),
    ],
)
def test_asked_to_stop_at_any_moment_a_run_goes_on_to_the_same_bits(
    whole: str, trials: Trials, row: str, number: signal.Signals, code: int
) -> None:
    draw = random.Random(row)
    for phase, at in moments(trials, draw, few=6 if row == "F07" else 2, many=60):
        with trials.trial_in_folder(f"{phase}, entry {at}") as place:
            words = [SAVING, f"{WORKERS}={draw.choice([0, 2])}"]
            if phase == "the start of workers":
                words[1] = f"{WORKERS}=2"
            injected = SignalIn(number, PHASES[phase], at)
            done = place.run("-c", "tiny.yaml", "--set", *words, inject=injected)
            assert done.returncode == code, done.stderr
            assert time.time() - injected.sent(place.folder) < 5
            assert processes_in(place) == []
            go_on(place, done)
            (folder,) = place.runs()
            assert digest(folder) == whole


@pytest.mark.fault("F07")
def test_a_worker_that_is_at_work_while_another_starts_ends_with_the_run(place: Workplace) -> None:
    """It passes over one SIGTERM, which is all that Python sends it at the end."""
    fault = SignalIn(signal.SIGTERM, PHASES["the start of workers"], at=2, delay=1.5)
    done = place.start("-c", "tiny.yaml", "--set", f"{WORKERS}=2", inject=fault).wait(30)
    assert (done.returncode, done.stderr) == (143, "stopped by SIGTERM, nothing more was saved\n")
    assert processes_in(place) == []


@pytest.mark.fault("F08")
def test_a_second_ctrl_c_ends_at_once_and_leaves_nothing(whole: str, trials: Trials) -> None:
    draw = random.Random(8)
    for phase, at in moments(trials, draw, few=2, many=40):
        with trials.trial_in_folder(f"{phase}, entry {at}") as place:
            words = [SAVING, f"{WORKERS}=2"]
            injected = SignalIn(signal.SIGINT, PHASES[phase], at, again_after=draw.uniform(0, 0.01))
            done = place.run("-c", "tiny.yaml", "--set", *words, inject=injected)
            assert done.returncode == 130, done.stderr
            assert "Traceback" not in done.stderr, done.stderr
            assert time.time() - injected.sent(place.folder) < 5
            assert processes_in(place) == []
            check_goes_on(place, whole)


@pytest.mark.fault("F09")
def test_sigusr1_at_any_moment_changes_nothing(whole: str, trials: Trials) -> None:
    draw = random.Random(9)
    for phase, at in moments(trials, draw, few=4, many=40):
        with trials.trial_in_folder(f"{phase}, entry {at}") as place:
            words = ["trainer.save_every=100 epochs", f"{WORKERS}=2"]
            if phase in ("a save", "a prune"):
                at = 1
            injected = SignalIn(signal.SIGUSR1, PHASES[phase], at)
            assert digest(place.train("--set", *words, inject=injected)) == whole
