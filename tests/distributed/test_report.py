"""The report of several processes: one page; predictions of all in the order of the data."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.distributed.test_resume import Place

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("size", [2, 3])
def test_the_predictions_of_all_processes_are_in_the_report(place: Place, size: int) -> None:
    done = place.train(size, "-c", "c.yaml", "--set", "trainer.test=true")
    assert done.returncode == 0, done.stderr
    (run,) = place.runs()
    rows = rows_of(run / "report" / "predictions.csv")
    split = [row["id"] for row in rows_of(run / "split.csv") if row["part"] == "valid"]
    valid = [row for row in rows if row["part"] == "valid"]
    assert [row["id"] for row in valid] == split
    targets = {row["id"]: row["target"] for row in rows_of(run / "split.csv")}
    assert all(targets[row["id"]] == row["target"] for row in valid)
    epochs = rows_of(run / "metrics.csv")
    best = min(epochs, key=lambda row: float(row["valid/loss"]))
    right = sum(row["target"] == row["prediction"] for row in valid)
    assert right / len(valid) == pytest.approx(float(best["valid/accuracy"]))
    assert len(rows) - len(valid) == 360
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "Predictions: test data" in page
    assert ">finished</b>" in page


def test_with_fsdp_a_line_says_how_to_predict(place: Place) -> None:
    done = place.train(2, "-c", "c.yaml", "--set", "distributed.strategy=fsdp", "trainer.epochs=1")
    assert done.returncode == 0, done.stderr
    (run,) = place.runs()
    assert f"python -m base.report {run.relative_to(place.folder)}" in done.stdout
    assert (run / "report" / "index.html").is_file()
    assert not (run / "report" / "predictions.csv").exists()
