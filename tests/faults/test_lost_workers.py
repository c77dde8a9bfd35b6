"""Workers that are killed, stopped or fail end a run, which goes on to the same bits."""

from __future__ import annotations

import random
import signal
import time

import psutil
import pytest
from digest import digest
from faults.injections import RaiseIn, WaitAtMost
from faults.runs import (
    SAVING,
    WORKERS,
    check_failed,
    check_goes_on,
    last_run,
    newest_step,
    processes_in,
)
from faults.table import Trials

pytestmark = [pytest.mark.end_to_end, pytest.mark.fault("F15")]
LONG = ("trainer.epochs=400", "lr_scheduler=null")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        pytest.param(signal.SIGKILL, "reading .*; its workers were killed", id="killed"),
        pytest.param(signal.SIGSTOP, "no batch for 2 s; its workers were killed", id="stopped"),
    ],
)
def test_a_worker_lost_at_any_moment_ends_the_run_soon(
    trials: Trials, number: signal.Signals, told: str
) -> None:
    draw = random.Random(number)
    for trial in range(trials.count(1, 20)):
        with trials.trial_in_folder(trial) as place:
            words = (SAVING, f"{WORKERS}=2", *LONG)
            script = place.start("-c", "tiny.yaml", "--set", *words, inject=WaitAtMost(2))
            script.wait_until(lambda: newest_step(place) >= 2)
            time.sleep(draw.uniform(0, 0.3))
            lost = draw.choice(psutil.Process(script.pid).children()[:2])  # any two of four
            lost.send_signal(number)
            start = time.monotonic()
            done = script.wait(20)
            check_failed(done, told)
            assert time.monotonic() - start < 5
            assert len(done.stderr.splitlines()) == 1
            assert processes_in(place) == []
            done = place.run("-r", "--set", "trainer.epochs=1")
            assert (done.returncode, done.stderr) == (0, "")


def test_a_worker_that_fails_tells_where_and_the_run_goes_on_to_the_same_bits(
    whole: str, trials: Trials
) -> None:
    draw = random.Random(15)
    for trial in range(trials.count(1, 20)):
        with trials.trial_in_folder(trial) as place:
            n_workers = draw.choice([0, 2])
            at = draw.randint(1, 7 if n_workers else 15)
            fault = RaiseIn("base.datasets.pipeline.Pipeline.with_targets", at)
            words = (SAVING, f"{WORKERS}={n_workers}")
            done = place.run("-c", "tiny.yaml", "--set", *words, inject=fault)
            assert (place.folder / fault.NOTE).exists()
            if done.returncode == 0:  # it failed in a batch that was read ahead, and not used
                assert digest(last_run(place)) == whole
                continue
            check_failed(
                done, r"cannot read samples \[\d+.*RuntimeError: a fault of the test's own"
            )
            assert processes_in(place) == []
            check_goes_on(place, whole)
