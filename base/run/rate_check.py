"""``--check lr``: a range test of the learning rate (Smith 2015, arXiv:1506.01186)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.base_trainer import BaseTrainer
from base.config.normal_form import optimizer_keys, optimizer_sections
from base.config.tree import dotted
from base.errors import UsageError, nearest
from base.run.check_steps import loss_of, make_steps, open_check, peak_rates, restored, set_rates
from base.run.rate_plot import text_plot, write_plot
from logger.console import wrap_list, wrap_prose
from logger.terminal import terminal_width

LOWEST, HIGHEST = 1e-7, 10.0
N_STEPS = 160  # 20 for each power of ten
SMOOTHING = 0.8  # of the losses: the share that earlier steps keep
DIVERGED = 3.0  # times the fall of the loss, or the loss itself, above its lowest value
N_STILL = 20  # steps at the lowest rates, for the noise of the loss
WIDTH = 5  # steps on both sides, between which a slope is taken
LEAST_FALL = 0.02  # of the first loss; less is noise


@dataclass
class RangeTest:
    """The losses at rising learning rates.

    Args:
        rates: of the parameter group with the highest rate.
        losses: of each step, before its update; ``smooth`` are their exponential means.
        end: why the last step was the last one.
    """

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    end: str = ""

    def add(self, rate: float, loss: float) -> bool:
        """Add a step; return whether the loss has diverged."""
        before = self.smooth[-1] if self.smooth else 0.0
        n = len(self.losses) + 1
        # The mean of few values is not drawn to 0, as in Adam.
        kept = before * (1 - SMOOTHING ** (n - 1))
        self.rates.append(rate)
        self.losses.append(loss)
        self.smooth.append((SMOOTHING * kept + (1 - SMOOTHING) * loss) / (1 - SMOOTHING**n))
        lowest = min(self.smooth)
        limit = lowest + DIVERGED * max(abs(lowest), self.smooth[0] - lowest)
        if not math.isfinite(loss) or self.smooth[-1] > limit:
            self.end = f"the loss diverged at {rate:.1e}"
        return bool(self.end)

    @property
    def start(self) -> list[float]:
        """The smooth losses at the lowest rates, which change nothing: they show the noise."""
        return self.smooth[: max(1, min(N_STILL, len(self.smooth) // 2))]

    @property
    def falls(self) -> bool:
        """Whether the loss fell by more than its noise at some rate."""
        level = sum(self.start) / len(self.start)
        noise = max(abs(loss - level) for loss in self.start)
        return level - self.smooth[self._at_lowest] > max(LEAST_FALL * abs(level), noise)

    @property
    def _at_lowest(self) -> int:
        n = len(self.start)
        return n + self.smooth[n:].index(min(self.smooth[n:])) if self.smooth[n:] else 0

    @property
    def lowest(self) -> float:
        """The rate with the lowest loss."""
        return self.rates[self._at_lowest]

    @property
    def steepest(self) -> float:
        """The rate at which the loss falls fastest, for an equal factor of the rate."""
        last = max(self._at_lowest, 1)
        ends = [(max(k - WIDTH, 0), min(k + WIDTH, last)) for k in range(last + 1)]
        slopes = [(self.smooth[b] - self.smooth[a]) / (b - a) for a, b in ends]
        n = min(len(self.start), last)
        return self.rates[n + slopes[n:].index(min(slopes[n:]))]

    @property
    def valley(self) -> float:
        """The rate in the middle of the longest falling subsequence, fastai's ``valley``.

        It is low where the loss falls slowly from the lowest rates on.
        """
        losses, lengths = self.smooth, [1] * len(self.smooth)
        for i in range(1, len(losses)):
            falls_from = (lengths[j] + 1 for j in range(i) if losses[i] < losses[j])
            lengths[i] = max(falls_from, default=1)
        end = lengths.index(max(lengths))
        start = end - lengths[end]
        third = (end - start) / 3
        return self.rates[max(0, min(end, start + int(third) + int(third / 2)))]

    @property
    def suggested(self) -> float:
        """A tenth of the rate of the lowest loss (fastai), but not above the steepest fall."""
        return min(self.lowest / 10, self.steepest)


def check_rates(
    trainer: BaseTrainer,
    name: str = "",
    picture: Path | None = None,
    resume_from: Path | None = None,
) -> tuple[str, int]:
    """Try rising learning rates; return the report and the exit code, 1 without a suggestion.

    Every optimizer is tried in turn, each from the same weights. The others have a rate of 0, since
    their steps would change the loss too. The parameter groups of one keep their ratios.

    Args:
        name: the only optimizer to try; empty tries all.
        picture: the file to draw; None takes one in the folder for temporary files.

    Raises:
        UsageError: there is no such optimizer.
    """
    if name and name not in trainer.optimizers:
        known = f"{nearest(name, trainer.optimizers)} (there are {', '.join(trainer.optimizers)})"
        raise UsageError(f"--check lr:{name}: no such optimizer{known}")
    rates = peak_rates(trainer)
    tests: dict[str, RangeTest] = {}
    with open_check(trainer, resume_from):
        for optimizer in trainer.optimizers.values():
            set_rates(optimizer, [0.0] * len(optimizer.param_groups))
        for each in [name] if name else trainer.optimizers:
            with restored(trainer):
                ratios = rates[each] if any(rates[each]) else [1.0] * len(rates[each])
                tests[each] = range_test(trainer, each, ratios)
    path = picture or Path(tempfile.gettempdir()) / f"check-lr-{trainer.config['name']}.png"
    lines: list[str] = []
    for each, test in tests.items():
        title = f"learning rate of {each}" if len(trainer.optimizers) > 1 else "learning rate"
        lines += report(trainer, each, test, rates[each], title)
    if len(trainer.optimizers) > 1:
        lines.append(
            "each network was tried with the others unchanged: take a suggestion as a first guess"
        )
    curves = {each: (t.rates, t.losses, t.smooth, max(rates[each])) for each, t in tests.items()}
    if write_plot(curves, path):
        lines.append(f"picture: {path}")
    return "\n".join(lines) + "\n", 0 if any(test.falls for test in tests.values()) else 1


def range_test(trainer: BaseTrainer, name: str, rates: Sequence[float]) -> RangeTest:
    """Train with rates that rise from `LOWEST` to `HIGHEST`, until the loss diverges."""
    test, optimizer, highest = RangeTest([], [], []), trainer.optimizers[name], max(rates)
    rising = [LOWEST * (HIGHEST / LOWEST) ** (k / (N_STEPS - 1)) for k in range(N_STEPS)]
    set_rates(optimizer, rates, rising[0] / highest)

    def after(parts: list[Mapping[str, Any]]) -> bool:
        number = len(test.rates)
        values = parts[0] if parts else {}
        loss = loss_of(parts, name if name in values else "loss")
        if test.add(rising[number], loss):
            return True
        if number + 1 < N_STEPS:
            set_rates(optimizer, rates, rising[number + 1] / highest)
        return False

    end = make_steps(trainer, N_STEPS, after, "rising learning rate")
    if end and test.rates:
        test.end = f"the loss was not finite at {rising[min(len(test.rates), N_STEPS - 1)]:.1e}"
    test.end = test.end or end
    return test


def report(
    trainer: BaseTrainer, name: str, test: RangeTest, rates: Sequence[float], title: str
) -> list[str]:
    """Return the lines on one optimizer: the curve, the suggestion and the command that uses it."""
    if len(test.rates) < 3:
        return [f"{title}: no step could be made: {test.end}"]
    lines = [f"{title}: {len(test.rates)} steps from {test.rates[0]:.1e} to {test.rates[-1]:.1e}"]
    lines += [text_plot(test.rates, test.smooth)]
    lines.append(f"  {test.end or f'the loss did not diverge up to {HIGHEST:g}'}")
    if not test.falls:
        advice = "see `--check overfit`"
        return [*lines, f"  the loss fell at no rate, so there is nothing to suggest; {advice}"]
    value, set_by = f"{test.suggested:.1e}", setting(trainer, name)
    seen = f"(lowest loss at {test.lowest:.1e}, steepest fall {test.steepest:.1e}, "
    seen += f"valley {test.valley:.1e})"
    lines.append(f"  suggested {value}")
    lines.append(" " * 12 + wrap_list(seen, terminal_width(), 12))
    own = f"  config    {max(rates):.1e}  {compared(max(rates), test)}"
    lines.append(wrap_prose(own, terminal_width()))
    lines.append(f"  use it by {set_by}{value}")
    if len({*rates}) > 1:
        factors = ", ".join(f"{rate / max(rates):.2g}" for rate in rates)
        lines.append(
            f"  the rates are those of the highest group; groups kept their ratios: {factors}"
        )
    return lines


def compared(rate: float, test: RangeTest) -> str:
    """Return how the config's rate compares with the suggestion."""
    if rate == 0:
        return "trains nothing"
    ratio = rate / test.suggested
    if test.end and rate >= test.rates[-1]:
        return "is where the loss diverges here: too high without a warm-up"
    if rate > test.lowest:
        return f"{ratio:.3g} times as high: the loss already rises there"
    if 1 / 4 <= ratio <= 4:
        return "agrees with it"
    if ratio > 1:
        return f"{ratio:.3g} times as high, below the rate of the lowest loss"
    return f"{1 / ratio:.3g} times lower: training may be slow"


def setting(trainer: BaseTrainer, name: str) -> str:
    """Return the beginning of the option that sets the highest rate of an optimizer."""
    section = optimizer_sections(trainer.config)[name]
    scheduler = section["lr_scheduler"] or {}
    args = scheduler.get("args") or {}
    if "max_lr" in args:
        return f"--set {dotted(optimizer_keys(trainer.config, name, 'lr_scheduler'))}.args.max_lr="
    keys = dotted(optimizer_keys(trainer.config, name))
    return "--lr " if keys == "optimizer" else f"--set {keys}.args.lr="
