"""Runs beside each other: their names, their curves, and the samples that both predicted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from base.config import load_config
from base.errors import UsageError
from base.report import comparison
from base.report.comparison import (
    default_output,
    is_comparison,
    labels_of,
    write_comparison,
)
from base.report.page import write_report
from base.report.predictions import Predictions, write_predictions
from base.runs import read_run
from logger.csv_writer import CsvWriter
from tests.base.report.test_page import CONFIG, classified, headings, parsed


def make_run(folder: Path, *changes: str, value: float = 0.5) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(load_config(None, changes, text=CONFIG).to_yaml())
    for epoch in (1, 2):
        row = {"epoch": epoch, "step": epoch, "valid/loss": value / epoch}
        CsvWriter(folder / "metrics.csv").add_row(row)
    return folder


def cells_after(page: str, heading: str) -> list[list[str]]:
    """Return the texts of the rows of the table below a heading."""
    table = page.partition(f"{heading}</h2>")[2].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    return [re.findall(r"<t[dh][^>]*>(?:<a[^>]*>)?([^<]*)", row) for row in rows]


def compared(*folders: Path) -> str:
    page = write_comparison(folders, folders[0].parent / "comparison").read_text()
    parsed(page)
    return page


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    one = read_run(make_run(tmp_path / "a" / "20261129-101010_lr=1"))
    two = read_run(make_run(tmp_path / "a" / "20261129-101011_lr=2"))
    three = read_run(make_run(tmp_path / "a" / "20261129-101012"))
    other = read_run(make_run(tmp_path / "b" / "20261129-101010_lr=1", "name=b"))
    assert labels_of([one, two]) == ["lr=1", "lr=2"]
    assert labels_of([one, three]) == ["20261129-101010_lr=1", "20261129-101012"]
    assert labels_of([one, other]) == ["page/20261129-101010_lr=1", "b/20261129-101010_lr=1"]
    copy = read_run(make_run(tmp_path / "c" / "20261129-101010_lr=1"))
    assert labels_of([one, copy]) == [str(one.folder), str(copy.folder)]


def test_differing_settings_and_the_best_value_are_shown(tmp_path: Path) -> None:
    one = make_run(tmp_path / "r1", "optimizer.args.lr=0.1", value=0.5)
    two = make_run(tmp_path / "r2", "optimizer.args.lr=0.2", value=0.3)
    page = compared(one, two)
    assert cells_after(page, "Settings that differ") == [["optimizer.args.lr", "0.1", "0.2"]]
    assert page.count("number best") == 1
    assert '<td class="number best">0.15</td>' in page
    assert headings(page) == ["Runs", "Settings that differ", "Curves"]


def test_equal_settings_and_runs_without_rows_are_no_error(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "r1"), make_run(tmp_path / "r2")
    (two / "metrics.csv").unlink()
    assert "The settings are the same." in compared(one, two)


def test_only_samples_of_both_with_one_target_are_counted(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "r1"), make_run(tmp_path / "r2")
    target = np.array([0, 1, 2, 0, 1])
    ids = list("abcde")
    mine = classified(n_samples=5, ids=ids, target=target, prediction=np.array([0, 1, 2, 1, 0]))
    changed = np.array([0, 1, 0, 0, 2])  # of e the label was corrected since
    theirs = classified(
        n_samples=5, ids=["a", "b", "x", "d", "e"], target=changed,
        prediction=np.array([0, 0, 0, 0, 2]),
    )  # fmt: skip
    write_predictions(one, mine)
    write_predictions(two, theirs)
    ((*_, n, both, only_a, only_b, wrong, p),) = cells_after(
        compared(one, two), "Predictions: validation data"
    )
    assert [n, both, only_a, only_b, wrong, p] == ["3", "1", "1", "1", "0", "1"]


def test_unknown_targets_are_not_compared(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "r1"), make_run(tmp_path / "r2")
    target = np.array([0, 1, -1])
    for run, prediction in ((one, [0, 0, 2]), (two, [0, 1, 1])):
        found = classified(n_samples=3, ids=list("abc"), target=target)
        write_predictions(run, replace(found, prediction=np.array(prediction)))
    (row,) = cells_after(compared(one, two), "Predictions: validation data")
    assert row[2:7] == ["2", "1", "0", "1", "0"]


def test_labels_are_right_if_all_known_ones_are(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "r1"), make_run(tmp_path / "r2")
    target = np.array([[1, -1, 0], [1, 1, -1]], dtype=np.int8)
    for run, prediction in ((one, [[1, 1, 0], [0, 1, 1]]), (two, [[1, 0, 0], [1, 1, 1]])):
        chosen = np.array(prediction, dtype=bool)
        write_predictions(
            run, Predictions("valid", "multilabel", list("ab"), list("xyz"), target, chosen)
        )
    (row,) = cells_after(compared(one, two), "Predictions: validation data")
    assert row[2:7] == ["2", "1", "0", "1", "0"]


def test_rows_that_are_only_numbered_are_not_compared(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "r1"), make_run(tmp_path / "r2")
    write_predictions(one, classified())
    write_predictions(two, classified(are_ids_known=False))
    assert "Predictions: validation data" not in headings(compared(one, two))


def numbers(prediction: list[list[float]]) -> Predictions:
    target = np.array([[1.0, 10.0], [2.0, 20.0]])
    return Predictions("test", "regression", ["a", "b"], ["x", "y"], target, np.array(prediction))


def test_of_numbers_the_errors_are_compared(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "r1"), make_run(tmp_path / "r2")
    write_predictions(one, numbers([[1.0, 12.0], [2.0, 20.0]]))
    write_predictions(two, numbers([[1.5, 10.5], [3.0, 21.0]]))
    (row,) = cells_after(compared(one, two), "Predictions: test data")
    assert row[2:] == ["2", "0.5", "0.75", "1", "1"]


@pytest.mark.parametrize("n_runs", [5, 12])
def test_the_predictions_of_each_run_are_judged_once(
    tmp_path: Path, n_runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many runs each is compared with the best, as the pairs are the square of the runs."""
    target = np.array([0, 1, 2, 0, 1])
    runs = []
    for n in range(n_runs):
        runs.append(make_run(tmp_path / f"r{n:02}", value=10.0 if n != 3 else 1.0))
        prediction = np.where(np.arange(5) < n % 6, target, 2 - target)
        found = classified(n_samples=5, ids=list("abcde"), target=target, prediction=prediction)
        write_predictions(runs[-1], found)
    judged = []
    is_right = comparison._is_right
    monkeypatch.setattr(comparison, "_is_right", lambda row: judged.append(row) or is_right(row))
    page = compared(*runs)
    assert len(judged) == 5 * n_runs
    rows = cells_after(page, "Predictions: validation data")
    n_right = [[number % 6 > k or target[k] == 1 for k in range(5)] for number in range(n_runs)]
    pairs = [(n, m) for n in range(n_runs) for m in range(n)] if n_runs == 5 else [
        (3, n) for n in range(n_runs) if n != 3
    ]  # fmt: skip
    expected = sorted(
        sorted(((f"r{n:02}", sum(n_right[n])), (f"r{m:02}", sum(n_right[m])))) for n, m in pairs
    )
    found_pairs = sorted(
        sorted(((a, int(both) + int(only_a)), (b, int(both) + int(only_b))))
        for a, b, _, both, only_a, only_b, *_ in rows
    )
    assert found_pairs == expected
    assert ("A is r03: of more than 10 runs" in page) == (n_runs == 12)


