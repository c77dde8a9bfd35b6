"""The rows of metrics.csv in a checkpoint: exact, of bounded size, and what is restored of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from base.training.epoch_rows import MAX_ROWS, EpochRows, repair_rows
from logger.csv_writer import CsvWriter, read_rows


def row(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "step": 10 * epoch, "train/loss": 1 / (3 * epoch), "seconds": 0.5}


def kept(n: int) -> EpochRows:
    rows = EpochRows()
    for epoch in range(1, n + 1):
        rows.add(row(epoch))
    return rows


def loaded(rows: EpochRows) -> EpochRows:
    other = EpochRows()
    other.load_state_dict(rows.state_dict())
    return other


def test_numbers_come_back_to_the_last_bit_and_times_do_not() -> None:
    found = loaded(kept(3)).rows
    assert [float(each["train/loss"]) for each in found.values()] == [1 / 3, 1 / 6, 1 / 9]
    assert all("seconds" not in each for each in found.values())


def test_runs_with_the_same_numbers_have_the_same_state_whenever_they_were_resumed() -> None:
    """Whatever time an epoch has taken."""
    rows = loaded(kept(3))
    for epoch in (3, 4):  # the third is made again
        rows.add({**row(epoch), "seconds": 99.0})
    assert rows.state_dict()["csv"].equal(kept(4).state_dict()["csv"])


def test_a_checkpoint_does_not_grow_beyond_the_last_thousand_epochs() -> None:
    sizes = [kept(n).state_dict()["csv"].nbytes for n in (MAX_ROWS, MAX_ROWS + 500)]
    assert sizes[1] < 1.1 * sizes[0]
    assert list(loaded(kept(MAX_ROWS + 500)).rows) == list(range(501, MAX_ROWS + 501))


def test_rows_beyond_those_of_the_checkpoint_are_reported_as_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = kept(MAX_ROWS + 2)
    repair_rows(CsvWriter(tmp_path / "metrics.csv"), rows, MAX_ROWS + 2)
    (text,) = caplog.messages
    assert f"rows of epochs 3 to {MAX_ROWS + 2} are restored" in text
    assert "missing rows of epochs 1 to 2 are lost" in text
    assert len(read_rows(tmp_path / "metrics.csv")) == MAX_ROWS


def test_a_checkpoint_without_rows_says_what_is_lost_and_takes_in_what_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of an earlier version."""
    writer, rows = CsvWriter(tmp_path / "metrics.csv"), EpochRows()
    for epoch in (1, 3):
        writer.add_row(row(epoch))
    repair_rows(CsvWriter(writer.path), rows, 3)
    (text,) = caplog.messages
    assert text.endswith("missing row of epoch 2 is lost: the checkpoint does not have it")
    assert list(rows.rows) == [1, 3]


def test_a_whole_file_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = CsvWriter(tmp_path / "metrics.csv")
    for epoch in (1, 2, 3):
        writer.add_row(row(epoch))
    before = writer.path.read_bytes()
    assert repair_rows(CsvWriter(writer.path), kept(3), 3) == []
    assert (writer.path.read_bytes(), caplog.messages) == (before, [])


def test_a_column_that_somebody_took_out_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,seconds\n1,10,0.5\n2,20,0.5\n")
    repair_rows(CsvWriter(path), kept(2), 2)
    assert [float(each["train/loss"]) for each in read_rows(path)] == [1 / 3, 1 / 6]
    assert [each["seconds"] for each in read_rows(path)] == ["0.5", "0.5"]
    assert "missing columns are restored from the checkpoint: train/loss" in caplog.text
