"""Runs side by side, clocks that jump, files that are missing, paths of all kinds."""

from __future__ import annotations

import os
import re
import shutil
import signal
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from digest import digest
from faults.injections import Clock, Removes, SignalIn
from faults.runs import AUTO, SAVING, check_failed, last_run
from faults.table import Trials
from workplace import ROOT, Workplace

pytestmark = pytest.mark.end_to_end
STOP = SignalIn(signal.SIGTERM, "base.base_trainer.BaseTrainer.train_step", 4)
BUILD = "base.run.build.build_experiment"


# --- Two at once --------------------------------------------------------------------------------


@pytest.mark.fault("F22")
def test_of_two_that_go_on_with_a_run_at_once_exactly_one_does(
    cut: Path, whole: str, trials: Trials
) -> None:
    for number in range(trials.count(1, 50)):
        with trials.trial_in_folder(number) as place:
            folder = place.folder / "saved" / "tiny" / cut.name
            shutil.copytree(cut, folder)
            both = [place.start("-r") for _ in range(2)]
            won, lost = sorted((each.wait() for each in both), key=lambda done: done.returncode)
            assert (won.returncode, won.stderr) == (0, "")
            if lost.returncode == 0:  # the first was through before the second began
                assert "this run is finished" in lost.stdout + lost.stderr
            else:
                told = r"another process uses this run: (\{\"pid\": \d+, \"host\": |just started)"
                check_failed(lost, told, code=2)
            assert digest(folder) == whole


@pytest.mark.fault("F22")
@pytest.mark.parametrize(
    "left",
    ['{"pid": 1, "host": "elsewhere"}', f'{{"pid": {os.getpid()}, "host": "here"}}', "", "x"],
    ids=["elsewhere", "here", "empty", "x"],  # not with the process's number
)
def test_what_a_lock_of_the_dead_says_stops_nobody(
    place: Workplace, cut: Path, whole: str, left: str
) -> None:
    (cut / "LOCK").write_text(left)
    assert place.run("-r").returncode == 0
    assert digest(cut) == whole


# --- Clocks -------------------------------------------------------------------------------------


@pytest.mark.fault("F23")
def test_runs_started_at_once_have_folders_of_their_own(place: Workplace, trials: Trials) -> None:
    n_runs = trials.count(3, 32)
    scripts = [place.start("-c", "tiny.yaml", "--set", "trainer.epochs=1") for _ in range(n_runs)]
    for script in scripts:
        with trials.trial(script.pid):
            assert script.wait(600).returncode == 0
    assert len(place.runs()) == n_runs
    assert len({digest(folder) for folder in place.runs()}) == 1


@pytest.mark.fault("F23")
@pytest.mark.parametrize("jumps", [(0, -3600, 86400, -1e8), (-1e9,), (0, 0.5, -0.5)])
def test_a_clock_that_jumps_changes_no_bit(
    place: Workplace, whole: str, jumps: tuple[float, ...]
) -> None:
    words = (SAVING, "trainer.log_every=1 steps")
    done = place.run(*AUTO, *words, inject=STOP)
    assert done.returncode == 143
    done = place.run(*AUTO, *words, inject=Clock(jumps))
    assert (done.returncode, done.stderr) == (0, "")
    assert digest(last_run(place)) == whole


@pytest.mark.fault("F23")
def test_the_run_that_began_last_is_gone_on_with_in_any_time_zone(
    place: Workplace, whole: str
) -> None:
    place.train(TZ="Pacific/Kiritimati")  # 14 hours ahead
    done = place.run("-c", "tiny.yaml", "--set", SAVING, inject=STOP, TZ="Etc/GMT+12")
    assert done.returncode == 143
    done = place.run("-r", TZ="Asia/Kolkata")
    assert (done.returncode, done.stderr) == (0, "")
    assert {digest(folder) for folder in place.runs()} == {whole}


# --- Missing files ------------------------------------------------------------------------------


