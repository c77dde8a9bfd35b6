"""The rows of faults, how many trials of each are made, and the table of what came of them.

A test of a fault is marked with its row: ``@pytest.mark.fault("F01")``. It is one trial; a test
that makes many asks the fixture ``trials`` how many, and says of each what it is. ``--faults many``
(``make faults`` gives it) makes many, and prints the table.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from workplace import Workplace

ROWS = {
    "F01": "kill -9 at a random moment, then the same command again",
    "F02": "kill -9 at each call that changes the disk, while a checkpoint is saved",
    "F03": "power lost at each such call: unsynced writes gone, torn at 4 KiB or out of order",
    "F04": "an I/O error at each such call, once or from then on",
    "F05": "disk full in the middle of a run",
    "F06": "a folder that cannot be written",
    "F07": "SIGTERM at a step, in a save, in validation, while workers start",
    "F08": "SIGINT once, and twice",
    "F09": "SIGUSR1",
    "F10": "signals to the launcher and to one of several processes",
    "F11": "truncated, empty or garbage checkpoint files",
    "F12": "one bit of a checkpoint flipped",
    "F13": "all checkpoints bad",
    "F14": "images that cannot be read",
    "F15": "a worker killed, stopped or failing",
    "F16": "a loss that is not finite",
    "F17": "exploding gradients, overflow of fp16",
    "F18": "out of memory",
    "F19": "arbitrary configs",
    "F20": "malicious checkpoints and weights",
    "F21": "malicious configs",
    "F22": "two runs in one folder at once, locks of the dead",
    "F23": "equal and jumping clocks",
    "F24": "missing files",
    "F25": "weights of wrong shapes, missing or unknown names",
    "F26": "resume with a changed config",
    "F27": "one of several processes killed, stopped or failing",
    "F28": "resume with another number of processes",
    "F29": "strange paths",
    "F30": "10,000 runs, 1,000 checkpoints",
    "F31": "background saves: killed, slow, failing",
    "F32": "checkpoints of old formats",
    "F33": "a long run with random faults of all these kinds",
    "F34": "a FIFO, device, socket or folder in place of a file",
    "F35": "metrics.csv or split.csv damaged, cut short or gone",
    "F36": "an I/O error at each file that a new run makes before its first checkpoint",
    "F37": "a run's folder deleted or renamed while it trains",
    "F38": "an OSError in user code",
}


@dataclass
class Row:
    """What came of the trials of one row."""

    tried: int = 0
    survived: int = 0
    seconds: float = 0.0


@dataclass
class Trials:
    """The trials of one test; its fixture fails the test when one of them has failed."""

    makes_many: bool
    folders: pytest.TempPathFactory
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def count(self, few: int, many: int) -> int:
        """Return how many trials to make."""
        return many if self.makes_many else few

    def some(self, everything: list[Any], few: int) -> list[Any]:
        """Return everything, or a few of it, spread evenly."""
        step = max(1, len(everything) // few)
        return everything if self.makes_many else everything[step // 2 :: step][:few]

    @contextmanager
    def trial(self, what: object) -> Iterator[None]:
        """Count one trial; note what it was where it fails, and go on."""
        self.tried += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")

    @contextmanager
    def trial_in_folder(self, what: object) -> Iterator[Workplace]:
        """Count one trial, in a folder of its own."""
        with self.trial(what):
            yield Workplace(self.folders.mktemp("trial"))

    @property
    def survived(self) -> int:
        return self.tried - len(self.failures)


class Table:
    """Gathers what came of all tests that are marked with a row."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, row: str, tried: int, survived: int, seconds: float) -> None:
        """Count the trials of one test."""
        one = self.rows.setdefault(row, Row())
        one.tried += tried
        one.survived += survived
        one.seconds += seconds

    def lines(self) -> list[str]:
        """Return the table, as Markdown."""
        yet = [
            f"| {name} | {ROWS[name]} | {row.tried:,} | {row.survived:,} | {row.seconds:.0f} |"
            for name, row in sorted(self.rows.items())
        ]
        return ["| row | fault | tried | survived | seconds |", "|---|---|---|---|---|", *yet]


TABLE, TRIALS = pytest.StashKey[Table](), pytest.StashKey[Trials]()
REPORTS = pytest.StashKey[list[pytest.TestReport]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "trials of each fault, and a table of them at the end"
    parser.addoption("--faults", choices=["few", "many"], help=text)
    text = "how long the run with random faults lasts (F33)"
    parser.addoption("--soak", type=float, metavar="MINUTES", help=text)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLE] = Table()
    if config.getoption("--faults") == "many":  # six tests give arbitrary configs
        settings.register_profile("many", settings(derandomize=False, max_examples=1700))
        settings.load_profile("many")


@pytest.fixture
def trials(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trials]:
    """How many trials to make, and their count."""
    made = Trials(request.config.getoption("--faults") == "many", tmp_path_factory)
    request.node.stash[TRIALS] = made
    yield made
    assert not made.failures, f"{len(made.failures)} of {made.tried} trials failed:\n" + "\n".join(
        made.failures
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Measure a test of a fault with the fixtures that it waits for."""
    start = time.perf_counter()
    result = yield
    if mark := item.get_closest_marker("fault"):
        seconds = time.perf_counter() - start
        outcomes = {report.outcome for report in item.stash.get(REPORTS, [])}
        made = item.stash.get(TRIALS, None)
        if "skipped" not in outcomes:
            tried, survived = (made.tried, made.survived) if made and made.tried else (1, 1)
            if "failed" in outcomes and survived == tried:
                survived -= 1
            item.config.stash[TABLE].add(mark.args[0], tried, survived, seconds)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Keep what is reported of a test beside it."""
    report = yield
    item.stash.setdefault(REPORTS, []).append(report)
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a row that nobody knows."""
    for item in items:
        for mark in item.iter_markers("fault"):
            assert mark.args[0] in ROWS, f"{item.nodeid}: no row {mark.args[0]}"


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table where a number of trials was asked for."""
    if config.getoption("--faults") and config.stash[TABLE].rows:
        terminalreporter.section("faults")
        for line in config.stash[TABLE].lines():
            terminalreporter.write_line(line)
