"""The rows of epochs fit the terminal, and what is left out is the least important."""

from __future__ import annotations

import pytest

from logger.console import text_width
from logger.epoch_table import EpochTable, row_width

DIGITS = {
    "epoch": 3,
    **{
        f"{phase}/{name}": 0.5
        for phase in ("train", "valid")
        for name in ("loss", "accuracy", "top_k_accuracy")
    },
    "lr/0": 1e-3,
    "seconds": 12.3,
    "wait": 0.02,
}


def table_of(width: int, **how: object) -> EpochTable:
    return EpochTable(width=lambda: width, **how)  # type: ignore[arg-type]


def row_of(epoch: int, **values: object) -> dict[str, object]:
    return {"epoch": epoch, "train/loss": 0.25 * epoch, **values}


def test_all_rows_are_as_wide_as_the_header() -> None:
    table = table_of(100)
    rows = [
        {"epoch": 1, "step": 480, "train/loss": 0.123456, "精度/正解率": 0.5, "lr": 1e-3},
        {"epoch": 2, "step": 123456, "train/loss": float("nan"), "lr": 2.5e-10},
        {"epoch": 999, "train/loss": 1.5e10, "精度/正解率": float("-inf"), "lr": 0.0},
    ]
    lines = [line for row in rows for line in table.lines(row)]
    assert len({text_width(line) for line in lines[1:]}) == 1
    assert lines[0].split() == ["train", "--"]
    assert lines[1].split() == ["epoch", "step", "精度/正解率", "loss", "lr"]
    assert lines[2].split() == ["1", "480", "0.5000", "0.1235", "1.00e-03"]
    assert lines[3].split() == ["2", "123456", "-", "nan", "2.50e-10"]
    assert lines[4].split() == ["999", "-", "-inf", "1.50e+10", "0.00e+00"]


def test_the_best_row_is_marked_behind_the_columns() -> None:
    table = table_of(80)
    plain = table.lines({"epoch": 1, "loss": 0.5})[-1]
    assert table.lines({"epoch": 1, "loss": 0.5}, best=True) == [plain + " *"]


def test_the_header_comes_again_when_a_column_or_a_width_changes_and_after_many_rows() -> None:
    widths = [80]
    table = EpochTable(repeat_every=3, width=lambda: widths[-1])
    n_lines = [len(table.lines(row_of(1)))]
    n_lines += [len(table.lines(row_of(2, **{"valid/loss": 0.5}))) for _ in range(3)]
    assert n_lines == [3, 3, 1, 3]
    assert table.columns == ["epoch", "train/loss", "valid/loss"]
    widths.append(20)
    assert len(table.lines(row_of(3))) > 1, "a narrower terminal"
    assert len(table.lines(row_of(4))) == 1


def test_a_number_that_needs_more_cells_widens_its_column() -> None:
    table = table_of(80)
    table.lines({"epoch": 1, "loss": 0.5})
    lines = table.lines({"epoch": 2, "loss": -1.25e-300})
    assert [text_width(line) for line in lines] == [17, 17]
    assert lines[-1].endswith("-1.25e-300")


@pytest.mark.parametrize("width", range(16, 140, 3))
@pytest.mark.parametrize("n_metrics", [0, 3, 30])
def test_rows_fit_any_width_and_losses_and_the_monitored_value_stay(
    width: int, n_metrics: int
) -> None:
    more = {f"{p}/metric_{k}/macro": 1e-5 for k in range(n_metrics) for p in ("train", "valid")}
    table = table_of(width, monitored="valid/accuracy")
    lines = table.lines(DIGITS | more, best=True)
    assert max(map(text_width, lines)) <= width
    assert lines[-1].endswith(" *")
    numbers = lines[-1].split()[:-1]
    assert set(numbers) <= {"3", "0.5000", "1.00e-03", "12.3", "2%", "1.00e-05"}, "whole"
    assert len(lines[-2].split()) == len(numbers), "a name for each"
    if width >= 34:
        assert lines[-2].count("loss") == 2
        assert "accuracy" in lines[-2]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (200, "epoch loss accuracy top_k_accuracy loss accuracy top_k_accuracy lr seconds wait"),
        (80, "epoch loss accuracy top_k_…cy loss accuracy top_k_…cy lr seconds"),
        (60, "epoch loss accuracy loss accuracy top_k_accuracy"),
        (40, "epoch loss loss accuracy"),
        (25, "epoch loss accuracy"),
        (10, "epoch"),
    ],
)
def test_what_is_left_out_first(width: int, shown: str) -> None:
    lines = table_of(width, monitored="valid/accuracy").lines(DIGITS)
    assert lines[-2].split() == shown.split()
    hidden = [line for line in lines if line.startswith("not shown")]
    assert bool(hidden) == (width < 80)


def test_phases_stand_above_their_values() -> None:
    table = table_of(80)
    values = {"epoch": 1, "valid/loss": 1.0, "train/loss": 1.0, "train/F1": 1.0, "lr/0": 1.0}
    phases, names, _ = table.lines(values)
    assert phases.split() == ["train", "------------", "valid", "--"]
    assert names.split() == ["epoch", "loss", "F1", "loss", "lr"]
    assert phases.index("train") > names.index("epoch")


def test_a_pipe_has_80_columns_and_a_variable_another_width(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert row_width() == 80
    monkeypatch.setenv("COLUMNS", "132")
    assert row_width() == 132
    monkeypatch.setenv("COLUMNS", "wide")
    assert row_width() == 80
