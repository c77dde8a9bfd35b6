"""`profile:` records the steps that it names, and changes nothing else."""

from __future__ import annotations

import gzip
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from toy import assert_same, make, run

from base.checkpoint.store import read
from base.errors import ConfigError
from base.run.checks import check


def trace(folder: Path, epoch: int) -> list[str]:
    """Return the names of the events of a trace."""
    text = gzip.decompress((folder / f"report/profile/epoch_{epoch}.json.gz").read_bytes())
    return [event.get("name", "") for event in json.loads(text)["traceEvents"]]


def n_steps(folder: Path, epoch: int) -> int:
    return len({name for name in trace(folder, epoch) if name.startswith("ProfilerStep#")})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "report" / "profile").iterdir())


def test_an_epoch_leaves_a_trace_and_the_ten_costliest_operators(tmp_path: Path) -> None:
    """Five steps an epoch, of which three are the warm-up."""
    run(tmp_path, "profile={epochs: [2]}")
    assert files(tmp_path) == ["epoch_2.json.gz", "epoch_2.txt"]
    assert n_steps(tmp_path, 2) == 2
    head, *rows = (tmp_path / "report/profile/epoch_2.txt").read_text().splitlines()
    assert head.split() == ["operator", "calls", "CPU", "ms", "share"]
    assert len(rows) == 10
    names, calls, _, shares = zip(*(row.rsplit(maxsplit=3) for row in rows), strict=True)
    percents = [float(share.rstrip("%")) for share in shares]
    assert percents == sorted(percents, reverse=True)
    assert sum(percents) <= 100.5
    recorded = [name[:56] for name in trace(tmp_path, 2)]
    assert [recorded.count(name) for name in names] == [int(n) for n in calls]


@pytest.mark.parametrize(("accumulate", "steps", "found"), [(1, 1, 1), (1, 50, 7), (2, 50, 2)])
def test_steps_limit_what_is_recorded(
    tmp_path: Path, accumulate: int, steps: int, found: int
) -> None:
    """Ten batches; neither validation nor the next epoch is recorded."""
    run(tmp_path, f"profile.steps={steps}", f"memory.accumulate={accumulate}",
        "data_loader.args.batch_size=2")  # fmt: skip
    assert n_steps(tmp_path, 1) == found
    n_validations = trace(tmp_path, 1).count("aten::nll_loss_nd")
    assert n_validations == found * accumulate


def test_a_run_with_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    drops = "model={type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3, dropout: 0.5}}"
    run(tmp_path / "plain", drops)
    run(tmp_path / "profiled", drops, "profile={epochs: [1, 2]}")
    assert_same(read(tmp_path / "profiled"), read(tmp_path / "plain"))


def test_a_run_goes_on_with_it_and_without(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "cut", "profile={epochs: [1]}", stop_at=4)
    assert files(tmp_path / "cut") == ["epoch_1.json.gz", "epoch_1.txt"], "of what it had done"
    run(tmp_path / "cut", "profile={epochs: [2]}", resume=True)
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))
    assert files(tmp_path / "cut")[2:] == ["epoch_2.json.gz", "epoch_2.txt"]


def test_a_run_that_is_stopped_in_the_warm_up_leaves_no_trace(tmp_path: Path) -> None:
    run(tmp_path, "profile={epochs: [1]}", stop_at=2)
    assert not (tmp_path / "report" / "profile").exists()


def test_a_profiler_that_cannot_start_is_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch 2.10 warned in the middle of the start; as an error that left a half-made one."""

    def busy(_: Any) -> None:
        raise RuntimeError("busy")

    stopped: list[Any] = []
    monkeypatch.setattr("torch.profiler.profile.prepare_trace", busy)
    monkeypatch.setattr("torch.profiler.profile.stop", lambda profile: stopped.append(profile))
    with pytest.raises(RuntimeError, match="busy"):
        run(tmp_path, "profile={}")
    assert not stopped


def test_the_log_says_what_was_recorded_and_how_to_open_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kindling")
    run(tmp_path, "profile={epochs: [2], steps: 1}")
    (line,) = (r.message for r in caplog.records if r.message.startswith("profile of"))
    assert line.startswith("profile of epoch 2, steps 9 to 9: ")
    logged = re.findall(r"\S+epoch_2\.\S+\b", line)
    assert [Path(name).exists() for name in logged] == [True, True]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("profile={epochs: [1, 3]}", "profile.epochs: epoch 3: the last of this training is 2"),
        ("profile={epochs: 0}", "profile.epochs.0: expected a whole number of at least 1, found 0"),
        ("profile={steps: 0}", "profile.steps: expected a whole number from 1 to 1000, found 0"),
        ("profile={step: 3}", "did you mean 'steps'"),
    ],
)
def test_what_cannot_be_recorded_is_said_before_training(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(make(override))


def test_an_epoch_of_the_warm_up_alone_is_said_before_training() -> None:
    with pytest.raises(ConfigError, match="an epoch has 3 steps; the first 3 are left out"):
        check(make("profile={}", "data_loader.args.batch_size=7"))


def test_where_nothing_can_be_written_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("base.run.profiler.write_whole", full)
    made = run(tmp_path, "profile={}")
    assert made.progress.epoch == 2
    assert "No space left on device" in caplog.text
