"""What may change in a config when a run goes on: a table of differences, and a refusal."""

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
"""Keys that set what an optimizer's or a scheduler's saved state holds too: not its lengths."""

ANOTHER_RUN = re.compile(
    r"^(seed|model\.(?!weights\b)\S+|init\b\S*|memory\.accumulate|trainer\.epoch_steps)$|"
    r"^optimizers?(\.\w+)?\.(type|params|param_groups|layer_decay|no_decay)\b|"
    r"^data_loader\.(type|args\.(batch_size|shuffle|split|validation_split|sampling|drop_last|seed))\b"
)
"""Keys with which the rest of the run would be that of another one."""

SPLIT = re.compile(r"^data_loader\.args\.(split|validation_split)\b")
"""Those of them that --allow-change cannot allow: `keep_split` refuses another split."""

Change = tuple[str, Any, Any]
ANOTHER = "another run"


def table_of(changes: Sequence[Change], rates: Sequence[Change] = ()) -> str:
    """Return a line for each change: the key, its value then and now, and its effect.

    Args:
        rates: learning rates that have changed with the length of the schedule.
    """
    from logger.console import table  # not before there is a change to tell of

    rows = [(key, _short(then), _short(now), effect_of(key)) for key, then, now in changes]
    rows += [
        (key, f"{then:.6g}", f"{now:.6g}", "follows the new schedule") for key, then, now in rates
    ]
    return table([("key", "then", "now", ""), *rows])


def effect_of(key: str) -> str:
    """Say in a few words what becomes of a changed key."""
    if ANOTHER_RUN.search(key):
        return ANOTHER
    return "the saved state has its own" if OWN_STATE.search(key) else "taken on"


def refuse_another_run(config: Config, folder: Path) -> None:
    """Make sure that a config only changes what leaves a run the same one.

    Raises:
        UsageError: it would make another run of this; the text has all differences, and tells how
            to start anew from the weights.
    """
    changes = differences(config, folder)
    harmful = [key for key, _, _ in changes if effect_of(key) == ANOTHER]
    if harmful:
        can_be_allowed = not any(map(SPLIT.match, harmful))
        raise UsageError(
            f"{folder}: {', '.join(harmful)} would make another run of this one:\n"
            f"{table_of(changes)}\ngo on with the values of then; or start anew from the weights: "
            f"leave out -r and write `model: {{weights: {folder}}}`"
            f"{'; or add --allow-change' * can_be_allowed}"
        )


def differences(config: Config, folder: Path) -> list[Change]:
    """Return what differs between a run's own config and another one."""
    return load_config(folder / "config.yaml").difference(config)


def _short(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 32 else f"{text[:29]}..."
