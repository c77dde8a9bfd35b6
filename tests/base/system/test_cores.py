"""Cores are counted as the system grants them, and without those that others use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from base.system import cores
from base.system.cores import (
    CpuTimes,
    free_cores,
    left_free,
    read_cpu_times,
    usable_cores,
    watch_cores,
)

QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_own_cores", lambda: set(range(8)))


@pytest.fixture(autouse=True)
def _no_first_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_first", [])


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# --- Cores ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "max 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "6400000 100000"}, 8),
        ("0::/of/the/host", {"cpu.max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/a", {f"cpu/a/{QUOTA}": "-1", f"cpu/a/{PERIOD}": "9"}, 8),
        ("4:cpu,cpuacct:/a", {f"cpu/a/{QUOTA}": "500", f"cpu/a/{PERIOD}": "100"}, 5),
        ("4:memory:/a", {"memory/a/cpu.max": "100000 100000"}, 8),
        ("0::/", {}, 8),
    ],
)  # fmt: skip
def test_a_quota_limits_the_cores(
    tmp_path: Path, group: str, files: dict[str, str], expected: int
) -> None:
    write(tmp_path, {"proc/self/cgroup": f"{group}\n"})
    write(tmp_path / "groups", files)
    assert usable_cores(tmp_path / "proc", tmp_path / "groups") == expected


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("n_processes", "expected"), [("1", 6), ("2", 3), ("4", 1), ("8", 1), ("", 6), ("many", 6)]
)
def test_the_processes_of_a_machine_share_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_processes: str, expected: int
) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/a\n", "groups/a/cpu.max": "650000 100000"})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", n_processes)
    assert usable_cores(tmp_path / "proc", tmp_path / "groups") == expected


# --- Free cores -----------------------------------------------------------------------------------


def stat(*busy: float, idle: float = 100.0) -> str:
    """Return /proc/stat with the busy seconds of each core, spread over what it counts."""
    lines = ["cpu  1 2 3 4 5 6 7 8 9 0"]
    for number, seconds in enumerate(busy):
        part = int(seconds * TICKS) // 6
        rest = int(seconds * TICKS) - 5 * part
        times = [rest, part, part, int(idle * TICKS), 77, part, part, part, 5, 5]
        lines.append(f"cpu{number} {' '.join(map(str, times))}")
    return "\n".join([*lines, "intr 12345", ""])


def at(tmp_path: Path, moment: float, ours: float, files: dict[str, str]) -> CpuTimes:
    """Return a reading of a made-up system."""
    write(tmp_path, files)
    found = read_cpu_times(tmp_path / "proc", tmp_path / "groups")
    return CpuTimes(moment, ours, found.machine, found.groups)


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("busy", "ours", "free"),
    [
        ([0] * 8, 0, 8),
        ([2] * 8, 2, 1),  # 14 seconds of others in 2 seconds
        ([2, 2, 1, 0, 0, 0, 0, 0], 2, 6.5),
        ([2] * 8, 0, 0),
        ([0] * 8 + [2] * 8, 0, 8),  # cores that are not ours
    ],
)
def test_what_others_use_is_not_free(
    tmp_path: Path, busy: list[float], ours: float, free: float
) -> None:
    first = at(tmp_path, 100.0, 5.0, {"proc/stat": stat(*[50.0] * len(busy))})
    then = at(tmp_path, 102.0, 5.0 + ours, {"proc/stat": stat(*(50.0 + each for each in busy))})
    found = left_free(first, then, tmp_path / "proc", tmp_path / "groups")
    assert found == pytest.approx(free, abs=0.1)


@pytest.mark.usefixtures("_eight_cores")
def test_others_of_the_own_group_use_its_quota(tmp_path: Path) -> None:
    versions = [
        ("0::/a", "a/cpu.max", "400000 100000", "a/cpu.stat", "usage_usec {0}000000\nnr_bursts 0"),
        ("3:cpu,cpuacct:/a", f"cpu/a/{QUOTA}", "400", "cpu/a/cpuacct.usage", "{0}000000000"),
    ]
    for number, (group, limit, quota, usage, text) in enumerate(versions):
        place = tmp_path / str(number)
        write(place / "groups", {limit: quota, f"cpu/a/{PERIOD}": "100"})
        write(place, {"proc/self/cgroup": f"{group}\n"})
        first = at(place, 10.0, 0.0, {f"groups/{usage}": text.format(10)})
        then = at(place, 12.0, 1.0, {f"groups/{usage}": text.format(16)})
        # 6 seconds in 2 seconds, of which one is ours
        assert left_free(first, then, place / "proc", place / "groups") == 4 - 2.5


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    "text", ["", "cpu  1 2 3 4\n", stat(*[0.0] * 8, idle=0).replace("77", "0")]
)
def test_all_usable_cores_are_free_where_nothing_is_known(tmp_path: Path, text: str) -> None:
    first = at(tmp_path, 1.0, 0.0, {"proc/stat": text})
    then = at(tmp_path, 2.0, 0.5, {"proc/stat": text})
    assert left_free(first, then, tmp_path / "proc", tmp_path / "groups") == 8


def test_processes_that_share_the_machine_are_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(cores, "left_free", None)
    assert free_cores() == usable_cores()


def test_the_first_reading_counts_if_it_is_neither_too_new_nor_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[float] = []
    monkeypatch.setattr(
        cores, "left_free", lambda first, then: used.append(then.at - first.at) or 1
    )
    for age, expected in ((0.0, 0.1), (5.0, 5.0), (1000.0, 0.1)):
        watch_cores()
        (first,) = cores._first
        monkeypatch.setattr(cores, "_first", [CpuTimes(first.at - age, 0, None, {})])
        assert free_cores() == 1
        assert used.pop() >= expected


@pytest.fixture
def _burners() -> Iterator[None]:
    """Keep all cores of this process busy by other processes."""
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(usable_cores())]
    try:
        for each in running:
            assert each.stdout is not None
            each.stdout.readline()
        yield
    finally:
        for each in running:
            each.kill()
            each.communicate()


@pytest.mark.usefixtures("_burners")
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux says what is busy")
def test_real_processes_leave_no_core_free() -> None:
    watch_cores()
    time.sleep(0.5)
    assert free_cores() < 0.3 * usable_cores()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux says what is busy")
def test_what_this_process_uses_counts_as_free() -> None:
    before = read_cpu_times()
    end = time.process_time() + 0.5
    while time.process_time() < end:
        pass
    then = read_cpu_times()
    seconds, ours = then.at - before.at, then.ours - before.ours
    others = CpuTimes(then.at, before.ours, then.machine, then.groups)  # as if they had used it
    assert ours >= 0.5
    assert left_free(before, then) >= left_free(before, others)
    assert then.machine is not None
    assert before.machine is not None
    assert then.machine - before.machine >= ours - 0.05  # hundredths of each core
    assert seconds > 0
