"""Devices, plans and records of sweeps, and what is checked before the first trial."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from base.config import load_config, parse_train
from base.errors import ConfigError, UsageError
from base.sweeps.checks import Machine, check_trials
from base.sweeps.plan import (
    changed_plan,
    check_monitor,
    check_unchanged,
    monitor_of,
    plan_of,
    settings_of_plan,
)
from base.sweeps.processes import devices_of_jobs
from base.sweeps.record import Plan, TrialRecord, create_sweep, find_sweep, read_sweep
from base.sweeps.space import parse_space
from base.sweeps.summary import command_of, ignored_settings, no_effect
from base.sweeps.sweep import SweepLoop, run_sweep
from base.system.run_folder import (
    find_newest_run,
    folders_of_runs,
    is_sweep,
    read_stamp,
    run_folder_of,
)
from base.system.trial import VARIABLE, Trial, current_trial, stamp_of_trial

LR = "optimizer.args.lr"


def options_of(*words: str) -> argparse.Namespace:
    return parse_train(["-c", "config/digits.yaml", *words])


@pytest.mark.parametrize(
    ("given", "configured", "n_jobs", "n_gpus", "wanted"),
    [
        (None, "auto", 1, 4, [""]),
        ("0,1", "auto", 1, 4, ["0,1"]),  # one trial on two GPUs
        (None, "auto", 3, 0, ["", "", ""]),
        (None, "auto", 3, 1, ["", "", ""]),
        (None, "auto", 3, 2, ["0", "1", "0"]),
        ("cuda", "auto", 2, 4, ["0", "1"]),
        ("all", "auto", 2, 4, ["0", "1"]),
        ("1,3", "auto", 3, 4, ["1", "3", "1"]),
        ("2", "auto", 2, 4, ["2", "2"]),
        ("cpu", "auto", 2, 4, ["cpu", "cpu"]),
        ("cpu:2", "auto", 2, 4, ["cpu:2", "cpu:2"]),
        (None, "cpu", 2, 4, ["", ""]),
        (None, "cuda", 2, 2, ["0", "1"]),
    ],
)
def test_each_job_takes_a_gpu_in_turn(
    given: str | None, configured: str, n_jobs: int, n_gpus: int, wanted: list[str]
) -> None:
    assert devices_of_jobs(given, configured, n_jobs, n_gpus) == wanted


@pytest.mark.parametrize(("name", "n_gpus"), [("0,5", 2), ("all", 0), ("0,1", 0)])
def test_a_gpu_that_is_not_there_is_an_error(name: str, n_gpus: int) -> None:
    with pytest.raises(UsageError, match=f"-d {name}: the number of CUDA devices here is {n_gpus}"):
        devices_of_jobs(name, "auto", 2, n_gpus)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samples", "3"], "--samples belongs to a sweep"),
        (["--jobs", "2"], "--jobs belongs to a sweep"),
        (["--sweep", "lr=1,2", "--print-config"], "--print-config concerns one run"),
        (["--sweep", "lr=1,2", "--samples", "0"], "at least 1"),
        (["--sweep", "lr=1,2", "--jobs", "two"], "at least 1"),
        (["--sweep", "lr=1,2", "-r", "saved/x"], "omit --sweep"),
    ],
)
def test_options_that_do_not_fit_are_named(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options_of(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "tpe"], "--samples N"),
        (["--sampler", "random"], "--samples N"),
        (["--sampler", "grid", "--samples", "2"], "omit --samples"),
    ],
)
def test_a_sampler_needs_its_number_of_trials(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(options_of("--sweep", "lr=1,2", *words))


def test_a_sweep_of_one_value_is_a_slip() -> None:
    space = parse_space(["model.args.hidden=[1,2,3]"])
    with pytest.raises(UsageError, match=r"one value; separate several by commas"):
        settings_of_plan(Plan("c", [], []), space, 1)


def test_trials_are_ranked_by_the_monitor_or_else_by_the_loss(project_root: Path) -> None:
    path = project_root / "config" / "digits.yaml"
    assert monitor_of(load_config(path)) == ("max", "valid/accuracy")
    without = load_config(path, ["trainer.monitor=null"])
    assert monitor_of(without) == ("min", "valid/loss")
    assert monitor_of(without, "min train/loss") == ("min", "train/loss")
    with pytest.raises(UsageError, match="is off"):
        monitor_of(load_config(path, ["trainer.monitor=off"]))
    with pytest.raises(UsageError, match="ranks the trials"):
        check_monitor(load_config(path), parse_space(["trainer.monitor=min a,min b"]))


def test_faults_of_all_trials_are_listed_once_each(project_root: Path) -> None:
    """Those of structure come first, without torch; then names, from a process of their own."""
    path = project_root / "config" / "digits.yaml"
    trials = [{LR: "1e-3"}, {LR: "abc"}, {LR: "1e-2"}, {LR: "[]x"}]
    with pytest.raises(ConfigError) as raised:
        check_trials(path, [], trials)
    assert [each.where for each in raised.value.problems] == [f"trial 4: --sweep {LR}=[]x"]
    keys = [{"optimizer.args.lrr": "1"}, {"optimizer.args.lrr": "2"}]
    with pytest.raises(ConfigError) as raised:
        check_trials(path, [], [*keys, {LR: "abc"}])
    assert [str(each) for each in raised.value.problems] == [
        "trial 1: --sweep optimizer.args.lrr=1: optimizer.args.lrr: unknown argument for AdamW; "
        "did you mean 'lr'?",
        f"trial 3: --sweep {LR}=abc: {LR}: expected a number or a list of numbers, found 'abc'",
    ]


def test_a_sweep_is_not_a_run(project_root: Path, tmp_path: Path) -> None:
    overrides = [f"trainer.save_dir={tmp_path}"]
    config = load_config(project_root / "config" / "digits.yaml", overrides)
    sweep = create_sweep(Plan("c", overrides, ["lr=1,2"]), config)
    sweep.save()
    assert sweep.folder.parent == tmp_path / "digits" / "sweeps"
    assert is_sweep(sweep.folder)
    assert find_newest_run(tmp_path) is None
    assert find_newest_run(tmp_path, "digits") is None
    assert folders_of_runs(tmp_path) == []
    with pytest.raises(UsageError, match="a sweep, not a run"):
        run_folder_of(sweep.folder)


def test_the_record_holds_everything_and_is_found_by_its_command(
    project_root: Path, tmp_path: Path
) -> None:
    path = project_root / "config" / "digits.yaml"
    overrides = [f"trainer.save_dir={tmp_path}"]
    config = load_config(path, overrides)
    plan = Plan(str(path), overrides, ["lr=1,2"], samples=2, jobs=2)
    sweep = create_sweep(plan, config)
    trial = TrialRecord(1, {LR: "1"}, "pruned", "f", 0.1, 2, 1.5, 143, "e", {"1": None, "2": 0.1})
    sweep.trials, sweep.attributes = [trial], {"a": [1]}
    sweep.save()
    assert read_sweep(sweep.folder) == sweep
    assert find_sweep(Plan(str(path), overrides, ["lr=1,2"], samples=2), config) == sweep.folder
    assert find_sweep(Plan(str(path), overrides, ["lr=1,3"], samples=2), config) is None
    assert check_unchanged(sweep)["seed"] == 42
    sweep.plan.overrides.append("model.args.width=4")
    with pytest.raises(UsageError, match=r"(?s)has changed since.*model\.args\.width"):
        check_unchanged(sweep)
    (sweep.folder / "sweep.json").write_text('{"format": 1')
    with pytest.raises(UsageError, match="cannot be read"):
        read_sweep(sweep.folder)


def test_a_resumed_sweep_may_grow_but_not_change() -> None:
    plan = Plan("c", [], ["lr=1..2"], samples=3)
    options = argparse.Namespace(
        config=None, sampler=None, pruner=None, overrides=[], samples=5, jobs=2, device="cpu"
    )
    grown = changed_plan(plan, options)
    assert (grown.samples, grown.jobs, grown.device) == (5, 2, "cpu")
    options.samples = 4
    with pytest.raises(UsageError, match="more samples than its 5"):
        changed_plan(plan, options)
    options.samples, options.overrides = None, ["seed=1"]
    with pytest.raises(UsageError, match="--set: a resumed sweep keeps"):
        changed_plan(plan, options)


def test_the_command_of_a_trial_is_quoted_for_a_shell() -> None:
    plan = Plan("my config.yaml", ["name=a b"], [], device="cpu")
    command = command_of(plan, TrialRecord(1, {"model.args.hidden": "[32,64]"}))
    assert command == (
        "python train.py -c 'my config.yaml' -d cpu --set 'name=a b' 'model.args.hidden=[32,64]'"
    )


def test_equal_values_of_all_trials_are_remarked(project_root: Path, tmp_path: Path) -> None:
    config = load_config(project_root / "config" / "digits.yaml", [f"trainer.save_dir={tmp_path}"])
    sweep = create_sweep(Plan("c", [], []), config)
    for number in (1, 2):
        sweep.trials.append(TrialRecord(number, {LR: "1"}, "finished", value=0.5, epoch=1))
    assert "use lr_scheduler.args.max_lr" in no_effect(sweep, config)
    sweep.trials[0].value = 0.4
    assert no_effect(sweep, config) == ""


def test_a_resumed_sweep_takes_up_what_happened_meanwhile(
    project_root: Path, tmp_path: Path
) -> None:
    """A run of a failed trial was resumed by itself, one was killed, one after its verdict."""
    path = project_root / "config" / "digits.yaml"
    overrides = [f"trainer.save_dir={tmp_path}"]
    config = load_config(path, overrides)
    sweep = create_sweep(Plan(str(path), overrides, ["lr=1,2,3,4,5"]), config)
    states = ["failed", "running", "running", "finished", "failed"]
    codes = [1, None, None, 0, 3]
    for number, (state, code) in enumerate(zip(states, codes, strict=True), start=1):
        sweep.trials.append(TrialRecord(number, {LR: str(number)}, state, value=0.5, code=code))
        folder = tmp_path / "digits" / f"20260101-00000{number}"
        folder.mkdir()
        stamp = {"number": number, "trial": f"digits/sweeps/{sweep.folder.name}#{number}"}
        recorded = {1: "finished", 5: "failed"}.get(number, "running")
        (folder / "run.json").write_text(json.dumps({**stamp, "state": recorded}))
        (folder / "config.yaml").write_text(config.to_yaml())
        (folder / "metrics.csv").write_text("epoch,valid/accuracy\n1,0.7\n2,0.6\n")
    sweep.trials[2].judged = {"1": False, "2": True}
    SweepLoop(sweep, parse_space(["lr=1,2"]), config, None, [""])._take_up()
    assert [trial.state for trial in sweep.trials] == [
        "finished",
        "interrupted",
        "pruned",
        "finished",
        "interrupted",  # out of memory or disk: worth a try
    ]
    assert [trial.value for trial in sweep.trials] == [0.7, 0.7, 0.7, 0.5, 0.7]
    assert [trial.epoch for trial in sweep.trials] == [1, 1, 2, None, 1]
    assert sweep.trials[0].code == 0


def test_the_runs_of_a_name_are_read_once_in_a_sweep(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the end of each trial."""
    path = project_root / "config" / "digits.yaml"
    overrides = [f"trainer.save_dir={tmp_path}"]
    config = load_config(path, overrides)
    sweep = create_sweep(Plan(str(path), overrides, ["lr=1,2"]), config)
    loop = SweepLoop(sweep, parse_space(["lr=1,2"]), config, None, [""])
    n_reads = 0

    def read(folder: Path) -> dict[str, Any]:
        nonlocal n_reads
        n_reads += folder.name != "sweeps"
        return read_stamp(folder)

    monkeypatch.setattr("base.sweeps.folders.read_stamp", read)
    foreign = [{"number": None}, {"number": [1], "trial": None}, {"number": 1, "trial": ["x"]}]
    for number, stamp in enumerate(foreign):
        (tmp_path / "digits" / f"foreign-{number}").mkdir()
        (tmp_path / "digits" / f"foreign-{number}" / "run.json").write_text(json.dumps(stamp))
    names = []
    for number in range(1, 31):
        trial = TrialRecord(number, {LR: "1"})
        sweep.trials.append(trial)
        assert loop._find_folder(trial) is None
        for attempt in "ab":  # it was started twice
            folder = tmp_path / "digits" / f"20260101-0000{number:02d}{attempt}"
            folder.mkdir()
            stamp = {"number": 2 * number + (attempt == "b"), "trial": sweep.name_of(trial),
                     "started": "2026-01-01T00:00:00+00:00"}  # fmt: skip
            (folder / "run.json").write_text(json.dumps(stamp))
        names.append(loop._find_folder(trial))
    assert names == [str(tmp_path / "digits" / f"20260101-0000{n:02d}b") for n in range(1, 31)]
    assert n_reads == 60 + len(foreign)
    shutil.rmtree(names[4])
    assert loop._find_folder(sweep.trials[4]) == names[4][:-1] + "a"


