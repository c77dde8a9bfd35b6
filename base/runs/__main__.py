"""``python -m base.runs [saved/NAME]``: list runs and compare them, the best first."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from base.config.command_line import Parser, run
from base.errors import UsageError, why
from base.runs.comparison import common_rule
from base.runs.facts import RunFacts, list_runs, read_run
from base.runs.listing import check_rule, csv_of_runs, shortened, table_text
from base.system.run_folder import SAVE_DIR, folders_of_runs, is_run, must_exist
from logger.files import FileError, write_whole

EXAMPLES = """examples:
  python -m base.runs                             all runs in saved/, by name
  python -m base.runs saved/digits                those of one name
  python -m base.runs saved/digits/20261129*      those of one day
  python -m base.runs saved/digits --csv runs.csv

A line shows the settings that differ between the runs, the best value and its
epoch, the number of epochs, and the state: running, finished, failed or
interrupted. `-r` of train.py and test.py takes the name in the first column."""


def main(arguments: Sequence[str]) -> int:
    """Print a table of runs, or write it as CSV."""
    options = _parse(arguments)
    found: dict[Path, dict[Path, RunFacts]] = {}
    for where, group in (each for path in options.paths for each in _groups(path)):
        found.setdefault(where, {}).update((run.folder, run) for run in group)
    groups = {where: list(group.values()) for where, group in found.items()}
    runs = [run for group in groups.values() for run in group]
    if not runs:
        places = ", ".join(map(str, options.paths))
        raise UsageError(f"{places}: no runs here; train one with python train.py -c FILE")
    if options.by is not None:
        check_rule(options.by, runs)
    if options.csv is None:
        width = shutil.get_terminal_size().columns
        print("\n\n".join(_table(where, groups[where], width, options.by) for where in groups))
        return 0
    text = csv_of_runs(groups.values(), options.by)
    if options.csv == "-":
        print(text, end="")
        return 0
    try:
        write_whole(Path(options.csv), text.encode())
    except FileError as error:
        raise UsageError(f"{options.csv}: cannot be written: {why(error)}") from error
    print(f"{options.csv}: {len(runs)} runs")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    text = "List runs and compare them, the best first."
    parser = Parser(
        "python -m base.runs", None, text, EXAMPLES, formatter_class=layout, allow_abbrev=False
    )
    parser.add_argument(
        "paths", nargs="*", type=Path, metavar="PATH", default=[Path(SAVE_DIR)],
        help=f"a name's folder, runs, or a folder of names ({SAVE_DIR})",
    )  # fmt: skip
    parser.add_argument(
        "--by", metavar="RULE", help="what is best: 'max valid/accuracy'; default: trainer.monitor"
    )
    parser.add_argument(
        "--csv", nargs="?", const="-", metavar="FILE",
        help="write exact values as CSV to a file, or without FILE print them",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.csv is not None and Path(options.csv).is_dir():
        raise UsageError(f"--csv {options.csv}: this is a folder; write it before --csv")
    return options


def _groups(path: Path) -> list[tuple[Path, list[RunFacts]]]:
    """Return the runs that a path names: one run, those of a name, or those of each name."""
    try:
        if is_run(must_exist(path)):
            return [(path.parent, [read_run(path)])]
        if runs := list_runs(path.parent, path.name):
            return [(path, runs)]
        names = sorted({folder.parent for folder in folders_of_runs(path)})
        return [(each, list_runs(each.parent, each.name)) for each in names]
    except OSError as error:
        raise UsageError(f"{path}: cannot be listed: {why(error)}") from error


def _table(where: Path, runs: Sequence[RunFacts], width: int, rule: str | None) -> str:
    by = rule or common_rule(runs)
    order = f"best by {by}" if by else "in the order of their start"
    head = f"{where}: {len(runs)} run{'s' * (len(runs) > 1)}, {order}"
    return f"{shortened(head, width)}\n{table_text(runs, width, rule)}"


if __name__ == "__main__":
    run(main)
