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
    close_logging,
    early_warnings,
    format_header,
    format_value,
    mute_other_ranks,
    setup_logging,
    setup_rank_logging,
    shorten,
    table,
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


WIDE = [["name", "numbers", "init", "such as"]]
WIDE += [[f"body.{k}.conv.weight", "1,294", "normal_(std=0.012345)", "a, b, c, d"] for k in (1, 22)]


@pytest.mark.parametrize("width", range(20, 90))
def test_a_table_fits_any_width_and_breaks_no_number(width):
    lines = table(WIDE, right=["numbers"], spare=["init"], width=width).splitlines()
    assert len(lines) == 3
    assert max(map(text_width, lines)) <= max(width, 22)
    whole = {"1,294", "1", "22", "0.012345"}
    for line in lines[1:]:
        assert set(re.findall(r"[\d.,]*\d", line)) <= whole | {".1", ".22"}
        assert re.match(r"  body\.\d+\.conv\.weight|  body.*…", line)


def test_spare_columns_go_first_and_a_wide_table_is_whole():
    assert "init" not in table(WIDE, spare=["init"], width=45)
    assert "such as" in table(WIDE, spare=["init"], width=45)
    assert "such as" not in table(WIDE, width=45)
    assert table(WIDE, width=72) == table(WIDE)  # a pipe
    assert text_width(table(WIDE).splitlines()[-1]) > 60


def test_in_a_terminal_a_header_breaks_its_lists_but_no_command(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    facts = {"data": "1,294 train, 143 valid, in memory", "by": "python train.py -r saved/digits/1"}
    assert format_header(facts).splitlines() == [
        "data  1,294 train, 143 valid,",
        "      in memory",
        "by    python train.py -r saved/digits/1",
    ]


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("top_k_accuracy", 14, "top_k_accuracy"),
        ("top_k_accuracy", 9, "top_k_…cy"),
        ("body.12345.weight", 9, "body…ht"),
        ("normal_(std=0.012345)", 16, "normal_(std=…"),
        ("stem.norm, head.norm", 12, "stem.norm…"),
        ("精度正解率精度", 6, "精度…"),
        ("x1", 1, "…"),
    ],
)
def test_long_texts_lose_their_middle_or_their_end_but_no_part_of_a_number(text, width, short):
    assert shorten(text, width) == short
    assert text_width(short) <= width


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
