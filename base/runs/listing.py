"""A table of runs that fits a terminal: a line for each run, the best first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from base.config.short_settings import short_keys, short_value
from base.errors import UsageError, nearest
from base.runs.comparison import ABSENT, common_rule, differing_settings, ranked
from base.runs.facts import RunFacts
from logger.console import format_value, n_fitting, pad, text_width
from logger.csv_writer import csv_text

LEAST = 6
"""The width down to which a column of texts is cut, in cells."""


def table_text(runs: Sequence[RunFacts], width: int = 80, rule: str | None = None) -> str:
    """Return a table of runs: the settings that differ, the best value, epochs and the state.

    No line is wider than ``width`` cells: long texts are cut at a ``…``, and if that is not enough
    the last settings are named below the table. Numbers are whole.

    Args:
        rule: what the best value is, such as ``max valid/accuracy``; None takes the runs' own.
    """
    rule = rule or common_rule(runs)
    runs = ranked(runs, rule)
    settings = differing_settings(runs)
    names = short_keys(settings)
    head = [_Column("run", _short_names(runs), from_left=True)]
    middle = [_Column(names[key], _texts(settings[key])) for key in settings]
    tail = [_Column("epoch", [str(run.epoch) for run in runs])]
    tail.append(_Column("state", [run.state for run in runs], is_whole=True))
    if rule is not None:
        key, best = rule.partition(" ")[2], [run.best_by(rule) for run in runs]
        tail.insert(0, _Column(key, [format_value(key, value) for value, _ in best]))
        tail.insert(
            1, _Column("best at", ["-" if epoch is None else str(epoch) for _, epoch in best])
        )

    # What does not fit is left out: settings from the last one, then all but the best value.
    spare = [*reversed(middle), *reversed(tail[1:])]
    columns = _fit([*head, *middle, *tail], spare, width)
    lines = ["  ".join(cells).rstrip() for cells in zip(*map(_cells, columns), strict=True)]
    missing = [column.name for column in middle if column not in columns]
    if missing:
        text = f"{len(missing)} more setting{'s differ' if len(missing) > 1 else ' differs'}"
        lines.append(shortened(f"{text}, see --csv: {', '.join(missing)}", width))
    return "\n".join(lines)


def csv_of_runs(groups: Iterable[Sequence[RunFacts]], rule: str | None = None) -> str:
    """Return the runs of all groups as CSV, with exact values and the full keys of settings.

    A setting that a run does not have is an empty cell; sections and lists are JSON.
    """
    rows: list[dict[str, Any]] = []
    for group in groups:
        by = rule or common_rule(group)
        runs = ranked(group, by)
        settings = differing_settings(runs)
        for index, run in enumerate(runs):
            best, epoch = run.best_by(by)
            row = {
                "name": run.name, "run": run.folder.name, "folder": run.folder, "state": run.state,
                "started": run.started and run.started.isoformat(), "epoch": run.epoch,
                "step": run.step, "monitor": by, "best": best, "best_epoch": epoch,
            }  # fmt: skip
            row |= {key: _csv_cell(values[index]) for key, values in settings.items()}
            rows.append(row | {f"test/{name}": value for name, value in run.test.items()})
    header = list(dict.fromkeys(name for row in rows for name in row))
    return csv_text([header, *([row.get(name) for name in header] for row in rows)])


def shortened(text: str, width: int) -> str:
    """Return the beginning of a text that fits into ``width`` cells, with … for the rest."""
    if text_width(text) <= width:
        return text
    return f"{text[: n_fitting(text, width - 1)]}…"


def check_rule(rule: str, runs: Sequence[RunFacts]) -> None:
    """Check a rule such as ``max valid/accuracy``.

    Raises:
        UsageError: it is none, or no run logs this value.
    """
    mode, _, key = rule.partition(" ")
    if mode not in ("min", "max") or not key:
        raise UsageError(f"--by {rule!r}: write 'min NAME' or 'max NAME', as in 'min valid/loss'")
    known = {name for run in runs for row in run.rows for name in row}
    if key not in known:
        raise UsageError(f"--by {rule!r}: no run logs {key!r}{nearest(key, known)}")


@dataclass(eq=False)
class _Column:
    """A column of the table.

    from_left  whether a long text loses its beginning, not its end
    is_whole   whether no text is cut
    """

    name: str
    texts: list[str]
    from_left: bool = False
    is_whole: bool = False

    def __post_init__(self) -> None:
        self.is_number = not self.from_left and all(map(_is_number, self.texts))
        self.width = max(text_width(text) for text in (self.name, *self.texts))
        whole = self.texts if self.is_whole else filter(_is_number, self.texts)
        # Numbers are never cut; a name above them is.
        widest = 0 if self.from_left else max(map(text_width, whole), default=0)
        self.least = max(widest, min(self.width, LEAST))


def _fit(columns: list[_Column], spare: Iterable[_Column], width: int) -> list[_Column]:
    """Return the columns that fit, as narrow as needed; spare ones are left out in this order."""
    for each in spare:
        if sum(column.least + 2 for column in columns) - 2 > width:
            columns = [column for column in columns if column is not each]
    excess = sum(column.width + 2 for column in columns) - 2 - width
    for _ in range(excess):
        widest = max(columns, key=lambda column: column.width - column.least)
        widest.width = max(widest.width - 1, widest.least)
    return columns


def _cells(column: _Column) -> list[str]:
    """Return the cells of a column with its name above, all of its width."""
    cut = _without_beginning if column.from_left else shortened
    texts = [
        shortened(column.name, column.width),
        *(cut(text, column.width) for text in column.texts),
    ]
    return [pad(text, column.width, right=column.is_number) for text in texts]


def _short_names(runs: Sequence[RunFacts]) -> list[str]:
    """Return the name of each run's folder, without its settings if the time alone is unique."""
    names = [run.folder.name for run in runs]
    times = [name.partition("_")[0] if name[8:9] == "-" else name for name in names]
    n_uses = Counter(times)
    return [time if n_uses[time] == 1 else name for time, name in zip(times, names, strict=True)]


def _texts(values: Sequence[Any]) -> list[str]:
    """Return the values of a setting in short, with as many digits as tell them apart."""
    n_values = len(set(map(repr, values)))
    for digits in (4, 6, 17):
        texts = ["-" if value is ABSENT else short_value(value, digits) for value in values]
        if len(set(texts)) == n_values:
            break
    return texts


def _csv_cell(value: Any) -> Any:
    if value is ABSENT:
        return None
    return json.dumps(value) if isinstance(value, dict | list | bool) or value is None else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"
    return True


def _without_beginning(text: str, width: int) -> str:
    return shortened(text[::-1], width)[::-1]
