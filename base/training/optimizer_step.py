"""The step of each optimizer, with gradient clipping and loss scaling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer

from base.config.durations import parse_duration
from base.config.normal_form import optimizer_sections
from base.distributed.shard import whole
from base.errors import TrainingError, nearest
from base.system.contexts import NO_CONTEXT
from base.system.torch_compat import begin_momentum
from base.training.experiment import Experiment
from base.training.losses import WeightedLoss
from base.training.optimizer_memory import StepInBackward
from base.training.precision import Precision
from base.training.results import with_total

log = logging.getLogger("kindling")

TORCHS_ZERO_GRAD = Optimizer.zero_grad


@dataclass
class Stepper:
    """Clips the gradients of one optimizer, steps it and clears the gradients.

    Args:
        clip_norm, clip_value: the limits of the norm and of the entries of the gradients.
        set_to_none: whether gradients are freed after a step or set to zero.
        in_backward: steps the parameters during the backward pass.
        every: the optimizer steps once in this number of steps of the run.
        prefix: the prefix of logged names; empty for a single optimizer.
    """

    optimizer: Optimizer
    precision: Precision
    scaler: torch.amp.GradScaler
    clip_norm: float | None
    clip_value: float | None
    weighted_losses: Mapping[str, WeightedLoss]
    set_to_none: bool = True
    in_backward: StepInBackward | None = None
    every: int = 1
    prefix: str = ""
    has_stepped: bool = False

    def __post_init__(self) -> None:
        self.is_scaled = self.scaler.is_enabled()

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def trainable(self) -> list[Tensor]:
        """The parameters that require a gradient now."""
        return [parameter for parameter in self.parameters if parameter.requires_grad]

    def step(
        self, n_steps: int, again: Callable[[], dict[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Step with the accumulated gradients; return their norm if it is clipped.

        Args:
            n_steps: the number of steps that the run has made.
            again: computes the losses again; LBFGS calls it several times a step.
        """
        if not self.has_stepped:
            self._warn_unreached(n_steps)
        values = {}
        if self.clip_norm is not None or self.clip_value is not None:
            values = self._clip()
        if self.precision.is_reduced:
            with self.precision.full():
                self._step_optimizer(n_steps, again)
            torch.clear_autocast_cache()  # it holds casts of the old weights
        else:
            self._step_optimizer(n_steps, again)
        self.clear()
        return values

    def _step_optimizer(self, n_steps: int, again: Callable[[], dict[str, Any]] | None) -> None:
        optimizer = self.optimizer
        if isinstance(optimizer, LBFGS):
            optimizer.step(lambda: self._loss_again(n_steps, again))
        elif self.in_backward is None:
            if isinstance(optimizer, SGD):
                begin_momentum(optimizer)
            if self.is_scaled:
                self.scaler.step(optimizer)
                self.scaler.update()
            else:
                optimizer.step()

    def check(self, again: Callable[[], dict[str, Any]] | None) -> None:
        """Check the arguments of a step, even if no step is due.

        Raises:
            TrainingError: the optimizer is LBFGS, and there is no function for the losses.
        """
        if again is None and isinstance(self.optimizer, LBFGS):
            text = "LBFGS computes the losses several times a step: pass `update` a function"
            raise TrainingError(f"{text}, `self.update(again=lambda: ...)`")

    def clear(self) -> None:
        """Clear the accumulated gradients."""
        optimizer = self.optimizer
        # torch's own `zero_grad` does this within a range for the profiler; others may do more.
        is_own = getattr(optimizer.zero_grad, "__func__", None) is TORCHS_ZERO_GRAD
        if is_own and self.set_to_none:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            optimizer.zero_grad(set_to_none=self.set_to_none)
        if self.in_backward is not None:
            self.in_backward.stepped.clear()

    def stepping(self, is_last: bool) -> AbstractContextManager[None]:
        """Return the context of a backward pass; the last one may step the parameters."""
        return self.in_backward.armed() if is_last and self.in_backward is not None else NO_CONTEXT

    def _warn_unreached(self, n_steps: int) -> None:
        """Warn at the first step about parameters without a gradient."""
        if isinstance(self.optimizer, LBFGS):
            return
        if not all(loss.counts_at(n_steps) for loss in self.weighted_losses.values()):
            return  # a loss of weight 0 may reach more parameters later
        self.has_stepped = True
        reached = self.in_backward.stepped if self.in_backward else ()
        unreached = [
            name
            for group in self.optimizer.param_groups
            for name, parameter in zip(group.get("param_names", ()), group["params"], strict=False)
            if parameter.requires_grad and parameter.grad is None and parameter not in reached
        ]
        if unreached:
            shown = ", ".join(unreached[:8]) + (", ..." if len(unreached) > 8 else "")
            text = "no loss reaches %s: not trained by this step; is it used in forward?"
            log.warning(text, shown)

    def _clip(self) -> dict[str, Tensor]:
        self.scaler.unscale_(self.optimizer)
        parameters = self.parameters
        if self.clip_value is not None:
            nn.utils.clip_grad_value_(parameters, self.clip_value)
        if self.clip_norm is None:
            return {}
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        return {f"{self.prefix}grad_norm": whole(norm)}

    def _loss_again(self, n_steps: int, again: Callable[[], dict[str, Any]] | None) -> Tensor:
        assert again is not None  # see `check`
        self.optimizer.zero_grad()
        torch.clear_autocast_cache()
        with self.precision.autocast():
            loss: Tensor = with_total(again(), self.weighted_losses, n_steps)["loss"]
        loss.backward()
        return loss


