"""What a run shows, in a pipe and in a terminal, and what TensorBoard finds of it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import termios
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Done
from workplace import Workplace

pytestmark = pytest.mark.end_to_end
ROW = re.compile(r" +\d  .*\d\.\d{4}  .*\d\.\d\d?e-\d\d +\d+\.\d +\d+%( \*)?")
CODES = re.compile(r"\x1b\[[0-9;]*m")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


def in_terminal(place: Workplace, *args: str, **env: str) -> tuple[Done, str]:
    """Run in a terminal of 100 columns; return all that it was sent."""
    master, slave = pty.openpty()
    os.set_blocking(master, True)
    received: list[bytes] = []

    def listen() -> None:
        while True:
            try:
                received.append(os.read(master, 65536))
            except OSError:  # the last process has closed it
                return

    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    env = {"TERM": "xterm", **env}
    script = place.start(*args, terminal=os.ttyname(slave), **env)
    listener = threading.Thread(target=listen)
    listener.start()
    done = script.wait()
    os.close(slave)
    listener.join()
    os.close(master)
    return done, b"".join(received).decode()


def on_screen(sent: str) -> list[str]:
    """Return the lines that a terminal shows of what it was sent: carriage returns overwrite."""
    lines = []
    for line in sent.split("\n"):
        cells: list[str] = []
        column = 0
        for letter in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line):
            if letter == "\r":
                column = 0
            else:
                cells[column : column + 1] = [letter]
                column += 1
        lines.append("".join(cells).rstrip())
    return lines


def test_in_a_pipe_there_are_the_header_and_the_rows_alone(place: Workplace) -> None:
    done = place.run("-c", "tiny.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    assert not CONTROL.search(done.stdout)
    lines = done.stdout.splitlines()
    header = [line.split("  ")[0] for line in lines[:8]]
    assert header == [
        "folder", "device", "model", "data", "memory", "length", "best by", "resume by"
    ]  # fmt: skip
    assert lines[8] == "parameters:"
    assert lines[9].split()[:4] == ["group", "lr", "decay", "trainable"]
    assert lines[10].split()[0] == "main/0"
    lines = lines[4:]  # below the three lines of that table
    assert [part for part in lines[7].split() if "-" not in part] == ["train", "valid"]
    lines = lines[1:]
    assert lines[7].split() == [
        "epoch", "loss", "accuracy", "loss", "accuracy", "lr", "seconds", "wait",
    ]  # fmt: skip
    assert all(map(len, lines[6:11]))
    assert max(map(len, lines[4:11])) <= 80
    assert all(ROW.fullmatch(line) for line in lines[8:11])
    assert lines[8].endswith("*")  # the first epoch is the best so far
    assert [line.partition(":")[0] for line in lines[11:]] == ["best", "report", "test by"]
    assert len({len(line.removesuffix(" *")) for line in lines[7:11]}) == 1


@pytest.mark.parametrize(("verbosity", "n_lines"), [(0, 0), (1, 5), (2, 19)])
def test_verbosity_says_how_much_is_shown(place: Workplace, verbosity: int, n_lines: int) -> None:
    done = place.run("-c", "tiny.yaml", "--set", f"trainer.verbosity={verbosity}")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == n_lines
    (folder,) = place.runs()
    assert "folder     saved/tiny" in (folder / "log.txt").read_text()  # the file has it all


def test_in_a_terminal_the_bar_leaves_whole_rows_behind(place: Workplace) -> None:
    words = ["-c", "tiny.yaml", "--bs", "2", "--epochs", "2", "--set", "trainer.save_every=1 epoch"]
    done, sent = in_terminal(place, *words)
    assert done.returncode == 0
    assert re.search(r"epoch 1: +\d+%", sent)
    assert re.search(r"loss \d\.\d{4}", sent)
    shown = on_screen(sent)
    rows = [line for line in shown if ROW.fullmatch(line)]
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert not [line for line in shown if "it/s" in line]


@pytest.mark.parametrize(
    ("words", "env"), [([], {"TERM": "dumb"}), (["--set", "trainer.progress=false"], {})]
)
def test_where_no_bar_is_wanted_there_is_none(
    place: Workplace, words: list[str], env: dict[str, str]
) -> None:
    done, sent = in_terminal(place, "-c", "tiny.yaml", *words, **env)
    assert done.returncode == 0
    assert not CONTROL.search(CODES.sub("", sent).replace("\r\n", "\n"))


@pytest.mark.parametrize(
    ("env", "is_coloured"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),
        ({"FORCE_COLOR": "0"}, False),
        ({"TERM": "dumb"}, False),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, True),
    ],
)
def test_colours_are_for_a_terminal_that_wants_them(
    place: Workplace, env: dict[str, str], is_coloured: bool
) -> None:
    words = ["-c", "tiny.yaml", "--epochs", "1", "--set", "trainer.progress=false"]
    done, sent = in_terminal(place, *words, **env)
    assert done.returncode == 0
    assert bool(CODES.search(sent)) == is_coloured
    (best,) = (line for line in sent.splitlines() if CODES.sub("", line).endswith(" *"))
    assert best.startswith("\x1b[1;32m") == is_coloured
    (folder,) = place.runs()
    assert not CONTROL.search((folder / "log.txt").read_text())


def test_a_pipe_is_coloured_on_request_alone(place: Workplace) -> None:
    words = ["-c", "tiny.yaml", "--epochs", "1"]
    assert not CODES.search(place.run(*words).stdout)
    assert CODES.search(place.run(*words, FORCE_COLOR="1").stdout)


def test_the_rows_fit_the_terminal(place: Workplace) -> None:
    done = place.run("-c", "tiny.yaml", COLUMNS="50")
    assert done.returncode == 0
    lines = done.stdout.partition("parameters:\n")[2].partition("best:")[0].splitlines()
    assert len(lines) == 7
    assert max(map(len, lines)) <= 50


def test_without_tensorboard_there_is_one_warning_and_the_run_goes_on(
    place: Workplace, run_cli: Callable[..., Done]
) -> None:
    stub = place.folder / "stubs" / "tensorboard"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise ImportError('no tensorboard here')\n")
    env = {"PYTHONPATH": str(stub.parent)}
    done = run_cli(["train.py", "-c", "tiny.yaml"], place.folder, env)
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: TensorBoard is off, training continues without it: ")
    (folder,) = place.runs()
    assert not list(folder.glob("events*"))
    assert (folder / "metrics.csv").exists()


def scalars(folder: Path) -> dict[str, list[int]]:
    """Return tag -> steps, as TensorBoard's own reader finds them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [point.step for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_has_each_value_once_after_a_cut_too(place: Workplace) -> None:
    words = ["-c", "tiny.yaml", "--set", "optimizer.param_groups=[{match: '*.bias', lr: 1e-4}]"]
    script = place.start(*words)
    script.wait_until(lambda: any(place.folder.glob("saved/*/*/checkpoints/step-00000007")))
    script.kill()
    for signal_sent in (signal.SIGTERM, None):
        script = place.start("-r")
        if signal_sent is not None:
            script.wait_until(lambda: any(place.folder.glob("saved/*/*/checkpoints/*10")))
            script.signal(signal_sent)
        script.wait()
    (folder,) = place.runs()
    found = scalars(folder)
    assert found["train/step/loss"] == list(range(1, 16))
    per_epoch = ["train/loss", "train/accuracy", "valid/loss", "valid/accuracy"]
    per_epoch += ["watch/seconds", "watch/samples_per_second", "watch/memory_mb"]
    assert {tag: found[tag] for tag in per_epoch} == {tag: [5, 10, 15] for tag in per_epoch}
    for tag in ("watch/lr/0", "watch/lr/1"):
        assert sorted(set(found[tag])) == list(range(1, 16))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_an_epoch_that_is_validated_again_is_in_tensorboard_once(place: Workplace) -> None:
    """The last checkpoint is of the last step of an epoch, before its validation."""
    folder = place.train("--set", "trainer.save_every=5 steps", "trainer.monitor=off")
    shutil.rmtree(folder / "checkpoints" / "step-00000015")
    assert place.run("-r").returncode == 0
    found = scalars(folder)
    assert found["valid/loss"] == [5, 10, 15]
    assert found["watch/lr"][-1] == 15
