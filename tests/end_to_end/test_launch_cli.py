"""`-d cpu:2` starts two processes: one voice, one exit code, and signals that arrive once."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from processes import Script
from workplace import Workplace

# A script as train.py is, whose processes do not import torch.
STAND_IN = """
import os, sys, time
from pathlib import Path

from base.config.command_line import run
from base.distributed.launch import start_processes
from base.errors import ConfigError, Problem
from base.system.signals import InterruptedRunError, SignalFlags


def main(arguments):
    code = start_processes("cpu:2", arguments)
    if code is not None:
        return code
    rank, (wanted,) = os.environ["RANK"], arguments
    if wanted == "error":
        raise ConfigError([Problem("lr", f"is too high, says {rank}")])
    if wanted == "bug":
        raise KeyError(f"of rank {rank}")
    with SignalFlags() as flags:
        Path(f"ready-{rank}").touch()
        if rank == "1" and wanted.isdigit():
            sys.exit(int(wanted))
        if rank == "1" and wanted == "kill":
            os.kill(os.getpid(), 9)
        while flags.stop is None:
            time.sleep(0.02)
            if flags.save:
                flags.save = False
                Path(f"saved-{rank}").touch()
        time.sleep(0.5)  # to save
    raise InterruptedRunError(flags.stop, None, 7)


run(main)
"""


@pytest.fixture
def script(place: Workplace, project_root: Path) -> Path:
    """The path of the script."""
    path = place.folder / "stand_in.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(project_root)!r})\n{STAND_IN}")
    return path


def start(place: Workplace, script: Path, wanted: str) -> Script:
    return Script([script, wanted], place.folder, {"OMP_NUM_THREADS": "1"})


def start_and_wait(place: Workplace, script: Path) -> Script:
    """Start it, and wait until both processes listen to signals."""
    running = start(place, script, "wait")
    running.wait_until(lambda: all((place.folder / f"ready-{rank}").exists() for rank in (0, 1)))
    return running


@pytest.mark.parametrize(
    ("wanted", "code", "told"),
    [
        ("error", 2, "lr: is too high, says 0\n"),
        ("3", 3, "stopped by SIGTERM after step 7, and saved\n"),
        ("kill", 137, "rank 1 was ended by SIGKILL (as the system does when memory runs out)\n"),
    ],
)
def test_a_failure_is_told_once_and_gives_its_exit_code(
    place: Workplace, script: Path, wanted: str, code: int, told: str
) -> None:
    done = start(place, script, wanted).wait()
    assert done.returncode == code
    assert done.stderr.endswith(told)
    assert done.stderr.count("\n") <= 2
    assert done.stdout.startswith("starting 2 processes: ")
    command = f"torchrun --standalone --nproc-per-node 2 {script} {wanted}\n"
    assert done.stdout.endswith(command)


def test_a_traceback_is_printed_once(place: Workplace, script: Path) -> None:
    done = start(place, script, "bug").wait()
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("KeyError: 'of rank 0'\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_all_processes_once(
    place: Workplace, script: Path, number: signal.Signals, code: int
) -> None:
    running = start_and_wait(place, script)
    running.signal(number)
    done = running.wait(20)
    told = f"stopped by {number.name} after step 7, and saved\n"
    assert (done.returncode, done.stderr) == (code, told)


def test_a_second_interrupt_stops_at_once(place: Workplace, script: Path) -> None:
    running = start_and_wait(place, script)
    running.signal(signal.SIGINT)
    time.sleep(0.7)  # a second one before 0.5 s counts as the first, repeated by torchrun
    running.signal(signal.SIGINT)
    done = running.wait(20)
    assert done.returncode == 130


def test_sigusr1_reaches_all_processes(place: Workplace, script: Path) -> None:
    running = start_and_wait(place, script)
    running.signal(signal.SIGUSR1)
    running.wait_until(lambda: all((place.folder / f"saved-{rank}").exists() for rank in (0, 1)))
    running.signal(signal.SIGTERM)
    assert running.wait(20).returncode == 143


def test_a_wrong_argument_is_told_once_by_train_py(place: Workplace) -> None:
    done = place.run("-c", "tiny.yaml", "-d", "cpu:2", "--set", "model.args.widht=3")
    assert done.returncode == 2
    assert done.stderr.count("did you mean 'width'?") == 1
    assert done.stderr.count("\n") == 1
    assert not (place.folder / "saved").exists()


def test_a_wrong_structure_starts_nothing(place: Workplace) -> None:
    done = place.run("-c", "tiny.yaml", "-d", "cpu:2", "--set", "trainer.epohcs=2")
    assert (done.returncode, done.stdout) == (2, "")
    done = place.run("-c", "tiny.yaml", "-d", "cpu:2", "--print-config")
    assert done.returncode == 0
    assert "starting" not in done.stdout
