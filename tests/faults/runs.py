"""What many of these tests do with the small run."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
from digest import digest
from faults.injections import CountCalls
from processes import Done
from workplace import Workplace

WORKERS = "data_loader.args.num_workers"
SAVING = "trainer.save_every=2 steps"
AUTO = ("-r", "auto", "-c", "tiny.yaml", "--set")


def count_calls(place: Workplace, every: int) -> int:
    """Train once; return how many calls changed the disk, of the writes each `every`-th."""
    place.train("--set", SAVING, inject=CountCalls(place.folder / "note", every))
    return int((place.folder / "note").read_text())


def newest_step(place: Workplace) -> int:
    """Return the step of the newest checkpoint of all runs; 0 for none."""
    found = place.folder.glob("saved/*/*/checkpoints/step-????????")
    return max((int(path.name[5:]) for path in found), default=0)


def check_failed(done: Done, *told: str, code: int = 1) -> None:
    """It has ended with this code, and told what happened without a traceback."""
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr, done.stderr
    for text in told:
        assert re.search(text, done.stderr), (text, done.stderr)


def check_goes_on(place: Workplace, whole: str, *more: str) -> None:
    """The same command ends the run with the bits of an unbroken one, and says nothing of errors.

    That the run which was begun last has no checkpoint yet may be told.
    """
    done = place.run(*AUTO, SAVING, *more)
    assert done.returncode == 0, done.stderr
    for line in done.stderr.splitlines():
        assert re.search(r"none of its \d+ runs? holds|holds no checkpoint", line), line
    assert digest(last_run(place)) == whole
    assert not [path for path in last_run(place).rglob("*") if ".tmp-" in path.name]


def last_run(place: Workplace) -> Path:
    """Return the folder of the last run with a checkpoint."""
    return [run for run in place.runs() if any((run / "checkpoints").glob("step-*"))][-1]


def processes_in(place: Workplace) -> list[psutil.Process]:
    """Return the processes that still work in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(place.folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
