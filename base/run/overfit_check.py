"""``--check overfit``: learns one batch by heart, or names what stands in the way.

A model that cannot learn one batch will not learn the data. The batch is drawn once, so that random
transforms do not change it. Suspects are found by measuring: the same training without dropout,
without weight decay, at other rates; the lowest loss that any outputs could have; the gradients.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from base.base_trainer import BaseTrainer
from base.data.batch import SampleCount, to_device
from base.errors import ConfigError, listed
from base.run.check_steps import loss_of, make_steps, open_check, peak_rates, restored, set_rates
from base.run.overfit_facts import (
    contradictions,
    has_equal_outputs,
    lowest_loss,
    soft_targets_text,
)
from logger.console import format_value, wrap_prose
from logger.terminal import terminal_width

N_STEPS = 300
WARM_UP, DECAY = 0.05, 0.3  # shares of the steps at the beginning and at the end
NEAR = 0.02  # of the way from the first loss to the lowest one that is possible
IN_A_ROW = 3
SMALL_BATCH = 8  # samples, whose statistics make BatchNorm noisy
RESERVED_KINDS = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)


class OneBatch:
    """A loader of one batch, as often as it is read; everything else is that of the real loader."""

    def __init__(self, loader: Any, batch: Any) -> None:
        self.loader, self.batch = loader, batch

    def batches(self, first: int, count: int) -> Iterator[Any]:
        for _ in range(count):
            yield copy.deepcopy(self.batch)  # the step may change it in place

    def n_drawn(self, position: int) -> Any:
        """Return the number of samples drawn for the batch."""
        return getattr(self.loader, "n_drawn", lambda _: None)(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


@dataclass
class Attempt:
    """A training on the batch: its losses, and why it ended early."""

    losses: list[float]
    goal: float
    fault: str = ""

    @property
    def lowest(self) -> float:
        """The lowest loss that a few steps in a row stay below; infinite before them."""
        windows = [self.losses[k : k + IN_A_ROW] for k in range(len(self.losses) - IN_A_ROW + 1)]
        return min((max(each) for each in windows), default=math.inf)

    @property
    def is_reached(self) -> bool:
        return self.lowest <= self.goal


def check_overfit(trainer: BaseTrainer, resume_from: Path | None = None) -> tuple[str, int]:
    """Train on one batch; return the report, and the exit code: 0 if the batch is learned.

    The step is the config's own: its model, losses, optimizers, precision, accumulation, clipping.
    Its rate rises for a few steps to the highest rate of the schedule, and falls at the end.

    Raises:
        ConfigError: the trainer minimises no ``"loss"``, as those of adversarial networks.
    """
    rates = peak_rates(trainer)
    with open_check(trainer, resume_from):
        check = Overfit(trainer, rates)
        lines, is_passed = check.run()
    end = terminal_width()
    return "\n".join(wrap_prose(line, end) for line in lines) + "\n", 0 if is_passed else 1


class Overfit:
    """The trainings on one batch, and what they show."""

    def __init__(self, trainer: BaseTrainer, rates: Mapping[str, list[float]]) -> None:
        self.trainer, self.rates = trainer, rates
        self.batch = next(trainer.train_loader.batches(0, 1))
        trainer.train_loader = OneBatch(trainer.train_loader, self.batch)
        trainer.window.count = SampleCount(trainer.config["batch"], trainer.train_loader)
        self.n_samples = trainer.window.count(self.batch, 0)
        self.on_device = to_device(copy.deepcopy(self.batch), trainer.device)
        trainer.epoch_start.begin()
        # Of the outputs alone, and if samples with equal inputs have equal outputs too.
        self.twins = contradictions(trainer, self.on_device, self.n_samples)
        self.floor = self.floor_of_twins = lowest_loss(trainer, self.on_device, None) or 0.0
        if self.twins.n:
            found = lowest_loss(trainer, self.on_device, self.twins.groups)
            self.floor_of_twins = self.floor if found is None else found
        self.first = math.nan
        self.unreached: list[str] = []
        self.is_constant = False

    def run(self) -> tuple[list[str], bool]:
        """Return the lines of the report, and whether the batch is learned."""
        own = self.train()
        if self.first != self.first and not own.fault:
            text = f"{type(self.trainer).__name__} minimises no value `loss`: --check overfit needs"
            text += " one; networks that play against each other have none that falls to 0"
            raise ConfigError([self.trainer.config.problem(("trainer", "type"), text)])
        size = f"{self.n_samples} sample{'s' * (self.n_samples != 1)}"
        lines = [
            f"one batch of {size}: loss {_number(self.first)} at the start, {_number(own.lowest)} "
            f"after {len(own.losses)} steps; the lowest possible is {self.floor_text}"
        ]
        if own.is_reached:
            return [*lines, *self.notes(), "passed: the model learns the batch by heart"], True
        if own.fault:
            lines.append(f"the training stopped: {own.fault.partition(';')[0]}")
        found, is_passed = self.find_causes(own)
        lines += [f"- {text}" for text in found]
        lines += [f"- {text}" for text in self.notes()]
        if is_passed:
            return [*lines, "passed: the model learns the batch by heart without that"], True
        if not found:
            falling = own.losses and own.losses[-1] < 0.9 * own.losses[len(own.losses) // 2]
            hint = "it was still falling: more steps may be enough; or " if falling else ""
            lines.append(
                f"- nothing that was tried explains it: {hint}the model may be too small, or the "
                "inputs may lack what the targets depend on"
            )
        return [*lines, "not passed"], False

    @property
    def floor_text(self) -> str:
        is_near_0 = abs(self.floor) < 1e-3 * abs(self.first)
        return "0" if is_near_0 else _number(self.floor)

    # --- Trainings --------------------------------------------------------------------------------

    def train(self, factor: float = 1.0, *changes: Callable[[], Any]) -> Attempt:
        """Train on the batch from the same state.

        Args:
            factor: of the config's rates.
            changes: contexts to train in.
        """
        trainer, attempt = self.trainer, Attempt([], math.nan)
        floor = self.floor

        def set_step_rates(number: int) -> None:
            share = number / N_STEPS
            ramp = min(1.0, (share + 1 / N_STEPS) / WARM_UP, max(1e-3, (1 - share) / DECAY))
            for name, optimizer in trainer.optimizers.items():
                set_rates(optimizer, self.rates[name], factor * ramp)

        def after(parts: list[Mapping[str, Any]]) -> bool:
            attempt.losses.append(loss_of(parts, "loss"))
            if len(attempt.losses) == 1 and self.first != self.first:
                self.first = attempt.losses[0]
            attempt.goal = floor + NEAR * abs(self.first - floor)
            set_step_rates(len(attempt.losses))
            return math.isnan(attempt.losses[-1]) or attempt.is_reached

        with restored(trainer), ExitStack() as stack:
            for change in changes:
                stack.enter_context(change())
            gradients = stack.enter_context(watch_gradients(trainer.model))
            set_step_rates(0)
            attempt.fault = make_steps(trainer, N_STEPS, after, "one batch")
            if not changes and factor == 1.0:
                self.unreached = [name for name, seen in gradients.items() if not bool(seen)]
                if not attempt.is_reached:
                    self.is_constant = has_equal_outputs(trainer, self.on_device, self.n_samples)
        return attempt

    # --- Causes -----------------------------------------------------------------------------------

    def find_causes(self, own: Attempt) -> tuple[list[str], bool]:
        """Return sentences on what stands in the way, and whether it is regularisation alone."""
        found = []
        floor = self.floor
        if self.twins.n and self.floor_of_twins > floor + NEAR * abs(self.first - floor):
            found.append(
                f"targets contradict each other: {self.twins.n} samples have the same inputs as "
                f"another one and another target ({self.twins.places}), so the loss cannot fall "
                f"below {_number(self.floor_of_twins)}"
            )
            if own.lowest <= self.floor_of_twins + NEAR * abs(self.first - self.floor_of_twins):
                return found, False
        regularisers = self.regularisers()
        everything = [context for context, _ in regularisers.values()]
        if regularisers and self.train(1.0, *everything).is_reached:
            alone = {
                name: text
                for name, (context, text) in regularisers.items()
                if len(regularisers) == 1 or self.train(1.0, context).is_reached
            }
            value = _number(own.lowest)
            held = "makes the loss infinite" if own.fault else f"holds it at {value}"
            found += [f"{text} {held}; without it the batch is learned" for text in alone.values()]
            if not alone:
                texts = " and ".join(text for _, text in regularisers.values())
                held = "make the loss infinite" if own.fault else f"hold it at {value}"
                found.append(f"{texts} together {held}; without them the batch is learned")
            return found, not self.twins.n
        for factor, word in ((10.0, "small"), (0.1, "large"), (100.0, "small"), (0.01, "large")):
            if self.train(factor, *everything).is_reached:
                which = "ten" if factor in (10.0, 0.1) else "a hundred"
                times = f"{which} times the rate" if factor > 1 else f"a {which}th of the rate"
                times = times.replace("a a", "a")
                rate = max(itertools.chain(*self.rates.values()))
                text = f"the learning rate ({rate:.1e}) is too {word}: with {times} the batch is"
                text += " learned"
                if regularisers and not self.train(factor).is_reached:
                    names = " and ".join(regularisers)
                    text += f", but only without {names}; without {names} at the config's rate it"
                    text += " is not"
                found.append(f"{text}; see `--check lr`")
                return found, False
        if self.is_constant:
            found.append("the model gives the same outputs for every sample of the batch")
        if own.losses and max(own.losses) - min(own.losses) == 0.0:
            found.append("the loss does not change at all: no update reaches what it depends on")
        return found, False

    def regularisers(self) -> dict[str, tuple[Callable[[], Any], str]]:
        """Return what is made to prevent this: how to do without it, and its name in the config."""
        model, found = self.trainer.model, {}
        if names := [name for name, module in model.named_modules() if _drops(module)]:
            text = f"dropout ({listed(names, 3)})"
            found["dropout"] = (lambda: without_dropout(model), text)
        groups = [g for each in self.trainer.optimizers.values() for g in each.param_groups]
        if decays := [g["weight_decay"] for g in groups if g.get("weight_decay")]:
            text = f"weight decay ({max(decays):g})"
            found["weight decay"] = (lambda: without_decay(groups), text)
        steppers = self.trainer.steppers
        clips = [
            s for s in steppers.values() if s.clip_norm is not None or s.clip_value is not None
        ]
        if clips:
            clip = next(c for c in (clips[0].clip_norm, clips[0].clip_value) if c is not None)
            text = f"the limit of the gradients ({clip:g})"
            found["clipping"] = (lambda: without_clipping(clips), text)
        return found

    def notes(self) -> list[str]:
        """Return sentences on what was seen, whether or not it stands in the way."""
        model, notes = self.trainer.model, []
        if self.floor > NEAR * abs(self.first):
            reason = soft_targets_text(self.trainer, self.on_device)
            notes.append(f"the loss cannot fall below {_number(self.floor)}: {reason}")
        if self.unreached:
            text = "no gradient but 0 reached %s: dead (as ReLU of negative values), or not used"
            notes.append(text % listed(self.unreached, 4))
        frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
        if frozen:
            n = sum(p.numel() for p in model.parameters() if not p.requires_grad)
            total = sum(p.numel() for p in model.parameters())
            notes.append(f"{n:,} of {total:,} parameters are frozen ({listed(frozen, 3)})")
        norms = [name for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
        size = self.trainer.window.micro_batch or self.n_samples
        if norms and size <= SMALL_BATCH:
            notes.append(
                f"BatchNorm ({listed(norms, 3)}) sees {size} samples at a time: its statistics "
                "are noisy; larger batches, or GroupNorm"
            )
        if mixes := getattr(self.trainer.train_loader, "mixes", ""):
            notes.append(f"{mixes} mixes the samples of the batch, which stays the same here")
        return notes


def _number(value: float) -> str:
    return format_value("loss", float(value))


def _drops(module: nn.Module) -> bool:
    rate = getattr(module, "dropout", 0.0)
    is_layer = isinstance(module, _DropoutNd) and module.p > 0
    return is_layer or (isinstance(module, RESERVED_KINDS) and isinstance(rate, float) and rate > 0)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Train without dropout inside the block."""
    kept = [(m, name, getattr(m, name)) for m in model.modules() if _drops(m)
            for name in ("p", "dropout") if isinstance(getattr(m, name, None), float)]  # fmt: skip
    for module, name, _ in kept:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, rate in kept:
            setattr(module, name, rate)


