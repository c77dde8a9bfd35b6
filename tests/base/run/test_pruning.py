"""A trial with a pruner asks after each epoch, and stops there as SIGTERM stops it: resumable."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from toy import assert_same, make, run, train_in

import base.run.pruning
from base.checkpoint.store import read
from base.system.signals import InterruptedRunError
from base.system.trial import (
    VARIABLE,
    Trial,
    answer_file,
    question_file,
    read_message,
    write_message,
)
from logger.csv_writer import read_rows

EPOCHS = "trainer.epochs=4"


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep, whose third trial this process trains."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    trial = Trial(str(folder), 3, n_jobs=1, is_judged=True, parent=os.getpid())
    monkeypatch.setenv(VARIABLE, trial.environment()[VARIABLE])
    return folder


class Answering(threading.Thread):
    """Answers the questions of the trial; stops it after an epoch."""

    def __init__(self, sweep: Path, stop_after: int | None) -> None:
        super().__init__(daemon=True)
        self.sweep, self.stop_after = sweep, stop_after
        self.asked: dict[int, float] = {}
        self.is_over = False

    def run(self) -> None:
        while not self.is_over:
            question = read_message(question_file(self.sweep, 3))
            epoch = question.get("epoch")
            if epoch is not None and epoch not in self.asked:
                self.asked[epoch] = question["value"]
                stop = epoch == self.stop_after
                write_message(answer_file(self.sweep, 3), epoch=epoch, stop=stop)
            time.sleep(0.002)

    def __enter__(self) -> Answering:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self.join()


def test_each_epoch_but_the_last_is_asked_about_and_nothing_changes(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Answering(sweep, None) as answering:
        run(tmp_path / "judged", EPOCHS)
    monkeypatch.delenv(VARIABLE)
    run(tmp_path / "plain", EPOCHS)
    for part in ("model", "optimizer.main", "random", "monitor"):
        assert_same(read(tmp_path / "judged")[part], read(tmp_path / "plain")[part])
    losses = [float(row["valid/loss"]) for row in read_rows(tmp_path / "plain" / "metrics.csv")]
    assert answering.asked == dict(enumerate(losses[:3], start=1))


def test_a_pruned_trial_stops_at_the_end_of_its_epoch_and_resumes_to_the_same_bits(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pruned").mkdir()
    with Answering(sweep, 2), pytest.raises(InterruptedRunError) as raised:
        train_in(make(EPOCHS), tmp_path / "pruned", None)
    assert raised.value.exit_code == 143
    assert len(read_rows(tmp_path / "pruned" / "metrics.csv")) == 2
    progress = read(tmp_path / "pruned")["progress"]
    assert (progress["epoch"], progress["batch"]) == (2, 0)
    monkeypatch.delenv(VARIABLE)
    run(tmp_path / "pruned", EPOCHS, resume=True)
    run(tmp_path / "plain", EPOCHS)
    for part in ("model", "optimizer.main", "random", "monitor"):
        assert_same(read(tmp_path / "pruned")[part], read(tmp_path / "plain")[part])


def test_without_an_answer_training_goes_on(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base.run.pruning, "PATIENCE_SECONDS", 0.05)
    run(tmp_path / "run", EPOCHS)
    assert len(read_rows(tmp_path / "run" / "metrics.csv")) == 4
    assert read_message(question_file(sweep, 3))["epoch"] == 3
