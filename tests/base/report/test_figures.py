"""What stays after a run: pictures that can be opened, numbers that can be read."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from base.report.figures import _read_curves, write_curves
from base.report.test_results import write_test_report
from logger.csv_writer import CsvWriter


def write_metrics(folder, n_epochs: int) -> None:
    writer = CsvWriter(folder / "metrics.csv")
    for epoch in range(1, n_epochs + 1):
        row = {"epoch": epoch, "step": 10 * epoch, "train/loss": 1 / epoch, "lr/0": 0.1, "lr/1": 1}
        writer.add_row({**row, "valid/loss": 2 / epoch} if epoch % 2 == 0 else row)


def test_train_and_valid_are_drawn_together_and_gaps_left_out(tmp_path):
    write_metrics(tmp_path, 4)
    assert _read_curves(tmp_path / "metrics.csv") == {
        "loss": {"train": ([1, 2, 3, 4], [1, 1 / 2, 1 / 3, 1 / 4]), "valid": ([2, 4], [1, 0.5])},
        "lr": {"lr/0": ([1, 2, 3, 4], [0.1] * 4), "lr/1": ([1, 2, 3, 4], [1] * 4)},
    }


@pytest.mark.parametrize("n_epochs", [1, 40])
def test_the_curves_are_a_picture(n_epochs, tmp_path):
    write_metrics(tmp_path, n_epochs)
    path = write_curves(tmp_path)
    assert path == tmp_path / "report" / "curves.png"
    with Image.open(path) as picture:
        assert picture.width > 2 * picture.height
        assert len(picture.convert("L").getcolors()) > 10


def test_many_metrics_fill_the_picture_which_says_what_is_left_out(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("base.report.figures.save_figure", lambda each, path: figures.append(each))
    names = [*(f"F1/class {k}" for k in range(61)), "F1/mean"]
    writer = CsvWriter(tmp_path / "metrics.csv")
    writer.add_row({"epoch": 1, **{f"valid/{name}": 0.5 for name in names}})
    write_curves(tmp_path)
    (figure,) = figures
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [*(f"F1/class {k}" for k in range(59)), "F1/mean"]
    assert figure.get_suptitle() == "2 of 62 metrics left out: metrics.csv has them"


def test_without_metrics_there_is_nothing_to_draw(tmp_path):
    assert write_curves(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_no_picture_touches_pyplot(tmp_path):
    sys.modules.pop("matplotlib.pyplot", None)
    write_metrics(tmp_path, 2)
    write_curves(tmp_path)
    assert "matplotlib.pyplot" not in sys.modules


def test_test_results_are_plain_numbers(tmp_path):
    values = {
        "loss": torch.tensor(0.5),
        "accuracy": np.float32(0.25),
        "samples": 360,
        "f1": {"zero": torch.tensor(1.0), "one": float("nan")},
        "recall": torch.tensor([1.0, float("inf")]),
        "note": "text",
    }
    path = write_test_report(tmp_path, values)
    assert path == tmp_path / "report" / "test.json"
    assert json.loads(path.read_text()) == {
        "loss": 0.5,
        "accuracy": 0.25,
        "samples": 360,
        "f1": {"zero": 1.0, "one": None},
        "recall": [1.0, None],
        "note": "text",
    }


def test_a_float_comes_back_bit_for_bit(tmp_path):
    value = 0.1 + 0.2
    assert json.loads(write_test_report(tmp_path, {"loss": value}).read_text()) == {"loss": value}


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_a_table_goes_to_a_file_and_a_picture_of_its_own(kind, tmp_path):
    cells = [[5, 0, 1], [2, 7, 0]]
    path = write_test_report(tmp_path, {"loss": 0.5, "test/confusion.v2": kind(cells)})
    assert json.loads(path.read_text()) == {"loss": 0.5}
    with (path.parent / "test_confusion.v2.csv").open(newline="") as file:
        assert [[int(cell) for cell in row] for row in csv.reader(file)] == cells
    with Image.open(path.parent / "test_confusion.v2.png") as picture:
        assert picture.format == "PNG"


def test_without_matplotlib_one_line_is_said_and_the_numbers_are_there(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_metrics(tmp_path, 2)
    assert write_curves(tmp_path) is None
    assert len(caplog.messages) == 1
    write_test_report(tmp_path, {"confusion": torch.eye(2)})
    assert (tmp_path / "report" / "confusion.csv").read_text() == "1.0,0.0\n0.0,1.0\n"
    assert len(caplog.messages) == 2