def test_a_trial_knows_its_sweep_and_shares_the_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from base.system.cores import usable_cores

    assert current_trial() is None
    assert stamp_of_trial() == {}
    n_cores = usable_cores()
    trial = Trial(str(tmp_path / "digits" / "sweeps" / "now"), 3, n_cores, False, os.getpid())
    monkeypatch.setenv(VARIABLE, trial.environment()[VARIABLE])
    assert current_trial() == trial
    assert stamp_of_trial() == {"trial": "digits/sweeps/now#3"}
    assert usable_cores() == 1


def test_all_trials_of_a_sweep_get_the_threads_of_its_first_moment(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However busy others keep the machine later, also when the sweep is resumed."""
    from base.system.cores import free_cores

    path = project_root / "config" / "digits.yaml"
    overrides = [f"trainer.save_dir={tmp_path}"]
    config = load_config(path, overrides)
    monkeypatch.setattr("base.system.cores._own_cores", lambda: set(range(8)))
    monkeypatch.setattr("base.system.cores.left_free", lambda *_: 5.5)
    sweep = create_sweep(Plan(str(path), overrides, ["lr=1,2"]), config)
    sweep.save()
    monkeypatch.setattr("base.system.cores.left_free", lambda *_: 2.0)
    assert free_cores() == 2.0  # of any other run

    started: list[Trial] = []
    monkeypatch.setattr(
        "base.sweeps.processes._start", lambda command, about, errors: started.append(about)
    )
    for number in (1, 2):
        again = read_sweep(sweep.folder)
        loop = SweepLoop(again, parse_space(["lr=1,2"]), config, None, [""])
        loop._start(TrialRecord(number, {LR: "1"}), "")
    for trial in started:
        monkeypatch.setenv(VARIABLE, trial.environment()[VARIABLE])
        assert free_cores() == 5.5
        monkeypatch.delenv(VARIABLE)

    record = json.loads((sweep.folder / "sweep.json").read_text())
    del record["free_cores"]  # of an earlier version
    (sweep.folder / "sweep.json").write_text(json.dumps(record))
    assert read_sweep(sweep.folder).free_cores is None


def test_the_process_of_a_sweep_does_without_torch(project_root: Path, tmp_path: Path) -> None:
    """It also does so for the checks of names, which need torch."""
    words = ["-c", str(project_root / "config" / "digits.yaml"), "--dry-run", "--sweep", "seed=1,2"]
    program = f"import sys, train; code = train.main({json.dumps(words)}); "
    program += "sys.exit(code or 'torch' in sys.modules or 'matplotlib' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(project_root)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "trial 1: seed=1\ntrial 2: seed=2\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("swept", "overrides", "is_ignored"),
    [
        ("lr=1e-2,1e-3", [], True),
        ("lr=1e-2,1e-3", ["lr_scheduler=null"], False),
        ("lr=1e-2,1e-3", ["lr_scheduler.args.max_lr=${optimizer.args.lr}"], False),
        ("seed=1,2", ["optimizer.args.lr=1e-3"], True),
        ("lr_scheduler.args.max_lr=1e-2,1e-3", [], False),
    ],
)
def test_a_rate_without_effect_is_named_before_the_first_trial(
    swept: str, overrides: list[str], is_ignored: bool, project_root: Path
) -> None:
    plan = Plan(str(project_root / "config" / "digits.yaml"), overrides, [swept])
    trials = settings_of_plan(plan, parse_space([swept], overrides), 0)
    text = ignored_settings(plan, trials)
    wanted = f"warning: {LR} has no effect: OneCycleLR replaces it; use lr_scheduler.args.max_lr"
    assert text == (wanted if is_ignored else "")


def test_fewer_combinations_than_samples_are_said(
    project_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = project_root / "config" / "digits.yaml"
    monkeypatch.setattr("base.sweeps.sweep.check_trials", lambda *_: Machine(0))
    for n_samples in (2, 9):
        words = ["-c", str(path), "--sweep", "seed=1,2", "--samples", str(n_samples), "--dry-run"]
        assert run_sweep(parse_train(words)) == 0
        note = "note: --samples 9: there are only 2 combinations\n"
        assert (note in capsys.readouterr().out) == (n_samples == 9)
