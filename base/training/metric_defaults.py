"""Arguments that metrics take from the losses: ``ignore_index`` and ``threshold``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from types import MethodType
from typing import Any

from torch import nn

from base.config import Config
from base.data.batch import DEFAULT_RULES, Rules
from base.errors import ConfigError, KindlingError, Problem
from base.names.registry import find
from base.names.signatures import signature
from base.training.batch_arguments import DataParameters, item_compared
from base.training.losses import WeightedLoss
from base.training.selection import Selection

NO_CLASS = -100  # the default `ignore_index` of torch's losses

# A single output above this value means class 1: 0 for logits, 0.5 for probabilities.
THRESHOLDS = {
    "binary_cross_entropy": 0.5,
    "BCELoss": 0.5,
    "binary_cross_entropy_with_logits": 0.0,
    "BCEWithLogitsLoss": 0.0,
    "multilabel_soft_margin_loss": 0.0,
    "MultiLabelSoftMarginLoss": 0.0,
    "soft_margin_loss": 0.0,
    "SoftMarginLoss": 0.0,
}


def fill_from_losses(
    section: Mapping[str, Any],
    where: str,
    losses: Mapping[str, WeightedLoss],
    has_outputs: bool = True,
    rules: Rules = DEFAULT_RULES,
) -> Mapping[str, Any]:
    """Fill in ``ignore_index`` and ``threshold`` for a metric that takes them.

    A metric's own default takes precedence over torch's default ``ignore_index``.

    Args:
        has_outputs: whether metrics and losses receive the same outputs.
        rules: the config's ``batch:`` section.

    Raises:
        ConfigError: losses with the metric's target ignore different values of it.
    """
    args = dict(section.get("args") or {})
    try:
        named = find("metric", section["type"])
        takes = signature("metric", named).parameters
    except KindlingError:
        return section  # raised when it is built
    selection = Selection.from_section(section, where)
    item = item_compared(_data_parameters(named), selection.target, rules)
    same_target = [
        each
        for each in losses.values()
        if item_compared(each.takes, each.selection.target, rules) == item
    ]
    if "ignore_index" in takes and "ignore_index" not in args:
        ignored = _ignored(same_target, where)
        if ignored is not None and (ignored != NO_CLASS or _has_no_default(takes["ignore_index"])):
            args["ignore_index"] = ignored
    if "threshold" in takes and "threshold" not in args and has_outputs:
        found = {threshold_of(each.function) for each in same_target
                 if each.selection.output == selection.output} - {None}  # fmt: skip
        if len(found) == 1 and _has_no_default(takes["threshold"]):
            args["threshold"] = found.pop()
    return {**section, "args": args}


def _data_parameters(named: Any) -> DataParameters:
    """Return the data parameters of a metric before it is built."""
    update = getattr(named, "update", None)
    if isinstance(named, type) and inspect.isfunction(update):
        return DataParameters.from_function(MethodType(update, named))  # bound: without `self`
    return DataParameters() if isinstance(named, type) else DataParameters.from_function(named)


def ignore_index_of(function: Callable[..., Any]) -> int | None:
    """Return the target value that a loss ignores; None if it has no such argument."""
    if isinstance(function, nn.Module):
        found = (getattr(module, "ignore_index", None) for module in function.modules())
        return next((value for value in found if type(value) is int), None)
    called = getattr(function, "func", function)
    written_with: Any = getattr(called, "denominator", None)
    for each in (function, written_with):
        try:  # a partial function's arguments are its defaults
            parameter = inspect.signature(each).parameters.get("ignore_index")
        except (TypeError, ValueError):
            continue
        if parameter is not None and type(parameter.default) is int:
            return parameter.default
    return None


def threshold_of(function: Callable[..., Any]) -> float | None:
    """Return the threshold for outputs of a binary loss of torch; None for other losses."""
    function = getattr(function, "func", function)
    named = function if inspect.isroutine(function) else type(function)
    is_torchs = (named.__module__ or "").partition(".")[0] == "torch"
    return THRESHOLDS.get(named.__name__) if is_torchs else None


def _ignored(losses: list[WeightedLoss], where: str) -> int | None:
    found = {loss.name: ignore_index_of(loss.function) for loss in losses}
    chosen = {value for value in found.values() if value not in (None, NO_CLASS)}
    if len(chosen) > 1:
        each = ", ".join(f"{name} {value}" for name, value in found.items() if value in chosen)
        text = f"the losses ignore different targets ({each}); set the one that the metric ignores"
        raise ConfigError([Problem(where, f"{text}: `args: {{ignore_index: ...}}`")])
    return chosen.pop() if chosen else (NO_CLASS if NO_CLASS in found.values() else None)


def _has_no_default(parameter: Parameter) -> bool:
    return parameter.default in (None, Parameter.empty)


def compares_outputs(config: Config) -> bool:
    """Return whether losses and metrics receive the same outputs: the trainer overrides no step."""
    trainer = find("trainer", config["trainer"]["type"])
    steps = ("forward", "compute_losses", "predict", "train_step", "valid_step")
    qualified = [getattr(getattr(trainer, step, None), "__qualname__", "") for step in steps]
    return all(name.startswith("BaseTrainer.") for name in qualified)
