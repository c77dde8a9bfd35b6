"""A disk that is full or read-only, memory that is refused: told, and nothing is lost."""

from __future__ import annotations

import errno
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from digest import digest
from faults.injections import (
    FailAtCall,
    FailsToWrite,
    MemoryLimit,
    Pace,
    SignalIn,
    WithoutPrivilege,
)
from faults.runs import AUTO, SAVING, WORKERS, check_failed, check_goes_on, count_calls, newest_step
from faults.table import Trials
from workplace import Workplace

pytestmark = pytest.mark.end_to_end


@pytest.mark.fault("F04")
def test_an_io_error_at_any_call_of_a_run_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, whole: str, trials: Trials
) -> None:
    """Told with its number, or as a warning where the run needs no more than to go on."""
    every = 20
    n_calls = count_calls(Workplace(tmp_path_factory.mktemp("counted")), every)
    draw = random.Random(4)
    for at in draw.sample(range(1, n_calls + 1), trials.count(2, 60)):
        number = draw.choice([errno.EIO, errno.ENOSPC, errno.EACCES])
        with trials.trial_in_folder(f"call {at} of {n_calls}, error {number}") as place:
            injected = FailAtCall(at, number, lasting=draw.random() < 0.5, every=every)
            done = place.run("-c", "tiny.yaml", "--set", SAVING, inject=injected)
            assert "Traceback" not in done.stderr, done.stderr
            if done.returncode != 0:
                assert done.returncode in ((3,) if number == errno.ENOSPC else (1, 2)), done
                assert injected.text in done.stderr
            check_goes_on(place, whole)


@pytest.mark.fault("F05")
@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="needs prlimit")
def test_files_that_may_grow_no_more_end_the_run_and_room_lets_it_go_on(
    place: Workplace, whole: str
) -> None:
    slowly = Pace(0.1, place.folder / "steps")
    script = place.start("-c", "tiny.yaml", "--set", SAVING, inject=slowly)
    script.wait_until(lambda: newest_step(place) >= 2)
    psutil.Process(script.pid).rlimit(psutil.RLIMIT_FSIZE, (9000, 9000))
    done = script.wait()
    check_failed(
        done, r"File too large \(errno 27\)", r"\d+ bytes are needed, \d+ are free", code=3
    )
    assert not list(place.folder.rglob(".tmp-*"))
    check_goes_on(place, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB, where the system lets one be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.fault("F05")
def test_a_disk_that_fills_up_ends_the_run_and_room_lets_it_go_on(
    place: Workplace, small_disk: Path, whole: str
) -> None:
    saving = (SAVING, f"trainer.save_dir={small_disk}")
    slowly = Pace(0.1, place.folder / "steps")
    script = place.start("-c", "tiny.yaml", "--set", *saving, inject=slowly)
    script.wait_until(lambda: list(small_disk.glob("*/*/checkpoints/step-????????")))
    with (small_disk / "filling").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    done = script.wait()
    check_failed(done, r"No space left on device \(errno 28\)", r"\d+ bytes are needed", code=3)
    (small_disk / "filling").unlink()
    assert not list(small_disk.rglob(".tmp-*"))
    assert place.run(*AUTO, *saving).returncode == 0
    (folder,) = small_disk.glob("*/*")
    assert digest(folder) == whole


def fails_before_its_first_step(place: Workplace, folder: Path, *words: str) -> None:
    """Without the right to write in that folder, which the superuser has to do without too."""
    before = {path for path in place.folder.rglob("*")}
    folder.chmod(0o555)
    try:
        done = place.run(*words, inject=WithoutPrivilege())
    finally:
        folder.chmod(0o755)
    check_failed(done, "Permission denied", re.escape(folder.name), code=done.returncode)
    assert done.returncode in (1, 2)
    assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
    new = {path.name for path in place.folder.rglob("*") if path not in before}
    assert {name for name in new if not name.startswith((".std", "LOCK"))} == set()


@pytest.mark.fault("F06")
@pytest.mark.parametrize("what", ["saved", "saved/tiny"])
def test_a_folder_of_runs_that_cannot_be_written_ends_a_run_at_once(
    place: Workplace, what: str
) -> None:
    (place.folder / what).mkdir(parents=True)
    fails_before_its_first_step(place, place.folder / what, "-c", "tiny.yaml")


@pytest.mark.fault("F06")
@pytest.mark.parametrize("what", [".", "checkpoints"])
def test_a_run_that_cannot_be_written_is_not_gone_on_with(
    place: Workplace, what: str, cut: Path, whole: str
) -> None:
    fails_before_its_first_step(place, cut / what, "-r", str(cut))
    assert place.run("-r").returncode == 0
    assert digest(cut) == whole


@pytest.mark.fault("F04")
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("file", ["split.csv", "parameters.csv", "metrics.csv"])
def test_a_file_of_a_run_that_cannot_be_written_is_one_line(
    place: Workplace, cut: Path, whole: str, file: str, number: int
) -> None:
    """Those that a run begins with end it; without one of its results it goes on."""
    if file in ("split.csv", "parameters.csv"):
        (cut / file).unlink(missing_ok=True)  # it is written anew
    done = place.run("-r", inject=FailsToWrite(file, number))
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode != 0:
        code = 3 if number == errno.ENOSPC else 1
        check_failed(done, file, rf"\(errno {number}\)", "resume by: python train.py -r", code=code)
        assert len(done.stderr.splitlines()) == 1
        assert place.run("-r").returncode == 0
    assert digest(cut) == whole


@pytest.mark.fault("F18")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_that_is_refused_is_told_with_advice_and_the_run_goes_on_elsewhere(
    place: Workplace, whole: str
) -> None:
    """Refused in the first step of a run that was stopped and goes on: a later one needs no new."""
    fault = SignalIn(signal.SIGTERM, "base.base_trainer.BaseTrainer.train_step", 5)
    assert place.run("-c", "tiny.yaml", "--set", SAVING, inject=fault).returncode == 143
    step = newest_step(place)
    done = place.run(*AUTO, SAVING, f"{WORKERS}=0", inject=MemoryLimit(step + 1))
    check_failed(done, "out of memory at step 6", r"memory\.micro_batch=48", code=3)
    assert newest_step(place) == step
    check_goes_on(place, whole)
