"""The folder of a sweep: ``saved/NAME/sweeps/TIME/`` with ``sweep.json``, the record of its trials.

It is written whole after each event, so that the sweep can be resumed after ``kill -9``. Its trials
are ordinary runs in ``saved/NAME/``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from base.config.config import Config
from base.errors import UsageError, disk_error, why
from base.sweeps.space import Settings
from base.system.cores import free_cores
from base.system.run_folder import SWEEP, SWEEPS
from base.system.trial import trial_name
from logger.files import read_file, write_whole

FORMAT = 1
DONE = ("finished", "pruned", "failed")
"""The states of trials that are not started again."""


@dataclass
class TrialRecord:
    """One trial: its settings, and what has become of it."""

    number: int
    """Counted from 1."""
    settings: Settings
    state: str = "waiting"
    """waiting, running, finished, pruned, failed or interrupted."""
    folder: str | None = None
    """The folder of its run."""
    value: float | None = None
    """The best value of the monitor."""
    epoch: int | None = None
    """The epoch of that value; of a pruned trial, the epoch after which it was stopped."""
    seconds: float = 0.0
    """The time of its processes."""
    code: int | None = None
    """The exit code of its last process; negative for a signal."""
    error: str = ""
    """The last line that a failed process printed."""
    values: dict[str, float | None] = field(default_factory=dict)
    """The monitored values by epoch, if there is a pruner; None for NaN."""
    judged: dict[str, bool] = field(default_factory=dict)
    """Whether the pruner stopped the trial, by epoch."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """What Optuna keeps with the trial."""


@dataclass
class Plan:
    """What the command asks for; a resumed sweep keeps it."""

    config: str
    overrides: list[str]
    sweep: list[str]
    samples: int | None = None
    sampler: str | None = None
    pruner: str | None = None
    device: str | None = None
    jobs: int = 1


@dataclass
class Sweep:
    """The record of a sweep."""

    folder: Path
    plan: Plan
    trials: list[TrialRecord] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    """What Optuna keeps with the study."""
    free_cores: float | None = None
    """The cores that others left free at its start; all trials get the threads for these."""

    def save(self) -> None:
        """Write ``sweep.json``.

        Raises:
            FileError: it cannot be written.
        """
        content = {
            "format": FORMAT,
            "plan": asdict(self.plan),
            "attributes": self.attributes,
            "free_cores": self.free_cores,
            "trials": [asdict(trial) for trial in self.trials],
        }
        write_whole(self.folder / SWEEP, json.dumps(content, indent=1).encode() + b"\n")

    def name_of(self, trial: TrialRecord) -> str:
        """Return the name by which the run of a trial knows it."""
        return trial_name(self.folder, trial.number)

    def n_in(self, *states: str) -> int:
        """Return the number of trials in these states."""
        return sum(trial.state in states for trial in self.trials)


def create_sweep(plan: Plan, config: Config) -> Sweep:
    """Create the folder of a new sweep, with the config that its trials share.

    Raises:
        UsageError: the folder cannot be created.
    """
    parent = Path(config["trainer"]["save_dir"]) / config["name"] / SWEEPS
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep = Sweep(_make_new(parent), plan, free_cores=free_cores())
    except OSError as error:
        text = f"{parent}: cannot create the folder of a sweep: {why(error)}"
        raise disk_error(error, text, UsageError) from error
    write_whole(sweep.folder / "config.yaml", config.to_yaml().encode())
    return sweep


def read_sweep(folder: Path) -> Sweep:
    """Read the record of a sweep.

    Raises:
        UsageError: it is missing or damaged.
    """
    path = folder / SWEEP
    try:
        content = json.loads(read_file(path))
        if content["format"] != FORMAT:
            raise UsageError(f"{path}: it has format {content['format']}, and this reads {FORMAT}")
        return Sweep(
            folder,
            Plan(**content["plan"]),
            [TrialRecord(**trial) for trial in content["trials"]],
            content["attributes"],
            content.get("free_cores"),  # earlier versions lack it
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read: {why(error)}") from error


def find_sweep(plan: Plan, config: Config) -> Path | None:
    """Return the newest sweep of the config's name with this plan, whatever its jobs and device."""
    parent = Path(config["trainer"]["save_dir"]) / config["name"] / SWEEPS
    folder: Path
    for folder in sorted(parent.glob("*/"), reverse=True):
        with contextlib.suppress(UsageError):
            if _compared(read_sweep(folder).plan) == _compared(plan):
                return folder
    return None


def _compared(plan: Plan) -> Mapping[str, Any]:
    return {**asdict(plan), "jobs": None, "device": None}


def _make_new(parent: Path) -> Path:
    """Create a folder named by the time. mkdir fails for all processes but the first."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in itertools.chain([""], (f"_{number}" for number in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            made = parent / f"{stamp}{suffix}"
            made.mkdir()
            break
    return made
