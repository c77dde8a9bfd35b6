"""What train.py does instead of training: ``--dry-run``, ``--check lr``, ``--check overfit``."""

from __future__ import annotations

from pathlib import Path

from base.base_trainer import BaseTrainer
from base.run.checks import check
from base.run.dry_run_report import dry_run
from base.run.overfit_check import check_overfit
from base.run.rate_check import check_rates
from base.system.torch_compat import without_compilation


def try_out(
    trainer: BaseTrainer,
    kind: str | None,
    picture: Path | None = None,
    resume_from: Path | None = None,
) -> int:
    """Print what a dry run or a check finds; return the exit code.

    Args:
        kind: ``lr``, ``lr:NAME`` or ``overfit``; None is a dry run.
        picture: the file for the picture of ``lr``.
        resume_from: the run or checkpoint whose weights are checked, instead of new ones.
    """
    if kind is not None:
        text, code = run_check(trainer, kind, picture, resume_from)
    else:
        with trainer.world.paused():
            text, code = dry_run(trainer), 0
    if trainer.world.is_main:
        print(text, end="")
    return code


@without_compilation()
def run_check(
    trainer: BaseTrainer, kind: str, picture: Path | None = None, resume_from: Path | None = None
) -> tuple[str, int]:
    """Make the check that ``--check`` names; return its report and the exit code."""
    check(trainer)
    kind, _, name = kind.partition(":")
    if kind == "lr":
        return check_rates(trainer, name, picture, resume_from)
    return check_overfit(trainer, resume_from)
