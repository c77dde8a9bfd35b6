"""Checks which changes to the config of a resumed run are allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from base.config.config import Config
from base.config.loading import load_config
from base.errors import UsageError

OWN_STATE = re.compile(
    r"^optimizer(s\.\w+)?\.(args|param_groups|layer_decay)\b|^memory\.fused$|"
    r"\blr_scheduler\.args\.(?!(?:schedulers\.\d+\.(?:args\.)?)*"
    r"(?:T_0|T_max|milestones|total_iters|total_steps|step_size|step_size_up|step_size_down|epochs|"
    r"steps_per_epoch|lr_lambda|scale_fn|mode|type)\b)"
)
"""Keys whose values are also in the saved state of an optimizer or scheduler, except lengths."""

ANOTHER_RUN = re.compile(
    r"^(seed|model\.(?!weights\b)\S+|init\b\S*|memory\.accumulate|trainer\.epoch_steps)$|"
    r"^optimizers?(\.\w+)?\.(type|params|param_groups|layer_decay|no_decay)\b|"
    r"^data_loader\.(type|args\.(batch_size|shuffle|split|validation_split|sampling|drop_last|seed))\b"
)
"""Keys that may not change, as the result would be a different run."""

SPLIT = re.compile(r"^data_loader\.args\.(split|validation_split)\b")
"""Keys that --allow-change cannot allow, as `keep_split` refuses a different split."""

Change = tuple[str, Any, Any]
ANOTHER = "another run"


def table_of(changes: Sequence[Change], rates: Sequence[Change] = ()) -> str:
    """Return a line per change: the key, the old and the new value, and the effect.

    Args:
        rates: learning rates that changed with the length of the schedule.
    """
    from logger.console import table  # only needed for changes

    rows = [(key, _short(then), _short(now), effect_of(key)) for key, then, now in changes]
    rows += [
        (key, f"{then:.6g}", f"{now:.6g}", "follows the new schedule") for key, then, now in rates
    ]
    return table([("key", "then", "now", ""), *rows])


def effect_of(key: str) -> str:
    """Return the effect of a changed key in a few words."""
    if ANOTHER_RUN.search(key):
        return ANOTHER
    return "the saved state has its own" if OWN_STATE.search(key) else "applied"


def refuse_another_run(config: Config, folder: Path) -> None:
    """Check that a config changes only what may change in a resumed run.

    Raises:
        UsageError: the changes would make it a different run. The message lists all differences and
            the command to start a new run from the weights.
    """
    changes = differences(config, folder)
    harmful = [key for key, _, _ in changes if effect_of(key) == ANOTHER]
    if harmful:
        can_be_allowed = not any(map(SPLIT.match, harmful))
        raise UsageError(
            f"{folder}: {', '.join(harmful)} would turn this run into another one:\n"
            f"{table_of(changes)}\nresume with the old values, or start a new run from its "
            f"weights: omit -r and set `model: {{weights: {folder}}}`"
            f"{'; or add --allow-change' * can_be_allowed}"
        )


def differences(config: Config, folder: Path) -> list[Change]:
    """Return the differences between a run's config and another one."""
    return load_config(folder / "config.yaml").difference(config)


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 32 else f"{text[:29]}..."
