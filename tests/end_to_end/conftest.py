"""A folder for each test, and a finished run of the small experiment in it."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from workplace import Workplace


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A folder of the test's own."""
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run, with a checkpoint of each step."""
    return Workplace(tmp_path_factory.mktemp("finished")).train()


@pytest.fixture
def finished(place: Workplace, finished_once: Path) -> Path:
    """A copy of the finished run in the test's folder."""
    folder = place.folder / "saved" / "tiny" / finished_once.name
    shutil.copytree(finished_once, folder)
    return folder


@pytest.fixture
def cut(finished: Path) -> Path:
    """The same as it was when its process was killed after step 7, in the second epoch."""
    for checkpoint in (finished / "checkpoints").glob("step-*"):
        if int(checkpoint.name[5:]) > 7:
            shutil.rmtree(checkpoint)
    shutil.rmtree(finished / "report")
    return finished


@pytest.fixture(scope="session")
def whole(finished_once: Path) -> str:
    """The digest of the unbroken run."""
    from digest import digest

    return digest(finished_once)


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, str]]]:
    """Read a run's metrics.csv: `rows(folder)`."""

    def read(folder: Path) -> list[dict[str, str]]:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return read
