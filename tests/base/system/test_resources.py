"""Memory is counted as the system grants it; a run keeps its number of threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from toy import CONFIG, make

from base.config import load_config
from base.data.threads import read_ahead
from base.run.header import header_entries
from base.system import resources
from base.system.resources import UNLIMITED, free_memory, use_threads
from train import main


@pytest.fixture(autouse=True)
def _free_cores_and_all_threads_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(resources, "free_cores", lambda: 8.0)
    n_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(n_threads)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# --- Threads --------------------------------------------------------------------------------------


def test_auto_is_the_usable_cores_but_not_more_than_torch_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for usable, torchs, expected in ((2, 4, 2), (8, 3, 3)):
        monkeypatch.setattr(resources, "usable_cores", lambda usable=usable: usable)
        torch.set_num_threads(torchs)
        assert use_threads("auto") == torch.get_num_threads() == expected


@pytest.mark.parametrize(("free", "expected"), [(8.0, 4), (3.6, 4), (3.4, 3), (1.2, 1), (0.0, 1)])
def test_auto_leaves_cores_that_others_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: float, expected: int
) -> None:
    monkeypatch.setattr(resources, "usable_cores", lambda: 4)
    monkeypatch.setattr(resources, "free_cores", lambda: free)
    torch.set_num_threads(6)
    with caplog.at_level("INFO", "kindling"):
        assert use_threads("auto") == torch.get_num_threads() == expected
    said = f"threads: {expected}, as others leave {free} of 4 cores free"
    assert (said in caplog.text) == (expected < 4)
    assert use_threads(4) == torch.get_num_threads() == 4


def test_readers_leave_the_number_of_a_thread_that_has_computed_nothing_yet() -> None:
    """A run that goes on begins so: with a number, and perhaps with images read in threads."""

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
    assert header_entries(trainer, None)["device"] == "cpu, fp32, 3 threads"
    torch.set_num_threads(1)
    assert header_entries(trainer, None)["device"] == "cpu, fp32, 1 thread"


def test_a_run_goes_on_with_as_many_threads_where_more_cores_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(CONFIG)
    torch.set_num_threads(4)
    monkeypatch.setattr(resources, "usable_cores", lambda: 2)
    assert main(["-c", "toy.yaml", "--set", "trainer.epochs=1"]) == 0
    (kept,) = tmp_path.glob("saved/toy/*/config.yaml")
    assert load_config(kept)["threads"] == 2
    torch.set_num_threads(4)
    monkeypatch.setattr(resources, "usable_cores", lambda: 4)
    assert main(["-r", "--set", "trainer.epochs=2"]) == 0
    assert torch.get_num_threads() == 2
    assert load_config(kept)["threads"] == 2


# --- Memory ---------------------------------------------------------------------------------------

MEMINFO = "MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  5000 kB\n"


@pytest.fixture
def system(tmp_path: Path) -> Any:
    """Write the files of a made-up system: path -> content."""

    def write_all(files: dict[str, str]) -> tuple[Path, Path]:
        write(tmp_path, {"proc/meminfo": MEMINFO, **files})
        return tmp_path / "proc", tmp_path / "cgroup"

    return write_all


def group(
    folder: str, limit: int | str, used: int, inactive: int = 0, version: int = 2
) -> dict[str, str]:
    """The files of one group, kilobytes to bytes."""
    names = {1: ("limit_in_bytes", "usage_in_bytes", "total_"), 2: ("max", "current", "")}[version]
    stat = f"anon 7\n{names[2]}inactive_file {inactive * 1024}\n{names[2]}active_file 1024\n"
    limit = limit if isinstance(limit, str) else limit * 1024
    return {
        f"cgroup/{folder}/memory.{names[0]}": f"{limit}\n",
        f"cgroup/{folder}/memory.{names[1]}": f"{used * 1024}\n",
        f"cgroup/{folder}/memory.stat": stat,
    }


def test_it_is_near_what_psutil_says() -> None:
    assert 0 < free_memory() < psutil.virtual_memory().available * 1.1


@pytest.mark.parametrize(
    ("lines", "groups", "kilobytes"),
    [
        ("", {}, 5000),
        ("0::/a/b\n", group("a/b", 1000, 900, inactive=300), 1000 - 900 + 300 + 1),
        ("0::/a/b\n", {**group("a/b", "max", 10), **group("a", 50, 20)}, 50 - 20 + 1),
        ("5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n",
         {**group("memory", 2**53, 20, version=1), **group("memory/x", 80, 30, version=1)},
         80 - 30 + 1),
        ("4:memory:/docker/abc\n", group("memory", 80, 30, version=1), 80 - 30 + 1),
        ("0::/\n", group(".", 80, 90), 0),
    ],
    ids=["no groups", "what files keep is free", "a group above", "version 1",
         "the root of a container", "more used than allowed"],
)  # fmt: skip
def test_a_limit_of_a_group_counts(
    system: Any, lines: str, groups: dict[str, str], kilobytes: int
) -> None:
    files = {"proc/self/cgroup": lines, **groups} if lines else groups
    assert free_memory(*system(files)) == kilobytes * 1024


def test_the_processes_of_torchrun_share_the_memory(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(*system({})) == 5000 * 1024 // 4


def test_a_system_that_does_not_tell_has_no_limit(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) == UNLIMITED


def test_a_limit_of_the_process_itself_counts(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("base.system.resources.resource.getrlimit", lambda _: (5 << 20, -1))
    places = system({"proc/self/status": "Name:\tpython\nVmSize:\t   1024 kB\n"})
    assert free_memory(*places) == 4 << 20
