"""``--check lr``: a range test of the learning rate (Smith 2015, arXiv:1506.01186)."""

from __future__ import annotations

import math
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.base_trainer import BaseTrainer, StopRequested
from base.config.normal_form import optimizer_keys, optimizer_sections
from base.config.tree import dotted
from base.errors import UsageError, nearest
from base.run.check_steps import loss_of, make_steps, open_check, peak_rates, restored, set_rates
from base.run.rate_plot import text_plot, write_plot
from base.training.parameter_groups import highest_rate
from logger.console import wrap_list, wrap_prose
from logger.terminal import terminal_width

LOWEST, HIGHEST = 1e-7, 10.0
N_STEPS = 160  # 20 for each power of ten
SMOOTHING = 0.8  # of the losses: the share that earlier steps keep
DIVERGED = 3.0  # times the fall of the loss, or the loss itself, above its lowest value
N_STILL = 20  # steps at the lowest rates, for the noise of the loss
WIDTH = 5  # steps on both sides, between which a slope is taken
ENOUGH = 2 * N_STILL  # steps before a signal, to report on
LEAST_FALL = 0.02  # of the first loss; less is noise


@dataclass
class RangeTest:
    """The losses at rising learning rates.

    Args:
        rates: of the parameter group with the highest rate.
        losses: of each step, before its update; ``smooth`` are their exponential means.
        end: why the last step was the last one.
        is_stopped: whether a signal ended the test.
    """

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    end: str = ""
    is_stopped: bool = False

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
    highest: dict[str, float] = {}
    code = 1
    with open_check(trainer, resume_from):
        trainer.training_state.freezing.begin_epoch(trainer.progress.step)
        for each, optimizer in trainer.optimizers.items():
            trained = highest_rate(rates[each], optimizer.param_groups, lambda p: p.requires_grad)
            highest[each] = trained or 0.0
        for optimizer in trainer.optimizers.values():
            set_rates(optimizer, [0.0] * len(optimizer.param_groups))
        for each in [name] if name else trainer.optimizers:
            with restored(trainer):
                # Relative to the highest rate of what is trained; all alike if it is 0.
                ratios = [rate / highest[each] if highest[each] else 1.0 for rate in rates[each]]
                tests[each] = RangeTest([], [], [])
                try:
                    range_test(trainer, each, ratios, tests[each])
                except StopRequested:
                    code = note_stop(trainer, tests)
                    break
    path = picture or Path(tempfile.gettempdir()) / f"check-lr-{trainer.config['name']}.png"
    lines: list[str] = []
    for each, test in tests.items():
        title = f"learning rate of {each}" if len(trainer.optimizers) > 1 else "learning rate"
        lines += report(trainer, each, test, rates[each], highest[each], title)
    if len(trainer.optimizers) > 1:
        lines.append(
            "each network was tried with the others unchanged: take a suggestion as a first guess"
        )
    curves = {each: (t.rates, t.losses, t.smooth, highest[each]) for each, t in tests.items()}
    if write_plot(curves, path):
        lines.append(f"picture: {path}")
    if code == 1 and any(test.falls for test in tests.values()):
        code = 0
    return "\n".join(lines) + "\n", code


def note_stop(trainer: BaseTrainer, tests: dict[str, RangeTest]) -> int:
    """Keep what was measured before a signal; return the exit code.

    Raises:
        StopRequested: too few steps were made to show anything.
    """
    name, number = list(tests)[-1], trainer.signals.stop or signal.SIGINT
    if len(tests[name].rates) < ENOUGH:
        del tests[name]
        if not tests:
            raise StopRequested
        return 128 + number
    test = tests[name]
    test.is_stopped = True
    test.end = f"stopped by {signal.Signals(number).name}: rates above {test.rates[-1]:.1e} were"
    test.end += " not tried"
    return 128 + number


def range_test(trainer: BaseTrainer, name: str, ratios: Sequence[float], test: RangeTest) -> None:
    """Train with rates that rise from `LOWEST` to `HIGHEST`, until the loss diverges.

    Args:
        ratios: of the groups' rates to the rising one.
        test: takes the losses.
    """
    optimizer = trainer.optimizers[name]
    rising = [LOWEST * (HIGHEST / LOWEST) ** (k / (N_STEPS - 1)) for k in range(N_STEPS)]
    set_rates(optimizer, ratios, rising[0])
    of_one = f" of {name}" if len(trainer.optimizers) > 1 else ""
    text = f"learning rate{of_one}: up to {N_STEPS} steps, from {LOWEST:.1e} to {HIGHEST:.1e}"
    print(text, "(Ctrl-C reports what it has found by then)", flush=True)

    def after(parts: list[Mapping[str, Any]]) -> bool:
        number = len(test.rates)
        values = parts[0] if parts else {}
        loss = loss_of(parts, name if name in values else "loss")
        if test.add(rising[number], loss):
            return True
        if number + 1 < N_STEPS:
            set_rates(optimizer, ratios, rising[number + 1])
        return False

    end = make_steps(trainer, N_STEPS, after, "rising learning rate")
    if end and test.rates:
        test.end = f"the loss was not finite at {rising[min(len(test.rates), N_STEPS - 1)]:.1e}"
    test.end = test.end or end


