"""What a sweep is to do, from the options of train.py and the record of a resumed sweep."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from base.config.changes import table_of
from base.config.config import Config
from base.config.loading import load_config
from base.errors import UsageError
from base.sweeps.optuna_search import OptunaSearch
from base.sweeps.record import Plan, Sweep
from base.sweeps.space import MAX_TRIALS, Choices, Settings, Space, draws, grid

BUILT_IN = ("grid", "random")
KEPT = ("config", "sampler", "pruner")


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan of a new sweep.

    Raises:
        UsageError: options that do not go together.
    """
    sampler = None if options.sampler in BUILT_IN else options.sampler
    if options.sampler == "grid" and options.samples is not None:
        raise UsageError("--sampler grid tries all combinations; omit --samples")
    if options.sampler not in (None, "grid") and options.samples is None:
        text = "give the number of trials with --samples N"
        raise UsageError(f"--sampler {options.sampler}: {text}")
    return Plan(
        config=str(options.config),
        overrides=list(options.overrides),
        sweep=list(options.sweep),
        samples=options.samples,
        sampler=sampler,
        pruner=options.pruner,
        device=options.device,
        jobs=options.jobs or 1,
    )


def changed_plan(plan: Plan, options: argparse.Namespace) -> Plan:
    """Return the plan of a resumed sweep, with the options that may change applied.

    Raises:
        UsageError: an option would make it another sweep.
    """
    given = [f"--{name}" for name in KEPT if getattr(options, name) is not None]
    given += ["--set"] if options.overrides else []
    if given:
        text = "a resumed sweep keeps its config, settings and sampler; omit it"
        raise UsageError(f"{given[0]}: {text}, or start a new sweep without -r")
    if options.samples is not None:
        if plan.samples is None or options.samples < plan.samples:
            had = f"its {plan.samples}" if plan.samples else "a grid, which has all its trials"
            text = f"a resumed sweep can have more samples than {had}"
            raise UsageError(f"--samples {options.samples}: {text}")
        plan.samples = options.samples
    plan.jobs = options.jobs or plan.jobs
    plan.device = options.device or plan.device
    return plan


def settings_of_plan(plan: Plan, space: Space, seed: int) -> list[Settings]:
    """Return the settings of all trials, or those of the corners of what a sampler searches.

    Raises:
        UsageError: there are none, too many or too few.
    """
    if plan.samples is not None and plan.samples > MAX_TRIALS:
        raise UsageError(f"--samples {plan.samples}: at most {MAX_TRIALS:,}")
    if plan.sampler is not None:
        return _corners(space)
    if plan.samples is not None:
        return list(itertools.islice(draws(space, seed), plan.samples))
    trials = grid(space)
    alone = [each for each in space if isinstance(each, Choices)]
    if len(trials) == 1:
        text = f"--sweep {alone[0].key}={alone[0].values[0]}: this is one value"
        raise UsageError(f"{text}; separate several by commas: {alone[0].key}=A,B")
    return trials


def _corners(space: Space) -> list[Settings]:
    """Return settings in which each value and each limit of a range occurs."""
    values = {
        each.key: list(each.values)
        if isinstance(each, Choices)
        else [each.text(each.low), each.text(each.high)]
        for each in space
    }
    most = max(map(len, values.values()))
    return [
        {key: texts[min(place, len(texts) - 1)] for key, texts in values.items()}
        for place in range(most)
    ]


def search_of(plan: Plan, space: Space, config: Config) -> OptunaSearch | None:
    """Return Optuna's part; None if the plan names neither sampler nor pruner of it.

    Raises:
        UsageError: Optuna is missing, or there is no such sampler or pruner.
    """
    if plan.sampler is None and plan.pruner is None:
        return None
    return OptunaSearch(
        space,
        config["seed"],
        monitor_of(config)[0],
        sampler=plan.sampler,
        pruner=plan.pruner,
        n_epochs=config["trainer"]["epochs"],
    )


def monitor_of(config: Config, of_run: str | None = None) -> tuple[str, str]:
    """Return the direction and the name of the value that ranks the trials.

    Without ``trainer.monitor`` it is the lowest loss, as in each run: of the validation data, if
    there are any.

    Args:
        of_run: the monitor that a run has chosen, if there is one already.

    Raises:
        UsageError: the monitor is off.
    """
    rule = config["trainer"]["monitor"]
    if rule == "off":
        text = "a sweep ranks its trials by trainer.monitor, which is off; add"
        raise UsageError(f"{text} --set 'trainer.monitor=min valid/loss'")
    mode, _, name = (rule or of_run or "min valid/loss").partition(" ")
    return mode, name.strip()


def check_monitor(config: Config, space: Space) -> None:
    """Check that the trials can be ranked.

    Raises:
        UsageError: the monitor is off, or swept.
    """
    monitor_of(config)
    for each in space:
        if "trainer.monitor".startswith(each.key) and each.key in ("trainer", "trainer.monitor"):
            raise UsageError(f"--sweep {each.key}: trainer.monitor ranks the trials; fix it")


def check_unchanged(sweep: Sweep) -> Config:
    """Return the config of a resumed sweep.

    Raises:
        UsageError: the file has changed since the sweep began.
        ConfigError: it has faults.
    """
    config = load_config(Path(sweep.plan.config), sweep.plan.overrides)
    kept = sweep.folder / "config.yaml"
    changes = load_config(kept).difference(config)
    if changes:
        raise UsageError(
            f"{sweep.plan.config}: it has changed since the sweep in {sweep.folder} began:\n"
            f"{table_of(changes)}\nrestore these values, or start a new sweep"
        )
    return config
