"""The folder of a sweep: ``saved/NAME/sweeps/TIME/`` with ``sweep.json``, the record of its trials.

It is written whole after each event, so that the sweep can be resumed after ``kill -9``. Beyond
`MOST_WHOLE` bytes, that would be the square of the trials: events are lines of ``sweep.jsonl``,
until these are as long as the record. Its trials are ordinary runs in ``saved/NAME/``.
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
from logger.files import append, read_file, write_whole

JOURNAL = "sweep.jsonl"
FORMAT, WITH_JOURNAL = 1, 2
"""Of ``sweep.json``: alone, and with events in ``sweep.jsonl``, which earlier versions ignore."""
MOST_WHOLE = 64_000  # bytes: about 200 trials
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

    _n_saved: int = field(default=0, init=False, compare=False)
    """Bytes of ``sweep.json``."""
    _n_noted: int = field(default=0, init=False, compare=False)
    """Bytes of the events in ``sweep.jsonl``."""
    _has_journal: bool = field(default=False, init=False, compare=False)
    _journal: int = field(default=0, init=False, compare=False)
    """The number of the journal: one that was begun before the last `save` has another."""
    _noted_attributes: str = field(default="", init=False, compare=False)

    def save(self) -> None:
        """Write ``sweep.json`` whole.

        Raises:
            FileError: it cannot be written.
        """
        content = {
            "format": WITH_JOURNAL if self._has_journal else FORMAT,
            "plan": asdict(self.plan),
            "attributes": self.attributes,
            "free_cores": self.free_cores,
            "journal": self._journal + 1,
            "trials": [asdict(trial) for trial in self.trials],
        }
        text = json.dumps(content, indent=1).encode() + b"\n"
        write_whole(self.folder / SWEEP, text)
        self._journal += 1
        self._n_saved, self._noted_attributes = len(text), json.dumps(self.attributes)
        if self._n_noted:
            (self.folder / JOURNAL).unlink(missing_ok=True)
            self._n_noted = 0

    def note(self, trial: TrialRecord) -> None:
        """Record what has become of a trial.

        Raises:
            FileError: it cannot be written.
        """
        self._note({"trial": asdict(trial)})

    def note_epoch(self, trial: TrialRecord, epoch: str) -> None:
        """Record the value and the verdict of an epoch of a trial.

        Raises:
            FileError: it cannot be written.
        """
        judged = {"value": trial.values[epoch], "stops": trial.judged[epoch]}
        more = {"attributes": trial.attributes}
        self._note({"judged": trial.number, "epoch": epoch, **judged, **more})

    def _note(self, event: dict[str, Any]) -> None:
        """Write an event; or the whole record if it is short, or not longer than the events."""
        attributes = json.dumps(self.attributes)
        if attributes != self._noted_attributes:
            event["of_study"] = self.attributes
        line = json.dumps(event).encode() + b"\n"
        if not self._has_journal or self._n_noted + len(line) > self._n_saved:
            self._has_journal = self._n_saved >= MOST_WHOLE
            self.save()
            return
        if self._n_noted == 0:
            begin = json.dumps({"journal": self._journal}).encode() + b"\n"
            write_whole(self.folder / JOURNAL, begin)
        append(self.folder / JOURNAL, line, is_synced=True)
        self._n_noted += len(line)
        self._noted_attributes = attributes

    def _take_over(self, event: Mapping[str, Any]) -> None:
        """Apply an event of the journal."""
        self.attributes = event.get("of_study", self.attributes)
        if "judged" in event:
            trial = self.trials[event["judged"] - 1]
            trial.values[event["epoch"]] = event["value"]
            trial.judged[event["epoch"]] = event["stops"]
            trial.attributes = event["attributes"]
        else:
            trial = TrialRecord(**event["trial"])
            self.trials[trial.number - 1 : trial.number] = [trial]

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
        if content["format"] not in (FORMAT, WITH_JOURNAL):
            known = f"{FORMAT} and {WITH_JOURNAL}"
            raise UsageError(f"{path}: it has format {content['format']}, and this reads {known}")
        sweep = Sweep(
            folder,
            Plan(**content["plan"]),
            [TrialRecord(**trial) for trial in content["trials"]],
            content["attributes"],
            content.get("free_cores"),  # earlier versions lack it
        )
        sweep._has_journal = content["format"] == WITH_JOURNAL
        sweep._journal = content.get("journal", 0)
        path = folder / JOURNAL
        for event in _events_after(path, sweep._journal):
            sweep._take_over(event)
        return sweep
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read: {why(error)}") from error


def _events_after(path: Path, journal: int) -> list[Any]:
    """Return the events since the record was written whole; a line that was cut by a kill is none.

    Args:
        journal: the number of the record's journal; another one is older.
    """
    try:
        lines = read_file(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    if not lines or json.loads(lines[0]) != {"journal": journal}:
        return []
    return [json.loads(line) for line in lines[1:]]


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