def report(
    trainer: BaseTrainer,
    name: str,
    test: RangeTest,
    rates: Sequence[float],
    highest: float,
    title: str,
) -> list[str]:
    """Return the lines on one optimizer: the curve, the suggestion and the command that uses it.

    Args:
        rates: the config's, of each parameter group.
        highest: that of the groups that are trained.
    """
    if len(test.rates) < 3:
        return [f"{title}: no step could be made: {test.end}"]
    lines = [f"{title}: {len(test.rates)} steps from {test.rates[0]:.1e} to {test.rates[-1]:.1e}"]
    lines += [text_plot(test.rates, test.smooth)]
    lines.append(f"  {test.end or f'the loss did not diverge up to {HIGHEST:g}'}")
    if not test.falls and test.is_stopped:
        return [*lines, "  the loss fell at none of these rates: let the test run for longer"]
    if not test.falls:
        advice = "see `--check overfit`"
        return [*lines, f"  the loss fell at no rate, so there is nothing to suggest; {advice}"]
    value = f"{test.suggested:.1e}"
    seen = f"(lowest loss at {test.lowest:.1e}, steepest fall {test.steepest:.1e}, "
    seen += f"valley {test.valley:.1e})"
    lines.append(f"  suggested {value}")
    lines.append(" " * 12 + wrap_list(seen, terminal_width(), 12))
    own = f"  config    {highest:.1e}  {compared(highest, test)}"
    lines.append(wrap_prose(own, terminal_width()))
    lines += how_to_use(trainer, name, test.suggested, highest)
    if len({*rates}) > 1 and highest:
        factors = ", ".join(f"{rate / highest:.2g}" for rate in rates)
        lines.append(
            f"  the rates are those of the highest group; groups kept their ratios: {factors}"
        )
    return lines


def compared(rate: float, test: RangeTest) -> str:
    """Return how the config's rate compares with the suggestion."""
    if rate == 0:
        return "trains nothing"
    ratio = rate / test.suggested
    if test.is_stopped and rate >= test.rates[-1]:
        return "was not reached"
    if test.end and rate >= test.rates[-1]:
        return "is where the loss diverges here: too high without a warm-up"
    if rate > test.lowest:
        return f"{ratio:.3g} times as high: the loss already rises there"
    if 1 / 4 <= ratio <= 4:
        return "agrees with it"
    if ratio > 1:
        return f"{ratio:.3g} times as high, below the rate of the lowest loss"
    return f"{1 / ratio:.3g} times lower: training may be slow"


def how_to_use(trainer: BaseTrainer, name: str, suggested: float, highest: float) -> list[str]:
    """Return the options that make the suggestion the highest rate of what is trained.

    Args:
        highest: the config's highest rate.
    """
    found = settings(trainer, name)
    factor = suggested / highest if highest else 0.0
    options = []
    for option, value in found.items():
        if isinstance(value, list):
            scaled = ",".join(f"{one * factor:.1e}" for one in value)
            options.append(f"{option}'[{scaled}]'")
        else:
            options.append(f"{option}{value * factor if factor else suggested:.1e}")
    if len(options) == 1:
        return [f"  use it by {options[0]}"]
    times = f"multiply all rates by {factor:.2g}" if factor else "set all rates"
    lines = [f"  use it by {options[0]}", *(" " * 12 + one for one in options[1:])]
    return [*lines, f"  these {times}, as some groups have a rate of their own"]


def settings(trainer: BaseTrainer, name: str) -> dict[str, Any]:
    """Return the options that set the rates of an optimizer, with the config's values."""
    section = optimizer_sections(trainer.config)[name]
    scheduler = section["lr_scheduler"] or {}
    args = scheduler.get("args") or {}
    if "max_lr" in args:  # of the optimizer's own rate; those of groups keep their ratios to it
        key = dotted(optimizer_keys(trainer.config, name, "lr_scheduler"))
        return {f"--set {key}.args.max_lr=": args["max_lr"]}
    keys = dotted(optimizer_keys(trainer.config, name))
    base = "--lr " if keys == "optimizer" else f"--set {keys}.args.lr="
    found = {base: float(trainer.optimizers[name].defaults["lr"])}
    if isinstance(rate := section["args"].get("adamw_lr"), int | float):
        found[f"--set {keys}.args.adamw_lr="] = rate
    for number, rule in enumerate(section["param_groups"]):
        if isinstance(rule.get("lr"), int | float) and rule["lr"]:
            found[f"--set {keys}.param_groups.{number}.lr="] = rule["lr"]
    return found
