"""The bar: seen in a terminal, silent in a pipe, and never in the way of a log line."""

import fcntl
import importlib
import io
import os
import pty
import re
import struct
import sys
import termios
import threading
import time

import pytest
from tqdm import tqdm

from logger import progress
from logger.console import ROW, close_logging, setup_logging
from logger.progress import ProgressBar


class Terminal:
    """A terminal of 80 columns that keeps all bytes, with a screen drawn from them."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding="utf-8", buffering=1)
        self.bytes = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while not self.bytes.endswith(b"\0"):
            self.bytes += os.read(self._master, 65536)

    def finish(self) -> str:
        """Stop reading, and return all that came."""
        self.stream.write("\0")
        self.stream.flush()
        self._reader.join(timeout=10)
        self.stream.close()
        os.close(self._master)
        return self.bytes.decode().rstrip("\0")


def draw(text: str) -> list[str]:
    """Return the lines of a screen after `text`: carriage return, line feed, cursor up, erase."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.", text, flags=re.DOTALL):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
        elif token == "\x1b[A":
            row -= 1
        elif token == "\x1b[K":
            lines[row] = lines[row][:column]
        else:
            assert token.isprintable(), f"this screen does not know {token!r}"
            line = lines[row].ljust(column)
            lines[row] = line[:column] + token + line[column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")  # the screens below know no codes of colours
    terminal.take_over = lambda: [
        monkeypatch.setattr(sys, name, terminal.stream) for name in ("stdout", "stderr")
    ]  # in the test itself: pytest puts its own streams back between fixture and test
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    yield terminal
    close_logging()
    if not terminal.stream.closed:
        terminal.finish()


def test_log_lines_and_the_bar_do_not_break_each_other(terminal):
    terminal.take_over()
    logger = setup_logging(None)
    with ProgressBar(30, description="epoch 1") as bar:
        for k in range(30):
            bar.show(lambda k=k: f"loss {k}")
            bar.update()
            if k % 10 == 0:
                logger.info("info line %d " + "x" * 60, k)
                logger.warning("warning line %d", k)
    logger.log(ROW, "the row")
    seen = terminal.finish()
    assert "epoch 1:" in seen
    assert "30/30" in seen
    assert "loss 29" in seen
    expected = []
    for k in (0, 10, 20):
        expected += [f"info line {k} " + "x" * 60, f"warning: warning line {k}"]
    assert draw(seen) == [*expected, "the row", ""]


class Screen(io.StringIO):
    """A terminal without a delay."""

    def isatty(self) -> bool:
        return True


def test_after_each_call_the_lines_are_whole_and_the_bar_is_below(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stdout", Screen())
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    logger = setup_logging(None)
    lines = []
    with ProgressBar(30, description="epoch 1") as bar:
        for k in range(30):
            bar.update()
            assert draw(sys.stdout.getvalue())[:-1] == lines
            logger.log(30 if k % 2 else 20, "line %d", k)
            lines.append(f"warning: line {k}" if k % 2 else f"line {k}")
            *above, last = draw(sys.stdout.getvalue())
            assert above == lines
            assert last.startswith("epoch 1: ")
            assert f"{k + 1}/30" in last
    assert draw(sys.stdout.getvalue()) == [*lines, ""]
    close_logging()


def test_a_foreign_bar_is_lifted_too(terminal):
    terminal.take_over()
    logger = setup_logging(None)
    for _ in tqdm(range(3), file=terminal.stream, mininterval=0, leave=False):
        logger.info("a line")
    assert draw(terminal.finish()) == ["a line"] * 3 + [""]


def test_an_error_leaves_no_bar_behind(terminal):
    terminal.take_over()

    def fail() -> None:
        with ProgressBar(3) as bar:
            bar.update()
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert draw(terminal.finish()) == [""]


def test_the_text_is_asked_for_only_when_the_line_is_redrawn(terminal, monkeypatch):
    terminal.take_over()
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.05)
    asked = []
    bar = ProgressBar(10_000)
    bar.show(lambda: asked.append(1) or "text")
    start = time.perf_counter()
    for _ in range(10_000):
        bar.update()
    assert len(asked) <= (time.perf_counter() - start) / 0.05
    time.sleep(0.06)
    bar.update(0)
    assert asked
    bar.close()
    bar.update()


def test_resume_in_mid_epoch_counts_on(terminal):
    terminal.take_over()
    with ProgressBar(100, initial=40) as bar:
        bar.update(5)
    seen = terminal.finish()
    assert "40/100" in seen
    assert "45/100" in seen


def no_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())


def dumb_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")


@pytest.mark.parametrize("where", [no_terminal, dumb_terminal])
def test_where_a_line_cannot_be_wiped_only_whole_lines_come(where, terminal, monkeypatch):
    terminal.take_over()
    where(monkeypatch)
    logger = setup_logging(None)
    with ProgressBar(5) as bar:
        for _ in range(5):
            bar.show(lambda: pytest.fail("nobody sees this"))
            bar.update()
        logger.info("row")
    if isinstance(sys.stdout, io.StringIO):
        assert sys.stdout.getvalue() == "row\n"
    else:
        assert terminal.finish() == "row\r\n"


def test_a_bar_can_be_switched_off(terminal):
    terminal.take_over()
    with ProgressBar(5, enabled=False) as bar:
        bar.update(5)
    assert terminal.finish() == ""


def test_without_colours_no_code_is_sent(terminal):
    terminal.take_over()  # it sets NO_COLOR
    logger = setup_logging(None)
    with ProgressBar(5) as bar:
        bar.update()
        logger.warning("text")
    assert "\x1b[" not in terminal.finish()


def test_the_bar_starts_no_thread(terminal):
    terminal.take_over()
    if tqdm.monitor is not None:  # of another test's bar
        tqdm.monitor.exit()
        tqdm.monitor = None
    with ProgressBar(5):
        assert "TMonitor" not in {type(thread).__name__ for thread in threading.enumerate()}


def test_a_notebook_has_tqdms_bar_for_notebooks():
    pytest.importorskip("ipywidgets")
    out_stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    with ProgressBar(5, description="epoch 1", stream=out_stream()) as bar:
        assert isinstance(bar._line, importlib.import_module("tqdm.notebook").tqdm_notebook)
        assert bar._line.container.children[0].value.split() == ["epoch", "1:", "0%"]


def test_a_notebook_can_redraw_though_it_is_no_terminal(monkeypatch):
    # Without ipywidgets.
    monkeypatch.setattr(importlib.import_module("tqdm.notebook"), "IProgress", None)
    out_stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    with ProgressBar(5, description="epoch 1", stream=out_stream()) as bar:
        assert "epoch 1:" in bar._line.fp.getvalue()
    assert not progress.can_redraw(io.StringIO())
