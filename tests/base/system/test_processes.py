"""Which of several processes prints an error, and what torchrun's variables say."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from base.errors import KindlingError, UsageError
from base.system import processes
from base.system.processes import await_report, rank, refuse_several_processes
from base.system.signals import InterruptedRunError


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, which pass at once."""
    seconds: list[float] = []
    monkeypatch.setattr(processes.time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that torchrun started this process; restore the handlers of its signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def pretend(rank: int, size: int = 4) -> None:
        for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank % 2}.items():
            monkeypatch.setenv(name, str(value))

    yield pretend
    for number, handler in before.items():
        signal.signal(number, handler)


def test_one_process_prints_at_once(waited: list[float]) -> None:
    assert (rank(), await_report(UsageError("x")), waited) == (None, "", [])


def test_rank_0_prints_at_once_and_the_others_wait(
    ranked: Callable[..., None], waited: list[float]
) -> None:
    ranked(0)
    assert (await_report(UsageError("x")), waited) == ("", [])
    ranked(2)
    assert await_report(UsageError("x")) == "rank 2: "
    ranked(3)
    assert await_report(UsageError("x")) == "rank 3: "
    assert 2.5 < waited[0] < waited[1] < 4  # not at the same time, as torchrun ends the second


def test_the_reporter_of_an_error_may_be_another_rank(
    ranked: Callable[..., None], waited: list[float]
) -> None:
    error = KindlingError("rank 0 is gone")
    error.reporter = 1
    ranked(1)
    assert (await_report(error), waited) == ("rank 1: ", [])


def test_what_rank_0_prints_for_all_is_not_repeated(
    ranked: Callable[..., None], waited: list[float]
) -> None:
    error = InterruptedRunError(signal.SIGTERM, None, 7)
    ranked(1)
    assert await_report(error) is None
    with pytest.raises(SystemExit) as caught:  # ended by torchrun: silently, with the same code
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143


def test_the_text_of_a_reporter_is_not_cut(ranked: Callable[..., None]) -> None:
    ranked(0)
    await_report(UsageError("x"))
    signal.raise_signal(signal.SIGTERM)


def test_what_needs_one_process_refuses_several(ranked: Callable[..., None]) -> None:
    refuse_several_processes("test.py")
    ranked(0, 1)
    refuse_several_processes("test.py")
    ranked(0, 2)
    with pytest.raises(UsageError, match="needs one process, and torchrun started 2"):
        refuse_several_processes("test.py")
