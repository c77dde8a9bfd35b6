"""What a trainer is given: everything that a config names, built and on its device."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from base.checkpoint.weight_mapping import WeightsReport
from base.config import Config
from base.data.bad_samples import BadSamples
from base.data.sampler_state import SamplerState
from base.names.object_references import References
from base.network.freezing import Freezing
from base.network.initialization import InitRecord
from base.training.progress import Progress
from base.training.schedules import Schedule


class CallbackProtocol(Protocol):
    """What the loop calls of a callback; `base.callbacks.Callback` has all of it."""

    def check(self, trainer: Any) -> None: ...

    def on_start(self, trainer: Any) -> None: ...

    def on_epoch_start(self, trainer: Any) -> None: ...

    def on_step_end(self, trainer: Any) -> None: ...

    def on_epoch_end(self, trainer: Any, values: Mapping[str, float]) -> None: ...

    def on_end(self, trainer: Any) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass
class Experiment:
    """Everything that a config names, built and on its device."""

    config: Config
    device: torch.device
    model: nn.Module
    losses: dict[str, Any]
    metrics: dict[str, Any]
    optimizers: dict[str, Optimizer]
    schedules: dict[str, Schedule]
    train_loader: Any
    valid_loader: Any
    callbacks: dict[str, CallbackProtocol]
    batches_per_epoch: int
    total_steps: int
    freezing: Freezing
    bad_samples: BadSamples
    init_records: list[InitRecord] = field(default_factory=list)
    test_loader: Any = None
    """Built beforehand where a test is all that is done."""
    sampler_state: SamplerState | None = None
    """Of a sampler of the training data that has one, and perhaps learns from the losses."""
    loaded: dict[str, WeightsReport] = field(default_factory=dict)
    """What became of each file of weights, by the name of the module it was for."""
    memory_notes: list[str] = field(default_factory=list)
    own_references: References | None = None
    own_losses: dict[str, Any] = field(default_factory=dict)
    """Those that the trainer has built, see `BaseTrainer.build`."""
    build_section: Callable[[Experiment, str, Any], Any] | None = None
    """Builds a section of the trainer's own."""

    @property
    def references(self) -> References:
        """What looks up ``${data_loader.n_classes}`` and the like."""
        if self.own_references is None:
            self.own_references = References(self.config)
        return self.own_references

    @property
    def all_losses(self) -> Mapping[str, Any]:
        """The losses of the config, and those that the trainer has built, by name."""
        return ChainMap(self.losses, self.own_losses)

    @property
    def settings(self) -> SimpleNamespace:
        """The config's ``trainer:`` section, as attributes."""
        return SimpleNamespace(**self.config["trainer"])

    @property
    def monitor(self) -> str:
        """The rule that picks the best epoch."""
        return choose_monitor(self.config, self.valid_loader)

    @property
    def steps_per_epoch(self) -> int:
        accumulate: int = self.config["memory"]["accumulate"]
        return math.ceil(self.batches_per_epoch / accumulate)

    @property
    def n_epochs(self) -> int:
        return math.ceil(self.total_steps / self.steps_per_epoch)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, now or once they thaw, by name."""
        named = self.model.named_parameters()
        return {n: p for n, p in named if p.requires_grad or n in self.freezing.frozen_until}

    def batches_left(self, progress: Progress) -> int:
        """Return how many batches are left of the epoch that is under way, or of the training."""
        accumulate: int = self.config["memory"]["accumulate"]
        of_training = (self.total_steps - progress.step) * accumulate
        return min(self.batches_per_epoch - progress.batch, of_training)

    def batches_to_evaluate(self, loader: Any, phase: str, most: int | None = None) -> int:
        """Return how many batches of a loader to evaluate; all of a test's.

        Args:
            most: no more than this many.
        """
        valid_batches: int | None = self.settings.valid_batches
        limit = None if phase == "test" else valid_batches
        try:
            n_batches = len(loader)
        except TypeError:  # a validation stream has `valid_batches`; training data have `most`
            n_batches = valid_batches or most or 1
        return min(n for n in (n_batches, limit, most) if n is not None)


def choose_monitor(config: Config, valid_loader: Any) -> str:
    """Return the rule that picks the best epoch: the config's, else the lowest loss."""
    chosen: str | None = config["trainer"]["monitor"]
    return chosen or ("min train/loss" if valid_loader is None else "min valid/loss")
