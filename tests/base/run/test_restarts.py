"""What all ranks resume, and what they resume when torchrun has restarted them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from base.checkpoint.store import CheckpointStore, read
from base.run.restarts import note_run, read_together, resume_together
from base.system.run_folder import create_run_folder
from tests.base.ranks import Listener, Store, Turn, ranks


@pytest.fixture
def world() -> Turn:
    found = ranks(2)[0]
    found.launch_store = Store()  # type: ignore[assignment]
    return found


def save(folder: Path, step: int) -> Path:
    store = CheckpointStore(folder / "checkpoints")
    return store.save({"at": step}, step=step, epoch=0, metrics={}, is_best=False, facts={})


def test_rank_0_decides_what_is_resumed(tmp_path: Path, world: Turn) -> None:
    assert resume_together(tmp_path, world) == tmp_path
    assert resume_together(None, world) is None
    assert resume_together(None, Listener(1, 2, str(tmp_path))) == tmp_path
    assert resume_together(tmp_path, Listener(1, 2, None)) is None


def test_restarted_ranks_continue_the_run_though_the_command_says_nothing(
    tmp_path: Path, world: Turn
) -> None:
    folder = create_run_folder(tmp_path, "x")
    note_run(folder, world)
    save(folder, 5)
    assert resume_together(None, world) == folder


def test_the_folder_of_a_run_that_did_not_begin_is_removed(tmp_path: Path, world: Turn) -> None:
    folder = create_run_folder(tmp_path, "x")
    for name in ("log.txt", "log-rank1.txt", "LOCK", "config.yaml"):
        (folder / name).touch()
    (folder / "checkpoints" / ".tmp-00000005-abcd").mkdir(parents=True)  # killed as it saved
    note_run(folder, world)
    assert resume_together(None, world) is None
    assert not folder.exists()


def test_values_of_a_run_without_a_checkpoint_are_kept(tmp_path: Path, world: Turn) -> None:
    folder = create_run_folder(tmp_path, "x")
    (folder / "metrics.csv").write_text("epoch\n1\n")
    note_run(folder, world)
    assert resume_together(None, world) is None
    assert (folder / "metrics.csv").exists()


def test_a_named_checkpoint_is_resumed_until_the_run_has_saved(tmp_path: Path, world: Turn) -> None:
    folder = create_run_folder(tmp_path, "x")
    named = save(folder, 5)
    save(folder, 10)
    note_run(folder, world)
    assert resume_together(named, world) == named  # step 10 is not of the resumed training
    save(folder, 7)
    assert resume_together(named, world) == folder
    assert read(folder) == {"at": 7}


def test_a_deleted_run_is_not_continued(tmp_path: Path, world: Turn) -> None:
    folder = create_run_folder(tmp_path, "x")
    note_run(folder, world)
    shutil.rmtree(folder)
    assert resume_together(None, world) is None


def test_other_ranks_take_the_state_that_rank_0_has_read(tmp_path: Path, world: Turn) -> None:
    folder = create_run_folder(tmp_path, "x")
    save(folder, 5)
    state, manifest = read_together(folder, world)
    assert (state["at"], manifest["step"]) == (5, 5)
    received: Any = [state, manifest]
    elsewhere = tmp_path / "not on this machine"
    assert read_together(elsewhere, Listener(1, 2, received)) == (state, manifest)
