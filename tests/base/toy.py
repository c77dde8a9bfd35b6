"""A training for a hundred tests: 20 points in 5 batches of 4, a network of 57 numbers."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.base_trainer import BaseTrainer
from base.callbacks import Callback
from base.checkpoint.store import read
from base.config import load_config
from base.names.check import check_names
from base.run.build import build_experiment
from base.run.session import open_run_in
from base.run.testing import run_test
from base.system.signals import InterruptedRunError
from trainer.trainer import Trainer

CPU = torch.device("cpu")
CONFIG = """
name: toy
seed: 3
model: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}
data_loader:
  type: SyntheticDataLoader
  args: {n_samples: 24, shape: [1, 1, 5], n_classes: 3, batch_size: 4, validation_split: 4}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
trainer: {epochs: 2, tensorboard: false, progress: false, verbosity: 0}
"""
NETWORKS = """
name: networks
seed: 3
model: {type: Pair}
data_loader:
  type: SyntheticDataLoader
  args: {n_samples: 20, shape: [1, 1, 2], n_classes: 2, batch_size: 4, validation_split: 0}
optimizers:
  generator: {type: Adam, args: {lr: 0.01}, params: "generator.*"}
  critic: {type: Adam, args: {lr: 0.02}, params: "critic.*"}
trainer: {epochs: 2, tensorboard: false, progress: false, verbosity: 0}
"""


def make(
    *overrides: str,
    trainer: type[BaseTrainer] = Trainer,
    text: str = CONFIG,
    weights: bool = True,
    device: torch.device = CPU,
) -> Any:
    """Load, check and build, as train.py does."""
    config = load_config(None, overrides, text=text)
    check_names(config)
    torch.manual_seed(config["seed"])
    return trainer(build_experiment(config, device, weights=weights))


def run(
    folder: Path,
    *overrides: str,
    trainer: type[BaseTrainer] = Trainer,
    text: str = CONFIG,
    resume: bool = False,
    stop_at: int | None = None,
) -> Any:
    """Train with files in ``folder``, and stop as after SIGTERM at one step; return the trainer."""
    folder.mkdir(parents=True, exist_ok=True)
    made = make(*overrides, trainer=trainer, text=text, weights=not resume)
    if stop_at is not None:
        made.callbacks["StopAt"] = StopAt(stop_at)
    try:
        train_in(made, folder, folder if resume else None)
        assert stop_at is None, "the run ended before it was to be stopped"
    except InterruptedRunError:
        assert made.progress.step == stop_at
    return made


def train_in(
    trainer: BaseTrainer,
    folder: Path | None = None,
    resume_from: Path | None = None,
    allow_change: bool = False,
) -> dict[str, Any]:
    """Train in this folder, or without files."""
    with open_run_in(trainer, folder, resume_from, allow_change) as opened:
        return trainer.train(opened)


class StopAt(Callback):
    """Asks for a stop after one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, trainer: Any) -> None:
        if trainer.progress.step == self.step:
            trainer.signals.stop = signal.SIGTERM


def assert_resumes(folder: Path, *overrides: str, stop_at: int = 3, **how: Any) -> None:
    """Make sure that a run which was stopped and resumed ends as one that was not."""
    run(folder / "whole", *overrides, **how)
    run(folder / "cut", *overrides, stop_at=stop_at, **how)
    run(folder / "cut", *overrides, resume=True, **how)
    assert_same(read(folder / "cut"), read(folder / "whole"))


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Compare nested plain data and tensors, bit for bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours.nan_to_num(), theirs.nan_to_num())
        assert same, where
    elif isinstance(ours, Mapping):
        assert list(ours) == list(theirs), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{where}.{number}")
    else:
        assert repr(ours) == repr(theirs), where


def weights(trainer: Any) -> dict[str, Tensor]:
    """Return a copy of the model's parameters."""
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def batches(trainer: Any, count: int | None = None) -> Iterator[Any]:
    """Give the batches that training will see, from the first on."""
    n = trainer.experiment.batches_per_epoch * trainer.experiment.n_epochs
    return trainer.train_loader.batches(0, n if count is None else count)


def mark_the_test(monkeypatch: Any) -> None:
    """Let a trainer know by its `is_testing` that the test at the end of training has begun."""

    def marked(trainer: Any, *args: Any) -> dict[str, float]:
        trainer.is_testing = True
        return run_test(trainer, *args)

    monkeypatch.setattr("base.run.session.run_test", marked)
