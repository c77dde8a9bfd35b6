"""The table of a sweep: on the console, best trial first, and in ``table.csv``."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from base.config.short_settings import short_keys
from base.sweeps.record import Sweep, TrialRecord
from logger.console import format_value, pad, text_width
from logger.csv_writer import csv_text
from logger.files import write_whole

TEXT_CELLS = 8  # a column of texts is not cut below
GAP = 2


def ranked(sweep: Sweep, mode: str) -> list[TrialRecord]:
    """Return the trials, the best first, then those that did not finish, then those without value.

    Args:
        mode: ``min`` or ``max``.
    """
    return sorted(sweep.trials, key=lambda trial: _rank(trial, mode))


def _rank(trial: TrialRecord, mode: str) -> tuple[int, float, int]:
    if trial.value is None:
        return 2, 0.0, trial.number
    value = -trial.value if mode == "max" else trial.value
    return 0 if trial.state == "finished" else 1, value, trial.number


def best_of(sweep: Sweep, mode: str) -> TrialRecord | None:
    """Return the best finished trial; None if none has a value."""
    return best_among(sweep.trials, mode)


def best_among(trials: Iterable[TrialRecord], mode: str) -> TrialRecord | None:
    """Return the best finished one of these trials; None if none has a value."""
    found = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    return min(found, key=lambda trial: _rank(trial, mode), default=None)


def write_table(sweep: Sweep, mode: str, name: str) -> Path:
    """Write ``table.csv``: a row for each trial, with exact numbers.

    Args:
        name: the monitored value, such as ``valid/accuracy``.
    """
    keys = _keys(sweep)
    header = ["trial", *keys, name, "epoch", "seconds", "state", "exit_code", "folder"]
    rows = [
        [
            trial.number,
            *(trial.settings.get(key) for key in keys),
            trial.value,
            trial.epoch,
            round(trial.seconds, 1),
            trial.state,
            trial.code,
            trial.folder,
        ]
        for trial in ranked(sweep, mode)
    ]
    path = sweep.folder / "table.csv"
    write_whole(path, csv_text([header, *rows]).encode())
    return path


def show_table(sweep: Sweep, mode: str, name: str, width: int | None = None) -> str:
    """Return the table as text that fits the terminal; `*` marks the best trial.

    Where it does not fit, texts are cut in their middle, and folders to their times, which `-r` of
    train.py and test.py finds; then columns are left out: seconds, folder, epoch, the last
    settings. Numbers are always whole.

    Args:
        width: of the terminal, in cells.
    """
    width = width or shutil.get_terminal_size().columns
    trials, best = ranked(sweep, mode), best_of(sweep, mode)
    names = short_keys(_keys(sweep))
    settings = [
        _Column(short, [trial.settings.get(key, "-") for trial in trials])
        for key, short in names.items()
    ]
    numbers = [f"{trial.number}{' *' if trial is best else '  '}" for trial in trials]
    folders = ["-" if trial.folder is None else Path(trial.folder).name for trial in trials]
    epochs = ["-" if trial.epoch is None else str(trial.epoch) for trial in trials]
    columns = [
        _Column("trial  ", numbers, is_number=True),
        *settings,
        _Column(name, [format_value(name, trial.value) for trial in trials], is_number=True),
        _Column("epoch", epochs, is_number=True),
        _Column("seconds", [f"{trial.seconds:.1f}" for trial in trials], is_number=True),
        _Column("state", [_state(trial) for trial in trials], is_cut=False),
        _Column("folder", folders, is_cut=False),
    ]
    if _cut_columns(columns, width) > 0:  # without the settings in its name
        stamps = [folder.partition("_")[0] for folder in folders]
        known = [stamp for stamp in stamps if stamp != "-"]
        if len(set(known)) == len(known):  # each is a part of a path that `-r` finds
            columns[-1] = _Column("run (-r)", stamps, is_cut=False)
        else:
            cut = [s if s == f else f"{s}…" for s, f in zip(stamps, folders, strict=True)]
            columns[-1] = _Column("folder", cut, is_cut=False)
    hidden: list[str] = []
    order = [columns[-3], columns[-1], columns[-4], *reversed(settings)]
    while _cut_columns(columns, width) > 0 and order:
        columns.remove(order[0])
        hidden.insert(0, order.pop(0).name)
    lines = ["  ".join(cells).rstrip() for cells in zip(*map(_cells, columns), strict=True)]
    more = [f"also in table.csv: {', '.join(hidden)}"] if hidden else []
    return "\n".join([*lines, *more])


class _Column:
    """A column of the table: its name, its cells, and the width that they are cut to."""

    def __init__(
        self, name: str, cells: list[str], is_number: bool = False, is_cut: bool = True
    ) -> None:
        self.name, self.cells = name, cells
        self.is_number = is_number or (is_cut and all(map(_is_number, cells)))
        self.whole = self.width = max(map(text_width, (name, *cells)))
        shortest = min(self.whole, max(TEXT_CELLS, len(name)))
        self.least = shortest if is_cut and not self.is_number else self.whole


def _cut_columns(columns: Sequence[_Column], width: int) -> int:
    """Make columns of texts narrower, the widest first; return the cells that remain too many."""
    for column in columns:
        column.width = column.whole
    excess = sum(column.width for column in columns) + GAP * (len(columns) - 1) - width
    for column in sorted(columns, key=lambda column: column.least - column.whole):
        less = max(0, min(excess, column.width - column.least))
        column.width -= less
        excess -= less
    return excess


def _cells(column: _Column) -> list[str]:
    texts = [cut_middle(text, column.width) for text in (column.name, *column.cells)]
    return [pad(text, column.width, right=column.is_number) for text in texts]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return cell == "-"
    return True


def _keys(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(key for trial in sweep.trials for key in trial.settings))


def _state(trial: TrialRecord) -> str:
    return f"failed ({trial.code})" if trial.state == "failed" else trial.state


def cut_middle(text: str, width: int) -> str:
    """Cut a text in its middle if it is wider than that, in cells."""
    if text_width(text) <= width:
        return text
    n_first, n_last, n_cells = 0, 0, 1  # letters at both ends, which grow in turn; the … itself
    while True:
        letter = text[n_first] if n_first == n_last else text[-1 - n_last]
        n_cells += text_width(letter)
        if n_cells > width:
            return f"{text[:n_first]}…{text[len(text) - n_last :]}"
        n_first, n_last = n_first + (n_first == n_last), n_last + (n_first > n_last)
