"""Stochastic weight averaging (Izmailov et al., 2018): ``trainer.swa``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from base.config.durations import RunLength, parse_duration
from base.training.schedules import Schedule

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class StochasticWeightAverage:
    """The mean of the weights after certain steps, each with the same weight.

    The first weights are those after step ``start``, then every ``every`` steps. Until then there
    is no average, and the trained weights are used. The statistics of BatchNorm are not averaged:
    `recomputed` measures them for the averaged weights, as `torch.optim.swa_utils.update_bn` does.

    Args:
        weights: the parameters of the model that are trained now or later, by name.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], start: int, every: int
    ) -> None:
        self.start, self.every = start, every
        self.n_averaged = 0
        self.weights = dict(weights)
        self.averages: dict[str, Tensor] = {}
        self.statistics: dict[str, Tensor] = {}
        """The statistics of BatchNorm for the averages, by the names of the buffers."""
        self._model, self._n_measured = model, 0

    def is_due(self, step: int) -> bool:
        """Return whether the weights after this step are part of the average."""
        return step >= self.start and (step - self.start) % self.every == 0

    @torch.no_grad()
    def update(self) -> None:
        """Include the present weights in the average."""
        if not self.averages:
            weights = self.weights.items()
            self.averages = {name: weight.detach().clone() for name, weight in weights}
        else:
            weights_now: list[Tensor] = [weight.detach() for weight in self.weights.values()]
            torch._foreach_lerp_(
                list(self.averages.values()), weights_now, 1 / (self.n_averaged + 1)
            )
        self.n_averaged += 1

    @property
    def needs_statistics(self) -> bool:
        """Whether there are averages that the statistics of BatchNorm were not measured for."""
        return self._n_measured < self.n_averaged and self.has_norms

    @property
    def has_norms(self) -> bool:
        """Whether the model, in training mode, has layers of BatchNorm to measure."""
        return bool(self._norms())

    @contextmanager
    def recomputed(self) -> Iterator[None]:
        """Measure the statistics of BatchNorm for the averages from calls of the model inside.

        The model must be in training mode. Norm layers in evaluation mode, whose parameters are
        frozen, and layers that the calls do not reach keep the statistics of the training.
        """
        norms = self._norms()
        momenta = [norm.momentum for norm in norms.values()]
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        self.swap(with_statistics=False)
        try:
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all calls
            yield
            self.statistics = {
                f"{name}.{key}": getattr(norm, key).clone()
                for name, norm in norms.items()
                if norm.num_batches_tracked
                for key in STATISTICS
            }
            self._n_measured = self.n_averaged
        finally:
            for norm, momentum in zip(norms.values(), momenta, strict=True):
                norm.momentum = momentum
            with torch.no_grad():
                for buffer, former in buffers:
                    buffer.copy_(former)
            self.swap(with_statistics=False)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Swap averages and statistics into the model inside the block, once there are any."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def _norms(self) -> dict[str, _BatchNorm]:
        return {
            name: module
            for name, module in self._model.named_modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats and module.training
        }

    @torch.no_grad()
    def swap(self, with_statistics: bool = True) -> None:
        """Exchange the averages, and their statistics, with those of the model."""
        held: list[tuple[Tensor, Tensor]] = [
            (self.weights[name].data, average) for name, average in self.averages.items()
        ]
        if with_statistics and self.statistics:
            buffers = dict(self._model.named_buffers())
            held += [(buffers[name], value) for name, value in self.statistics.items()]
        for ours, kept in held:
            former = ours.clone()
            ours.copy_(kept)
            kept.copy_(former)

    def state_dict(self) -> dict[str, Any]:
        return {
            "n_averaged": self.n_averaged,
            "n_measured": self._n_measured,
            "start": self.start,
            "averages": {**self.averages, **self.statistics},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "n_averaged" not in state_dict:
            raise ValueError("these are the averages of trainer.ema; use trainer.ema, not swa")
        saved = state_dict["averages"]
        averages = {name: saved[name].clone() for name in saved if name in self.weights}
        shapes = {name: weight.shape for name, weight in self.weights.items()}
        if averages and shapes != {name: average.shape for name, average in averages.items()}:
            raise ValueError("the saved averages do not match the trained weights")
        self.n_averaged, self._n_measured = state_dict["n_averaged"], state_dict["n_measured"]
        if self.n_averaged:  # an average that has begun keeps its steps
            self.start = state_dict["start"]
        devices = {name: weight.device for name, weight in self.weights.items()}
        self.averages = {name: value.to(devices[name]) for name, value in averages.items()}
        buffers = dict(self._model.named_buffers())
        others = {name: value for name, value in saved.items() if name not in self.weights}
        self.statistics = {
            name: value.clone().to(buffers[name].device) for name, value in others.items()
        }


class SwaSchedule:
    """The rate of stochastic weight averaging: a schedule until ``start``, then a constant.

    From then on each rate moves to its constant within ``over`` steps, as `SWALR` of torch does,
    and the schedule stands still. Groups keep the ratios of their rates.

    Args:
        schedule: the schedule of the optimizer, if it has one.
        rate: the constant for a group with the optimizer's own ``lr``.
        shape: ``cosine`` or ``linear``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule | None,
        start: int,
        over: int,
        rate: float,
        shape: str,
    ) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        self.start, self.over, self.shape = start, over, shape
        self.n_steps = 0
        self.begin: list[float] = []
        """The rates of the groups at the start of the averaging; empty before it."""
        groups = schedule.initial if schedule else optimizer.param_groups
        own = [float(group["lr"]) for group in groups]
        unit = float(optimizer.defaults["lr"]) or max(own)
        self.rates = [rate * (each / unit) for each in own]

    @property
    def initial(self) -> list[dict[str, Any]]:
        """The parameter groups at the start of the training."""
        return self.schedule.initial if self.schedule else self.optimizer.param_groups

    @property
    def monitor(self) -> str | None:
        """The value that the schedule watches."""
        return self.schedule.monitor if self.schedule else None

    def after_step(self) -> None:
        """Update the learning rate after a step of the optimizer."""
        self.n_steps += 1
        if self.n_steps >= self.start and not self.begin:
            self.begin = [float(group["lr"]) for group in self.optimizer.param_groups]
            self.start = self.n_steps
        if self.begin:
            self._set_rates()
        elif self.schedule is not None:
            self.schedule.after_step()

    def after_epoch(self, log: Mapping[str, float]) -> None:
        """Update the learning rate after an epoch with the logged values ``log``."""
        if self.schedule is not None and not self.begin:
            self.schedule.after_epoch(log)

    def follow_new_length(self) -> None:
        """Move to the new curve if the length of the training changed, before the averaging."""
        if self.schedule is not None:
            self.schedule.follow_new_length()
        if self.begin:
            self._set_rates()

    def _set_rates(self) -> None:
        done = min(1.0, (self.n_steps - self.start + 1) / max(1, self.over))
        share = (1 - math.cos(math.pi * done)) / 2 if self.shape == "cosine" else done
        groups = zip(self.optimizer.param_groups, self.begin, self.rates, strict=True)
        for group, before, after in groups:
            group["lr"] = after * share + before * (1 - share)

    def state_dict(self) -> dict[str, Any]:
        return {
            "n_steps": self.n_steps,
            "swa_start": self.start if self.begin else None,
            "begin": self.begin,
            "schedule": self.schedule.state_dict() if self.schedule else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "swa_start" not in state_dict:
            raise ValueError("the checkpoint has a schedule without trainer.swa.lr")
        self.n_steps, self.begin = state_dict["n_steps"], list(state_dict["begin"])
        self.start = state_dict["swa_start"] or self.start
        if self.schedule is not None and state_dict["schedule"] is not None:
            self.schedule.load_state_dict(state_dict["schedule"])


def build_swa(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    section: Mapping[str, Any],
    length: RunLength,
) -> StochasticWeightAverage:
    """Build the average of ``trainer.swa``."""
    every = parse_duration(section["every"]).in_steps(length)
    return StochasticWeightAverage(model, weights, start_step(section, length), every)


def start_step(section: Mapping[str, Any], length: RunLength) -> int:
    """Return the step after which the weights are averaged first."""
    return parse_duration(section["start"]).in_steps(length)


def swa_schedule(
    optimizer: Optimizer,
    schedule: Schedule | None,
    section: Mapping[str, Any],
    length: RunLength,
) -> SwaSchedule:
    """Build the schedule of ``trainer.swa.lr``."""
    anneal = section["anneal"]
    over = 0 if anneal is None else parse_duration(anneal).in_steps(length)
    start = start_step(section, length)
    return SwaSchedule(optimizer, schedule, start, over, section["lr"], section["shape"])
