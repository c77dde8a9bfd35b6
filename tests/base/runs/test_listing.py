"""The table of runs, and the command that prints it."""

import csv
import io
import json
import re
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from base.errors import UsageError
from base.runs import csv_of_runs, list_runs, table_text
from base.runs.__main__ import main
from base.system.places import PROJECT
from logger.console import text_width
from tests.base.runs.made import CONFIG, NOON, make_run

RATES = (0.001, 0.0123456, 1e-5)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Three runs of one name, one of another; the current folder is above `saved`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for day, (rate, best) in enumerate(zip(RATES, (0.5, 0.75, 0.625), strict=True)):
        make_run(
            tmp_path / "saved", [0.1, best], CONFIG.replace("0.001", str(rate)),
            settings=f"lr={rate}", changed={"optimizer.args.lr": rate}, state="finished",
            now=NOON + timedelta(days=day),
        )  # fmt: skip
    config = "name: größe\ntrainer: {monitor: off}"
    make_run(tmp_path / "saved", [], config, name="größe", state="failed")
    return tmp_path / "saved"


def printed(capsys, *words):
    assert main(words) == 0
    return capsys.readouterr().out


def test_a_line_for_each_run_the_best_first(saved, capsys):
    assert printed(capsys, "saved/toy") == (
        "saved/toy: 3 runs, best by max valid/accuracy\n"
        "run                   lr  valid/accuracy  best at  epoch  state\n"
        "20260302-120000  0.01235          0.7500        2      2  finished\n"
        "20260303-120000     1e-5          0.6250        2      2  finished\n"
        "20260301-120000     1e-3          0.5000        2      2  finished\n"
    )


def test_without_a_path_all_names_are_listed_in_groups(saved, capsys):
    groups = printed(capsys).split("\n\n")
    assert [group.splitlines()[0] for group in groups] == [
        "saved/größe: 1 run, in the order of their start",
        "saved/toy: 3 runs, best by max valid/accuracy",
    ]
    assert groups[0].splitlines()[1:] == [
        "run              epoch  state", "20260301-120000      0  failed",
    ]  # fmt: skip


def test_some_runs_are_compared_and_by_another_rule(saved, capsys):
    folders = [f"saved/toy/{each.name}" for each in sorted(saved.glob("toy/*"))[:2]]
    lines = printed(capsys, *folders, "--by", "min valid/accuracy").splitlines()
    assert lines[0] == "saved/toy: 2 runs, best by min valid/accuracy"
    assert [re.split("  +", line)[:4] for line in lines[2:]] == [
        ["20260301-120000", "1e-3", "0.1000", "1"], ["20260302-120000", "0.01235", "0.1000", "1"],
    ]  # fmt: skip


