"""A SLURM job that SIGTERM stopped asks to be queued again, by a file in the run's folder."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import pytest
from toy import make

from base.run.session import open_folder
from base.system.signals import InterruptedRunError


@pytest.mark.parametrize(
    ("number", "job", "expected"),
    [
        (signal.SIGTERM, "77", "77\n"),
        (signal.SIGTERM, None, None),
        (signal.SIGINT, "77", None),  # Ctrl-C, or scancel --signal=INT
        (None, "77", None),
    ],
)
def test_sigterm_in_a_job_asks_for_requeue(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int | None,
    job: str | None,
    expected: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    config = make().config
    with suppress(InterruptedRunError), open_folder(config) as folder:
        if number is not None:
            raise InterruptedRunError(number, folder, 7)
    file = folder / "requeue"
    assert (file.read_text() if file.exists() else None) == expected


def test_a_resumed_run_takes_the_request_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make().config
    with open_folder(config) as folder:
        pass
    (folder / "requeue").write_text("77\n")
    with open_folder(config, folder):
        assert not (folder / "requeue").exists()
