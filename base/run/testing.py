"""The test phase: the best checkpoint on the test data, and ``report/test.json``.

``trainer.test: true`` and ``test.py`` both call `run_test`: what a step reads is in the state of
the checkpoint that is tested, and what is known of the training data is in its manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from base.checkpoint.background import Snapshot
from base.checkpoint.data_record import data_of, record_of
from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.store import CheckpointStore, find_manifest, read_with_manifest
from base.config import Config
from base.names.object_references import References
from base.run.build import build_experiment, tested_data
from base.run.data_changes import refuse_scaled_targets
from base.run.loaders import build_test_loader
from base.training.experiment import Experiment
from base.training.progress import Stateful
from base.training.state import is_among
from logger.report import write_test_report

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")

# What training alone uses, or sums up within an epoch. All else in ``stateful`` is restored.
OF_TRAINING = (
    "optimizer.", "schedule.", "scaler.", "callback.", "metric.", "meters", "random", "bad_samples",
    "epoch_rows", "train_sampler",
)  # fmt: skip


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


def build_tested(config: Config, device: torch.device, checkpoint: Path) -> Experiment:
    """Build what a test needs; training data only for a checkpoint that knows nothing of its own.

    Those of earlier versions do not: their statistics are computed again.
    """
    known = data_of(find_manifest(checkpoint))
    references = References(config, known.get("references"))
    data = tested_data(config, known, references) if known else None
    experiment = build_experiment(config, device, False, data=data, references=references)
    if not known:
        refuse_scaled_targets(experiment.train_loader, checkpoint)
    return experiment


def run_test(trainer: BaseTrainer, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Evaluate a checkpoint's weights (averaged ones, where kept) on the test data.

    The trainer is left in the state of the checkpoint. Writes ``report/test.json``, and tables
    such as a confusion matrix beside it.
    """
    state, manifest = read_with_manifest(checkpoint)
    loader, bad_samples = trainer.experiment.test_loader, trainer.experiment.bad_samples
    if loader is None:
        known = data_of(manifest)
        record = known["record"] if known else record_of(trainer.train_loader)
        loader = build_test_loader(trainer.config, record, trainer.experiment.references)
    bad_samples.open(folder)
    bad_samples.watch(loader, "test")
    tested = parts_tested(trainer)
    load_state_dicts(tested, {name: value for name, value in state.items() if name in tested})
    del state

    with trainer.epoch_start.as_saved():
        values = {key.partition("/")[2]: v for key, v in trainer.evaluate(loader, "test").items()}
    if "test" in bad_samples.known:
        bad_samples.log_summary()
    tables: dict[str, Any] = {}
    for name, metric in trainer.state.valid_metrics.items():
        result = metric.compute()
        if isinstance(result, Tensor) and result.dim() == 2:
            tables[name] = result
    path = write_test_report(folder, {**values, **tables})
    shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    log.info(f"test of {checkpoint.name}: {shown}; written to {path}")
    return values


def parts_tested(trainer: BaseTrainer) -> dict[str, Stateful]:
    """Return what a step may read, by name: weights, averages, losses, progress, your own parts."""
    stateful = trainer.stateful.items()
    return {name: one for name, one in stateful if not is_among(name, OF_TRAINING)}


@contextmanager
def state_put_back(trainer: BaseTrainer) -> Iterator[None]:
    """Let a test at the end of training change the trainer's state, and put it back after it."""
    tested = parts_tested(trainer)
    before = Snapshot().take({name: one.state_dict() for name, one in tested.items()})
    try:
        yield
    finally:
        load_state_dicts(tested, before)
