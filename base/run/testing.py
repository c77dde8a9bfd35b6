"""The test phase: evaluates the best checkpoint on the test data and writes ``report/test.json``.

``trainer.test: true`` and ``test.py`` both call `run_test`. The checkpoint holds the state that a
step reads; its manifest holds the statistics of the training data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from base.checkpoint.background import Snapshot
from base.checkpoint.data_record import class_names, data_of, record_of
from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.store import CheckpointStore, find_manifest
from base.config import Config
from base.errors import why
from base.names.object_references import References
from base.report.page import write_report
from base.report.predictions import write_predictions
from base.report.test_results import write_test_report
from base.run.build import build_experiment, build_test_data
from base.run.data_changes import refuse_scaled_targets
from base.run.loaders import build_test_loader
from base.run.predictions import PredictionRecorder, predictions_of, recording
from base.run.restarts import read_together
from base.runs.facts import State
from base.training.experiment import Experiment
from base.training.progress import Stateful
from base.training.rank_states import gather_bad_samples
from base.training.results import is_part, results_of
from base.training.state import matches_name

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")

# State that only training uses, or that sums up an epoch. A test restores all other state.
TRAINING_ONLY = (
    "optimizer.", "schedule.", "scaler.", "callback.", "metric.", "meters", "random", "bad_samples",
    "epoch_rows", "train_sampler",
)  # fmt: skip


def choose_checkpoint(path: Path) -> Path:
    """Return the best checkpoint of a run, or its newest if none is marked as best.

    Args:
        path: a run's folder; a checkpoint is returned as it is.

    Raises:
        CheckpointError: the run has no complete checkpoint.
    """
    if not (path / "checkpoints").is_dir():
        return path
    store = CheckpointStore(path / "checkpoints")
    chosen = store.best() or store.newest()
    return chosen if chosen is not None else path / "checkpoints"


def build_tested_experiment(config: Config, device: torch.device, checkpoint: Path) -> Experiment:
    """Build what a test needs, without training data if the checkpoint records their statistics.

    Checkpoints of earlier versions do not: their statistics are computed again.
    """
    known = data_of(find_manifest(checkpoint))
    references = References(config, known.get("references"))
    data = build_test_data(config, known, references) if known else None
    experiment = build_experiment(config, device, False, data=data, references=references)
    if not known:
        refuse_scaled_targets(experiment.train_loader, checkpoint)
    return experiment


def run_test(trainer: BaseTrainer, checkpoint: Path, folder: Path) -> dict[str, float]:
    """Evaluate the weights of a checkpoint on the test data; use the averaged ones if it has them.

    The trainer keeps the state of the checkpoint. ``report/test.json`` holds the values; tables
    such as a confusion matrix are written beside it. Predictions are recorded in the same pass.
    All ranks evaluate, and rank 0 writes.
    """
    world = trainer.world
    record = load_checkpoint(trainer, checkpoint)
    loader, bad_samples = trainer.experiment.test_loader, trainer.experiment.bad_samples
    if loader is None:
        loader = build_test_loader(trainer.config, record, trainer.experiment.references)
    loader = trainer.experiment.shared(loader)
    if world.is_main:
        bad_samples.open(folder)
    bad_samples.watch(loader, "test")

    recorded = recording(trainer, record.get("classes", ())) if trainer.settings.report else None
    with trainer.epoch_start.as_saved(), recorded or nullcontext() as recorder:
        values = {key.partition("/")[2]: v for key, v in trainer.evaluate(loader, "test").items()}
    gather_bad_samples(bad_samples, world)
    results = results_of(trainer.training_state.valid_metrics, world)
    if not world.is_main:
        return values
    if "test" in bad_samples.known:
        bad_samples.log_summary()
    tables: dict[str, Any] = {}
    for name, result in results.items():
        if isinstance(result, Tensor) and result.dim() == 2:
            tables[name] = result
    classes = class_names(getattr(loader, "dataset", None)) or ()
    path = write_test_report(folder, {**values, **tables}, classes)
    whole = {name: value for name, value in values.items() if not is_part(f"test/{name}")}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in whole.items())
    log.info(f"test of {checkpoint.name}: {shown}; written to {path}")
    if recorder is not None:
        write_recorded(trainer, recorder, folder, loader, "test", record, checkpoint)
        write_page(folder)
    return values


def record_validation(trainer: BaseTrainer, checkpoint: Path, folder: Path) -> None:
    """Evaluate a checkpoint on the validation data once more, and write its predictions.

    The trainer keeps the state of the checkpoint. Nothing is logged as a value. All ranks evaluate,
    and rank 0 writes. A signal ends it: the run is complete without it.
    """
    loader = trainer.valid_loader
    record = load_checkpoint(trainer, checkpoint)
    classes = record.get("classes", ())
    with trainer.epoch_start.as_saved(), recording(trainer, classes) as recorder:
        trainer.evaluate(loader, "valid", max_batches=1)
        is_useful = trainer.world.broadcast(recorder.merged.is_useful)
        if is_useful:
            trainer.evaluate(loader, "valid")
    if trainer.world.is_main:
        write_recorded(trainer, recorder, folder, loader, "valid", record, checkpoint)


def write_recorded(
    trainer: BaseTrainer,
    recorder: PredictionRecorder,
    folder: Path,
    loader: Any,
    part: str,
    record: Mapping[str, Any],
    checkpoint: Path,
) -> None:
    """Write recorded predictions; a failure is a warning, as the report must not end a run."""
    if recorder.merged.fault:
        log.warning("report: no predictions of the %s data: %s", part, recorder.merged.fault)
    if not recorder.merged.is_useful:
        return
    try:
        bad = trainer.experiment.bad_samples.known.get(part, ())
        found = predictions_of(recorder, loader, part, record, sorted(bad))
        found.checkpoint, found.epoch = checkpoint.name, trainer.progress.epoch
        write_predictions(folder, found)
    except Exception as error:
        log.warning("report: no predictions of the %s data: %s", part, why(error))


def write_page(folder: Path, state: State | None = None) -> None:
    """Write the report's page; a failure is a warning.

    Args:
        state: how the run ends, if its folder does not say so yet.
    """
    try:
        write_report(folder, state=state)
    except Exception as error:
        log.warning("cannot write the report in %s: %s", folder / "report", why(error))


def load_checkpoint(trainer: BaseTrainer, checkpoint: Path) -> Mapping[str, Any]:
    """Load the state that a test needs; return the record of the training data."""
    state, manifest = read_together(checkpoint, trainer.world)
    parts = tested_state(trainer)
    load_state_dicts(parts, {name: value for name, value in state.items() if name in parts})
    known = data_of(manifest)
    record: Mapping[str, Any] = known["record"] if known else record_of(trainer.train_loader)
    return record


def tested_state(trainer: BaseTrainer) -> dict[str, Stateful]:
    """Return the state that a step may read: weights, averages, losses, progress, your objects."""
    stateful = trainer.stateful.items()
    return {name: one for name, one in stateful if not matches_name(name, TRAINING_ONLY)}


@contextmanager
def preserve_state(trainer: BaseTrainer) -> Iterator[None]:
    """Restore the trainer's state after a test at the end of training."""
    parts = tested_state(trainer)
    before = Snapshot().take({name: one.state_dict() for name, one in parts.items()})
    try:
        yield
    finally:
        load_state_dicts(parts, before)
