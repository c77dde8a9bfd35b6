"""The processes of trials: ordinary calls of train.py, a few at a time, each on a device."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from base.distributed.launch import parse_devices
from base.errors import UsageError
from base.sweeps.record import TrialRecord
from base.system.places import PROJECT
from base.system.trial import Trial

SEVERAL = ("auto", "cuda", "all", "n_gpu")
"""Kinds of devices of which each job takes one, if there are several GPUs."""


@dataclass
class Process:
    """The running process of a trial.

    Args:
        device: what follows ``-d``; None leaves it to the config.
    """

    trial: TrialRecord
    device: str | None
    popen: subprocess.Popen[bytes]
    output: Path
    """What it prints to stderr, until it has ended with success."""
    started: float = field(default_factory=time.monotonic)
    is_pruned: bool = False

    @property
    def seconds(self) -> float:
        """The time since its start."""
        return time.monotonic() - self.started

    def send(self, number: int) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            self.popen.send_signal(number)

    def last_line(self) -> str:
        """Return the error that it printed: the last line, without the advice below an error."""
        with contextlib.suppress(OSError):
            lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()
            lines = [line for line in lines if line.strip() and not line.startswith("the last ch")]
            return lines[-1].strip() if lines else ""
        return ""


def start_process(
    trial: TrialRecord, arguments: Sequence[str], sweep: Path, n_jobs: int, is_judged: bool,
    device: str | None = None, free_cores: float | None = None,
) -> Process:  # fmt: skip
    """Start train.py for a trial, in a process group of its own: a Ctrl-C reaches the sweep alone.

    Args:
        is_judged: whether a pruner may stop it.
        free_cores: what its `free_cores` returns; None to measure it.
    """
    about = Trial(str(sweep.absolute()), trial.number, n_jobs, is_judged, os.getpid(), free_cores)
    words = [*arguments, *([] if device is None else ["-d", device])]
    output = sweep / f"trial-{trial.number}.err"
    with output.open("wb") as errors:
        popen = _start([sys.executable, str(PROJECT / "train.py"), *words], about, errors)
    return Process(trial, device, popen, output)


def _start(command: list[str], about: Trial, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=about.environment(),
        start_new_session=True,
    )


def devices_of_jobs(given: str | None, configured: str, n_jobs: int, n_gpus: int) -> list[str]:
    """Return what follows ``-d`` for each job; "" where the config says it all.

    One job takes all the devices that ``-d`` names. Several jobs take a GPU each, in turn, if there
    are several or ``-d`` lists them; all of them train on the CPU where there is none.

    Args:
        given: what follows ``-d`` in the command of the sweep.
        configured: the config's ``device``.

    Raises:
        UsageError: there are no such GPUs.
    """
    name = given or configured
    devices = parse_devices(name)
    if n_jobs == 1 or (devices.kind not in SEVERAL and len(devices.numbers) < 2):
        return [given or ""] * n_jobs
    numbers = devices.numbers or tuple(range(n_gpus))
    missing = [number for number in devices.numbers if number >= n_gpus]
    if missing or (devices.kind == "all" and not n_gpus):
        raise UsageError(f"-d {name}: the number of CUDA devices here is {n_gpus}")
    if not numbers or (len(numbers) == 1 and not given):
        return [given or ""] * n_jobs
    return [str(numbers[job % len(numbers)]) for job in range(n_jobs)]


def end_processes(processes: Collection[Process], number: int) -> None:
    """Send a signal to processes and wait until they have ended."""
    for process in processes:
        process.send(number)
    for process in processes:
        process.popen.wait()
