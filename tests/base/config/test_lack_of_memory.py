"""A lack of memory ends a run with code 3 and one line, wherever it is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import CONFIG

from base.base_trainer import BaseTrainer
from base.checkpoint.background import Snapshot
from base.config.command_line import run
from base.errors import ConfigError, Problem
from base.training.ema import ExponentialMovingAverage
from model.model import MLP
from train import main

CAUSE = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """`run` handles signals until its process ends, which is that of the tests here."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def lacking(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(f"{CAUSE}\nAnd more")


PLACES: dict[str, tuple[type[Any], str, str]] = {
    "the model": (MLP, "to", "out of memory outside of a step, in "),
    "an average": (ExponentialMovingAverage, "__init__", "out of memory"),
    "statistics": (BaseTrainer, "_measure_statistics", "out of memory outside of a step, in "),
    "a copy for a save": (Snapshot, "take", "out of memory outside of a step, in "),
}


@pytest.mark.parametrize(("owner", "method", "expected"), PLACES.values(), ids=PLACES)
def test_a_lack_of_memory_outside_of_a_step(
    owner: type[Any],
    method: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "toy.yaml").write_text(CONFIG)
    monkeypatch.setattr(owner, method, lacking)
    settings = [f"trainer.save_dir={tmp_path}", "trainer.ema=0.9", "trainer.async_save=true"]
    with pytest.raises(SystemExit) as ended:
        run(lambda _: main(["-c", str(tmp_path / "toy.yaml"), "--set", *settings]))
    assert ended.value.code == 3
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert expected in line
    assert CAUSE in line


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 3),
        (MemoryError(), 3),
        (ConfigError([Problem("model", "not known")]), 2),
    ],
)
def test_what_else_is_a_lack_of_memory(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Any) -> int:
        raise error

    ended_with: Callable[[Any], Any] = run
    with pytest.raises(SystemExit) as ended:
        ended_with(fail)
    assert ended.value.code == code
    assert "Traceback" not in capsys.readouterr().err
