"""What a sweep prints: its plan, a line for each trial, and a table at the end."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from base.config.config import Config
from base.config.ignored_rates import ignored_rates
from base.config.loading import load_config
from base.config.short_settings import short_keys
from base.sweeps.checks import overrides_of
from base.sweeps.picture import draw_sweep
from base.sweeps.record import DONE, Plan, Sweep, TrialRecord
from base.sweeps.space import Choices, Settings, Space
from base.sweeps.table import best_of, cut_middle, show_table, write_table
from base.system.signals import resume_command
from logger.console import format_header, format_value
from logger.progress import can_redraw


class Console:
    """Prints lines, and on a terminal a last line that is replaced."""

    def __init__(self) -> None:
        self.redraws = can_redraw(sys.stdout)
        self._last = ""

    def line(self, text: str) -> None:
        """Print a line above the last one."""
        self.status("")
        if text:
            self._print(f"{text}\n")

    def status(self, text: str) -> None:
        """Replace the last line; only on a terminal."""
        if self.redraws and text != self._last:
            self._print(f"\r\x1b[K{text}")
            self._last = text

    def _print(self, text: str) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        try:
            print(text.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)
        except OSError:  # the reader has left (`| head`), or a disk is full: the trials go on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_plan(sweep: Sweep, space: Space, n_trials: int, rule: str, devices: Sequence[str]) -> str:
    """Return the header of a sweep."""
    plan = sweep.plan
    named = sorted({device for device in devices if device})
    jobs = f"{plan.jobs} at once" if plan.jobs > 1 else None
    if jobs and named:
        jobs += f", on {', '.join(named)} (-d)"
    done = sweep.n_in(*DONE)
    entries = {
        "sweep": sweep.folder,
        "trials": f"{n_trials}{f', {done} of them done' if done else ''}: {show_space(space)}",
        "drawn by": _drawn_by(plan),
        "pruner": plan.pruner,
        "ranked by": rule,
        "jobs": jobs,
        "resume by": resume_command(sweep.folder),
    }
    return format_header(entries)


def _drawn_by(plan: Plan) -> str:
    if plan.sampler is not None:
        return f"Optuna's {plan.sampler}"
    return "grid" if plan.samples is None else "random"


def show_space(space: Space) -> str:
    """Return what a sweep searches in a few words: ``lr (3) x width (16..256)``."""
    names = short_keys([each.key for each in space])
    parts = []
    for each in space:
        if isinstance(each, Choices):
            extent = str(len(each.values))
        else:
            extent = f"{each.text(each.low)}..{each.text(each.high)}{' log' if each.is_log else ''}"
        parts.append(f"{names[each.key]} ({extent})")
    return " x ".join(parts)


def show_settings(settings: Settings) -> str:
    """Return settings by their short names: ``lr=1e-3, width=32``."""
    names = short_keys(list(settings))
    return ", ".join(f"{names[key]}={value}" for key, value in settings.items())


def describe(trial: TrialRecord, n_trials: int, name: str) -> str:
    """Return the line of a trial that has ended."""
    text = f"trial {trial.number} of {n_trials}: {show_settings(trial.settings)}: "
    if trial.state == "failed":
        error = trial.error.partition(";")[0] or "see its log.txt"
        return f"{text}failed ({trial.code}): {error}"
    value = "no value" if trial.value is None else f"{name} {format_value(name, trial.value)}"
    if trial.state == "pruned":
        return f"{text}pruned after epoch {trial.epoch}, {value}, {trial.seconds:.1f} s"
    if trial.state == "interrupted":
        return f"{text}interrupted ({trial.code})"
    epoch = "" if trial.epoch is None else f" in epoch {trial.epoch}"
    return f"{text}{value}{epoch}, {trial.seconds:.1f} s"


def show_status(
    n_done: int, n_trials: int, n_running: int, name: str, best: TrialRecord | None, width: int
) -> str:
    """Return the line that shows the progress."""
    text = f"{n_done} of {n_trials} trials done, {n_running} running"
    if best is not None:
        text += f"; best {name} {format_value(name, best.value)}: {show_settings(best.settings)}"
    return cut_middle(text, max(20, width - 1))


def command_of(plan: Plan, trial: TrialRecord) -> str:
    """Return the command that trains a trial as an ordinary run."""
    words = ["python", "train.py", "-c", plan.config]
    words += [] if plan.device is None else ["-d", plan.device]
    words += ["--set", *overrides_of(plan.overrides, trial.settings)]
    return shlex.join(words)


def write_summary(sweep: Sweep, space: Space, mode: str, name: str, with_picture: bool) -> str:
    """Write the table and the picture of a sweep; return the table and the best trial as text."""
    written = [write_table(sweep, mode, name)]
    if with_picture:
        written += filter(None, [draw_sweep(sweep, space, mode, name)])
    best = best_of(sweep, mode)
    entries: dict[str, object] = {}
    if best is not None and best.value is not None and math.isfinite(best.value):
        entries["best"] = f"trial {best.number}, {name} {format_value(name, best.value)}"
        entries["run by"] = command_of(sweep.plan, best)
        if best.folder is not None:
            entries["test by"] = shlex.join(["python", "test.py", "-r", best.folder])
    entries["written"] = ", ".join(str(path) for path in written)
    return f"{show_table(sweep, mode, name)}\n{format_header(entries)}"


def no_effect(sweep: Sweep, config: Config) -> str:
    """Return a remark if all trials gave the very same values, else ""."""
    finished = [t for t in sweep.trials if t.state == "finished" and t.value is not None]
    if len(finished) < 2 or len({(t.value, t.epoch) for t in finished}) > 1:
        return ""
    text = "note: all trials gave the same value, so these settings may have no effect"
    ignored = ignored_rates(config, finished[0].settings)
    return ": ".join([text, *(f"{key} has none: {why}" for key, why in ignored.items())])


def ignored_settings(plan: Plan, trials: Sequence[Settings]) -> str:
    """Return a remark for each ``lr``, swept or set, that changes no trial, else ""."""
    if any(key.endswith(("lr_scheduler", "lr_scheduler.type")) for key in trials[0]):
        return ""  # some trials may use it
    found: dict[str, str] = {}
    for settings in (trials[0], trials[-1]):  # of which one may have the scheduler's rate by chance
        config = load_config(Path(plan.config), overrides_of(plan.overrides, settings))
        found |= ignored_rates(config, config.changed)
    return "\n".join(f"warning: {key} has no effect: {why}" for key, why in found.items())


def what_is_left(sweep: Sweep) -> str:
    """Return a remark on trials that failed or were interrupted, else ""."""
    lines = []
    if n_failed := sweep.n_in("failed"):
        text = f"{n_failed} failed: the errors are in {sweep.folder}/trial-N.err"
        lines.append(f"{text}; python train.py -r FOLDER continues such a run")
    if n_interrupted := sweep.n_in("interrupted"):
        text = f"{n_interrupted} interrupted: {resume_command(sweep.folder)}"
        lines.append(f"{text} continues them")
    return "\n".join(lines)


def show_trials(plan: Plan, trials: Sequence[Settings]) -> str:
    """Return a line for each trial that would run, or that a sampler is checked with."""
    if plan.sampler is not None:
        text = f"{plan.samples} trials, drawn by {_drawn_by(plan)}; these would be valid"
        return "\n".join([text, *(f"  {show_settings(each)}" for each in trials)])
    lines = [f"trial {n}: {show_settings(each)}" for n, each in enumerate(trials, start=1)]
    return "\n".join(lines)


def folder_of(trial: TrialRecord) -> Path | None:
    """Return the folder of the run of a trial, if it is still there."""
    folder = None if trial.folder is None else Path(trial.folder)
    return folder if folder is not None and folder.is_dir() else None