def build_steppers(experiment: Experiment, precision: Precision) -> dict[str, Stepper]:
    """Build the stepper of each optimizer, by name."""
    steppers, memory = {}, experiment.config["memory"]
    for name, section in optimizer_sections(experiment.config).items():
        # The loop steps the schedules; torch would warn when fp16 or `every` skips a step.
        experiment.optimizers[name]._opt_called = True  # type: ignore[attr-defined]
        optimizer = experiment.optimizers[name]
        in_backward = StepInBackward(optimizer) if memory["optimizer_in_backward"] else None
        steppers[name] = Stepper(
            optimizer=optimizer,
            precision=precision,
            scaler=precision.make_scaler(),
            clip_norm=section["clip_norm"],
            clip_value=section["clip_value"],
            weighted_losses=experiment.all_losses,
            set_to_none=memory["set_to_none"],
            in_backward=in_backward,
            every=parse_duration(section["every"]).in_steps(experiment.length),
            prefix="" if len(experiment.optimizers) == 1 else f"{name}_",
        )
    return steppers


def choose_stepper(steppers: Mapping[str, Stepper], name: str | None) -> Stepper:
    """Return the stepper with this name; None returns the only one.

    Raises:
        TrainingError: there is no such stepper, or the name is missing for several.
    """
    if name is None and len(steppers) == 1:
        (lone,) = steppers.values()
        return lone
    known = ", ".join(steppers)
    if name is None:
        text = "there are several optimizers: `self.backward(loss, only=NAME)` and"
        text += (
            f" `self.update(NAME)` say which of the networks: {known}; a loss that trains several"
        )
        raise TrainingError(f"{text} has a pass for each, all but the last with retain_graph=True")
    if name not in steppers:
        text = f"there is no optimizer {name!r}{nearest(name, steppers)}"
        raise TrainingError(f"{text}; there are {known}")
    return steppers[name]


@contextmanager
def only(steppers: Mapping[str, Stepper], name: str) -> Iterator[None]:
    """Disable ``requires_grad`` for the parameters of all other optimizers inside the block."""
    chosen = choose_stepper(steppers, name)
    others = [
        p for stepper in steppers.values() if stepper is not chosen for p in stepper.trainable
    ]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
