"""Files of a run that are damaged, gone or no files, and errors that only look like theirs."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from digest import digest, loss_log
from faults.injections import FailAtFile, Pace, RaiseOsErrorIn
from faults.runs import SAVING, check_failed, newest_step
from faults.table import Trials
from stand_ins import STAND_INS
from workplace import TINY, Workplace

pytestmark = pytest.mark.end_to_end

LOADER = """
name: other
model: {type: DigitsNet, args: {width: 4}}
data_loader: {type: DatasetLoader, args: {batch_size: 2, dataset: DATASET}}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
trainer: {epochs: 1}
"""
DATASETS = {
    "t.csv": "{type: CsvDataset, args: {file: t.csv, target: y}}",
    "a.npy": "{type: ArrayFileDataset, args: {inputs: a.npy, targets: a.npy}}",
    "a.npz": "{type: ArrayFileDataset, args: {file: a.npz, inputs: x, targets: y}}",
    "images.idx": "{type: IdxDataset, args: {images: images.idx, labels: images.idx}}",
    "s.tar": "{type: ShardDataset, args: {shards: s.tar}}",
    "list.txt": "{type: ImageListDataset, args: {list_file: list.txt, root: .}}",
}


def quick(values: Iterable[str], *first: str) -> list[Any]:
    """Return all as parameters; `make test` tries the first ones alone, `make faults` each."""
    slow = pytest.mark.slow
    return [one if one in first else pytest.param(one, marks=slow) for one in values]


# --- No files ------------------------------------------------------------------------------------


@pytest.mark.fault("F34")
@pytest.mark.parametrize("kind", quick(STAND_INS, "FIFO", "device"))
def test_what_is_no_file_is_refused_at_once_wherever_one_is_expected(
    place: Workplace, kind: str, trials: Trials
) -> None:
    """A test that hung would be ended by the time limit of `wait`."""
    words = {name: ("-c", "x.yaml", "--dry-run") for name in DATASETS}
    words |= {
        "c.yaml": ("-c", "c.yaml"),
        "base.yaml": ("-c", "x.yaml"),
        "run": ("-r", "run"),
        "w.pt": ("-c", "tiny.yaml", "--dry-run", "--set", "model.weights=w.pt"),
        "w.safetensors": ("-c", "tiny.yaml", "--dry-run", "--set", "model.weights=w.safetensors"),
        "digits.npz": ("-c", "tiny.yaml", "--dry-run", "--set", "data_loader.args.data_dir=."),
    }
    for name in trials.some(list(words), 4):
        with trials.trial(f"{kind}: {name}"):
            path = place.folder / name
            STAND_INS[kind](path)
            text = LOADER.replace("DATASET", DATASETS.get(name, "{type: X}"))
            text = "inherit: base.yaml\nname: x\n" if name == "base.yaml" else text
            (place.folder / "x.yaml").write_text(text)
            done = place.start(*words[name]).wait(seconds=60)
            check_failed(done, name, "" if name == "run" else kind, code=done.returncode)
            assert done.returncode in (1, 2)
            assert len(done.stderr.splitlines()) == 1, done.stderr
            path.rmdir() if kind == "folder" else path.unlink()
    assert not (place.folder / "saved").exists()


@pytest.mark.fault("F34")
@pytest.mark.parametrize("kind", quick(["FIFO", "device"], "FIFO"))
@pytest.mark.parametrize(
    "name", ["LOCK", "log.txt", "config.yaml", "run.json", "checkpoints/step-00000007/state.pt",
             "checkpoints/step-00000007/manifest.json"],
)  # fmt: skip
def test_a_file_of_a_run_that_is_none_ends_a_resume_or_is_passed_over(
    place: Workplace, cut: Path, kind: str, name: str
) -> None:
    (cut / name).unlink(missing_ok=True)
    STAND_INS[kind](cut / name)
    done = place.start("-r", str(cut)).wait(seconds=60)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert kind in done.stderr
    else:  # the checkpoint before it, or a file that a resume does not need
        assert name == "run.json" or "falling back to" in done.stderr


# --- Tables --------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "binary": lambda path: path.write_bytes(random.Random(1).randbytes(3000)),
    "NUL": lambda path: path.write_bytes(path.read_bytes() + b"1,\0\0,2\n"),
    "UTF-16": lambda path: path.write_text(path.read_text(), "utf-16"),
    "huge field": lambda path: path.write_bytes(path.read_bytes() + b"9" * 200_000 + b"\n"),
    "other header": lambda path: path.write_bytes(b"a,b\n" + path.read_bytes()),
    "short rows": lambda path: path.write_text(path.read_text().replace(",", "", 12)),
    "FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.fault("F35")
@pytest.mark.parametrize("damage", quick(DAMAGE, "gone", "NUL", "FIFO"))
def test_a_damaged_metrics_csv_is_one_line_and_its_rows_are_restored(
    place: Workplace, cut: Path, whole: str, damage: str
) -> None:
    """The digest is over all state and the rows, times left out: those of an unbroken run."""
    before = loss_log(cut)
    DAMAGE[damage](cut / "metrics.csv")
    done = place.run("-r", str(cut))
    assert done.returncode == 0, done.stderr
    assert digest(cut) == whole
    assert loss_log(cut) == before
    # The checkpoint is of the second epoch: what the cut took of the third row comes again anyway.
    told = done.stderr.splitlines()
    if damage == "cut short":
        assert not told
    else:
        assert len(told) == 1
        assert "metrics.csv: " in told[0]
        assert ("kept as metrics.damaged-1.csv" in told[0]) == (damage not in ("gone", "empty"))


@pytest.mark.fault("F35")
def test_rows_that_a_finished_run_lost_are_restored_too(place: Workplace, finished: Path) -> None:
    before = loss_log(finished)
    (finished / "metrics.csv").unlink()
    done = place.run("-r", str(finished))
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1)
    assert "rows of epochs 1 to 3 are restored from the checkpoint" in done.stderr
    assert loss_log(finished) == before


@pytest.mark.fault("F35")
@pytest.mark.parametrize("damage", quick(DAMAGE, "gone", "NUL", "FIFO"))
def test_a_damaged_split_csv_is_one_line_and_is_written_again(
    place: Workplace, cut: Path, whole: str, damage: str
) -> None:
    content = (cut / "split.csv").read_bytes()
    DAMAGE[damage](cut / "split.csv")
    done = place.run("-r", str(cut))
    assert done.returncode == 0, done.stderr
    assert digest(cut) == whole
    assert (cut / "split.csv").read_bytes() == content
    assert len(done.stderr.splitlines()) == (damage != "gone"), done.stderr


@pytest.mark.fault("F35")
@pytest.mark.parametrize("damage", quick(["binary", "NUL", "short rows", "FIFO"], "binary"))
def test_changed_data_are_told_though_split_csv_is_damaged(
    place: Workplace, cut: Path, damage: str
) -> None:
    DAMAGE[damage](cut / "split.csv")
    done = place.run("-r", str(cut), "--allow-change", "--set",
                     "data_loader.args.validation_split=961")  # fmt: skip
    check_failed(done, "samples then", "split.csv: ")
    assert len(done.stderr.splitlines()) == 1


# --- The disk ------------------------------------------------------------------------------------


@pytest.mark.fault("F36")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_io_error_before_the_first_checkpoint_is_one_line_and_leaves_nothing_in_the_way(
    tmp_path_factory: pytest.TempPathFactory, number: int, trials: Trials
) -> None:
    words = ("-c", "tiny.yaml", "--epochs", "1", "--set", "trainer.save_every=1 epoch")

    def fail(at: int, number: int) -> tuple[Workplace, list[str], int, str]:
        place = Workplace(tmp_path_factory.mktemp("failing"))
        note = place.folder / "note"
        fault = FailAtFile(at, number, place.folder / "saved", note)
        done = place.run(*words, inject=fault)
        return place, note.read_text().splitlines(), done.returncode, done.stderr

    calls = fail(0, number)[1]
    for name in ("config.yaml", "env.txt", "log.txt", "split.csv", "metrics.csv", "events.out"):
        assert any(name in call for call in calls), name
    first_save = next(i for i, call in enumerate(calls) if ".tmp-0" in call) + 1
    for at in trials.some(list(range(1, len(calls) + 1)), 3):
        error = number if number != errno.EIO else random.Random(at).choice(
            [errno.EIO, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG]
        )  # fmt: skip
        with trials.trial(f"{calls[at - 1]}, error {error}"):
            place, _, code, told = fail(at, error)
            assert "Traceback" not in told
            assert len(told.splitlines()) <= 1
            if code != 0:
                assert os.strerror(error) in told
                assert code == 3 if error == errno.ENOSPC else code in (1, 2)
            if code != 0 and at < first_save:
                assert place.runs() == [], "a half-made run is in the way"
            assert place.run(*words).returncode == 0


@pytest.mark.fault("F37")
@pytest.mark.parametrize("how", ["deleted", "renamed"])
@pytest.mark.parametrize("more", [SAVING, "trainer.async_save=true"])
def test_a_run_folder_that_is_gone_is_told_as_such(place: Workplace, how: str, more: str) -> None:
    slowly = Pace(0.1, place.folder / "steps")
    script = place.start("-c", "tiny.yaml", "--set", more, inject=slowly)
    script.wait_until(lambda: newest_step(place) >= 2)
    (run,) = place.runs()
    if how == "renamed":
        run.rename(run.with_name("elsewhere"))
    while how == "deleted" and run.exists():
        shutil.rmtree(run, ignore_errors=True)
    done = script.wait()
    check_failed(done, f"{run.name}: this run's folder was deleted or renamed during training")
    assert len(done.stderr.splitlines()) == 1
    assert not run.exists()
    if how == "renamed":
        assert place.run("-r", run.with_name("elsewhere")).returncode == 0


# --- User code -----------------------------------------------------------------------------------


@pytest.mark.fault("F38")
@pytest.mark.parametrize(
    "number",
    [
        errno.ENOSPC,
        *(pytest.param(one, marks=pytest.mark.slow) for one in (errno.ENOENT, errno.EPIPE)),
    ],
)
@pytest.mark.parametrize("where", ["callback", "transform", "loss", "metric"])
def test_an_os_error_of_user_code_shows_its_traceback_and_how_to_resume(
    place: Workplace, where: str, number: int
) -> None:
    """Whatever its number: only what our own writing raises is a fault of the disk."""
    text = TINY.replace("metrics: [accuracy]", "metrics: [accuracy]\ncallbacks: [MemoryReport]")
    text = text.replace("processes", "threads").replace("cross_entropy", "CrossEntropyLoss")
    (place.folder / "user.yaml").write_text(text)
    fault = RaiseOsErrorIn(where, number)
    done = place.run("-c", "user.yaml", inject=fault)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "injections.py" in done.stderr
    assert os.strerror(number) in done.stderr
    (run,) = place.runs()
    how = f"python train.py -r {run.relative_to(place.folder)}"
    last = done.stderr.splitlines()[-1]
    assert last == f"the last checkpoint is valid; resume by: {how}"
