"""Which devices `-d` means, in the process that starts others and in each of those."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from base.distributed import launch
from base.distributed.launch import device_of_rank, devices_of, parse_devices, start_processes
from base.errors import UsageError
from base.run.build import choose_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Pretend that there are some GPUs; return the numbers of those that are chosen."""

    def pretend(n: int) -> list[int]:
        chosen: list[int] = []
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
        return chosen

    return pretend


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Pretend that torchrun started this process."""

    def pretend(rank: int, size: int) -> None:
        names = {"RANK": rank + 8, "WORLD_SIZE": size + 8, "LOCAL_RANK": rank}
        names |= {"LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
        for name, value in names.items():
            monkeypatch.setenv(name, str(value))

    return pretend


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
    """The calls that would start processes."""
    calls: list[tuple[int, list[str]]] = []

    def run(n_processes: int, arguments: list[str]) -> int:
        calls.append((n_processes, arguments))
        return 3

    monkeypatch.setattr(launch, "_run", run)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return calls


@pytest.mark.parametrize(
    ("name", "n_gpus", "expected"),
    [
        ("auto", 4, ["auto"]),
        ("cpu", 4, ["cpu"]),
        ("1", 4, ["cuda:1"]),
        ("cuda:1", 4, ["cuda:1"]),
        ("0,", 4, ["cuda:0"]),
        ("0,1", 4, ["cuda:0", "cuda:1"]),
        ("3, 1", 4, ["cuda:3", "cuda:1"]),
        ("cuda:0,1", 4, ["cuda:0", "cuda:1"]),
        ("cuda:0,cuda:2", 4, ["cuda:0", "cuda:2"]),
        ("all", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("all", 1, ["cuda:0"]),
        ("cpu:2", 4, ["cpu", "cpu"]),
        ("cpu:1", 0, ["cpu"]),
        ("auto:2", 4, ["cuda:0", "cuda:1"]),
        ("auto:2", 0, ["cpu", "cpu"]),
        ("n_gpu:4", 8, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("n_gpu:4", 2, ["cuda:0", "cuda:1"]),
        ("n_gpu:4", 1, ["cuda:0"]),
        ("n_gpu:4", 0, ["auto"]),
    ],
)
def test_each_process_has_a_device(gpus: Any, name: str, n_gpus: int, expected: list[str]) -> None:
    gpus(n_gpus)
    assert devices_of(name) == expected


@pytest.mark.parametrize(
    ("name", "n_gpus", "told"),
    [
        ("0,0", 2, "name each once"),
        ("0,a", 2, "a list holds the numbers of GPUs"),
        ("0,,1", 2, "a list holds the numbers of GPUs"),
        ("all", 0, "there are no CUDA devices here"),
        ("auto:3", 2, "3 processes need as many GPUs, and there are 2"),
    ],
)
def test_devices_that_cannot_be(gpus: Any, name: str, n_gpus: int, told: str) -> None:
    gpus(n_gpus)
    with pytest.raises(UsageError, match=told):
        devices_of(name)


@pytest.mark.parametrize(
    ("name", "n_gpus", "expected"),
    [
        ("auto", 2, "cuda:1"),
        ("auto", 0, "cpu"),
        ("cuda", 2, "cuda:1"),
        ("all", 2, "cuda:1"),
        ("n_gpu:2", 4, "cuda:1"),
        ("n_gpu:8", 0, "cpu"),
        ("cpu", 2, "cpu"),
        ("cpu:2", 0, "cpu"),
        ("2,3", 4, "cuda:3"),
    ],
)
def test_a_rank_takes_the_device_of_its_number_on_its_machine(
    gpus: Any, ranked: Any, name: str, n_gpus: int, expected: str
) -> None:
    chosen = gpus(n_gpus)
    ranked(1, 2)
    assert device_of_rank(name) == expected
    assert choose_device(name) == torch.device(expected)
    assert chosen == ([int(expected[5:])] if expected.startswith("cuda") else [])


@pytest.mark.parametrize(
    ("name", "n_gpus", "told"),
    [
        (
            "auto",
            1,
            "2 processes on this machine, which has 1 CUDA devices: use --nproc-per-node 1",
        ),
        ("cuda", 0, "which has 0 CUDA devices"),
        ("mps", 0, "several processes train on CUDA devices, or on the CPU"),
        ("1", 2, "-d 1 names 1 GPUs, and torchrun started 2 processes on this machine"),
        ("0,1,2", 4, "use --nproc-per-node 3, or `-d cuda`"),
    ],
)
def test_a_rank_without_a_device(gpus: Any, ranked: Any, name: str, n_gpus: int, told: str) -> None:
    gpus(n_gpus)
    ranked(0, 2)
    with pytest.raises(UsageError, match=told):
        choose_device(name)


def test_the_current_device_is_the_chosen_one(gpus: Any) -> None:
    chosen = gpus(4)
    assert choose_device("1") == torch.device("cuda:1")
    assert choose_device("2,3") == torch.device("cuda:2")  # of one process, as in test.py
    assert choose_device("cpu") == torch.device("cpu")
    assert chosen == [1, 2]
    with pytest.raises(UsageError, match="there are 4 CUDA devices here"):
        choose_device("4")


@pytest.mark.parametrize("name", ["auto", "cpu", "0", "0,", "cuda:3", "cpu:1", "all", "n_gpu:2"])
def test_one_device_needs_no_launch(gpus: Any, started: Any, name: str) -> None:
    gpus(1)
    assert start_processes(name, ["-c", "x.yaml"]) is None
    assert started == []


def test_a_rank_starts_no_processes(ranked: Any, started: Any) -> None:
    ranked(0, 2)
    assert start_processes("0,1", ["-c", "x.yaml"]) is None
    assert started == []


def test_the_command_is_printed_as_it_is_run(gpus: Any, started: Any, capsys: Any) -> None:
    gpus(2)
    arguments = ["-c", "my config.yaml", "-d", "0,1"]
    assert start_processes("0,1", arguments) == 3
    assert started == [(2, ["-u", "train.py", *arguments])]
    (line,) = capsys.readouterr().out.splitlines()
    command = "torchrun --standalone --nproc-per-node 2 train.py -c 'my config.yaml' -d 0,1"
    assert line.startswith("starting 2 processes: ")
    assert line.endswith(command)


def test_fewer_gpus_than_n_gpu_are_told(
    gpus: Any, started: Any, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(2)
    assert start_processes("n_gpu:4", []) == 3
    told = "warning: n_gpu is 4, the number of GPUs here is 2: trains in 2 processes\n"
    assert (started[0][0], capsys.readouterr().err) == (2, told)
    gpus(0)
    assert start_processes("n_gpu:4", []) is None
    with caplog.at_level("INFO", "kindling"):
        assert choose_device("n_gpu:4") == choose_device("auto")
    assert caplog.messages == ["n_gpu is 4, the number of GPUs here is 0: trains in one process"]


def test_missing_gpus_of_a_list_start_nothing(gpus: Any, started: Any) -> None:
    gpus(2)
    with pytest.raises(UsageError, match="-d 1,2: there are 2 CUDA devices here"):
        start_processes("1,2", [])
    assert started == []


def test_devices_are_read_without_torch() -> None:
    code = "import sys; from base.distributed.launch import parse_devices, start_processes; "
    code += "assert start_processes('0,', []) is None; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert parse_devices("0,1").numbers == (0, 1)


@pytest.mark.parametrize(
    ("codes", "expected"), [([2, -15], 2), ([-9, 1], 137), ([], 0), ([130, 130], 130)]
)
def test_the_exit_code_is_that_of_the_first_failure(codes: list[int], expected: int) -> None:
    failures = {
        rank: SimpleNamespace(exitcode=code, timestamp=100 + rank, local_rank=rank)
        for rank, code in enumerate(codes)
    }
    assert launch._exit_code(SimpleNamespace(failures=failures)) == expected  # type: ignore[arg-type]
