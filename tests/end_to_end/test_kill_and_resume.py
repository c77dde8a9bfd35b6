"""Signals to a running `train.py`: what is saved and told, who ends, how the run goes on."""

from __future__ import annotations

import re
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from digest import digest, digest_of
from faults.runs import WORKERS, newest_step
from processes import Script
from workplace import Workplace

from base.checkpoint.store import read

pytestmark = pytest.mark.end_to_end
Rows = Callable[[Path], list[dict[str, str]]]


def workers_of(script: Script) -> list[psutil.Process]:
    """Return the processes that read data for it."""
    return psutil.Process(script.pid).children(recursive=True)


def ended(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not alive


def resume_as_printed(place: Workplace, text: str) -> None:
    """Type the command that an interrupted run has printed."""
    (command,) = re.findall(r"resume by: python train\.py (.+)", text)
    done = place.run(*shlex.split(command))
    assert done.returncode == 0, done.stderr


@pytest.mark.fault("F07")
@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_prints_a_command_that_goes_on(
    place: Workplace, whole: str, number: signal.Signals, code: int, n_workers: int
) -> None:
    words = ["trainer.save_every=1 epoch", f"{WORKERS}={n_workers}"]
    script = place.start("-c", "tiny.yaml", "--set", *words)
    script.wait_until(lambda: newest_step(place) >= 5)
    workers = workers_of(script)
    assert len(workers) == 2 * n_workers  # of training and of validation
    # To the whole group, as a terminal sends Ctrl-C: the workers must not die of it first.
    script.signal_group(number)
    done = script.wait()
    assert done.returncode == code
    assert re.fullmatch(
        rf"stopped by {number.name} after step \d+, and saved; resume by: "
        rf"python train\.py -r saved/tiny/\d{{8}}-\d{{6}}_\S+\n",
        done.stderr,
    )
    step = int(re.findall(r"after step (\d+)", done.stderr)[0])
    assert newest_step(place) == step
    assert ended(workers)
    resume_as_printed(place, done.stderr)
    (folder,) = place.runs()
    assert digest(folder) == whole


def test_a_folder_with_a_space_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "my work").mkdir()
    place = Workplace(tmp_path / "my work")
    save_dir = tmp_path / "my work" / "saved"
    script = place.start("-c", "tiny.yaml", "--set", f"trainer.save_dir={save_dir}")
    script.wait_until(lambda: newest_step(place) >= 2)
    script.signal(signal.SIGTERM)
    done = script.wait()
    assert f"-r '{save_dir}/tiny/" in done.stderr
    resume_as_printed(place, done.stderr)


@pytest.mark.fault("F07")
@pytest.mark.parametrize("step", [5, 15])
def test_a_stop_in_validation_is_made_up_for(
    place: Workplace, whole: str, step: int, rows: Rows
) -> None:
    """At step 15 all training is done, but not the validation, nor the row, nor the best mark."""
    script = place.start("-c", "tiny.yaml", "--set", "trainer.save_every=1 steps")
    script.wait_until(lambda: newest_step(place) == step)  # the last step before validation
    script.signal(signal.SIGTERM)
    done = script.wait()
    assert done.returncode == 143
    resume_as_printed(place, done.stderr)
    (folder,) = place.runs()
    assert [row["step"] for row in rows(folder)] == ["5", "10", "15"]
    assert digest(folder) == whole


@pytest.mark.fault("F08")
def test_a_second_ctrl_c_ends_at_once_and_leaves_no_worker(place: Workplace) -> None:
    words = ["trainer.epochs=1000", f"{WORKERS}=2", "lr_scheduler=null"]
    script = place.start("-c", "tiny.yaml", "--set", *words)
    script.wait_until(lambda: newest_step(place) >= 2 and len(workers_of(script)) == 4)
    workers = workers_of(script)
    script.signal_group(signal.SIGINT)
    time.sleep(0.002)
    script.signal_group(signal.SIGINT)
    done = script.wait()
    assert done.returncode == 130
    assert ended(workers)
    # Whatever it was doing, what is there is good.
    assert place.run("-r", "--set", "trainer.epochs=1").returncode == 0


SLOW = """
import time
from pathlib import Path

from base.checkpoint import store as checkpoint
from base.config.command_line import run
from train import main

write = checkpoint.write_state


def slow(path, state):
    if int(path.parent.name[5:13]) >= 3:
        Path("is-writing").touch()
        time.sleep(60)
    return write(path, state)


checkpoint.write_state = slow
run(main)
"""


@pytest.mark.fault("F08")
def test_a_second_ctrl_c_does_not_wait_for_a_checkpoint_that_is_written_beside(
    place: Workplace, whole: str
) -> None:
    (place.folder / "slow.py").write_text(SLOW, encoding="utf-8")
    words = ["--set", "trainer.async_save=true", f"{WORKERS}=1"]
    script = place.start(str(place.folder / "slow.py"), "-c", "tiny.yaml", *words)
    script.wait_until(lambda: (place.folder / "is-writing").exists())
    workers = workers_of(script)
    script.signal_group(signal.SIGINT)
    time.sleep(0.3)
    assert script.process.exitcode is None  # the first one waits, so as to lose nothing
    begin = time.monotonic()
    script.signal_group(signal.SIGINT)
    done = script.wait()
    assert time.monotonic() - begin < 10
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT, nothing more was saved\n")
    assert ended(workers)
    assert newest_step(place) == 2
    assert place.run("-r").returncode == 0
    (folder,) = place.runs()
    assert not list((folder / "checkpoints").glob(".tmp-*"))
    assert digest(folder) == whole


@pytest.mark.fault("F09")
def test_sigusr1_saves_and_changes_nothing(place: Workplace, finished_once: Path) -> None:
    words = ["trainer.save_every=100 epochs", "trainer.monitor=off", f"{WORKERS}=1"]
    script = place.start("-c", "tiny.yaml", "--set", *words)
    script.wait_until(lambda: any(place.folder.glob("saved/*/*/metrics.csv")))
    script.signal_group(signal.SIGUSR1)  # as a batch system does, which knows no other way
    done = script.wait()
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = place.runs()
    steps = sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))
    assert len(steps) == 2
    assert steps[-1] == 15
    states = [read(run) for run in (folder, finished_once)]
    for name in ("model", "optimizer.main", "ema", "random"):
        assert digest_of(states[0][name]) == digest_of(states[1][name])
