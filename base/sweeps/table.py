"""The table of a sweep: on the console, best trial first, and in ``table.csv``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from base.sweeps.record import Sweep, TrialRecord
from base.sweeps.space import short_names
from logger.console import format_value, pad, text_width
from logger.csv_writer import csv_text
from logger.files import write_whole

LEAST = 6  # cells of a column of texts that is cut
GAP = 2


def ranked(sweep: Sweep, mode: str) -> list[TrialRecord]:
    """Return the trials, the best first, then those that did not finish, then those without value.

    Args:
        mode: ``min`` or ``max``.
    """
    sign = -1 if mode == "max" else 1

    def order(trial: TrialRecord) -> tuple[int, float, int]:
        is_whole = trial.state == "finished"
        if trial.value is None:
            return 2, 0.0, trial.number
        return 0 if is_whole else 1, sign * trial.value, trial.number

    return sorted(sweep.trials, key=order)


def best_of(sweep: Sweep, mode: str) -> TrialRecord | None:
    """Return the best finished trial; None if none has a value."""
    first = next(iter(ranked(sweep, mode)), None)
    return first if first and first.value is not None and first.state == "finished" else None


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

    Columns of texts are cut in their middle where they do not fit, then the last settings are left
    out; numbers are always whole.

    Args:
        width: of the terminal, in cells.
    """
    width = width or shutil.get_terminal_size().columns
    best = best_of(sweep, mode)
    trials = ranked(sweep, mode)
    names = short_names(_keys(sweep))
    settings = [
        [short, *(trial.settings.get(key, "-") for trial in trials)] for key, short in names.items()
    ]
    left = ["trial", *(f"{t.number}{' *' if t is best else ''}" for t in trials)]
    values = [name, *(_value(name, trial.value) for trial in trials)]
    right = [
        values,
        ["epoch", *("-" if t.epoch is None else str(t.epoch) for t in trials)],
        ["seconds", *(f"{t.seconds:.1f}" for t in trials)],
        ["state", *(_state(trial) for trial in trials)],
    ]
    folders = ["folder", *("-" if t.folder is None else Path(t.folder).name for t in trials)]
    while True:
        columns = [left, *settings, *right, folders]
        widths = [max(map(text_width, column)) for column in columns]
        excess = sum(widths) + GAP * (len(columns) - 1) - width
        cut = {*range(1, 1 + len(settings)), len(columns) - 1}
        for place in sorted(cut, key=lambda place: -widths[place]):
            if is_number_column(columns[place][1:]):
                continue
            less = max(0, min(excess, widths[place] - max(LEAST, len(columns[place][0]))))
            widths[place] -= less
            excess -= less
        if excess <= 0 or not settings:
            break
        settings.pop()
    hidden = list(names.values())[len(settings) :]
    numbers = {place for place, column in enumerate(columns) if is_number_column(column[1:])}
    lines = [
        "  ".join(
            pad(cut_middle(cell, widths[place]), widths[place], right=place in numbers)
            for place, cell in enumerate(row)
        ).rstrip()
        for row in zip(*columns, strict=True)
    ]
    more = [f"in table.csv: {', '.join(hidden)}"] if hidden else []
    return "\n".join([*lines, *more])


def is_number_column(cells: Sequence[str]) -> bool:
    """Return whether all cells are numbers or empty."""
    return all(_is_number(cell) for cell in cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip(" *"))
    except ValueError:
        return cell == "-"
    return True


def _keys(sweep: Sweep) -> list[str]:
    return list(dict.fromkeys(key for trial in sweep.trials for key in trial.settings))


def _value(name: str, value: float | None) -> str:
    return format_value(name, value)


def _state(trial: TrialRecord) -> str:
    return f"failed ({trial.code})" if trial.state == "failed" else trial.state


def cut_middle(text: str, width: int) -> str:
    """Cut a text in its middle if it is wider than that."""
    if text_width(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"
