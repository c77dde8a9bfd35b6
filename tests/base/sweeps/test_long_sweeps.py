"""A sweep of many trials: its record is safe at each moment, and costs no more for each trial."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from base.config import load_config
from base.sweeps import record
from base.sweeps.processes import Process
from base.sweeps.record import Plan, Sweep, TrialRecord, create_sweep, read_sweep
from base.sweeps.space import parse_space
from base.sweeps.sweep import SweepLoop
from base.system.trial import VARIABLE, Trial, note_folder

LR = "optimizer.args.lr"


@pytest.fixture
def long_from(monkeypatch: pytest.MonkeyPatch) -> int:
    """Sweeps of a few trials are recorded as those of hundreds."""
    monkeypatch.setattr(record, "MOST_WHOLE", 2_000)
    return 2_000


def long_sweep(folder: Path, n_trials: int = 30) -> Sweep:
    sweep = Sweep(folder, Plan("c", [], ["lr=1..2"], samples=99))
    sweep.trials = [TrialRecord(number, {LR: str(number)}) for number in range(1, n_trials + 1)]
    sweep.save()
    return sweep


def events(sweep: Sweep) -> Any:
    """Yield after each event of a sweep with a pruner that draws more trials."""
    for number in range(1, 60):
        if number > len(sweep.trials):
            sweep.trials.append(TrialRecord(number, {LR: str(number)}, attributes={"draw": number}))
            sweep.attributes = {"drawn": number // 10}
        trial = sweep.trials[number - 1]
        trial.state = "running"
        yield sweep.note(trial)
        for epoch in ("1", "2"):
            trial.values[epoch], trial.judged[epoch] = 0.5 * number, False
            trial.attributes["rung"] = epoch
            yield sweep.note_epoch(trial, epoch)
        trial.state, trial.value = "finished", 1 / number
        yield sweep.note(trial)


def test_each_event_is_on_the_disk(tmp_path: Path, long_from: int) -> None:
    sweep, kinds = long_sweep(tmp_path), set()
    for _ in events(sweep):
        assert read_sweep(tmp_path) == sweep
        kinds.add((tmp_path / "sweep.jsonl").exists())
    assert kinds == {True, False}
    assert json.loads((tmp_path / "sweep.json").read_text())["format"] == 2
    sweep.save()
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]
    assert read_sweep(tmp_path) == sweep


def test_a_kill_while_an_event_is_written_loses_that_event_alone(
    tmp_path: Path, long_from: int
) -> None:
    sweep = long_sweep(tmp_path)
    for _ in events(sweep):
        journal = tmp_path / "sweep.jsonl"
        if journal.exists():
            whole = journal.read_bytes()
            journal.write_bytes(whole + whole.splitlines()[-1][:-3])
            assert read_sweep(tmp_path) == sweep
            journal.write_bytes(whole)


def test_a_kill_before_the_journal_is_removed_brings_nothing_back(
    tmp_path: Path, long_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lines are older than the record, which may have changed since."""
    sweep = long_sweep(tmp_path)
    for _, trial in zip(range(4), sweep.trials, strict=False):
        trial.state = "running"
        sweep.note(trial)
    journal = (tmp_path / "sweep.jsonl").read_bytes()
    for trial in sweep.trials:
        trial.state = "interrupted"
    sweep.save()
    (tmp_path / "sweep.jsonl").write_bytes(journal)
    again = read_sweep(tmp_path)
    assert again == sweep
    again.trials[0].state = "finished"
    again.note(again.trials[0])
    assert read_sweep(tmp_path) == again


def test_a_short_sweep_is_one_file_of_the_format_of_earlier_versions(tmp_path: Path) -> None:
    sweep = long_sweep(tmp_path, 3)
    sweep.trials[0].state = "running"
    sweep.note(sweep.trials[0])
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.json"]
    assert (content["format"], content["trials"][0]["state"]) == (1, "running")


class Ended:
    """A process that has ended with success."""

    returncode, pid = 0, 0

    def poll(self) -> int:
        return 0


class Costs:
    """What the process of a sweep does: files opened, folders listed, bytes of its record."""

    def __init__(self) -> None:
        self.is_on, self.n_opened, self.n_listed, self.n_bytes = False, 0, 0, 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, _: tuple[Any, ...]) -> None:
        self.n_opened += self.is_on and event == "open"
        self.n_listed += self.is_on and event in ("os.scandir", "os.listdir")


COSTS = Costs()  # a hook cannot be removed


def train(n_trials: int, root: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Run a sweep whose trials write the folders of their runs at once; count its costs."""
    path = project_root / "config" / "digits.yaml"
    overrides = [f"trainer.save_dir={root}"]
    config = load_config(path, overrides)
    sweep = create_sweep(Plan(str(path), overrides, ["lr=1..2"], samples=n_trials), config)
    sweep.trials = [TrialRecord(n, {LR: f"{n / n_trials:.4f}"}) for n in range(1, n_trials + 1)]
    begin, head = config.to_yaml(), "epoch,step,valid/accuracy\n"

    def start(trial: TrialRecord, _: Any, where: Path, *__: Any) -> Process:
        COSTS.is_on = False
        folder = root / "digits" / f"20260101-{trial.number:06}"
        folder.mkdir()
        (folder / "config.yaml").write_text(begin)
        (folder / "metrics.csv").write_text(f"{head}1,1,{trial.number / n_trials}\n")
        stamp = {"number": trial.number, "started": "", "state": "finished"}
        (folder / "run.json").write_text(json.dumps({**stamp, "trial": sweep.name_of(trial)}))
        about = Trial(str(where.absolute()), trial.number, 1, False, 0)
        with monkeypatch.context() as environment:
            environment.setenv(VARIABLE, about.environment()[VARIABLE])
            note_folder(folder)
        COSTS.is_on = True
        output = where / f"trial-{trial.number}.err"
        return Process(trial, None, Ended(), output)  # type: ignore[arg-type]

    def counted(write: Any) -> Any:
        def writing(file: Path, content: bytes, **options: Any) -> None:
            COSTS.n_bytes += len(content)
            write(file, content, **options)

        return writing

    with monkeypatch.context() as changed:
        changed.setattr("base.sweeps.sweep.start_process", start)
        changed.setattr("base.sweeps.sweep.POLL_SECONDS", 0)
        changed.setattr("base.sweeps.sweep.write_summary", lambda *_: "")
        for name in ("write_whole", "append"):
            changed.setattr(record, name, counted(getattr(record, name)))
        COSTS.n_opened = COSTS.n_listed = COSTS.n_bytes = 0
        try:
            loop = SweepLoop(sweep, parse_space(["lr=1..2"]), config, None, [""])
            assert loop.run() == 0
        finally:
            COSTS.is_on = False
    assert [trial.value for trial in sweep.trials] == [n / n_trials for n in range(1, n_trials + 1)]
    assert loop._best is sweep.trials[-1]
    assert read_sweep(sweep.folder) == sweep
    return sweep


def test_twice_the_trials_cost_twice_the_files_and_bytes(
    tmp_path: Path,
    project_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    long_from: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = []
    for n in (60, 120):
        train(n, tmp_path / str(n), project_root, monkeypatch)
        found.append((COSTS.n_opened, COSTS.n_listed, COSTS.n_bytes))
    assert found[0][1] == found[1][1], "the folder of runs is listed once"
    for small, large in zip(*found, strict=True):
        assert large <= 2.3 * small
