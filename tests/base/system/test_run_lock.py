"""One process in a folder at a time, and whether there is one."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from base.errors import UsageError
from base.system import run_lock
from base.system.places import PROJECT
from base.system.run_lock import is_locked, lock


def test_a_second_lock_names_the_holder_until_the_first_lets_go(tmp_path):
    words = rf"another process uses this run: .*{os.getpid()}"
    with lock(tmp_path), pytest.raises(UsageError, match=words):
        lock(tmp_path)
    held = lock(tmp_path)
    held.release()
    held.release()
    lock(tmp_path).release()


@pytest.mark.fault("F22")
def test_of_two_at_once_exactly_one_proceeds(tmp_path):
    def take(folder: Path):
        try:
            return lock(folder)
        except UsageError:
            return None

    with ThreadPoolExecutor(2) as pool:
        for number in range(50):
            folder = tmp_path / str(number)
            folder.mkdir()
            held = [each for each in pool.map(take, [folder, folder]) if each]
            assert len(held) == 1
            held[0].release()


def start_holder(folder: Path, then: str) -> subprocess.Popen:
    """Start a process that takes the lock, does something more, tells its number and waits."""
    code = f"""
import os, sys, time
from pathlib import Path
from base.system.run_lock import lock
held = lock(Path(sys.argv[1]))
{then}
print(os.getpid(), flush=True)
time.sleep(60)
"""
    root = PROJECT
    command = [sys.executable, "-W", "ignore", "-c", code, str(folder)]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)


@pytest.mark.fault("F22")
def test_the_lock_of_a_killed_process_is_gone_though_its_worker_lives(tmp_path):
    """A DataLoader's workers look for their parent only every few seconds."""
    note = "Path(sys.argv[1], 'worker').write_text(str(os.getpid()))"
    holder = start_holder(tmp_path, then=f"if os.fork() == 0: {note}; time.sleep(60)")
    assert int(holder.stdout.readline()) == holder.pid
    worker_pid = wait_for_number(tmp_path / "worker")
    try:
        with pytest.raises(UsageError, match=str(holder.pid)):
            lock(tmp_path)
        holder.kill()
        holder.wait()
        os.kill(worker_pid, 0)  # it lives
        lock(tmp_path).release()
    finally:
        holder.kill()
        holder.stdout.close()
        os.kill(worker_pid, signal.SIGKILL)


def wait_for_number(path: Path) -> int:
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return int(path.read_text())


def test_a_folder_that_cannot_be_locked_is_named(tmp_path):
    with pytest.raises(UsageError, match="missing/LOCK: cannot be created: No such file"):
        lock(tmp_path / "missing")


def test_where_the_system_has_no_locks_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "fcntl", None)
    with lock(tmp_path), lock(tmp_path):
        pass


# --- Whether a process is there ------------------------------------------------------------------


def test_a_lock_is_seen_without_being_taken(tmp_path):
    assert is_locked(tmp_path) is False  # no process was there
    holder = start_holder(tmp_path, then="")
    try:
        holder.stdout.readline()
        about = (tmp_path / "LOCK").read_bytes()
        assert is_locked(tmp_path) is True
        assert (tmp_path / "LOCK").read_bytes() == about
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert is_locked(tmp_path) is False


def test_looking_never_keeps_a_run_from_its_folder(tmp_path):
    lock(tmp_path).release()
    looker = f"""
import time
from base.system.run_lock import is_locked
end = time.monotonic() + 2
while time.monotonic() < end: time.sleep(0.0002) or is_locked({str(tmp_path)!r})
"""
    lookers = [subprocess.Popen([sys.executable, "-c", looker], cwd=PROJECT) for _ in range(2)]
    try:
        for _ in range(300):
            lock(tmp_path).release()
    finally:
        for each in lookers:
            each.wait()


def test_where_the_system_has_no_locks_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "fcntl", None)
    with lock(tmp_path):
        assert is_locked(tmp_path) is None