@contextmanager
def without_decay(groups: list[dict[str, Any]]) -> Iterator[None]:
    """Train without weight decay inside the block."""
    kept = [(group, group["weight_decay"]) for group in groups if group.get("weight_decay")]
    for group, _ in kept:
        group["weight_decay"] = 0.0
    try:
        yield
    finally:
        for group, decay in kept:
            group["weight_decay"] = decay


@contextmanager
def without_clipping(steppers: list[Any]) -> Iterator[None]:
    """Train without limits of the gradients inside the block."""
    kept = [(stepper, stepper.clip_norm, stepper.clip_value) for stepper in steppers]
    for stepper in steppers:
        stepper.clip_norm = stepper.clip_value = None
    try:
        yield
    finally:
        for stepper, norm, value in kept:
            stepper.clip_norm, stepper.clip_value = norm, value


@contextmanager
def watch_gradients(model: nn.Module) -> Iterator[dict[str, Tensor | bool]]:
    """Note inside the block which parameters receive a gradient other than 0."""
    seen: dict[str, Tensor | bool] = {}

    def watch(name: str, parameter: nn.Parameter) -> Any:
        seen[name] = False

        def note(gradient: Tensor) -> None:
            seen[name] = gradient.detach().any() | seen[name]  # no wait for the device

        return parameter.register_hook(note)

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    handles = [watch(name, parameter) for name, parameter in trained]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