@pytest.mark.parametrize("n_runs", [2, 12])
def test_each_run_has_a_line_in_each_chart(tmp_path: Path, n_runs: int) -> None:
    page = compared(*(make_run(tmp_path / f"r{n}", value=n + 1) for n in range(n_runs)))
    assert page.count('class="line') == n_runs
    assert ("and 6 more, grey" in page) == (n_runs == 12)


def test_each_set_of_runs_has_a_comparison_of_its_own(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a" / f"20261129-10101{n}") for n in range(4)]
    other = make_run(tmp_path / "b" / "20261129-101010")
    long = [make_run(tmp_path / "a" / f"20261129-10102{n}_{'x' * 80}") for n in range(3)]
    sets = [runs[:2], runs[1:3], runs[:3], runs, [runs[0], other], [runs[1], other]]
    sets += [long[:2], long[1:], long]
    outs = [default_output(each) for each in sets]
    assert len(set(outs)) == len(sets)
    assert outs == [default_output(each[::-1]) for each in sets]
    assert outs[0] == tmp_path / "a" / "comparison_20261129-101010+20261129-101011"
    assert outs[4].parent == tmp_path
    assert all(len(out.name) <= 120 for out in outs)
    for each, out in zip(sets, outs, strict=True):
        write_comparison(each, out)
    titles = {re.findall("<title>(.*?)<", (out / "index.html").read_text())[0] for out in outs}
    assert titles == {f"{n} runs of page" for n in (2, 3, 4)}
    assert write_comparison(runs[:2], outs[0]).parent == outs[0]  # again


def test_only_a_comparison_is_replaced_without_being_asked(tmp_path: Path) -> None:
    one, two = make_run(tmp_path / "r1"), make_run(tmp_path / "r2")
    out = tmp_path / "site"
    out.mkdir()
    (out / "index.html").write_text("my own page")
    with pytest.raises(UsageError, match="exists already, and is no comparison; add --overwrite"):
        write_comparison([one, two], out)
    assert (out / "index.html").read_text() == "my own page"
    write_comparison([one, two], out, overwrite=True)
    assert is_comparison(out)
    write_comparison([two, one], out)
    page = write_report(one)
    with pytest.raises(UsageError, match="exists already"):
        write_comparison([one, two], page.parent)
    with pytest.raises(UsageError, match="a file; give the folder"):
        write_comparison([one, two], page)
    assert not is_comparison(page.parent)
