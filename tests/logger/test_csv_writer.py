"""`metrics.csv`: exact, whole, and without a doubled row after a resume."""

import csv
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logger.csv_writer import CsvWriter, read_rows
from logger.writers import Writers


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.csv"


@given(st.lists(st.floats(), min_size=1, max_size=4))
def test_floats_come_back_bit_for_bit(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("run") / "metrics.csv"
    for value in values:
        CsvWriter(path).add_row({"loss": value})
    with path.open(newline="") as file:
        read = [float(row["loss"]) for row in csv.DictReader(file)]
    for one, other in zip(read, values, strict=True):
        same = struct.pack("d", one) == struct.pack("d", other)
        assert same or (math.isnan(one) and math.isnan(other))


def test_a_column_that_comes_late_is_empty_in_the_rows_before(path):
    writer = CsvWriter(path)
    writer.add_row({"epoch": 1, "loss": 0.5})
    writer.add_row({"epoch": 2, "loss": 0.25, "valid/accuracy, top 1": 0.9})
    writer.add_row({"epoch": 3, "loss": None})
    assert path.read_text() == ('epoch,loss,"valid/accuracy, top 1"\n1,0.5,\n2,0.25,0.9\n3,,\n')


def rows(first: int, last: int) -> list[dict[str, object]]:
    """Epochs of ten steps, validated every second time."""
    made = []
    for epoch in range(first, last + 1):
        row = {"epoch": epoch, "step": 10 * epoch, "train/loss": 1 / epoch}
        made.append({**row, "valid/loss": 2 / epoch} if epoch % 2 == 0 else row)
    return made


@pytest.mark.parametrize("cut", range(6))
def test_a_resumed_run_leaves_the_same_file_as_an_unbroken_one(cut, tmp_path):
    for row in rows(1, 6):
        CsvWriter(tmp_path / "unbroken.csv").add_row(row)
    broken = tmp_path / "broken.csv"
    before = CsvWriter(broken)
    for row in rows(1, 5):  # goes on after the last checkpoint, and is killed
        before.add_row(row)
    after = CsvWriter(broken)
    after.truncate_after(10 * cut + 9)  # a checkpoint in mid-epoch
    for row in rows(cut + 1, 6):
        after.add_row(row)
    assert broken.read_text() == (tmp_path / "unbroken.csv").read_text()


def test_a_run_without_a_file_has_nothing_to_cut(path):
    CsvWriter(path).truncate_after(100)
    assert read_rows(path) == []


def test_rows_may_be_cut_by_another_column(path):
    writer = CsvWriter(path)
    for row in rows(1, 4):
        writer.add_row(row)
    writer.truncate_after(2, column="epoch")
    assert [row["epoch"] for row in read_rows(path)] == ["1", "2"]


def test_a_file_that_a_person_emptied_or_spoilt_does_not_stop_a_resume(path):
    path.parent.mkdir()
    for spoilt in ("", "\n", "a;b\n1;2\n", "step,loss\nx,1\n10\n"):
        path.write_text(spoilt)
        writer = CsvWriter(path)
        writer.truncate_after(10)
        writer.add_row({"step": 20, "loss": 0.5})
        assert read_rows(path)[-1].items() >= {("step", "20"), ("loss", "0.5")}


@pytest.mark.parametrize("torn", ["2,20,0.", "2", "\x00\x00", "\xff"])
def test_a_line_cut_short_by_a_crash_is_dropped(torn, path):
    CsvWriter(path).add_row(rows(1, 1)[0])
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode("latin-1"))
    assert [row["epoch"] for row in read_rows(path)] == ["1"]
    CsvWriter(path).add_row(rows(3, 3)[0])
    assert path.read_bytes() == whole + b"3,30,0.3333333333333333\n"


def test_a_crash_before_the_rename_leaves_the_old_file(path, monkeypatch):
    writer = CsvWriter(path)
    writer.add_row({"step": 1})
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space")))
        with pytest.raises(OSError, match=r"no space.*metrics\.csv"):
            writer.add_row({"step": 2, "new": 1})
    assert path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_gone_does_not_stop_the_run(path, caplog):
    writers = Writers([CsvWriter(path)])
    writers.add_row({"step": 1})
    path.unlink()
    path.mkdir()
    writers.add_row({"step": 2})
    writers.add_row({"step": 3})
    (message,) = caplog.messages
    assert message.startswith("metrics.csv is off, training continues without it: ")


class Row(dict):
    """A row that counts how often it is compared with another."""

    n_compared = 0

    def __eq__(self, other):
        Row.n_compared += 1
        return super().__eq__(other)


@pytest.mark.parametrize("n_rows", [100, 200])
def test_cutting_rows_compares_none_of_them(n_rows, path, monkeypatch):
    for row in rows(1, n_rows):
        CsvWriter(path).add_row(row)
    found = [Row(row) for row in read_rows(path)]
    monkeypatch.setattr("logger.csv_writer.read_rows", lambda _: found)
    Row.n_compared = 0
    removed = CsvWriter(path).truncate_after(10 * (n_rows - 3))
    assert Row.n_compared == 0
    assert [row["epoch"] for row in removed] == [str(n_rows - 2 + k) for k in range(3)]
    assert len(CsvWriter(path).truncate_after(0)) == n_rows
