"""Small things with state that a run consists of, beside the model and its optimizers.

Each has ``state_dict`` and ``load_state_dict`` and is put into ``trainer.stateful`` by name.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from base.system.seeding import capture_random_state, restore_random_state
from base.training.loss_attributes import LossAttributes
from base.training.plateau import split_rule

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log_of_run = logging.getLogger("kindling")


@runtime_checkable
class Stateful(Protocol):
    """Anything that can be saved and resumed."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass
class Progress:
    """How far training has come: whole epochs, batches of the running epoch, steps, samples."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    batches_total: int = 0
    """Batches drawn since the start: the position in the endless order of the data."""
    closed_at: int = 0
    """The step at which an epoch was last validated and logged, its beginning or all of it."""
    rates: dict[str, float] = field(default_factory=dict)
    """The learning rates of the last step, as they go to the log."""
    skipped: int = 0
    """Steps dropped because a number was not finite; they count as steps."""
    skipped_in_a_row: int = 0
    rollbacks: int = 0

    @property
    def n_logged(self) -> int:
        """The epochs with a row in metrics.csv; the last of all steps may fall into one."""
        return self.epoch + (self.batch > 0 and self.closed_at == self.step)

    def advance(self, n_samples: int) -> None:
        """Count one batch."""
        self.batch += 1
        self.batches_total += 1
        self.samples += n_samples

    def start_next_epoch(self) -> None:
        """Count one epoch."""
        self.epoch += 1
        self.batch = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)


class RandomState:
    """The random streams of torch (CPU and CUDA), numpy and Python as one stateful object."""

    def state_dict(self) -> dict[str, Any]:
        return capture_random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        restore_random_state(state_dict)


def parts_with_state(trainer: BaseTrainer) -> dict[str, Any]:
    """Return what a training consists of, by the names that it has in checkpoints."""
    bad_samples, sampler = trainer.experiment.bad_samples, trainer.experiment.sampler_state
    parts: dict[str, Any] = {
        "model": trainer.model,
        "optimizer": trainer.optimizers,
        "schedule": trainer.schedules,
        "scaler": {name: stepper.scaler for name, stepper in trainer.steppers.items()},
        "loss": {name: loss for name, loss in trainer.losses.items() if loss.has_state},
        "loss_attributes": LossAttributes(trainer.experiment.all_losses, trainer.device),
        "metric": trainer.metrics,
        "callback": trainer.callbacks,
        "ema": {} if trainer.ema is None else trainer.ema,
        "monitor": trainer.monitor,
        "meters": trainer.meters,
        "progress": trainer.progress,
        "random": RandomState(),
        "bad_samples": bad_samples if bad_samples.skips else {},
        "epoch_rows": trainer.epoch_rows,
        "epoch_start": trainer.epoch_start if trainer.epoch_start.is_used else {},
        "train_sampler": {} if sampler is None else sampler,
    }
    named: dict[str, Any] = {}
    for name, part in parts.items():
        several = isinstance(part, dict)
        named.update({f"{name}.{key}": part[key] for key in part} if several else {name: part})
    return named


class Monitor:
    """Watches one logged value: tells the best epoch and when patience is over.

    Args:
        rule: ``"max valid/accuracy"``, ``"min train/loss"`` or ``"off"``.
        patience: epochs without improvement after which ``is_exhausted`` is true; None never.
    """

    def __init__(self, rule: str, patience: int | None = None) -> None:
        self.rule = rule
        self.mode, self.key = split_rule(rule)
        self.patience = patience
        self.best = math.inf if self.mode == "min" else -math.inf
        self.best_epoch = 0
        self.epochs_without_improvement = 0
        self.n_nonfinite = 0
        """Epochs whose value was NaN or infinite."""

    @property
    def was_never_finite(self) -> bool:
        """Whether there were values, and none of them could be compared."""
        return self.n_nonfinite > 0 and self.best_epoch == 0

    @property
    def is_off(self) -> bool:
        return self.mode == "off"

    @property
    def is_exhausted(self) -> bool:
        return self.patience is not None and self.epochs_without_improvement >= self.patience

    def update(self, log: Mapping[str, float], epoch: int) -> bool:
        """Take the values of an epoch; return whether it is the best so far."""
        if self.is_off:
            return False
        if self.key not in log:
            return False  # this epoch was not validated
        value = log[self.key]
        improved = value < self.best if self.mode == "min" else value > self.best
        if not math.isfinite(value):
            self._note_nonfinite(value, epoch, improved)
        if improved:
            self.best, self.best_epoch = value, epoch
        self.epochs_without_improvement = epoch - self.best_epoch
        return improved

    def _note_nonfinite(self, value: float, epoch: int, is_best: bool) -> None:
        """Count an epoch without a finite value; warn at the first one."""
        if self.n_nonfinite == 0:
            effect = "nothing is better than that" if is_best else "such an epoch is not the best"
            text = "%s is %s in epoch %d, not a finite number: %s"
            log_of_run.warning(text, self.key, value, epoch, effect)
        self.n_nonfinite += 1

    def state_dict(self) -> dict[str, Any]:
        names = ["mode", "key", "best", "best_epoch", "epochs_without_improvement", "n_nonfinite"]
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there, unless another value is watched now: then nothing is best yet."""
        if (state_dict["mode"], state_dict["key"]) == (self.mode, self.key):
            for name, value in state_dict.items():
                setattr(self, name, value)


class ExponentialMovingAverage:
    """A second set of weights that follows the trained one slowly.

    Each step ``average = decay * average + (1 - decay) * weight`` (Polyak and Juditsky, 1992); in
    the first steps the decay is at most ``(1 + step) / (10 + step)``, so that the average does
    not hang on the random start. Buffers (the statistics of BatchNorm) are those of the model.

    Args:
        weights: the parameters that are trained, now or later, by name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self.weights = list(weights.values())
        self.averages = {name: copy.deepcopy(weight.detach()) for name, weight in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        weights: list[Tensor] = [weight.detach() for weight in self.weights]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model hold the averages inside the block, and its own weights after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for weight, average in zip(self.weights, self.averages.values(), strict=True):
            kept = weight.detach().clone()
            weight.data.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"n_updates": self.n_updates, "averages": dict(self.averages)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved = state_dict["averages"]
        shapes = {name: average.shape for name, average in self.averages.items()}
        if shapes != {name: average.shape for name, average in saved.items()}:
            raise ValueError("the averages are of other weights than those that are trained")
        self.n_updates = state_dict["n_updates"]
        for name, average in self.averages.items():
            average.copy_(saved[name])


def build_average(
    weights: Mapping[str, nn.Parameter], section: Mapping[str, Any] | None
) -> ExponentialMovingAverage | None:
    """Return the average that ``trainer.ema`` asks for, or None."""
    return None if section is None else ExponentialMovingAverage(weights, **section)
