"""The experiment that a trainer receives: all objects of a config, on the device."""

from __future__ import annotations

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
from base.config.durations import RunLength
from base.data.bad_samples import BadSamples
from base.data.cut_parts import sharded
from base.data.sampler_state import SamplerState
from base.distributed.group import ALONE, World
from base.names.object_references import References
from base.network.freezing import Freezing
from base.network.initialization import InitRecord
from base.training.progress import Progress
from base.training.schedules import Schedule
from base.training.swa import SwaSchedule


class LossesByName(ChainMap[str, Any]):
    """The losses of the config and those that the trainer built, by name; later ones included."""

    def get(self, name: str, default: Any = None) -> Any:  # ChainMap's takes six calls
        losses, own = self.maps
        return losses[name] if name in losses else own.get(name, default)


class CallbackProtocol(Protocol):
    """The methods of a callback that the loop calls; see `base.callbacks.Callback`."""

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
    """All objects of a config, built and moved to the device."""

    config: Config
    device: torch.device
    model: nn.Module
    losses: dict[str, Any]
    metrics: dict[str, Any]
    optimizers: dict[str, Optimizer]
    schedules: dict[str, Schedule | SwaSchedule]
    train_loader: Any
    valid_loader: Any
    callbacks: dict[str, CallbackProtocol]
    batches_per_epoch: int
    length: RunLength
    freezing: Freezing
    bad_samples: BadSamples
    init_records: list[InitRecord] = field(default_factory=list)
    test_loader: Any = None
    """The test loader, if it is already built."""
    sampler_state: SamplerState | None = None
    """The state of the training sampler, if it has one; the sampler may learn from the losses."""
    loaded: dict[str, WeightsReport] = field(default_factory=dict)
    """The report of each loaded weights file, by the name of its module."""
    memory_notes: list[str] = field(default_factory=list)
    own_references: References | None = None
    own_losses: dict[str, Any] = field(default_factory=dict)
    """The losses that the trainer builds, see `BaseTrainer.build`."""
    build_section: Callable[[Experiment, str, Any], Any] | None = None
    """Builds an additional section for the trainer."""
    world: World = ALONE
    """The processes that train the model."""
    example: dict[str, Any] = field(default_factory=dict)
    """What the model takes and returns (see `base/run/model_example.py`), once it was called."""

    @property
    def references(self) -> References:
        """Resolves references such as ``${data_loader.n_classes}``."""
        if self.own_references is None:
            self.own_references = References(self.config)
        return self.own_references

    @property
    def all_losses(self) -> Mapping[str, Any]:
        """The losses of the config and those that the trainer built, by name."""
        return LossesByName(self.losses, self.own_losses)

    @property
    def settings(self) -> SimpleNamespace:
        """The config's ``trainer:`` section, as attributes."""
        return SimpleNamespace(**self.config["trainer"])

    @property
    def monitor(self) -> str:
        """The rule that selects the best epoch."""
        return choose_monitor(self.config, self.valid_loader)

    @property
    def steps_per_epoch(self) -> int:
        """The number of optimizer steps in an epoch."""
        return self.length.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """The number of optimizer steps in the training."""
        return self.length.total_steps

    @property
    def n_epochs(self) -> int:
        """The number of epochs; the last one may be incomplete."""
        return self.length.n_epochs

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained now or once they are unfrozen, by name."""
        named = self.model.named_parameters()
        return {n: p for n, p in named if p.requires_grad or n in self.freezing.frozen_until}

    def share_with(self, world: World) -> None:
        """Train together with other processes: each reads its share of every batch."""
        self.world = world
        self.train_loader = self.shared(self.train_loader)
        self.valid_loader = self.shared(self.valid_loader)

    def shared(self, loader: Any) -> Any:
        """Return a loader that reads this rank's share of every batch."""
        if loader is None or self.world.size == 1:
            return loader
        return sharded(loader, self.world.rank, self.world.size, self.config["batch"])

    def batches_left(self, progress: Progress) -> int:
        """Return the number of batches remaining in the current epoch or in the training."""
        accumulate: int = self.config["memory"]["accumulate"]
        of_training = (self.total_steps - progress.step) * accumulate
        return min(self.batches_per_epoch - progress.batch, of_training)

    def batches_to_evaluate(self, loader: Any, phase: str, most: int | None = None) -> int:
        """Return the number of batches of a loader to evaluate; a test evaluates all.

        Args:
            most: an upper limit.
        """
        valid_batches: int | None = self.settings.valid_batches
        limit = None if phase == "test" else valid_batches
        try:
            n_batches = len(loader)
        except TypeError:  # a stream: `valid_batches` for validation data, `most` for training data
            n_batches = valid_batches or most or 1
        return min(n for n in (n_batches, limit, most) if n is not None)


def choose_monitor(config: Config, valid_loader: Any) -> str:
    """Return the rule that selects the best epoch: the config's, or else the lowest loss."""
    chosen: str | None = config["trainer"]["monitor"]
    return chosen or ("min train/loss" if valid_loader is None else "min valid/loss")
