"""Valid ranges of numeric arguments: finite, and within the range of well-known names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from inspect import Parameter
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``; either end may be excluded."""

    low: float = 0.0
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def holds(self, value: float) -> bool:
        above = value > self.low if self.without_low else value >= self.low
        return above and (value < self.high if self.without_high else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"a number {'above' if self.without_low else 'of at least'} {self.low:g}"
        low = f"{'above' if self.without_low else 'from'} {self.low:g}"
        return f"a number {low} {'to below' if self.without_high else 'to'} {self.high:g}"


AT_LEAST_0, ABOVE_0, AT_LEAST_1 = Range(), Range(without_low=True), Range(low=1)
SHARE, BELOW_1 = Range(high=1), Range(high=1, without_high=True)

# Optimizers and schedulers of any origin, as these names have the same meaning in all of them.
RANGES: dict[str, dict[str, Range]] = {
    "optimizer": {
        **dict.fromkeys(("lr", "weight_decay", "eps", "alpha", "lambd", "t0"), AT_LEAST_0),
        **dict.fromkeys(("lr_decay", "momentum_decay", "initial_accumulator_value"), AT_LEAST_0),
        **dict.fromkeys(("step_sizes", "tolerance_grad", "tolerance_change"), AT_LEAST_0),
        **dict.fromkeys(("max_iter", "max_eval", "history_size", "ns_steps", "d"), AT_LEAST_1),
        **dict.fromkeys(("momentum", "dampening", "rho"), SHARE),
        **{"betas": BELOW_1, "etas": ABOVE_0},
    },
    "lr_scheduler": {
        **dict.fromkeys(("gamma", "power", "eta_min", "min_lr", "base_lr", "max_lr"), AT_LEAST_0),
        **dict.fromkeys(("threshold", "eps", "patience", "cooldown", "total_iters"), AT_LEAST_0),
        "milestones": AT_LEAST_0,
        **dict.fromkeys(("div_factor", "final_div_factor", "step_size_up"), ABOVE_0),
        **dict.fromkeys(("T_0", "T_max", "T_mult", "step_size", "total_steps"), AT_LEAST_1),
        **dict.fromkeys(("epochs", "steps_per_epoch"), AT_LEAST_1),
        **dict.fromkeys(("pct_start", "base_momentum", "max_momentum", "end_factor"), SHARE),
        **{"factor": SHARE, "start_factor": Range(high=1, without_low=True)},
        "step_size_down": AT_LEAST_0,
    },
}
OF_TORCH: dict[str, dict[str, Range]] = {
    "RMSprop": {"alpha": SHARE},
    "CrossEntropyLoss": {"label_smoothing": SHARE, "weight": AT_LEAST_0},
    "cross_entropy": {"label_smoothing": SHARE, "weight": AT_LEAST_0},
    "NLLLoss": {"weight": AT_LEAST_0},
    "nll_loss": {"weight": AT_LEAST_0},
    "BCELoss": {"weight": AT_LEAST_0},
    "binary_cross_entropy": {"weight": AT_LEAST_0},
    "BCEWithLogitsLoss": {"weight": AT_LEAST_0, "pos_weight": AT_LEAST_0},
    "binary_cross_entropy_with_logits": {"weight": AT_LEAST_0, "pos_weight": AT_LEAST_0},
    "MultiMarginLoss": {"weight": AT_LEAST_0},
    "multi_margin_loss": {"weight": AT_LEAST_0},
    "MultiLabelSoftMarginLoss": {"weight": AT_LEAST_0},
    "multilabel_soft_margin_loss": {"weight": AT_LEAST_0},
    "HuberLoss": {"delta": ABOVE_0},
    "huber_loss": {"delta": ABOVE_0},
    "SmoothL1Loss": {"beta": AT_LEAST_0},
    "smooth_l1_loss": {"beta": AT_LEAST_0},
}

OF_DATA = ("dataset", "data_loader", "transform", "function")
"""Kinds whose arguments may be NaN, as a marker of missing values or as a fill value."""


def number_fault(
    kind: str, type_name: str, name: str, parameter: Parameter | None, value: Any
) -> str:
    """Return the fault of the numbers in an argument, or ""."""
    numbers = list(_numbers_in(value))
    default = None if parameter is None else parameter.default
    default = default if isinstance(default, float) else 0.0
    if any(map(math.isnan, numbers)) and kind not in OF_DATA and not math.isnan(default):
        return f"expected a number, found {value!r}"
    is_infinite = any(map(math.isinf, numbers)) and not math.isinf(default)
    if is_infinite and kind in RANGES:
        return f"expected a finite number, found {value!r}"
    known = OF_TORCH.get(type_name, {}).get(name) or RANGES.get(kind, {}).get(name)
    if known is not None and not all(map(known.holds, numbers)):
        return f"expected {known}, found {value!r}"
    return ""


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers_in(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
