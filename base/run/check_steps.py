"""Training steps of a check: those of the config, without its schedules, callbacks and files."""

from __future__ import annotations

import copy
import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from base.base_trainer import BaseTrainer, StopRequested
from base.callbacks import Callback
from base.checkpoint.state_dicts import load_state_dicts
from base.errors import KindlingError, OutOfMemoryError, TrainingError
from base.run.session import open_run_in
from base.training.progress import Stateful
from base.training.run_log import Run, RunLog
from base.training.trials import keep_attributes, keep_buffers
from logger.progress import ProgressBar

Values = Mapping[str, Any]


class Finished(Exception):  # noqa: N818  (not an error)
    """Leaves the loop: a check needs no further step."""


class Steps(Callback):
    """Calls a function after each step, with what the parts of its batches returned."""

    def __init__(self, after: Callable[[list[Values]], bool], n_steps: int, bar: ProgressBar):
        self.after, self.n_steps, self.bar = after, n_steps, bar
        self.n_made = 0
        self.parts: list[Values] = []

    def on_step_end(self, trainer: Any) -> None:
        parts, self.parts = self.parts, []
        self.n_made += 1
        self.bar.update()
        if self.after(parts) or self.n_made >= self.n_steps:
            raise Finished


@contextmanager
def open_check(trainer: BaseTrainer, resume_from: Path | None = None) -> Iterator[None]:
    """Prepare a trainer for the steps of a check; it is of no use after the block.

    Nothing is written, and a signal ends the process after the current step.

    Args:
        resume_from: the run or checkpoint whose weights are checked; None means new ones.
    """
    log = logging.getLogger("kindling")
    level, number = log.level, None
    try:
        log.setLevel(logging.ERROR)
        with open_run_in(trainer, None, resume_from):
            trainer.schedules.clear()
            trainer.recovery.on_nonfinite, trainer.finite.reads_late = "stop", False
            trainer.settings = SimpleNamespace(
                **{**vars(trainer.settings), "train_metrics": False, "progress": False}
            )
            trainer.current_run = Run(RunLog(trainer.settings))
            try:
                yield
            except StopRequested:
                number = trainer.signals.stop
    finally:
        log.setLevel(level)
    if number is not None:
        error = KindlingError(f"stopped by {signal.Signals(number).name}; nothing was written")
        error.exit_code = 128 + number
        raise error


def make_steps(
    trainer: BaseTrainer, n_steps: int, after: Callable[[list[Values]], bool], title: str
) -> str:
    """Train for some steps, in the order of an epoch's batches; return why it ended early, or "".

    Args:
        after: is called after each step with what ``train_step`` returned for its batches, or
            their parts; it returns whether to stop.
        title: is shown beside the progress.

    Raises:
        OutOfMemoryError: a step does not fit into memory.
    """
    experiment, step = trainer.experiment, trainer.progress.step
    experiment.length = replace(experiment.length, total_steps=step + n_steps)
    shows = trainer.config["trainer"]["progress"]
    with (
        ProgressBar(n_steps, description=title, enabled=shows) as bar,
        record_steps(trainer) as made,
    ):
        steps = Steps(after, n_steps, bar)
        made.append(steps)
        trainer.callbacks.clear()
        trainer.callbacks["check"] = steps
        trainer.clock.start()
        try:
            while True:
                trainer.train_epoch()
                trainer.progress.start_next_epoch()
                trainer.meters.reset()
        except Finished:
            return ""
        except OutOfMemoryError:
            raise
        except TrainingError as error:
            if "finite" not in str(error):
                raise
            return str(error)


@contextmanager
def record_steps(trainer: BaseTrainer) -> Iterator[list[Steps]]:
    """Pass what ``train_step`` returns to the callback in the list."""
    receivers: list[Steps] = []
    train_step = trainer.train_step

    def recorded(batch: Any) -> dict[str, Any]:
        values = train_step(batch)
        receivers[0].parts.append(values)
        return values

    vars(trainer)["train_step"] = recorded
    try:
        yield receivers
    finally:
        del vars(trainer)["train_step"]  # the class has its own


@contextmanager
def restored(trainer: BaseTrainer) -> Iterator[None]:
    """Restore weights, optimizers, random streams and all other state after the block."""
    stateful: Mapping[str, Stateful] = trainer.stateful
    saved = {name: copied(one.state_dict()) for name, one in stateful.items()}
    put_buffers_back = keep_buffers(trainer.model.modules())
    put_attributes_back = keep_attributes(trainer)
    try:
        yield
    finally:
        put_attributes_back()
        put_buffers_back()
        for parameter in trainer.model.parameters():
            parameter.grad = None
        load_state_dicts(stateful, saved)


def copied(value: Any) -> Any:
    """Return a copy of nested state; its tensors share no memory."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        made = copy.copy(value)
        made.update((k, copied(v)) for k, v in value.items())
        return made
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(map(copied, value))
    return value


def loss_of(parts: Sequence[Values], name: str) -> float:
    """Return the mean of a value over the parts of a step; NaN if no part has it."""
    found = [float(torch.as_tensor(part[name]).detach().mean()) for part in parts if name in part]
    return sum(found) / len(found) if found else float("nan")


def peak_rates(trainer: BaseTrainer) -> dict[str, list[float]]:
    """Return the highest rate of each parameter group of each optimizer, by its schedule."""
    rates: dict[str, list[float]] = {}
    for name, optimizer in trainer.optimizers.items():
        schedule = trainer.schedules.get(name)
        initial = schedule.initial if schedule else optimizer.param_groups
        rates[name] = [
            float(group.get("max_lr", first["lr"]))  # of OneCycleLR and CyclicLR
            for group, first in zip(optimizer.param_groups, initial, strict=True)
        ]
    return rates


def set_rates(optimizer: Optimizer, rates: Sequence[float], factor: float = 1.0) -> None:
    """Set the learning rate of each parameter group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate * factor)
        else:
            group["lr"] = rate * factor
