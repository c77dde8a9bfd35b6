"""The rows of metrics.csv in a checkpoint: exact, of bounded size, and what is restored of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from base.training.epoch_rows import MAX_CELLS, MAX_ROWS, EpochRows, repair_rows
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


def test_rows_of_many_classes_do_not_grow_a_checkpoint() -> None:
    rows = EpochRows()
    n_classes = 20_000
    for epoch in range(1, 31):
        rows.add({"epoch": epoch, **{f"valid/F1/{k}": 0.5 for k in range(n_classes)}})
    assert sum(map(len, rows.rows.values())) <= MAX_CELLS
    assert list(rows.rows) == list(range(30 - len(rows.rows) + 1, 31))
    assert len(rows.rows) >= 5
    rows.add({"epoch": 31, **{f"valid/F1/{k}": 0.5 for k in range(2 * MAX_CELLS)}})
    assert list(rows.rows) == [31]


class Counted(float):
    """A number that counts how often it is compared with another for equality."""

    n_compared = 0
    __hash__ = float.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.n_compared += 1
        return super().__eq__(other)


def test_a_repair_does_not_search_for_the_epoch_of_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float in a `range` is found by comparing it with one number after another."""
    writer = CsvWriter(tmp_path / "metrics.csv")
    writer.rewrite([row(epoch) for epoch in range(1, 401)])
    monkeypatch.setattr("base.training.epoch_rows.number", lambda text: Counted(text))
    Counted.n_compared = 0
    later = repair_rows(writer, EpochRows(), 390)
    assert Counted.n_compared <= 400
    assert [each["epoch"] for each in later] == [str(epoch) for epoch in range(391, 401)]
    assert len(read_rows(writer.path)) == 390
