"""`--check` from the command line: its exit codes, and that it leaves no trace."""

from __future__ import annotations

import hashlib
import signal
import tempfile
from pathlib import Path

import pytest
from workplace import Workplace

pytestmark = pytest.mark.end_to_end


def tree(folder: Path) -> dict[str, str]:
    """Return all below a folder with a hash of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("kind", ["lr", "overfit"])
@pytest.mark.parametrize("source", ["-c", "-r"])
def test_a_check_leaves_the_runs_as_they_were(place: Workplace, kind: str, source: str) -> None:
    place.train("--epochs", "1")
    before = tree(place.folder / "saved")
    words = ["-c", "tiny.yaml"] if source == "-c" else ["-r"]
    picture = place.folder / "lr.png"
    output = ["-o", picture] if kind == "lr" else []
    done = place.run(*words, "--check", kind, *output)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert tree(place.folder / "saved") == before
    assert place.files() == {"saved", *(f"saved/{name}" for name in before)} | (
        {"lr.png"} if kind == "lr" else set()
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_writes_nothing(place: Workplace, number: int) -> None:
    place.train("--epochs", "1")
    before = tree(place.folder / "saved")
    text = (place.folder / "tiny.yaml").read_text()
    slow = text.replace("batch_size: 96", "batch_size: 4").replace("width: 4", "width: 128")
    (place.folder / "tiny.yaml").write_text(slow)
    marker = place.folder / "started"
    script = place.start("-c", "tiny.yaml", "--check", "lr", inject=Started(marker))
    script.wait_until(marker.exists)
    script.signal_group(number)
    done = script.wait()
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr
    assert "nothing" in done.stderr
    assert tree(place.folder / "saved") == before
    assert not list(place.folder.glob("*.png"))


class Started:
    """Writes a file at the first step of a check."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __call__(self) -> None:
        from base.run.check_steps import Steps

        on_step_end = Steps.on_step_end

        def noted(steps: Steps, trainer: object) -> None:
            self.marker.touch()
            on_step_end(steps, trainer)

        Steps.on_step_end = noted  # type: ignore[method-assign]


def test_the_picture_is_in_the_folder_for_temporary_files_by_default(place: Workplace) -> None:
    name = f"kindling-test-{place.folder.name}"
    done = place.run("-c", "tiny.yaml", "--name", name, "--check", "lr")
    picture = Path(tempfile.gettempdir()) / f"check-lr-{name}.png"
    try:
        assert done.returncode == 0
        assert f"picture: {picture}" in done.stdout
        assert picture.stat().st_size > 10_000
        assert place.files() == set()
    finally:
        picture.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--check", "overfitt"], "no such check; did you mean 'overfit'? (there are lr and overf"),
        (["--check", "overfit:main"], "no such check"),
        (["--check", "lr:critic"], "--check lr:critic: no such optimizer (there are main)"),
        (["--check", "lr", "--dry-run"], "give it without --dry-run"),
        (["-o", "x.png"], "-o FILE is the picture of `--check lr`"),
        (["--check", "lr", "-d", "cpu:2"], "--check lr runs in one process"),
        (["--check", "lr", "-o", "missing/x/lr.png"], "there is no folder missing/x"),
        (["--check", "lr", "-o", "lr.jpg"], "name it `*.png`"),
    ],
)
def test_a_mistake_is_one_line(place: Workplace, words: list[str], text: str) -> None:
    done = place.run("-c", "tiny.yaml", *words)
    (line,) = done.stderr.splitlines()
    assert text in line
    assert done.returncode == 2
    assert not [name for name in place.files() if "saved" in name]


@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--check", "lr"], ["--check", "overfit"]])
def test_nothing_to_train_at_first_is_one_line(place: Workplace, words: list[str]) -> None:
    rule = "freeze={match: '*', until: 2 epochs}"
    done = place.run("-c", "tiny.yaml", *words, "--set", rule)
    (line,) = done.stderr.splitlines()
    assert "no parameter is left to train: all are frozen until 2 epochs" in line
    assert done.returncode == 2
    assert place.files() == set()
