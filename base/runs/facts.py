"""Reads the facts of a run from its folder, whatever is missing or damaged there."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from base.config.tree import Where
from base.config.yaml_reader import read_text
from base.errors import ConfigError
from base.system.run_folder import folders_of_runs, read_stamp
from base.system.run_lock import is_locked
from logger.csv_writer import number, read_rows
from logger.files import read_file

State = Literal["running", "finished", "failed", "interrupted"]
Row = dict[str, float | int | str]


@dataclass(frozen=True)
class RunFacts:
    """The facts of one run. A file that is missing or damaged gives empty values.

    Files are read when their facts are first used; a run that trains goes on writing them.
    """

    folder: Path
    number: int
    """The place of the run among all in its ``save_dir``, counted from 1; 0 without run.json."""
    started: datetime | None
    changed: dict[str, Any]
    """The settings that the command line changed, by dotted key; of earlier versions, none."""
    _recorded: str | None = None

    @cached_property
    def name(self) -> str:
        """The name in the config, or that of the parent folder."""
        return str(self.config.get("name") or self.folder.absolute().parent.name)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config. Runs share the sections that are the same: do not change them."""
        return _read_config(self.folder / "config.yaml")

    @cached_property
    def rows(self) -> list[Row]:
        """The complete rows of metrics.csv as numbers, without empty cells."""
        return [_as_numbers(row) for row in self._cells]

    @cached_property
    def test(self) -> dict[str, Any]:
        """The content of ``report/test.json``."""
        return _read_json(self.folder / "report" / "test.json")

    @property
    def epoch(self) -> int:
        """The number of completed epochs."""
        return self._last("epoch")

    @cached_property
    def step(self) -> int:
        """The last step of a completed epoch or of a checkpoint."""
        folders = (self.folder / "checkpoints").glob("step-*")
        saved = [int(digits) for each in folders if (digits := each.name[5:].rstrip("~")).isdigit()]
        return max([self._last("step"), *saved])

    @property
    def monitor(self) -> str | None:
        """The rule that selects the best epoch, such as ``max valid/accuracy``; None if off."""
        rule = _trainer(self.config).get("monitor")
        if not rule:
            losses = [key for key in ("valid/loss", "train/loss") if key in self._columns]
            rule = f"min {losses[0]}" if losses else None
        return rule if isinstance(rule, str) and " " in rule else None

    @property
    def best(self) -> float | None:
        """The best value of `monitor`; None without a value that is a number."""
        return self._best[0]

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best value, the first of equal ones."""
        return self._best[1]

    @cached_property
    def _best(self) -> tuple[float | None, int | None]:
        return self.best_by(self.monitor)

    def best_by(self, rule: str | None) -> tuple[float | None, int | None]:
        """Return the best value of a rule such as ``min valid/loss``, and its epoch, if any."""
        mode, _, key = (rule or "").partition(" ")
        found = [
            (value, row.get("epoch", ""))
            for row in self._cells
            if not math.isnan(value := number(row.get(key, "")))
        ]
        if mode not in ("min", "max") or not found:
            return None, None
        value, epoch = (min if mode == "min" else max)(found, key=lambda one: one[0])
        return value, int(epoch) if epoch.isdecimal() else None

    @cached_property
    def state(self) -> State:
        """Whether the run is running, or how it ended.

        A run whose process was killed is interrupted. Earlier versions recorded no end: such a run
        is finished if it reached the length in its config.
        """
        if self._recorded in ("finished", "failed", "interrupted"):
            return self._recorded  # type: ignore[return-value]
        held = is_locked(self.folder)
        if held or (held is None and self._recorded == "running"):
            return "running"
        is_complete = self._recorded is None and self._reached_its_length()
        return "finished" if is_complete else "interrupted"

    @cached_property
    def _cells(self) -> list[dict[str, str]]:
        return read_rows(self.folder / "metrics.csv")

    @property
    def _columns(self) -> Collection[str]:
        return self._cells[0].keys() if self._cells else ()

    def _last(self, column: str) -> int:
        found = (row.get(column, "") for row in reversed(self._cells))
        return next((int(cell) for cell in found if cell.isdecimal()), 0)

    def _reached_its_length(self) -> bool:
        settings = _trainer(self.config)
        lengths = ((self.epoch, settings.get("epochs")), (self.step, settings.get("steps")))
        waits = settings.get("early_stop")
        stopped = isinstance(waits, int) and self.epoch - (self.best_epoch or 0) >= waits
        return stopped or any(isinstance(most, int) and now >= most for now, most in lengths)


def read_run(folder: Path | str) -> RunFacts:
    """Read the facts of the run in a folder.

    Nothing is raised: missing or damaged files give empty values, also while a process writes them.
    """
    stamp = read_stamp(Path(folder))
    index, changed, state = stamp.get("number"), stamp.get("changed"), stamp.get("state")
    return RunFacts(
        folder=Path(folder),
        number=index if isinstance(index, int) else 0,
        started=_as_time(stamp.get("started")),
        changed=changed if isinstance(changed, dict) else {},
        _recorded=state if isinstance(state, str) else None,
    )


def list_runs(save_dir: Path | str, name: str | None = None) -> list[RunFacts]:
    """Return the runs of one name, or of all names, in the order in which they were started."""
    runs = [read_run(folder) for folder in folders_of_runs(Path(save_dir), name)]
    return sorted(runs, key=lambda run: (run.number, run.folder.name))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_config(path: Path) -> dict[str, Any]:
    """Return the config that a run saved; it is not checked again, as later versions may differ."""
    try:
        text = read_file(path).decode("utf-8-sig")
        values = _read_sections(text) or read_text(text, Where(str(path)), []).plain()
    except (OSError, ValueError, ConfigError):
        return {}
    return values if isinstance(values, dict) else {}


def _read_sections(text: str) -> dict[str, Any]:
    """Read each section by itself, as most are the same in many runs; {} if that is not possible.

    A file that `Config.to_yaml` wrote has one section from each line that is not indented.
    """
    values: dict[str, Any] = {}
    for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]:
        section = _read_section(block)
        if not isinstance(section, dict) or section.keys() & values.keys():
            return {}
        values.update(section)
    return values


@lru_cache(maxsize=10_000)
def _read_section(text: str) -> Any:
    try:
        return read_text(text, Where("section"), []).plain()
    except ConfigError:
        return None


def _trainer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    section = config.get("trainer")
    return section if isinstance(section, dict) else {}


def _as_numbers(row: Mapping[str, str]) -> Row:
    return {name: _as_number(name, cell) for name, cell in row.items() if cell}


def _as_number(column: str, cell: str) -> float | int | str:
    if column in ("epoch", "step") and cell.isdecimal():
        return int(cell)
    value = number(cell)
    return cell if math.isnan(value) and cell.strip().lower() != "nan" else value


def _as_time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
