"""Checks the configs of all trials before the first one starts, in a process of their own.

The names in a config and their arguments are checked by torch's signatures. The process of a sweep
lives as long as its trials, so it leaves torch and its memory to this short one, which also counts
the GPUs: ``python -m base.sweeps.checks < question > answer``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from base.config.config import Config
from base.config.loading import load_config
from base.errors import ConfigError, KindlingError, Problem, UsageError
from base.sweeps.space import Settings
from base.system.places import PROJECT

MAX_PROBLEMS = 20


class Machine(NamedTuple):
    """What the checks found out about the machine."""

    n_gpus: int


def overrides_of(overrides: Sequence[str], settings: Settings) -> list[str]:
    """Return what follows ``--set`` in the command of a trial."""
    return [*overrides, *(f"{key}={value}" for key, value in settings.items())]


def check_trials(path: Path, overrides: Sequence[str], trials: Sequence[Settings]) -> Machine:
    """Check the config of each trial as its own process will.

    Raises:
        ConfigError: lists the faults, each with the first trial that has it.
    """
    faults = [_faults(path, overrides_of(overrides, settings)) for settings in trials]
    _refuse(faults, trials)  # of structure, found without torch
    question = [str(path), [overrides_of(overrides, settings) for settings in trials]]
    places = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "base.sweeps.checks"],
        input=json.dumps(question),
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UsageError(f"the configs of the trials cannot be checked:\n{done.stderr.strip()}")
    answer = json.loads(done.stdout.splitlines()[-1])
    _refuse(answer["faults"], trials)
    return Machine(answer["n_gpus"])


def check_monitor_name(
    path: Path, config: Config, overrides: Sequence[str], first: Settings, device: str
) -> None:
    """Check that the trials will have the monitored value, by a dry run of the first one.

    It is omitted where the config alone tells: for a loss and the metrics by their names.

    Args:
        config: of the sweep, without the settings of its trials.
        device: what follows ``-d``; "" leaves it to the config.

    Raises:
        UsageError: the dry run finds an error in the config.
    """
    name = (config["trainer"]["monitor"] or "").partition(" ")[2].strip()
    phase, _, value = name.partition("/")
    metrics = [each["name"] for each in config["metrics"]]
    swept = {key.partition(".")[0] for key in first}
    if not name or (
        phase in ("train", "valid") and value in ["loss", *metrics] and "metrics" not in swept
    ):
        return
    words = ["-c", str(path), "--set", *overrides_of(overrides, first), "--dry-run"]
    done = subprocess.run(
        [sys.executable, str(PROJECT / "train.py"), *words, *(["-d", device] if device else [])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == UsageError.exit_code:
        raise UsageError(f"trial 1: {done.stderr.strip()}")


def _faults(path: Path, overrides: Sequence[str], check: Any = None) -> list[tuple[str, str]]:
    try:
        config = load_config(path, overrides)
        if check is not None:
            with config.placed():
                check(config)
    except ConfigError as error:
        return [(problem.where, problem.message) for problem in error.problems]
    except KindlingError as error:
        return [("", str(error))]
    return []


def _refuse(faults: Sequence[Sequence[Sequence[str]]], trials: Sequence[Settings]) -> None:
    """Raise the faults of all trials; those of several are listed once."""
    found: dict[str, Problem] = {}
    for number, (settings, each) in enumerate(zip(trials, faults, strict=True), start=1):
        swept = {f"--set {key}={value}": f"--sweep {key}" for key, value in settings.items()}
        for where, message in each:
            key = swept.get(where, where)
            place = f"{key}={settings[key[8:]]}" if where in swept else where
            place = f"trial {number}: {place}".removesuffix(": ")
            found.setdefault(f"{key}: {message}", Problem(place, message))
    if found:
        rest = len(found) - MAX_PROBLEMS
        more = [Problem("", f"and {rest} more problems")] if rest > 0 else []
        raise ConfigError([*list(found.values())[:MAX_PROBLEMS], *more])


def _answer() -> None:
    """Check the configs that stand on the standard input; print the faults of each."""
    import torch

    from base.names.check import check_names

    path, trials = json.load(sys.stdin)
    faults = [_faults(Path(path), overrides, check_names) for overrides in trials]
    print(json.dumps({"faults": faults, "n_gpus": torch.cuda.device_count()}))


if __name__ == "__main__":
    _answer()