def test_the_csv_has_exact_values_of_all_runs(saved, capsys, tmp_path):
    text = printed(capsys, "--csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in rows] == ["größe", "toy", "toy", "toy"]
    assert [row["optimizer.args.lr"] for row in rows] == ["", "0.0123456", "1e-05", "0.001"]
    best = rows[1]
    assert (best["best"], best["best_epoch"], best["step"], best["state"]) == (
        "0.75", "2", "20", "finished",
    )  # fmt: skip
    assert best["monitor"] == "max valid/accuracy"
    assert (tmp_path / best["folder"]).is_dir()
    assert printed(capsys, "--csv", "runs.csv") == "runs.csv: 4 runs\n"
    assert (tmp_path / "runs.csv").read_text() == text


def test_values_of_the_test_are_in_the_csv(saved):
    runs = list_runs(saved, "toy")
    (runs[0].folder / "report").mkdir()
    (runs[0].folder / "report" / "test.json").write_text('{"accuracy": 0.25}')
    rows = list(csv.DictReader(io.StringIO(csv_of_runs([runs]))))
    assert [row["test/accuracy"] for row in rows] == ["", "", "0.25"]


MANY = {
    "model.type": ["ResNet", "AVeryLongModelName", "大きいモデル"],
    "optimizer.args.lr": [1e-3, 0.031622776, 5e-6],
    "data_loader.args.batch_size": [4, 1024, 65536],
    **{f"extra.setting_{k}": [k, k + 0.5, None] for k in range(9)},
}


@pytest.mark.parametrize("width", [16, 20, 30, 40, 50, 60, 79, 80, 100, 132, 200, 1000])
def test_the_table_fits_any_width_and_no_number_is_broken(tmp_path, width):
    for k in range(3):
        config = "\n".join(
            f"{key.split('.')[0]}_{n}: {{args: {{x: {json.dumps(values[k])}}}}}"
            for n, (key, values) in enumerate(MANY.items())
        )
        config += "\ntrainer: {monitor: max valid/accuracy}"
        make_run(tmp_path, [0.123456 + k], config, settings=f"lr={k}", state="interrupted")
    runs = list_runs(tmp_path, "toy")
    wide = [re.split("  +", line) for line in table_text(runs, 10_000).splitlines()]
    assert len(wide[0]) == 1 + len(MANY) + 4
    lines = table_text(runs, width).splitlines()
    assert max(map(text_width, lines)) <= width
    assert len(lines) >= 4
    assert len({text_width(line[: line.rindex(" ")]) for line in lines[1:4]}) <= 3
    for line, whole in zip(lines[1:4], wide[1:], strict=True):
        for cell in line.split():
            if "…" not in cell and re.fullmatch(r"[-+.e0-9]+", cell):
                assert cell in whole
    if width >= 40:  # what matters most is there
        assert "2.1235" in lines[1]
    if width >= 50:
        assert all(line.endswith("  interrupted") for line in lines[1:4])
    if width < 200:
        assert re.search("more settings? differs?, see --csv: ", lines[4]) or width < 60


def test_equal_looking_values_get_the_digits_that_tell_them_apart(tmp_path):
    for rate in (0.1234561, 0.1234562, 0.5):
        make_run(tmp_path, [rate], CONFIG.replace("0.001", str(rate)))
    lines = table_text(list_runs(tmp_path)).splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["0.5", "0.1234562", "0.1234561"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["saved/toys"], "saved/toys: no such file or folder: .* no 'toys'; did you mean 'toy'?"),
        (["."], "no runs here"),
        (["saved", "--by", "valid/accuracy"], "write 'min NAME' or 'max NAME'"),
        (["saved", "--by", "max valid/acuracy"], "did you mean 'valid/accuracy'"),
        (["--csv", "saved/toy"], "--csv saved/toy: this is a folder; write it before --csv"),
        (["--csv", "no/ne/runs.csv"], "no/ne/runs.csv: cannot be written: No such file"),
        (["saved", "--sort"], "unrecognized arguments: --sort"),
    ],
)
def test_a_slip_is_one_line(saved, words, message):
    with pytest.raises(UsageError) as info:
        main(words)
    assert re.search(message, str(info.value))
    assert "\n" not in str(info.value)


def test_without_runs_it_says_how_to_train_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="saved: no such file or folder"):
        main([])
    (tmp_path / "saved" / "digits").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"saved: no runs here; train one with python train.py"):
        main([])


def test_the_command_runs_without_torch(saved):
    code = "import runpy, sys; sys.argv = ['runs', 'saved']; sys.path.insert(0, ROOT)\n"
    code += "try: runpy.run_module('base.runs', run_name='__main__')\n"
    code += "except SystemExit as end: sys.exit(end.code or 'torch' in sys.modules)"
    command = [sys.executable, "-W", "ignore", "-c", code.replace("ROOT", repr(str(PROJECT)))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "20260302-120000" in done.stdout


def test_a_thousand_runs_are_listed_in_seconds(tmp_path, trials):
    n_runs = trials.count(100, 1000)
    for k in range(n_runs):
        make_run(tmp_path, [k / n_runs], CONFIG.replace("0.001", f"{k}.5"), state="finished")
    begin = time.process_time()
    lines = table_text(list_runs(tmp_path), 80).splitlines()
    assert time.process_time() - begin < 0.005 * n_runs
    assert len(lines) == 1 + n_runs
    assert f"  {n_runs - 1}.5  " in lines[1]