@pytest.mark.fault("F24")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("-c tinny.yaml", "tinny.yaml.*did you mean 'tiny.yaml'"),
        ("-r saved/tiny/RUN_", "has no 'RUN_'; did you mean 'RUN'"),
        ("-r saved/tiny/RUN/checkpoints/step-00000099", "did you mean 'step-000000"),
        ("-c tiny.yaml --set model.weights=best.pt", "best.pt.*no such file"),
        ("-c tiny.yaml --set data_loader.args.data_dir=dato", "dato"),
    ],
)
def test_a_missing_file_is_told_in_one_line(
    place: Workplace, finished: Path, words: str, told: str
) -> None:
    before = set(place.runs())
    done = place.run(*words.replace("RUN", finished.name).split())
    check_failed(done, told.replace("RUN", finished.name), code=done.returncode)
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1
    assert set(place.runs()) == before


@pytest.mark.fault("F24")
def test_data_that_vanish_between_config_and_use_are_told(place: Workplace, whole: str) -> None:
    data = place.folder / "data"
    shutil.copytree(ROOT / "data", data)
    words = ("-c", "tiny.yaml", "--set", f"data_loader.args.data_dir={data}")
    done = place.run(*words, inject=Removes(data / "digits.npz", BUILD))
    check_failed(done, re.escape(str(data)))
    assert len(done.stderr.splitlines()) == 1
    shutil.copy(ROOT / "data" / "digits.npz", data)
    assert place.run(*words).returncode == 0
    assert digest(last_run(place)) == whole


@pytest.mark.fault("F24")
def test_a_config_that_vanishes_after_it_was_read_is_not_missed(
    place: Workplace, whole: str
) -> None:
    folder = place.train(inject=Removes(place.folder / "tiny.yaml", BUILD))
    assert not (place.folder / "tiny.yaml").exists()
    assert digest(folder) == whole


@pytest.mark.fault("F24")
def test_a_checkpoint_that_vanishes_after_it_was_chosen_is_passed_over(
    place: Workplace, cut: Path, whole: str
) -> None:
    lost = cut / "checkpoints" / "step-00000007" / "state.pt"
    done = place.run("-r", inject=Removes(lost, "base.run.restarts.read_with_manifest"))
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.search(r"step-00000007.*falling back to .*step-00000006", line)
    assert digest(cut) == whole


# --- Paths --------------------------------------------------------------------------------------


def plain(folder: Path, name: str) -> Path:
    return folder / name


def linked(folder: Path, name: str) -> Path:
    (folder / "there").mkdir()
    (folder / name).symlink_to(folder / "there")
    return folder / name


def deep(folder: Path, name: str) -> Path:
    """As long as paths may be, with a run's own files below it."""
    room = 4096 - 150 - len(os.fsencode(folder))
    return folder.joinpath(*[name] * (room // (len(name) + 1)))


PATHS = {
    "Chinese": (plain, "中文"),
    "composed": (plain, unicodedata.normalize("NFC", "é")),
    "decomposed": (plain, unicodedata.normalize("NFD", "é")),
    "blanks": (plain, " two  words "),
    "quotes": (plain, """it's "so" `x` $HOME"""),
    "new line": (plain, "new\nline"),
    "emoji": (plain, "🙂"),
    "dash": (plain, "-c"),
    "hidden": (plain, ".hidden"),
    "braces": (plain, "${name}[x]*?"),
    "255 bytes": (plain, "x" * 255),
    "4,000 characters": (deep, "y" * 200),
    "a link": (linked, "link"),
}


@pytest.mark.fault("F29")
def test_in_a_folder_of_any_name_a_run_stops_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, whole: str, trials: Trials
) -> None:
    """As the current folder, and named in the command too."""
    for what in trials.some(list(PATHS), few=4):
        for names_it in (False, True):
            with trials.trial(f"{what}, {'named' if names_it else 'current'}"):
                make: Callable[[Path, str], Path] = PATHS[what][0]
                folder = make(tmp_path_factory.mktemp("path"), PATHS[what][1])
                folder.mkdir(parents=True, exist_ok=True)
                place = Workplace(folder)
                saved = f"trainer.save_dir={str(folder / 'runs').replace('${', '$${')}"
                words = (SAVING, *([saved] if names_it else []))
                config = str(folder / "tiny.yaml") if names_it else "tiny.yaml"
                done = place.run("-c", config, "--set", *words, inject=STOP)
                assert done.returncode == 143, done.stderr
                (run,) = folder.glob("*/tiny/*")
                done = place.run("-r", str(run) if names_it else "auto")
                assert done.returncode == 0, done.stderr
                assert digest(run) == whole
