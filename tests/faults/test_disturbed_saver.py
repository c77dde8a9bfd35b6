"""Saving beside the training (`trainer.async_save`): killed, slow or failing, it loses nothing."""

from __future__ import annotations

import errno
import random
import signal
import time
from pathlib import Path

import pytest
from digest import digest_of
from faults.injections import FailAtCall, SlowDisk
from faults.runs import AUTO, SAVING, check_failed, check_goes_on
from faults.table import Trials
from workplace import Workplace

from base.checkpoint.store import read

pytestmark = [pytest.mark.end_to_end, pytest.mark.fault("F31")]
BESIDE = "trainer.async_save=true"


def test_killed_at_a_random_moment_a_run_ends_with_the_same_bits(
    whole: str, trials: Trials
) -> None:
    draw = random.Random(31)
    for number in range(trials.count(1, 30)):
        with trials.trial_in_folder(number) as place:
            words = (SAVING, BESIDE)
            script = place.start(*AUTO, *words, inject=SlowDisk(draw.choice([0, 0.001])))
            time.sleep(draw.uniform(0, 1.5))
            script.kill()
            assert script.wait().returncode in (0, -signal.SIGKILL)
            check_goes_on(place, whole, BESIDE)


def test_on_a_slow_disk_each_checkpoint_is_what_it_is_without_the_saver(
    place: Workplace, finished_once: Path, trials: Trials
) -> None:
    folder = place.train("--set", BESIDE, "trainer.save_every=1 steps", inject=SlowDisk(0.0005))
    found = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert len(found) == 15
    for name in found:
        with trials.trial(name):
            states = [read(run / "checkpoints" / name) for run in (folder, finished_once)]
            assert digest_of(states[0]) == digest_of(states[1])


def test_a_save_that_fails_beside_the_training_ends_the_run_soon(
    whole: str, trials: Trials
) -> None:
    draw = random.Random(32)
    for number in range(trials.count(2, 30)):
        with trials.trial_in_folder(number) as place:
            fault = FailAtCall(draw.randint(10, 400), errno.EIO, lasting=True)
            done = place.run("-c", "tiny.yaml", "--set", SAVING, BESIDE, inject=fault)
            if done.returncode == 0:  # all but tidying up was done
                assert "pruning failed: Input/output error" in done.stderr
            else:
                assert done.returncode in (1, 2)
                check_failed(done, r"Input/output error", code=done.returncode)
            check_goes_on(place, whole, BESIDE)
