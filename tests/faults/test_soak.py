"""A long run that meets random faults ends by itself, with the bits of one that meets none."""

from __future__ import annotations

import errno
import math
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress

import psutil
import pytest
from digest import digest
from faults.injections import Both, Clock, FailAtCall, LossTimes, Pace, RaiseIn, WaitAtMost
from faults.runs import AUTO, WORKERS, last_run, newest_step
from faults.table import Trials
from processes import Script
from workplace import Workplace

pytestmark = [pytest.mark.end_to_end, pytest.mark.fault("F33")]
STEP = 0.1  # seconds, about, that a step takes with its pace
Fault = Callable[[], object]


def damage_newest(place: Workplace, draw: random.Random) -> None:
    """Flip a bit of the newest checkpoint, or cut it off."""
    found = sorted(place.folder.glob("saved/*/*/checkpoints/step-????????"))
    if len(found) > 1:
        path = found[-1] / draw.choice(["state.pt", "manifest.json"])
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content if draw.random() < 0.5 else content[: len(content) // 2])


def worker_of(script: Script, draw: random.Random) -> psutil.Process:
    return draw.choice(psutil.Process(script.pid).children())


def act(script: Script, what: str, draw: random.Random) -> None:
    """Do from outside what is to be done to the running process."""
    numbers = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT, "SIGUSR1": signal.SIGUSR1}
    with suppress(psutil.Error, ProcessLookupError, IndexError):
        if what in numbers:
            script.signal_group(numbers[what])
        elif what == "a worker killed":
            worker_of(script, draw).kill()
        elif what == "a worker stopped":
            worker_of(script, draw).suspend()
        elif what in ("kill -9", "damage"):
            script.kill()


def from_within(what: str, step: int, draw: random.Random) -> Fault | None:
    """Return what prepares a fault that comes from inside, some steps later."""
    return {
        "not finite": LossTimes(math.nan, (step + draw.randint(1, 60),)),
        "exploding": LossTimes(1e30, (step + draw.randint(1, 60),)),
        "I/O error": FailAtCall(draw.randint(1, 900), errno.EIO, lasting=True),
        "disk full": FailAtCall(draw.randint(1, 900), errno.ENOSPC, lasting=draw.random() < 0.5),
        "failing worker": RaiseIn(
            "base.datasets.pipeline.Pipeline.with_targets", draw.randint(1, 60)
        ),
        "clock": Clock((0, -3600.0, 1e6)),
    }.get(what)


OUTSIDE = (
    "kill -9",
    "SIGTERM",
    "SIGINT",
    "SIGUSR1",
    "a worker killed",
    "a worker stopped",
    "damage",
)
INSIDE = ("not finite", "exploding", "I/O error", "disk full", "failing worker", "clock")


def test_nothing_is_lost_and_nobody_has_to_help(
    tmp_path_factory: pytest.TempPathFactory, trials: Trials, request: pytest.FixtureRequest
) -> None:
    """`--soak 120` lasts two hours; nine of ten steps that are made count for the result then."""
    minutes = request.config.getoption("--soak") or trials.count(1, 80) / 8
    n_epochs = max(4, round(minutes * 60 / STEP / 5))
    seed = random.randrange(10**6) if trials.makes_many else 33
    draw, between = random.Random(seed), (5, 30) if minutes > 1 else (1, 3)
    words = [f"trainer.epochs={n_epochs}", "trainer.save_every=10 steps", "trainer.keep=3"]
    words += ["trainer.validate_every=20", f"{WORKERS}=2", "trainer.monitor=off"]
    whole = Workplace(tmp_path_factory.mktemp("whole")).train("--set", *words)

    place = Workplace(tmp_path_factory.mktemp("soak"))
    note, counts = place.folder / "steps", dict.fromkeys((*OUTSIDE, *INSIDE), 0)
    is_over = False
    while not is_over:
        what = draw.choice((*OUTSIDE, *INSIDE))
        counts[what] += 1
        with trials.trial(f"seed {seed}: {what}"):
            inside = from_within(what, newest_step(place), draw)
            faults = [WaitAtMost(3), Pace(0.07, note), *([inside] if inside else [])]
            script = place.start(*AUTO, *words, inject=Both(*faults))
            moment = time.monotonic() + draw.uniform(*between)
            while script.process.exitcode is None and time.monotonic() < moment:
                time.sleep(0.01)
            if script.process.exitcode is None:
                act(script, what if what in OUTSIDE else "kill -9", draw)
                if what == "SIGUSR1":
                    time.sleep(draw.uniform(*between))
                    act(script, "kill -9", draw)
            done = script.wait(60)
            is_over = done.returncode == 0
            assert done.returncode in (0, 1, 3, 130, 143, -signal.SIGKILL), done
            assert "Traceback" not in done.stderr, done.stderr
            if what == "damage" and not is_over:
                damage_newest(place, draw)
    assert digest(last_run(place)) == digest(whole)
    n_made, n_needed = note.stat().st_size, 5 * n_epochs
    print(f"seed {seed}: {n_needed} of {n_made} steps that were made count; faults: {counts}")
    assert n_made >= n_needed
    assert minutes < 5 or n_needed >= 0.9 * n_made
