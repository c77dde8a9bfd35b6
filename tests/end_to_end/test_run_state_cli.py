"""What run.json says of a run: what the command line changed, and how it ended."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from workplace import Workplace

from base.runs import RunFacts, read_run

pytestmark = pytest.mark.end_to_end
LONG = ["trainer.epochs=1000", "lr_scheduler=null"]


def facts(place: Workplace) -> RunFacts:
    (folder,) = place.runs()
    return read_run(folder)


def recorded(folder: Path) -> dict[str, Any]:
    stamp: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return stamp


def test_a_finished_run_and_its_changed_settings(place: Workplace) -> None:
    words = ["--lr", "1e-3", "--bs", "240", "--set", "trainer.verbosity=1", "--epochs", "1"]
    folder = place.train(*words)
    assert re.fullmatch(r"\d{8}-\d{6}_lr=1e-3_batch_size=240_epochs=1", folder.name)
    run = read_run(folder)
    assert (run.state, run.epoch, run.monitor) == ("finished", 1, "min valid/loss")
    assert run.changed == {
        "optimizer.args.lr": 0.001, "data_loader.args.batch_size": 240,
        "trainer.verbosity": 1, "trainer.epochs": 1,
    }  # fmt: skip

    # A resume by a part of the path; what it changes is recorded, and the name stays.
    done = place.run("-r", "batch_size=240", "--epochs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert facts(place).folder == folder
    assert facts(place).changed == {**run.changed, "trainer.epochs": 2}
    assert (facts(place).state, facts(place).epoch) == ("finished", 2)
    tested = place.run("test.py", "-r", "tiny/20")
    assert tested.returncode == 0


def test_a_running_run_a_killed_one_and_its_resume(place: Workplace) -> None:
    script = place.start("-c", "tiny.yaml", "--set", *LONG)
    script.wait_until(lambda: place.runs() and facts(place).step >= 2)
    assert (facts(place).state, recorded(facts(place).folder)["state"]) == ("running", "running")
    script.kill()
    assert (facts(place).state, recorded(facts(place).folder)["state"]) == (
        "interrupted", "running",
    )  # fmt: skip
    step = facts(place).step
    script = place.start("-r")
    script.wait_until(lambda: facts(place).state == "running" and facts(place).step > step)
    script.signal(signal.SIGTERM)
    assert script.wait().returncode == 143
    assert recorded(facts(place).folder)["state"] == facts(place).state == "interrupted"


def test_a_second_ctrl_c_is_an_interruption_too(place: Workplace) -> None:
    script = place.start("-c", "tiny.yaml", "--set", *LONG)
    script.wait_until(lambda: place.runs() and facts(place).step >= 2)
    script.signal_group(signal.SIGINT)
    script.signal_group(signal.SIGINT)
    assert script.wait().returncode == 130
    assert recorded(facts(place).folder)["state"] == "interrupted"


def fail_at_step_3() -> None:
    from trainer.trainer import Trainer

    step = Trainer.train_step

    def fail(self: Any, batch: Any) -> Any:
        if self.progress.step == 3:
            raise ZeroDivisionError
        return step(self, batch)

    Trainer.train_step = fail  # type: ignore[method-assign]


def test_a_failed_run(place: Workplace) -> None:
    assert place.run("-c", "tiny.yaml", inject=fail_at_step_3).returncode == 1
    assert (facts(place).state, facts(place).step) == ("failed", 3)
    assert place.run("-r").returncode == 0
    assert facts(place).state == "finished"


@pytest.mark.parametrize("state", ["finished", "running", "failed"])
def test_a_resume_that_fails_before_it_trains_leaves_the_state(
    place: Workplace, cut: Path, state: str
) -> None:
    (cut / "run.json").write_text(json.dumps({**recorded(cut), "state": state}))
    before = read_run(cut).state
    for path in (cut / "checkpoints").glob("*/state.pt"):
        path.write_bytes(b"")
    assert place.run("-r").returncode == 1
    assert read_run(cut).state == before == ("interrupted" if state == "running" else state)


def test_an_error_before_the_first_step_leaves_no_folder(place: Workplace) -> None:
    done = place.run("-c", "tiny.yaml", "--set", "trainer.monitor=max valid/none")
    assert done.returncode == 2
    assert not place.runs()


def test_a_folder_deleted_during_training_is_not_made_again(place: Workplace) -> None:
    script = place.start("-c", "tiny.yaml", "--set", *LONG, "trainer.tensorboard=false")
    script.wait_until(lambda: place.runs() and facts(place).step >= 2)
    while (place.folder / "saved").exists():  # a checkpoint may be written while it is deleted
        shutil.rmtree(place.folder / "saved", ignore_errors=True)
    assert script.wait().returncode == 1
    assert not (place.folder / "saved").exists()


def test_a_run_of_an_earlier_version_is_resumed_and_tested(place: Workplace, cut: Path) -> None:
    old = cut.with_name("1125_203534")
    cut.rename(old)
    stamp = recorded(old)
    (old / "run.json").write_text(json.dumps({key: stamp[key] for key in ("number", "started")}))
    assert place.run("-r", "1125_203534", "--epochs", "3").returncode == 0
    assert (read_run(old).state, read_run(old).changed) == ("finished", {"trainer.epochs": 3})
    assert place.run("test.py", "-r", "1125").returncode == 0
    assert place.runs() == [old]
