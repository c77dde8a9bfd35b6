"""A save that is disturbed at any call leaves the checkpoint before it, or the new one, whole."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from faults.disk import DiskCalls
from faults.power import Disk, Recorder
from faults.table import Trials
from stores import make_state, names, same, save

from base.checkpoint.store import CheckpointStore, read
from base.errors import CheckpointError
from base.system.run_folder import create_run_folder

BEFORE = {"first": [], "next, with pruning": [1, 2, 3], "the same step": [1, 5]}
SIZE = 3000  # numbers: the state is longer than two blocks of a disk
DISTURBED = {"step": 5, "state": make_state(50, SIZE), "is_best": True}
scenarios = pytest.mark.parametrize("scenario", list(BEFORE))


def prepare(folder: Path, scenario: str) -> Path:
    """Save the checkpoints that stand before the save that will be disturbed."""
    (folder / "checkpoints").mkdir(parents=True)
    store = CheckpointStore(folder / "checkpoints", keep=2)
    for step in BEFORE[scenario]:
        save(store, step, is_best=step == 2)
    store.wait()
    return folder


def check(store: CheckpointStore, scenario: str, is_saved: bool = False) -> None:
    """The new state is found, or the one before it where it may not be saved yet."""
    before = [make_state(step) for step in BEFORE[scenario]]
    allowed = [DISTURBED["state"]] if is_saved else [DISTURBED["state"], *(before[-1:] or [None])]
    assert any(same(found_in(store), state) for state in allowed)


def check_next_save(store: CheckpointStore) -> None:
    """What was left behind is swept, and the same save is made as if nothing had been."""
    store.remove_leftovers()
    assert not [name for name in names(store) if not name.startswith("step-")]
    save(store, **DISTURBED)
    assert same(found_in(store), DISTURBED["state"])
    assert not [name for name in names(store) if name.endswith("~")]


def found_in(store: CheckpointStore) -> dict[str, Any] | None:
    """Return what a resume would go on with."""
    newest = store.newest()
    return None if newest is None else read(newest)


def fresh(folder: Path, prepared: Path) -> CheckpointStore:
    """Return a copy of the prepared checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder)
    return CheckpointStore(folder / "checkpoints", keep=2)


# --- A kill --------------------------------------------------------------------------------------


@pytest.mark.fault("F02")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@scenarios
def test_a_kill_at_any_call_leaves_the_old_or_the_new(
    tmp_path: Path, scenario: str, trials: Trials
) -> None:
    prepared, every = prepare(tmp_path / "prepared", scenario), trials.count(20, 1)
    for at in range(1, 1000):
        with trials.trial(f"call {at}"):
            store = fresh(tmp_path / "disturbed", prepared)
            was_killed = killed_at(store, at, every)
            check(store, scenario, is_saved=not was_killed)
            check_next_save(store)
        if not was_killed:
            break
    assert at > trials.count(12, 50)


def killed_at(store: CheckpointStore, at: int, every: int) -> bool:
    """Save in a process that is killed at that call, if it comes so far."""
    child = os.fork()
    if child == 0:
        kill = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        with pytest.MonkeyPatch.context() as patch:
            DiskCalls(patch, at, kill, every=every)
            save(store, **DISTURBED)
            store.wait()
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


# --- Power loss ----------------------------------------------------------------------------------


@pytest.mark.fault("F03")
@scenarios
def test_power_lost_after_any_change_leaves_the_old_or_the_new(
    tmp_path: Path, scenario: str, trials: Trials
) -> None:
    """Whatever part of what was not synced has reached the disk."""
    run = prepare(tmp_path / "run", scenario)
    disk = Disk(run)
    store = CheckpointStore(run / "checkpoints", keep=2)
    with pytest.MonkeyPatch.context() as patch:
        changes = Recorder(patch).changes
        save(store, **DISTURBED)
        store.wait()
    kinds = [kind for kind, _, _ in changes]
    assert kinds.count("fsync") >= 4
    assert kinds.count("write") > 20

    draw, n_losses = random.Random(scenario), trials.count(1, 20)
    for number, change in enumerate(changes, start=1):
        disk.make(change)
        for share in [0, 1, *[draw.random() for _ in range(n_losses)]]:
            if share in (0, 1) and number % trials.count(5, 1):
                continue
            with trials.trial(f"after {change[:2]}, {share:.2f} of the rest"):
                found = tmp_path / "found"
                shutil.rmtree(found, ignore_errors=True)
                disk.lose_power(found, draw, share)
                left = CheckpointStore(found / "checkpoints", keep=2)
                check(left, scenario, is_saved=number == len(changes))
                check_next_save(left)


@pytest.mark.fault("F03")
def test_power_lost_after_the_first_save_of_a_new_run_leaves_its_folders_too(
    tmp_path: Path, trials: Trials
) -> None:
    """The names of runs, of this run and of its checkpoints are on the disk, not only its files."""
    disk = Disk(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        changes = Recorder(patch).changes
        run = create_run_folder(tmp_path / "saved", "name")
        store = CheckpointStore(run / "checkpoints")
        store.check_writable()
        save(store, **DISTURBED)
    for change in changes:
        disk.make(change)
    draw = random.Random(3)
    for number in range(trials.count(10, 200)):
        with trials.trial(number):
            disk.lose_power(tmp_path / f"left-{number}", draw, share=0)
            left = tmp_path / f"left-{number}" / run.relative_to(tmp_path)
            assert same(read(left), DISTURBED["state"])


# --- I/O errors ----------------------------------------------------------------------------------


@pytest.mark.fault("F04")
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@scenarios
def test_an_io_error_at_any_call_is_told_and_loses_nothing(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    scenario: str,
    lasting: bool,
    number: int,
    trials: Trials,
) -> None:
    def fail(_: DiskCalls) -> None:
        raise OSError(number, os.strerror(number))

    prepared, every = prepare(tmp_path / "prepared", scenario), trials.count(20, 1)
    outcomes = set()
    for at in range(1, 1000):
        with trials.trial(f"call {at}"):
            store = fresh(tmp_path / "disturbed", prepared)
            caplog.clear()
            with pytest.MonkeyPatch.context() as patch:
                calls = DiskCalls(patch, at, fail, lasting, every)
                outcome, message = outcome_of(store, caplog)
            told = (
                str(store.folder),
                f"{os.strerror(number)} (errno {number})",
                " bytes are needed, ",
            )
            assert outcome != "raised" or all(part in message for part in told)

            check(store, scenario, is_saved=outcome != "raised")
            assert outcome == "warned" or lasting or not list(store.folder.glob(".tmp-*"))
            stays = scenario == "the same step" and not lasting
            assert not stays or (store.folder / "step-00000005").exists()
            outcomes.add(outcome)
        if calls.count < at:
            break
    assert outcomes == {"raised", "warned", "saved"}


def outcome_of(store: CheckpointStore, caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """Save, and tell how it went and what was said."""
    try:
        save(store, **DISTURBED)
        store.wait()
    except CheckpointError as error:
        return "raised", str(error)
    return ("warned" if caplog.records else "saved"), caplog.text


@pytest.mark.fault("F05")
def test_a_full_disk_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    """Where torch alone would raise a RuntimeError without errno."""
    store = CheckpointStore(tmp_path / "checkpoints")
    save(store, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    told = r"File too large \(errno 27\); 400008 bytes"
    try:
        with pytest.raises(CheckpointError, match=told) as info:
            save(store, 2, make_state(2, size=100_000) | {"optimizer": 0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(info.value.__cause__, OSError)
    assert names(store) == {"step-00000001"}
    assert same(read(store.folder), make_state(1))
