"""ReduceLROnPlateau follows the monitored value in the direction that makes it better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import make, run, train_in

from base.callbacks import Callback
from base.errors import ConfigError

CONFIG = """
name: toy
seed: 3
model: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}
data_loader:
  type: SyntheticDataLoader
  args: {n_samples: 24, shape: [1, 1, 5], n_classes: 3, batch_size: 4, validation_split: 4}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
metrics: [accuracy]
trainer: {epochs: 4, tensorboard: false, progress: false, verbosity: 0}
"""
ARGS = "args: {patience: 0, factor: 0.5"
UP = "trainer.monitor=max valid/accuracy"


class Rates(Callback):
    """Notes the rate after each epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_epoch_end(self, trainer: Any, values: Any) -> None:
        self.rates.append(trainer.optimizers["main"].param_groups[0]["lr"])


def rates(*overrides: str) -> list[float]:
    """Train with an accuracy that rises and a loss that falls; return each epoch's end rate."""
    trainer = make(*overrides, text=CONFIG)
    noted = trainer.callbacks["noted"] = Rates()
    trainer.stateful.pop("callback.noted", None)
    validate = trainer.evaluate

    def improving(loader: Any, phase: str, max_batches: Any = None) -> Any:
        epoch = trainer.progress.epoch
        better = {"valid/accuracy": 0.1 + 0.2 * epoch, "valid/loss": 1.0 - 0.2 * epoch}
        return {**validate(loader, phase, max_batches), **better}

    trainer.evaluate = improving
    train_in(trainer)
    return noted.rates


@pytest.mark.parametrize(
    ("monitor", "scheduler"),
    [
        (UP, f"{ARGS}}}"),
        (UP, f"monitor: valid/accuracy, {ARGS}}}"),
        (UP, f"monitor: max valid/accuracy, {ARGS}}}"),
        (UP, f"{ARGS}, mode: max}}"),
        (UP, f"monitor: valid/loss, {ARGS}}}"),
        (UP, f"monitor: min valid/loss, {ARGS}, mode: min}}"),
        ("trainer.monitor=max  valid/accuracy", f"{ARGS}}}"),
        ("trainer.monitor=off", f"monitor: max valid/accuracy, {ARGS}}}"),
        ("trainer.monitor=null", f"monitor: max valid/accuracy, {ARGS}}}"),
        ("trainer.monitor=null", f"monitor: valid/accuracy, {ARGS}, mode: max}}"),
        ("trainer.monitor=null", f"{ARGS}}}"),
    ],
)
def test_a_value_that_improves_leaves_the_rate(monitor: str, scheduler: str) -> None:
    assert rates(monitor, f"lr_scheduler={{type: ReduceLROnPlateau, {scheduler}}}") == [0.1] * 4


def test_a_value_that_worsens_cuts_the_rate() -> None:
    """The same values, watched from the other side."""
    down = f"lr_scheduler={{type: ReduceLROnPlateau, monitor: min valid/accuracy, {ARGS}}}}}"
    expected, optimizer = [], torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", 0.5, 0)
    for epoch in range(4):
        plateau.step(0.1 + 0.2 * epoch)
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates(down) == expected == [0.1, 0.05, 0.025, 0.0125]


@pytest.mark.parametrize(
    ("monitor", "scheduler", "place", "told"),
    [
        (UP, "args: {mode: min}", "args.mode", "contradicts trainer.monitor"),
        (UP, "monitor: valid/accuracy, args: {mode: min}", "args.mode", "contradicts trainer"),
        (UP, "monitor: max valid/accuracy, args: {mode: min}", "args.mode", "contradicts lr_sch"),
        (UP, "monitor: min valid/accuracy", "monitor", "use one direction"),
        ("trainer.monitor=null", "args: {mode: max}", "args.mode", "'min valid/loss'"),
        ("trainer.monitor=null", "monitor: valid/accuracy", "monitor", "lower or higher values of"),
        (UP, "monitor: max", "monitor", "expected 'min NAME' or 'max NAME'"),
        (UP, "monitor: off", "monitor", "expected 'min NAME' or 'max NAME', found 'off'"),
        ("trainer.monitor=off", "monitor: train/accuracy", "monitor", "max train/accuracy"),
    ],
)
def test_what_contradicts_or_says_nothing_is_an_error_with_its_place(
    monitor: str, scheduler: str, place: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=rf"lr_scheduler\.{place}: .*{told}"):
        make(monitor, f"lr_scheduler={{type: ReduceLROnPlateau, {scheduler}}}", text=CONFIG)


def test_each_of_several_networks_has_a_direction_of_its_own() -> None:
    plateau = "{type: ReduceLROnPlateau, monitor: max train/distance}"
    own = "model={type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}"
    sections = (
        "optimizers={a: {type: SGD, args: {lr: 0.1}, params: 'hidden.*', lr_scheduler: "
        f"{plateau}}}, b: {{type: SGD, args: {{lr: 0.1}}, params: 'head.*', lr_scheduler: "
        "{type: ReduceLROnPlateau}}}"
    )
    made = make(own, "optimizer=null", sections, UP, text=CONFIG)
    found = {name: (s.scheduler.mode, s.monitor) for name, s in made.schedules.items()}
    assert found == {"a": ("max", "train/distance"), "b": ("max", "valid/accuracy")}
    wrong = sections.replace(
        "{type: ReduceLROnPlateau}", "{type: ReduceLROnPlateau, args: {mode: min}}"
    )
    with pytest.raises(ConfigError, match=r"optimizers\.b\.lr_scheduler\.args\.mode"):
        make(own, "optimizer=null", wrong, UP, text=CONFIG)


def test_another_direction_begins_to_measure_again(tmp_path: Path) -> None:
    """A state of `min valid/loss` says nothing of an accuracy."""
    plateau = f"lr_scheduler={{type: ReduceLROnPlateau, {ARGS}}}}}"
    run(tmp_path, plateau, "trainer.epochs=2", text=CONFIG)
    made = run(tmp_path, plateau, UP, "trainer.epochs=3", text=CONFIG, resume=True)
    scheduler = made.schedules["main"].scheduler
    assert scheduler.mode == "max"
    assert 0 <= scheduler.best <= 1, "an accuracy"
    assert scheduler.last_epoch == 3
