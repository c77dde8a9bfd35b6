"""A run that is killed at any moment, or at any call that changes the disk, ends with its bits."""

from __future__ import annotations

import random
import signal
import time

import pytest
from faults.injections import DieAtCall
from faults.runs import AUTO, SAVING, WORKERS, check_goes_on, count_calls, newest_step
from faults.table import Trials
from workplace import Workplace

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def seconds_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> float:
    """How long the small run takes, from the start of its process to its end."""
    place = Workplace(tmp_path_factory.mktemp("timed"))
    start = time.monotonic()
    place.train()
    return time.monotonic() - start


@pytest.mark.fault("F01")
def test_killed_at_a_random_moment_a_run_ends_with_the_same_bits(
    whole: str, trials: Trials, seconds_of_a_run: float
) -> None:
    """Some are killed a second time, while they go on."""
    seed = random.randrange(10**6) if trials.makes_many else 1
    draw = random.Random(seed)
    for number in range(trials.count(3, 200)):
        with trials.trial_in_folder(f"seed {seed}, kill {number}") as place:
            for _ in range(draw.choice([1, 1, 2])):
                before = newest_step(place)
                script = place.start(*AUTO, SAVING, f"{WORKERS}={draw.choice([0, 1, 2])}")
                time.sleep(draw.uniform(0, seconds_of_a_run))
                script.kill()
                done = script.wait()
                assert done.returncode in (0, -signal.SIGKILL), done.stderr
                assert "Traceback" not in done.stderr, done.stderr
                assert newest_step(place) >= before
            check_goes_on(place, whole)


@pytest.mark.fault("F02")
def test_killed_at_any_call_that_changes_the_disk_a_run_ends_with_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory, whole: str, trials: Trials
) -> None:
    """Folders, files, syncs, renames and some of the writes, of all that a run does."""
    every = 40
    n_calls = count_calls(Workplace(tmp_path_factory.mktemp("counted")), every)
    assert n_calls > 50
    for at in trials.some(list(range(1, n_calls + 1)), few=3):
        with trials.trial_in_folder(f"call {at} of {n_calls}") as place:
            done = place.run(*AUTO, SAVING, inject=DieAtCall(at, every))
            assert done.returncode == -signal.SIGKILL
            check_goes_on(place, whole)
