"""The test phase: the best checkpoint on the test data, and ``report/test.json``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from base.checkpoint import CheckpointStore, read, restore
from base.loaders import build_test_loader
from logger.report import write_test_report

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")


def choose_checkpoint(path: Path) -> Path:
    """Return a run's best checkpoint, or its newest where none is marked; a checkpoint is itself.

    Raises:
        CheckpointError: the run holds none that is whole.
    """
    if not (path / "checkpoints").is_dir():
        return path
    store = CheckpointStore(path / "checkpoints")
    chosen = store.best() or store.newest()
    return chosen if chosen is not None else path / "checkpoints"


def run_test(trainer: BaseTrainer, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Evaluate a checkpoint's weights (averaged ones, where kept) on the test data.

    Writes ``report/test.json``, and tables such as a confusion matrix beside it.
    """
    loader, bad_samples = build_test_loader(trainer.config), trainer.experiment.bad_samples
    bad_samples.open(folder)
    bad_samples.watch(loader, "test")
    state = read(checkpoint)
    wanted = {name: one for name, one in trainer.stateful.items() if name in ("model", "ema")}
    restore(wanted, {name: state[name] for name in wanted})

    values = {key.partition("/")[2]: v for key, v in trainer.evaluate(loader, "test").items()}
    if "test" in bad_samples.known:
        bad_samples.tell_end()
    tables: dict[str, Any] = {}
    for name, metric in trainer.valid_metrics.items():
        result = metric.compute()
        if isinstance(result, Tensor) and result.dim() == 2:
            tables[name] = result
    path = write_test_report(folder, {**values, **tables})
    shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    log.info(f"test of {checkpoint.name}: {shown}; written to {path}")
    return values
