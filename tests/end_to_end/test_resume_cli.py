"""`train.py -r` as a user calls it: what it goes on with, what it tells, what it leaves alone."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from digest import digest
from stores import flip
from workplace import Workplace

pytestmark = pytest.mark.end_to_end
Rows = Callable[[Path], list[dict[str, str]]]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return what a run consists of: all files but its log and its lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("log.txt", "LOCK")
    }


@pytest.mark.parametrize(
    "words",
    [
        ["-r"],
        ["-r", "auto"],
        ["-r", "auto", "-c", "tiny.yaml"],
        ["-r", "-c", "tiny.yaml"],
        ["-r", "RUN"],
        ["-r", "RUN/checkpoints"],
        ["-r", "RUN/checkpoints/step-00000007"],
        ["-r", "RUN/checkpoints/step-00000004/state.pt"],
        ["-r", "-d", "cpu", "--name", "tiny"],
    ],
    ids=" ".join,
)
def test_each_way_to_resume_ends_with_the_same_bits(
    place: Workplace, cut: Path, whole: str, words: list[str], rows: Rows
) -> None:
    run = str(cut.relative_to(place.folder))
    done = place.run(*(word.replace("RUN", run) for word in words))
    assert (done.returncode, done.stderr) == (0, "")
    assert digest(cut) == whole
    assert [row["epoch"] for row in rows(cut)] == ["1", "2", "3"]
    assert place.runs() == [cut]


def test_auto_starts_anew_where_there_is_no_run_of_that_name(
    place: Workplace, finished: Path
) -> None:
    done = place.run("-r", "auto", "-c", "tiny.yaml", "--name", "other", "--epochs", "1")
    assert done.returncode == 0
    assert [folder.parent.name for folder in place.runs()] == ["other", "tiny"]


def test_a_finished_run_says_so_and_how_to_go_on(
    place: Workplace, finished: Path, whole: str, rows: Rows
) -> None:
    done = place.run("-r")
    assert (done.returncode, done.stderr) == (0, "")
    message = "training is complete: step 15 of 15; to train longer, add --set trainer.epochs=N"
    assert message in done.stdout
    assert digest(finished) == whole

    longer = place.run("-r", "--set", "trainer.epochs=4")
    assert longer.returncode == 0
    table = [line.split() for line in longer.stdout.splitlines()[2:4]]
    assert table[0] == ["trainer.epochs", "3", "4", "applied"]
    assert table[1][:4] == ["lr", "at", "step", "16"]
    way = (1 + math.cos(math.pi * (15 - 5) / (19 - 5))) / 2  # OneCycleLR falls from step 5 to 19
    assert float(table[1][5]) == pytest.approx(4e-8 + (0.01 - 4e-8) * way, rel=1e-5)
    assert [row["step"] for row in rows(finished)] == ["5", "10", "15", "20"]


def test_a_longer_run_trains_on_at_the_rates_of_its_new_length(
    place: Workplace, rows: Rows
) -> None:
    """With a cosine the further epochs were trained at a rate of 0."""
    cosine = "lr_scheduler={type: CosineAnnealingLR}"
    folder = place.train("--epochs", "2", "--set", cosine)
    done = place.run("-r", str(folder), "--epochs", "4")
    assert (done.returncode, done.stderr) == (0, "")
    rates = [float(row["lr"]) for row in rows(folder)]
    curve = [(2, 0), (2, 1), (4, 2), (4, 3)]  # of how many epochs, and which
    closed_form = [0.003 * (1 + math.cos(math.pi * epoch / n)) / 2 for n, epoch in curve]
    assert rates == pytest.approx(closed_form, rel=1e-9)
    assert "  lr at step 11   0     0.0015  follows the new schedule\n" in done.stdout


def test_a_run_that_ended_in_mid_epoch_keeps_its_last_row(place: Workplace, rows: Rows) -> None:
    steps = ["lr_scheduler=null", "trainer.epochs=null", "trainer.steps=8"]
    folder = place.train("--set", *steps)
    former = rows(folder)
    assert [row["step"] for row in former] == ["5", "8"]
    assert place.run("-r").returncode == 0
    assert rows(folder) == former
    assert place.run("-r", "--set", "trainer.steps=12").returncode == 0
    assert [(row["epoch"], row["step"]) for row in rows(folder)] == [
        ("1", "5"), ("2", "10"), ("3", "12"),
    ]  # fmt: skip


def test_a_run_that_stopped_early_says_how_to_go_on(place: Workplace) -> None:
    words = ["trainer.monitor=max lr", "trainer.early_stop=1", "lr_scheduler=null"]
    words[0] = "trainer.monitor=min valid/accuracy"
    place.train("--set", *words, "trainer.epochs=8", "optimizer.args.lr=0.05")
    done = place.run("-r")
    assert done.returncode == 0
    assert "early stop after epoch" in done.stdout
    assert "add --set trainer.early_stop=null" in done.stdout


@pytest.mark.fault("F26")
def test_a_new_config_lists_what_differs_and_becomes_the_runs_own(
    place: Workplace, cut: Path
) -> None:
    words = ["-r", str(cut), "-c", "tiny.yaml", "--set", "trainer.keep=7", "optimizer.clip_norm=1"]
    done = place.run(*words)
    assert (done.returncode, done.stderr) == (0, "")
    table = (
        "changed since the run began:\n"
        "  key                  then  now\n"
        "  optimizer.clip_norm  -     1    applied\n"
        "  trainer.keep         99    7    applied\n"
    )
    assert table in done.stdout
    assert "keep: 7\n" in (cut / "config.yaml").read_text()
    assert table in (cut / "log.txt").read_text()


@pytest.mark.fault("F26")
def test_what_would_make_another_run_is_refused_at_once_with_the_way_to_start_anew(
    place: Workplace, cut: Path, whole: str
) -> None:
    before = snapshot(cut)
    changes = ["data_loader.args.batch_size=48", "seed=8", "trainer.keep=7"]
    done = place.run("-r", str(cut), "--set", *changes)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"{cut}: seed, data_loader.args.batch_size would turn this run into another one:",
        "  key                          then  now",
        "  seed                         7     8    another run",
        "  data_loader.args.batch_size  96    48   another run",
        "  trainer.keep                 99    7    applied",
        "resume with the old values, or start a new run from its weights: omit -r and set "
        f"`model: {{weights: {cut}}}`; or add --allow-change",
    ]
    assert snapshot(cut) == before
    assert place.run("-c", "tiny.yaml", "--set", f"model.weights={cut}").returncode == 0
    words = ["-r", str(cut), "--allow-change", "--set", "model.args.dropout=0.1"]
    assert place.run(*words).returncode == 0
    assert digest(cut) != whole


def test_another_split_is_refused_whatever_is_allowed(place: Workplace, cut: Path) -> None:
    before = snapshot(cut)
    change = ("--set", "data_loader.args.validation_split=900")
    done = place.run("-r", str(cut), *change)
    assert done.returncode == 2
    assert done.stderr.endswith(f"omit -r and set `model: {{weights: {cut}}}`\n")
    done = place.run("-r", str(cut), "--allow-change", *change)
    assert done.returncode == 1
    assert "--allow-change does not help: restore the data and the split, or start" in done.stderr
    assert f"omit -r and set `model: {{weights: {cut}}}`\n" in done.stderr
    assert snapshot(cut) == before


@pytest.mark.fault("F26")
@pytest.mark.parametrize(
    "change",
    [
        "data_loader.args.num_workers=1",
        "trainer.log_every=2 steps",
        "trainer.tensorboard=false",
        "trainer.early_stop=9",
        "trainer.save_every=3 steps",
    ],
)
def test_what_leaves_the_run_the_same_passes(place: Workplace, cut: Path, change: str) -> None:
    done = place.run("-r", "--set", change)
    assert (done.returncode, done.stderr) == (0, "")
    assert "applied" in done.stdout


@pytest.mark.fault("F26")
def test_a_rate_that_the_saved_state_holds_is_told_to_stay(place: Workplace, cut: Path) -> None:
    done = place.run("-r", "--lr", "0.5", "--set", "lr_scheduler.args.max_lr=0.2")
    assert done.returncode == 0
    assert done.stderr == (
        "warning: optimizer.args.lr, lr_scheduler.args.max_lr: the optimizer and its schedule "
        "keep their saved state\n"
    )


@pytest.mark.fault("F25")
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "model.args.width=8",
            "model.head.weight: shape (10, 8) in the checkpoint, shape (10, 16)",
        ),
        ("lr_scheduler=null", "schedule.main: only in the checkpoint"),
        ("optimizer.type=SGD", "optimizer.main: the checkpoint is of another optimizer than SGD"),
        ("optimizer.param_groups=[{match: '*bias', lr: 1}]", "parameters per group are"),
        ("trainer.ema=null", "ema: only in the checkpoint"),
    ],
)
def test_a_config_that_does_not_fit_changes_nothing(
    place: Workplace, cut: Path, whole: str, change: str, told: str
) -> None:
    before = snapshot(cut)
    done = place.run("-r", "--allow-change", "--set", change)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(cut) == before
    assert place.run("-r").returncode == 0
    assert digest(cut) == whole


@pytest.mark.fault("F12")
def test_a_damaged_newest_checkpoint_is_passed_over_with_one_warning(
    place: Workplace, cut: Path, whole: str
) -> None:
    flip(cut / "checkpoints" / "step-00000007" / "state.pt")
    done = place.run("-r")
    assert done.returncode == 0
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: ")
    assert "step-00000007" in warning
    assert "falling back to " in warning
    assert "step-00000006" in warning
    assert digest(cut) == whole


@pytest.mark.fault("F12")
def test_a_damaged_checkpoint_named_itself_is_an_error(place: Workplace, cut: Path) -> None:
    named = cut / "checkpoints" / "step-00000007"
    flip(named / "state.pt")
    before = snapshot(cut)
    done = place.run("-r", named)
    assert done.returncode == 1
    assert str(named) in done.stderr
    assert snapshot(cut) == before


@pytest.mark.fault("F13")
@pytest.mark.parametrize("how", ["damaged", "absent"])
@pytest.mark.parametrize("named", [True, False])
def test_a_run_without_a_whole_checkpoint_is_left_alone(
    place: Workplace, cut: Path, how: str, named: bool
) -> None:
    for checkpoint in (cut / "checkpoints").glob("step-*"):
        if how == "damaged":
            flip(checkpoint / "state.pt")
        else:
            shutil.rmtree(checkpoint)
    before = snapshot(cut)
    done = place.run("-r", *([cut] if named else []))
    # That no run there has a checkpoint is a wrong use of a bare -r; all else has failed.
    assert done.returncode == (2 if how == "absent" and not named else 1)
    assert ("none of its checkpoints is valid" if how == "damaged" else "no") in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(cut) == before
    assert place.runs() == [cut]


@pytest.mark.fault("F22")
def test_of_two_processes_on_one_run_the_second_is_refused(place: Workplace, cut: Path) -> None:
    first = place.start("-r", "--set", "trainer.epochs=500")
    first.wait_until(lambda: str(first.pid) in (cut / "LOCK").read_text())
    second = place.run("-r")
    assert second.returncode == 2
    assert "another process uses this run" in second.stderr
    assert f'"pid": {first.pid}' in second.stderr
    first.signal(signal.SIGTERM)
    assert first.wait().returncode == 143
    assert place.run("-r", "--set", "trainer.epochs=4").returncode == 0
