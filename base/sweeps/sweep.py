"""Runs a sweep: starts a process for each trial, records how it ends, and sums up at the end."""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from base.config.config import Config
from base.config.loading import load_config
from base.errors import KindlingError, UsageError
from base.runs.facts import read_run
from base.sweeps.checks import check_monitor_name, check_trials, overrides_of
from base.sweeps.folders import TrialFolders
from base.sweeps.optuna_search import OptunaSearch
from base.sweeps.plan import (
    changed_plan,
    check_monitor,
    check_unchanged,
    monitor_of,
    plan_of,
    search_of,
    settings_of_plan,
)
from base.sweeps.processes import Process, devices_of_jobs, end_processes, start_process
from base.sweeps.record import DONE, Sweep, TrialRecord, create_sweep, find_sweep, read_sweep
from base.sweeps.space import Space, parse_space
from base.sweeps.summary import (
    Console,
    describe,
    folder_of,
    ignored_settings,
    no_effect,
    show_plan,
    show_settings,
    show_status,
    show_trials,
    what_is_left,
    write_summary,
)
from base.sweeps.table import best_among, best_of
from base.system.processes import refuse_several_processes
from base.system.run_folder import is_sweep, remove_if_not_started
from base.system.run_lock import is_locked, lock
from base.system.signals import SignalFlags, resume_command
from base.system.trial import (
    answer_file,
    folder_file,
    question_file,
    read_message,
    write_message,
)

POLL_SECONDS = 0.03
CONFIG_ERROR, NO_ROOM = 2, 3  # exit codes of train.py
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)


class InterruptedSweepError(KindlingError):
    """A signal stopped the sweep; its trials are saved."""

    def __init__(self, number: int, sweep: Sweep, n_trials: int) -> None:
        done = f"{sweep.n_in(*DONE)} of {n_trials} trials are done"
        text = f"stopped by {signal.Signals(number).name}: {done}, the others are saved"
        super().__init__(f"{text}; resume by: {resume_command(sweep.folder)}")
        self.exit_code = 128 + number


def run_sweep(options: argparse.Namespace) -> int:
    """Run or resume the sweep that the options of train.py ask for; return the exit code.

    It is 0 if all trials have ended well or were pruned, and 1 if one has failed.

    Raises:
        ConfigError, UsageError: found before the first trial starts, or by a trial.
        InterruptedSweepError: a signal stopped the sweep.
    """
    refuse_several_processes("a sweep")
    with ExitStack() as stack:
        folder, sweep = _resumed(options), None
        if folder is not None:
            stack.enter_context(lock(folder))
            sweep = read_sweep(folder)
            plan, config = changed_plan(sweep.plan, options), check_unchanged(sweep)
        else:
            plan = plan_of(options)
            config = load_config(Path(plan.config), plan.overrides)
        space = parse_space(plan.sweep, plan.overrides)
        check_monitor(config, space)
        search = search_of(plan, space, config)
        trials = settings_of_plan(plan, space, config["seed"])
        machine = check_trials(Path(plan.config), plan.overrides, trials)
        devices = devices_of_jobs(plan.device, config["device"], plan.jobs, machine.n_gpus)
        if sweep is None:
            check_monitor_name(Path(plan.config), config, plan.overrides, trials[0], devices[0])
        if warning := ignored_settings(plan, trials):
            print(warning, flush=True)
        if plan.sampler is None and plan.samples is not None and len(trials) < plan.samples:
            text = f"there are only {len(trials)} combinations"
            print(f"note: --samples {plan.samples}: {text}", flush=True)
        if options.dry_run:
            print(show_trials(plan, trials))
            return 0
        if sweep is None:
            sweep = create_sweep(plan, config)
            stack.enter_context(lock(sweep.folder))
        if plan.sampler is None:
            known = len(sweep.trials)
            new = enumerate(trials[known:], start=known + 1)
            sweep.trials += [TrialRecord(number, settings) for number, settings in new]
        return SweepLoop(sweep, space, config, search, devices).run()


def _resumed(options: argparse.Namespace) -> Path | None:
    """Return the folder of the sweep to resume; None for a new one.

    Raises:
        UsageError: there is none.
    """
    if options.resume is None:
        return None
    if is_sweep(options.resume):
        if options.sweep:
            raise UsageError(f"-r {options.resume}: a resumed sweep keeps its keys; omit --sweep")
        return Path(options.resume)
    plan = plan_of(options)
    found = find_sweep(plan, load_config(Path(plan.config), plan.overrides))
    if found is None and options.resume == "newest":
        raise UsageError("-r: no sweep of this command is there yet; omit -r to start it")
    if found is not None:  # its record holds the rest
        options.config = options.samples = options.sampler = options.pruner = None
        options.overrides = []
    return found


