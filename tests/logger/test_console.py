"""What the console says, where, and how the columns stand."""

import io
import logging
import os
import re
import subprocess
import sys

import pytest

from logger.console import (
    ROW,
    EpochTable,
    close_logging,
    early_warnings,
    format_header,
    format_value,
    mute_other_ranks,
    setup_logging,
    setup_rank_logging,
    text_width,
)


@pytest.fixture(autouse=True)
def _logging_begins_and_ends_with_the_test():
    close_logging()
    yield
    close_logging()


def say_everything(logger: logging.Logger) -> None:
    logger.debug("detail")
    logger.info("text")
    logger.log(ROW, "row")
    logger.warning("careful")
    logger.error("broken")


@pytest.mark.parametrize(("verbosity", "out"), [(0, ""), (1, "row\n"), (2, "detail\ntext\nrow\n")])
def test_verbosity_chooses_what_the_console_shows(verbosity, out, capsys, tmp_path):
    say_everything(setup_logging(tmp_path, verbosity))
    assert capsys.readouterr() == (out, "warning: careful\nerror: broken\n")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    levels = ["DEBUG", "INFO", "ROW", "WARNING", "ERROR"]
    assert [line.split()[2] for line in lines] == levels


def test_a_second_call_doubles_nothing_and_a_resumed_run_appends(capsys, tmp_path):
    for k in range(3):
        setup_logging(tmp_path).info("line %d", k)
    assert capsys.readouterr().out == "line 0\nline 1\nline 2\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["0", "1", "2"]


def test_the_root_logger_is_left_alone(capsys):
    before = (logging.root.level, list(logging.root.handlers))
    setup_logging(None).info("once")
    assert (logging.root.level, list(logging.root.handlers)) == before
    assert capsys.readouterr().out == "once\n"


def test_a_handler_on_the_root_logger_prints_no_line_again(capsys):
    root = logging.StreamHandler(sys.stdout)
    logging.root.addHandler(root)
    try:
        setup_logging(None).info("once")
    finally:
        logging.root.removeHandler(root)
    assert capsys.readouterr().out == "once\n"


def test_letters_that_the_console_cannot_write_are_spelled_out(monkeypatch):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    setup_logging(None).info("精度")
    assert out.getvalue() == b"\\u7cbe\\u5ea6\n"


def test_a_reader_who_leaves_does_not_end_the_run(project_root, tmp_path):
    code = (
        "import pathlib, sys; from logger.console import setup_logging\n"
        "logger = setup_logging(pathlib.Path(sys.argv[1]))\n"
        "for k in range(20_000): logger.info('line %d', k)\n"
        "print('a line of the user', flush=True)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=project_root,
        env={**os.environ, "PYTHONPATH": str(project_root)},
    )
    with run:
        assert run.stdout.readline() == b"line 0\n"
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == 0
    assert (tmp_path / "log.txt").read_text().endswith("line 19999\n")


def test_the_header_is_aligned_and_leaves_out_what_is_none():
    facts = {
        "folder": "saved/x",
        "data": "1 training\n2 validation",
        "resume": None,
        "精度": "fp32",
    }
    assert format_header(facts).splitlines() == [
        "folder  saved/x",
        "data    1 training",
        "        2 validation",
        "精度    fp32",
    ]
    assert format_header({}) == ""


def row_of(epoch: int, **values: object) -> dict[str, object]:
    return {"epoch": epoch, "train/loss": 0.25 * epoch, **values}


def test_all_rows_are_as_wide_as_the_header():
    table = EpochTable()
    rows = [
        {"epoch": 1, "step": 480, "train/loss": 0.123456, "精度/正解率": 0.5, "lr": 1e-3},
        {"epoch": 2, "step": 123456, "train/loss": float("nan"), "lr": 2.5e-10},
        {"epoch": 999, "train/loss": -1.5e10, "精度/正解率": float("-inf"), "lr": 0.0},
    ]
    lines = [line for row in rows for line in table.lines(row)]
    assert len(lines) == 4
    assert len({text_width(line) for line in lines}) == 1
    assert lines[1].split() == ["1", "480", "0.1235", "0.5000", "1.00e-03"]
    assert lines[2].split() == ["2", "123456", "nan", "-", "2.50e-10"]
    assert lines[3].split() == ["999", "-", "-1.500e+10", "-inf", "0.00e+00"]


def test_the_best_row_is_marked_behind_the_columns():
    table = EpochTable()
    plain = table.lines({"epoch": 1, "loss": 0.5})[-1]
    assert table.lines({"epoch": 1, "loss": 0.5}, best=True) == [plain + " *"]


def test_the_header_comes_again_when_a_column_comes_and_after_many_rows():
    table = EpochTable(repeat_every=3)
    n_lines = [len(table.lines(row_of(1)))]
    n_lines += [len(table.lines(row_of(2, **{"valid/loss": 0.5}))) for _ in range(3)]
    assert n_lines == [2, 2, 1, 2]
    assert table.columns == ["epoch", "train/loss", "valid/loss"]


def test_long_names_lose_their_middle():
    header, row = EpochTable().lines({"valid/mean_average_precision_at_fifty": 1.0})
    assert header == "valid/mean_a…on_at_fifty"
    assert row == " " * 18 + "1.0000"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("loss", 0.00001234, "1.234e-05"),
        ("loss", 12345.678, "1.235e+04"),
        ("loss", 0.0, "0.0000"),
        ("loss", float("inf"), "inf"),
        ("lr", 0.001, "1.00e-03"),
        ("lr/head", 0.1, "1.00e-01"),
        ("seconds", 12.345, "12.3"),
        ("wait_seconds", 0.04, "0.0"),
        ("epoch", 12, "12"),
        ("loss", None, "-"),
    ],
)
def test_numbers_are_shown_as_people_read_them(name, value, shown):
    assert format_value(name, value) == shown


@pytest.mark.parametrize(
    ("text", "width"), [("loss", 4), ("精度", 4), ("\uff41", 2), ("é", 1), ("e\u0301", 1), ("", 0)]
)
def test_the_width_of_a_text_is_counted_in_cells(text, width):
    assert text_width(text) == width


def test_what_is_said_before_there_is_a_file_comes_into_it_once(capsys, tmp_path):
    setup_logging(None).info("early")
    setup_logging(tmp_path).info("late")
    setup_logging(tmp_path).info("later")
    assert capsys.readouterr().out == "early\nlate\nlater\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["early", "late", "later"]


def test_other_ranks_print_their_warnings_alone_with_their_number(capsys, tmp_path):
    setup_logging(None)
    mute_other_ranks(1)
    logging.getLogger("kindling").warning("early")
    assert early_warnings() == ["early"]
    assert capsys.readouterr() == ("", "")
    say_everything(setup_rank_logging(1))
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines
    assert all(re.match(r"rank 1: (warning|error|critical): ", line) for line in lines)
    assert not list(tmp_path.iterdir())


def test_other_ranks_write_a_log_of_their_own_on_request(capsys, tmp_path):
    setup_logging(None)
    mute_other_ranks(1)
    logging.getLogger("kindling").info("early")
    setup_rank_logging(1, tmp_path).info("late")
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["log-rank1.txt"]
    lines = (tmp_path / "log-rank1.txt").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["early", "late"]
