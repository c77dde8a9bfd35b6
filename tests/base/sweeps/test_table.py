"""The table of a sweep fits any width with whole numbers, best first; the picture is drawn."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from base.sweeps.picture import _place_axis, draw_sweep
from base.sweeps.record import Plan, Sweep, TrialRecord
from base.sweeps.space import draws, grid, parse_space
from base.sweeps.table import best_of, ranked, show_table, write_table
from logger.console import text_width

TEXTS = {
    "one": ["lr=1e-4,1e-3,1e-2"],
    "name": ["optimizer.type=SGD,Adam"],
    "grid": ["lr=1e-4,1e-3", "model.args.width=8,16,32"],
    "two": ["lr=1e-4..1e-1 log", "model.args.width=8,16"],
    "many": ["lr=1e-4..1e-1 log", "x.y=1..9", "model.args.hidden=[1,2,3,4,5,6,7,8,9],null",
             "seed=1,2", "data_loader.args.root='größer als 東京',b"],
}  # fmt: skip


def made(kind: str, folder: Path) -> Sweep:
    space = parse_space(TEXTS[kind])
    settings = grid(space) if kind in ("one", "name", "grid") else []
    settings = settings or [each for each, _ in zip(draws(space, 1), range(9), strict=False)]
    sweep = Sweep(folder, Plan("c.yaml", [], TEXTS[kind]))
    for number, each in enumerate(settings, start=1):
        trial = TrialRecord(number, each, "finished", f"saved/x/20261129-06461{number}_lr=1e-3")
        trial.value, trial.epoch, trial.seconds = 1 / (1 + number), number, 1.5 * number
        sweep.trials.append(trial)
    last = sweep.trials[-1]
    last.state, last.value, last.code = "failed", None, 1
    sweep.trials[0].state = "pruned" if len(settings) > 2 else "finished"
    return sweep


def test_finished_trials_come_first_the_best_of_them_on_top(tmp_path: Path) -> None:
    sweep = made("many", tmp_path)
    assert [trial.number for trial in ranked(sweep, "max")] == [2, 3, 4, 5, 6, 7, 8, 1, 9]
    assert [trial.number for trial in ranked(sweep, "min")] == [8, 7, 6, 5, 4, 3, 2, 1, 9]
    best = best_of(sweep, "min")
    assert best is not None
    assert best.number == 8
    sweep.trials = sweep.trials[-1:]
    assert best_of(sweep, "max") is None


@pytest.mark.parametrize("width", [40, 60, 80, 120, 300])
@pytest.mark.parametrize("kind", TEXTS)
def test_the_table_fits_and_its_numbers_are_whole(kind: str, width: int, tmp_path: Path) -> None:
    sweep = made(kind, tmp_path)
    header, *rows = show_table(sweep, "max", "valid/loss", width).splitlines()
    assert all(text_width(line) <= width for line in (header, *rows) if "in table.csv" not in line)
    numbers = {f"{1 / (1 + n):.4f}" for n in range(1, len(sweep.trials))}
    assert set(re.findall(r"\b0\.\d{4}\b", "\n".join(rows))) >= numbers
    assert rows[0].split()[1] == "*"
    if width == 300:
        assert "table.csv" not in rows[-1]
        assert "20261129-064611_lr=1e-3" in "\n".join(rows)


@pytest.mark.parametrize("same_second", [False, True])
def test_a_cut_folder_is_found_by_r_or_marked(same_second: bool, tmp_path: Path) -> None:
    sweep = made("one", tmp_path)
    if same_second:
        for trial in sweep.trials:
            trial.folder = f"saved/x/20261129-064611_lr={trial.number}e-3"
    whole = show_table(sweep, "max", "valid/loss", 120)
    cut = show_table(sweep, "max", "valid/loss", len(whole.splitlines()[0]) + 10)
    if same_second:
        assert cut.count("20261129-064611…") == 3
    else:
        assert cut.splitlines()[0].endswith("run (-r)")
        assert all(f"20261129-06461{n}\n" in f"{cut}\n" for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ("1e-3,3e-3,1e-2", "log"), ("1,3,9", "log"), ("1,2,4", "log"), ("0.1,10,30", "log"),
        ("1,2,9", "linear"), ("1,2,3", "linear"), ("0,1,100", "linear"), ("-1,3,9", "linear"),
    ],
)  # fmt: skip
def test_values_of_about_equal_ratios_have_a_log_axis(values: str, scale: str) -> None:
    axes = Figure().add_subplot()
    space = parse_space([f"lr={values}"])
    _place_axis(axes, "x", space[0], [TrialRecord(1, each) for each in grid(space)])
    assert axes.get_xscale() == scale


def test_the_file_holds_everything_exactly(tmp_path: Path) -> None:
    sweep = made("many", tmp_path)
    with write_table(sweep, "max", "valid/loss").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["2", "3", "4", "5", "6", "7", "8", "1", "9"]
    assert float(rows[0]["valid/loss"]) == 1 / 3
    assert rows[0]["model.args.hidden"] == sweep.trials[1].settings["model.args.hidden"]
    assert (rows[-1]["state"], rows[-1]["exit_code"], rows[-1]["valid/loss"]) == ("failed", "1", "")


@pytest.mark.parametrize("kind", TEXTS)
def test_a_picture_is_drawn(kind: str, tmp_path: Path) -> None:
    path = draw_sweep(made(kind, tmp_path), parse_space(TEXTS[kind]), "max", "valid/loss")
    assert path is not None
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_there_is_no_picture_of_nothing(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, Plan("c", [], []), [TrialRecord(1, {"x": "1"}, "failed")])
    assert draw_sweep(sweep, parse_space(["x=1,2"]), "max", "v") is None
