"""predict.py as a user starts it: on another machine, into files, pipes and terminals."""

from __future__ import annotations

import csv
import io
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ROOT
from workplace import Workplace

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def elsewhere(tmp_path: Path, finished_once: Path) -> Path:
    """A folder with the run alone, trained on a device that this machine lacks, and images."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(finished_once, folder / "a run")
    config = folder / "a run" / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert str(ROOT / "data") in text
    text = text.replace(str(ROOT / "data"), "/gone").replace("device: auto", "device: cuda:7")
    config.write_text(text, encoding="utf-8")
    with np.load(ROOT / "data" / "digits.npz") as arrays:
        for n in range(5):
            pixels = np.repeat(arrays["images"][n] * 15, 3).reshape(8, 8, 3)
            place = folder / "in" / f"sub {n % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{n}.png")
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name[:4] != ".std"}


def test_only_the_run_is_needed(elsewhere: Path) -> None:
    place = Workplace(elsewhere)
    done = place.run("predict.py", "-r", "a run", "in", "-o", "out.csv", "--top-k", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == "5 predictions in out.csv\n"
    rows = list(csv.DictReader(io.StringIO((elsewhere / "out.csv").read_text(encoding="utf-8"))))
    files = ["in/sub 0/0.png", "in/sub 0/2.png", "in/sub 0/4.png", "in/sub 1/1.png"]
    assert [row["file"] for row in rows] == [*files, "in/sub 1/3.png"]
    assert all(row["class"] in "0123456789" for row in rows)

    piped = place.run("predict.py", "-r", "a run", "in", "--top-k", "2")
    assert piped.stdout == (elsewhere / "out.csv").read_text()
    assert piped.stderr == ""


def test_a_broken_image_is_listed_and_the_rest_is_done(elsewhere: Path) -> None:
    (elsewhere / "in" / "bad.jpg").write_bytes(b"\xff\xd8 no")
    place = Workplace(elsewhere)
    done = place.run("predict.py", "-r", "a run", "in", "-o", "out.csv")
    assert done.returncode == 1
    assert done.stdout == "5 predictions in out.csv\n"
    assert done.stderr.startswith("1 was left out:\n  in/bad.jpg: ")
    assert len(done.stderr.splitlines()) == 2
    assert len((elsewhere / "out.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in/bad.jpg", "-o", "out.csv"], "in/bad.jpg: "),
        (["in", "-o", "run.csv"], "-o run.csv: it exists already; add --overwrite to replace it"),
        (["in", "-o", "new/out.csv"], "-o new/out.csv: there is no folder new; make it first"),
        (["in", "-o", "out.xlsx"], "-o out.xlsx: give a name that ends in .csv, .tsv or .npz"),
        (["in", "-o", "folder"], "folder: masks are for segmentation, and this run is a class"),
        (["empty"], "empty: no images in this folder; it is empty"),
        (["on"], "on: no such file or folder: "),
        (["in/*.gif"], "in/*.gif: no file matches"),
        (["in", "--top-k", "none"], "predict.py: argument --top-k: a number of at least 1"),
        (["in", "--tta", "flop"], "predict.py: argument --tta: invalid choice: 'flop'"),
        (["in", "--threshold", "0.4"], "--threshold: it is for labels and for binary tasks"),
        (["in", "--batch", "3"], "predict.py: unrecognized arguments: --batch 3"),
        ([], "predict.py: the following arguments are required: FILES"),
    ],
)
def test_a_slip_is_one_line_and_leaves_nothing(
    words: list[str], message: str, elsewhere: Path
) -> None:
    (elsewhere / "in" / "bad.jpg").write_bytes(b"no")
    (elsewhere / "run.csv").write_text("before")
    (elsewhere / "empty").mkdir()
    place, before = Workplace(elsewhere), names(elsewhere) | {"tiny.yaml"}
    done = place.run("predict.py", "-r", "a run", *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert names(elsewhere) == before
    assert (elsewhere / "run.csv").read_text() == "before"


def test_a_run_without_a_checkpoint(elsewhere: Path) -> None:
    shutil.rmtree(elsewhere / "a run" / "checkpoints")
    (elsewhere / "a run" / "checkpoints").mkdir()
    done = Workplace(elsewhere).run("predict.py", "-r", "a run", "in", "-o", "out.csv")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "checkpoint" in done.stderr
    assert not (elsewhere / "out.csv").exists()


def test_a_run_whose_code_has_changed(elsewhere: Path) -> None:
    config = elsewhere / "a run" / "config.yaml"
    config.write_text(config.read_text().replace("width: 4", "width: 8"))
    done = Workplace(elsewhere).run("predict.py", "-r", "a run", "in", "-o", "out.csv")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (elsewhere / "out.csv").exists()


def test_what_exists_is_replaced_when_asked(elsewhere: Path) -> None:
    (elsewhere / "out.csv").write_text("before")
    done = Workplace(elsewhere).run(
        "predict.py", "-r", "a run", "in", "-o", "out.csv", "--overwrite"
    )
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "out.csv").read_text().startswith("file,class,probability\n")


def test_a_place_that_cannot_be_written_is_found_before_torch_is_imported(tmp_path: Path) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['predict.py', '-r', {str(tmp_path)!r}, 'in', '-o', 'no/out.csv']\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'predict.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules)\n"
    )
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == "False\n"
    assert "there is no folder no" in done.stderr


def test_a_terminal_shows_a_table(elsewhere: Path) -> None:
    controller, terminal = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, ROOT / "predict.py", "-r", "a run", "in"],
        cwd=elsewhere, stdout=terminal, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "COLUMNS": "60"},
    )  # fmt: skip
    os.close(terminal)
    printed = io.BytesIO()
    try:
        while content := os.read(controller, 4096):
            printed.write(content)
    except OSError:  # the end of a terminal on Linux
        pass
    _, errors = done.communicate(timeout=60)
    os.close(controller)
    assert (done.returncode, errors) == (0, "")
    lines = printed.getvalue().decode().splitlines()
    assert lines[0].split() == ["file", "class", "probability"]
    assert lines[1].startswith("  in/sub 0/0.png ")
    assert len(lines) == 6
    assert max(map(len, lines)) <= 60
