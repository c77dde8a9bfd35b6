"""Cores are counted as the system grants them, and a run keeps the number of its threads."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy import CONFIG, make

from base.config import load_config
from base.data.threads import read_ahead
from base.system import cores
from base.system.cores import OtherLoad, free_cores, usable_cores, use_threads, warn_of_load
from base.training.run_log import header_facts
from train import main

QUOTA, PERIOD = "cpu.cfs_quota_us", "cpu.cfs_period_us"


@pytest.fixture(autouse=True)
def _eight_cores_and_all_threads_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cores, "_cores", lambda: set(range(8)))
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# --- Cores ----------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("others", "free"), [(0.0, 8), (0.4, 8), (2.6, 5), (8.0, 1), (99.0, 1)])
def test_free_is_what_others_leave_and_at_least_one(
    monkeypatch: pytest.MonkeyPatch, others: float, free: int
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.setattr(OtherLoad, "cores", lambda _: others)
    assert free_cores() == free


def test_others_load_is_that_of_our_cores_without_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two seconds cores 0 and 1 work 3.5 s, of which we and a child of ours do 1.5 s."""
    second = os.sysconf("SC_CLK_TCK")
    child = SimpleNamespace(pid=77)
    monkeypatch.setattr("multiprocessing.active_children", lambda: [child])

    def at(seconds: float, core_0: float, core_1: float, ours: float, childs: float) -> None:
        def ticks(busy: float) -> str:
            half = int(busy * second / 2)  # as user, and as steal; idle and iowait are no work
            return f"{half} 0 0 {int(99 * second)} {int(7 * second)} 0 0 {half} 0 0"

        write(tmp_path, {
            "stat": f"cpu  1 1 1 1 1 1 1 1 1 1\ncpu0 {ticks(core_0)}\ncpu1 {ticks(core_1)}\n"
                    f"cpu9 {ticks(seconds)}\nintr 12 13\n",
            "77/stat": f"77 (a b) c) S {'1 ' * 10}{int(childs * second)} 0 0 0\n",
        })  # fmt: skip
        monkeypatch.setattr(time, "perf_counter", lambda: seconds)
        monkeypatch.setattr(os, "times", lambda: (ours, 0.0, 0.0, 0.0, seconds))

    at(10, core_0=5, core_1=3, ours=1, childs=0.2)
    load = OtherLoad(tmp_path)
    at(12, core_0=7, core_1=4.5, ours=2, childs=0.7)
    assert load.cores() == pytest.approx((3.5 - 1.5) / 2)
    monkeypatch.setattr(time, "perf_counter", lambda: 10.01)
    assert load.cores() == 0, "too short a time to tell"


def test_where_the_system_tells_nothing_others_take_nothing(tmp_path: Path) -> None:
    load = OtherLoad(tmp_path)
    time.sleep(0.11)
    assert load.cores() == 0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_a_busy_process_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_cores", lambda: os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        load = OtherLoad()
        time.sleep(0.5)
        found = load.cores()
        busy.kill()
    assert 0.2 < found <= len(os.sched_getaffinity(0)) + 0.1


# --- Threads --------------------------------------------------------------------------------------


def test_auto_is_the_usable_cores_but_not_more_than_torch_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for usable, torchs, expected in ((2, 4, 2), (8, 3, 3)):
        monkeypatch.setattr(cores, "usable_cores", lambda usable=usable: usable)
        torch.set_num_threads(torchs)
        assert use_threads("auto") == torch.get_num_threads() == expected


def test_readers_leave_the_number_of_a_thread_that_has_computed_nothing_yet() -> None:
    """A resumed run begins so: with a number, and perhaps with images read in threads."""

    def begin() -> int:
        use_threads(3)
        assert list(read_ahead(int, iter("123"), 2, 2, seconds=0)) == [1, 2, 3]
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as fresh:
        assert fresh.submit(begin).result() == 3


def test_a_number_is_taken_as_it_is_and_shown_in_the_header() -> None:
    trainer = make("threads=3")
    use_threads(trainer.config["threads"])
    assert torch.get_num_threads() == 3
    assert header_facts(trainer, None)["device"] == "cpu, fp32, 3 threads"
    torch.set_num_threads(1)
    assert header_facts(trainer, None)["device"] == "cpu, fp32, 1 thread"


def test_a_run_goes_on_with_as_many_threads_where_more_cores_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(CONFIG)
    torch.set_num_threads(4)
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    assert main(["-c", "toy.yaml", "--set", "trainer.epochs=1"]) == 0
    (kept,) = tmp_path.glob("saved/toy/*/config.yaml")
    assert load_config(kept)["threads"] == 2
    torch.set_num_threads(4)
    monkeypatch.setattr(cores, "usable_cores", lambda: 4)
    assert main(["-r", "--set", "trainer.epochs=2"]) == 0
    assert torch.get_num_threads() == 2
    assert load_config(kept)["threads"] == 2


@pytest.mark.parametrize(
    ("others", "threads", "n_workers", "said"),
    [
        (0.0, 8, 0, None),
        (0.4, 8, 8, None),
        (3.0, 5, 0, None),
        (9.0, 1, 1, None),
        (3.0, 8, 0, "`threads: 5` may"),
        (3.0, 2, 7, "`num_workers: 5` may"),
        (6.0, 8, 4, "`num_workers: 2` and `threads: 2` may"),
        (0.0, 12, 0, "wants 12 of 8 cores"),
    ],
)
def test_too_much_for_the_cores_is_warned_of_with_what_would_be_right(
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    others: float,
    threads: int,
    n_workers: int,
    said: str | None,
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 8)
    monkeypatch.setattr(OtherLoad, "cores", lambda _: others)
    torch.set_num_threads(threads)
    trainer = make()
    trainer.train_loader.num_workers = n_workers
    with caplog.at_level(logging.WARNING, "kindling"):
        warn_of_load(trainer.experiment)
    assert said in caplog.text if said else not caplog.text
