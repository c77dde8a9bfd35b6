"""The trial of a sweep that this process trains, by its environment; torch is not imported.

A trial with a pruner and its sweep exchange small files in the folder of the sweep, which also
works for a trial of several processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from base.system.processes import rank
from logger.files import read_file, write_whole

VARIABLE = "KINDLING_TRIAL"
PR_SET_PDEATHSIG = 1  # of Linux's prctl


@dataclass(frozen=True)
class Trial:
    """What the process of a sweep passes to that of a trial, which is an ordinary run otherwise."""

    sweep: str
    """The folder of the sweep."""
    number: int
    n_jobs: int
    """The number of trials at once, which share the cores and the memory of the machine."""
    is_judged: bool
    """Whether the sweep may stop the trial at the end of an epoch."""
    parent: int
    """The process of the sweep."""
    free_cores: float | None = None
    """The cores that others left free at the start of the sweep, for equal trials."""

    @property
    def name(self) -> str:
        """The name that ``run.json`` holds, such as ``digits/sweeps/20261129-064611#3``."""
        return trial_name(Path(self.sweep), self.number)

    def environment(self) -> dict[str, str]:
        """Return the environment of the trial's process."""
        return {**os.environ, VARIABLE: json.dumps(asdict(self))}


def trial_name(sweep: Path, number: int) -> str:
    """Return the name of a trial in the folder of a sweep."""
    return f"{'/'.join(sweep.absolute().parts[-3:])}#{number}"


def current_trial() -> Trial | None:
    """Return the trial that this process trains; None if no sweep started it."""
    text = os.environ.get(VARIABLE)
    return None if text is None else Trial(**json.loads(text))


def stamp_of_trial() -> dict[str, str]:
    """Return what ``run.json`` holds of a trial; nothing for other runs."""
    trial = current_trial()
    return {} if trial is None else {"trial": trial.name}


def note_folder(folder: Path) -> None:
    """Tell the sweep which folder this process, if it trains a trial, has made for its run.

    The sweep would otherwise search all runs for it. It does so where this is missing.
    """
    trial = current_trial()
    if trial is not None and Path(trial.sweep).is_dir():
        with contextlib.suppress(OSError):
            write_message(folder_file(trial.sweep, trial.number), folder=str(folder))


def end_with_sweep() -> None:
    """Let the end of the sweep's process stop this one as SIGTERM does, also after ``kill -9``.

    Only Linux can; elsewhere the trial trains to its end, and a resumed sweep waits for it.
    """
    trial = current_trial()
    if trial is None or rank() is not None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != trial.parent:  # it has ended already
        sys.exit(128 + signal.SIGTERM)


def folder_file(sweep: Path | str, number: int) -> Path:
    """Return the file in which a trial names the folder of its run, until it has ended."""
    return Path(sweep) / f"trial-{number}.folder"


def question_file(sweep: Path | str, number: int) -> Path:
    """Return the file in which a trial reports its last epoch: ``{epoch, value}``."""
    return Path(sweep) / "pruning" / f"{number}.question.json"


def answer_file(sweep: Path | str, number: int) -> Path:
    """Return the file in which the sweep answers: ``{epoch, stop}``."""
    return Path(sweep) / "pruning" / f"{number}.answer.json"


def read_message(path: Path) -> dict[str, Any]:
    """Return the content of a question or an answer; empty if there is none yet."""
    try:
        content: dict[str, Any] = json.loads(read_file(path))
    except FileNotFoundError:
        return {}
    return content


def write_message(path: Path, **content: Any) -> None:
    """Write a question or an answer whole."""
    write_whole(path, json.dumps(content).encode())