class SweepLoop:
    """Trains the trials of a sweep, some at once, and records each event.

    Args:
        devices: what follows ``-d`` for each job; "" leaves it to the config.
    """

    def __init__(
        self,
        sweep: Sweep,
        space: Space,
        config: Config,
        search: OptunaSearch | None,
        devices: list[str],
    ) -> None:
        self.sweep, self.space, self.config, self.search = sweep, space, config, search
        self.plan, self.devices = sweep.plan, devices
        self.n_trials = len(sweep.trials)
        if self.plan.sampler is not None and self.plan.samples is not None:
            self.n_trials = self.plan.samples
        self.console = Console()
        self.signals = SignalFlags()
        self.running: dict[int, Process] = {}  # by job
        self.error = ""  # of a config, which ends the sweep
        self.monitor = monitor_of(config)
        self._has_stopped_trials = False
        self._folders = TrialFolders(sweep)
        self._states: Counter[str] = (
            Counter()
        )  # of the trials, for the line that shows the progress
        self._best: TrialRecord | None = None

    def run(self) -> int:
        """Train all trials that are left; return the exit code."""
        self._take_up()
        self.sweep.save()
        self._states.update(trial.state for trial in self.sweep.trials)
        self._best = best_of(self.sweep, self.monitor[0])
        rule = " ".join(self.monitor)
        header = show_plan(self.sweep, self.space, self.n_trials, rule, self.devices)
        self.console.line(header)
        with self.signals:
            try:
                self._loop()
            except KeyboardInterrupt:  # a second Ctrl-C
                end_processes(self.running.values(), signal.SIGKILL)
                raise
            except BaseException:
                end_processes(self.running.values(), signal.SIGTERM)
                raise
            self.console.status("")
        self.sweep.save()
        is_stopped = self.signals.stop is not None
        text = write_summary(
            self.sweep, self.space, *self.monitor, not is_stopped and not self.error
        )
        if not self.error:
            self.console.line(text)
            self.console.line(no_effect(self.sweep, self.config))
        if self.signals.stop is not None:
            raise InterruptedSweepError(self.signals.stop, self.sweep, self.n_trials)
        if self.error:
            text = "correct the config and start again; or correct your code or data, and resume by"
            raise UsageError(f"{self.error}\n{text}: {resume_command(self.sweep.folder)}")
        left = what_is_left(self.sweep)
        self.console.line(left)
        return 1 if left else 0

    def _take_up(self) -> None:
        """Prepare the trials of a sweep that was stopped at any moment."""
        for trial in self.sweep.trials:
            is_worth_a_try = trial.state == "failed" and trial.code in (CONFIG_ERROR, NO_ROOM)
            if trial.state == "running" or is_worth_a_try:
                trial.state = "interrupted"
            if trial.state in DONE[:2]:
                continue
            noted = self._folders.take_note(trial)
            trial.folder = noted or self._folders.search(self._parent_of(trial), trial)
            folder = folder_of(trial)
            if folder is not None and read_run(folder).state == "finished":
                # Its process has outlived the sweep, or `-r` has resumed the run by itself.
                trial.state, trial.code, trial.error = "finished", 0, ""
            elif any(trial.judged.values()):  # it was stopped, or would be at the same epoch
                trial.state = "pruned"
            self._read_value(trial)

    def _loop(self) -> None:
        waiting = self._waiting()
        while True:
            self._fill_jobs(waiting)
            if not self.running:
                return
            self._pass_signals_on()
            for job, process in list(self.running.items()):
                if process.popen.poll() is not None:
                    del self.running[job]
                    self._record_end(process)
                elif self.search is not None and self.search.prunes:
                    self._judge(process, self.search)
            if self.console.redraws:
                width = shutil.get_terminal_size().columns
                n_done = sum(self._states[state] for state in DONE)
                n_running, name = self._states["running"], self.monitor[1]
                text = show_status(n_done, self.n_trials, n_running, name, self._best, width)
                self.console.status(text)
            time.sleep(POLL_SECONDS)

    @property
    def is_ending(self) -> bool:
        """Whether no further trial starts, and those that run are stopped."""
        return self.signals.stop is not None or bool(self.error)

    def _fill_jobs(self, waiting: Iterator[TrialRecord]) -> None:
        """Start trials on the free devices."""
        for job, device in enumerate(self.devices):
            if job not in self.running and not self.is_ending:
                trial = next(waiting, None)
                if trial is not None:
                    self.running[job] = self._start(trial, device)

    def _pass_signals_on(self) -> None:
        """Stop the trials once, with their own save; SIGUSR1 saves all of them."""
        if self.is_ending and not self._has_stopped_trials:
            self._has_stopped_trials = True
            for process in self.running.values():
                process.send(signal.SIGTERM)
        if self.signals.save:
            self.signals.save = False
            for process in self.running.values():
                process.send(signal.SIGUSR1)

    def _waiting(self) -> Iterator[TrialRecord]:
        """Yield the trials that are left: the interrupted, then the new, then further draws."""
        for state in ("interrupted", "waiting"):
            yield from [trial for trial in self.sweep.trials if trial.state == state]
        while self.plan.sampler is not None and len(self.sweep.trials) < self.n_trials:
            assert self.search is not None
            settings, attributes = self.search.draw(self.sweep)
            number = len(self.sweep.trials) + 1
            trial = TrialRecord(number, settings, attributes=attributes)
            self.sweep.trials.append(trial)
            yield trial

    def _start(self, trial: TrialRecord, device: str) -> Process:
        """Start the process of a trial, or resume it from its last checkpoint."""
        folder = folder_of(trial)
        if folder is not None:
            self._wait_for(folder)
        if folder is not None and any((folder / "checkpoints").glob("step-*")):
            arguments = ["-r", str(folder)]
        else:
            if folder is not None:
                remove_if_not_started(folder)
            trial.folder = None
            overrides = overrides_of(self.plan.overrides, trial.settings)
            arguments = ["-c", self.plan.config, "--set", *overrides]
        for file in (question_file, folder_file):
            file(self.sweep.folder, trial.number).unlink(missing_ok=True)
        self._change_state(trial, "running")
        trial.code, trial.error = None, ""
        self.sweep.note(trial)
        is_judged = self.search is not None and self.search.prunes
        return start_process(
            trial,
            arguments,
            self.sweep.folder,
            self.plan.jobs,
            is_judged,
            device or None,
            self.sweep.free_cores,
        )

    def _wait_for(self, folder: Path) -> None:
        """Wait for the process of a run that has outlived a killed sweep."""
        if is_locked(folder):
            self.console.line(f"{folder}: waiting for the process that still trains this run")
        while is_locked(folder) and not self.is_ending:
            time.sleep(POLL_SECONDS)

    def _parent_of(self, trial: TrialRecord) -> Path:
        """Return the folder in which the processes of a trial make that of its run."""
        config = load_config(
            Path(self.plan.config), overrides_of(self.plan.overrides, trial.settings)
        )
        return Path(config["trainer"]["save_dir"], config["name"])

    def _find_folder(self, trial: TrialRecord) -> str | None:
        """Return the folder of a trial that has ended: the one noted, resumed or found."""
        noted = self._folders.take_note(trial)
        if noted is not None:
            return noted
        if folder_of(trial) is not None:
            return trial.folder
        return self._folders.search_again(self._parent_of(trial), trial)

    def _change_state(self, trial: TrialRecord, state: str) -> None:
        self._states.subtract([trial.state])
        trial.state = state
        self._states.update([state])

    def _record_end(self, process: Process) -> None:
        """Record how the process of a trial has ended, and print a line."""
        trial, code = process.trial, process.popen.returncode
        trial.code = code
        trial.seconds += process.seconds
        trial.folder = self._find_folder(trial)
        if process.is_pruned and code in STOPPED:
            self._change_state(trial, "pruned")
        else:
            states = {0: "finished", 1: "failed", 2: "failed", 3: "failed"}
            self._change_state(trial, states.get(code, "interrupted"))
        self._read_value(trial)
        if trial.state == "failed":
            trial.error = process.last_line()
        else:
            process.output.unlink(missing_ok=True)
        if code == CONFIG_ERROR and not self.error:
            text = process.output.read_text(encoding="utf-8", errors="replace").strip()
            which = f"trial {trial.number} ({show_settings(trial.settings)})"
            self.error = f"{which} stopped the sweep:\n{text}"
        self._best = best_among(filter(None, [self._best, trial]), self.monitor[0])
        self.sweep.note(trial)
        self.console.line(describe(trial, self.n_trials, self.monitor[1]))

    def _read_value(self, trial: TrialRecord) -> None:
        """Take the best value from the folder of a trial, and the epoch of it."""
        folder = folder_of(trial)
        if folder is None:
            return
        facts = read_run(folder)
        self.monitor = monitor_of(self.config, facts.monitor)
        is_number = facts.best is not None and math.isfinite(facts.best)
        trial.value = facts.best if is_number else None
        trial.epoch = facts.best_epoch
        if trial.state == "pruned" and trial.judged:
            trial.epoch = max(int(epoch) for epoch, stops in trial.judged.items() if stops)

    def _judge(self, process: Process, search: OptunaSearch) -> None:
        """Answer a trial that asks after an epoch whether to go on."""
        trial, folder = process.trial, self.sweep.folder
        question = read_message(question_file(folder, trial.number))
        if not question:
            return
        epoch = str(question["epoch"])
        if read_message(answer_file(folder, trial.number)).get("epoch") == question["epoch"]:
            return
        if epoch not in trial.judged:  # else it was killed before it took the answer
            value = question["value"]
            trial.values[epoch] = value if math.isfinite(value) else None
            trial.judged[epoch] = search.is_to_stop(self.sweep, trial)
            self.sweep.note_epoch(trial, epoch)
        process.is_pruned = trial.judged[epoch]
        write_message(
            answer_file(folder, trial.number), epoch=question["epoch"], stop=process.is_pruned
        )
