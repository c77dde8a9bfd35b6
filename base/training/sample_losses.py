"""The loss of each sample, for weighted means and for samplers that learn from the losses.

The mean over a batch is ``sum(w * c * l) / sum(w * c)``: ``w`` is the weight of a sample, ``c``
its denominator in the loss (the weight of a class, 0 for an ignored target), ``l`` its loss. The
losses of samples are computed in the first of these ways that a loss supports:

- with ``reduction="none"``, for torch's losses and others that take or have a ``reduction``;
- unchanged, if the loss returns one number for each sample;
- with one call for each sample, which is slower.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.data.batch import cut, map_tensors
from base.errors import TrainingError
from base.names.discovery import describe_error
from base.system.seeding import isolated_random_state
from base.training.denominators import (
    ROW_RULES,
    SUM_REDUCTION,
    Denominator,
    _classes,
    _classes_of_hidden,
    _weighted_elements,
    denominator_rule,
    is_sum,
    mark_sample_losses,
    torch_rule,
)
from base.training.metric_values import describe

log = logging.getLogger("kindling")

SAMPLE_WEIGHT = "sample_weight"
ONE_PER_SAMPLE: Any = object()
"""Stands for a denominator of 1 for each sample: the loss is a mean over samples."""

Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class PerSampleLoss:
    """Computes the loss of each sample, and the weighted mean.

    Args:
        name: the name of the loss, for messages.
    """

    def __init__(self, name: str, function: Any) -> None:
        self.name, self.function = name, function
        self._can_be_unreduced = takes_reduction(function) or has_reduction(function)
        self._loops_over_samples: bool | None = None  # None: not yet known
        self._whole: Any = None  # the result for a whole batch, until it is compared

    def __call__(
        self,
        call: Call,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        weights: Tensor,
        data: tuple[tuple[Any, ...], Mapping[str, Any]],
    ) -> Any:
        """Return the weighted mean with the losses of the samples attached; several by name.

        Args:
            call: calls a function with positional and keyword arguments.
            args: the positional arguments: the output, the target, and others.
            data: the target, if there is one, and the other arguments by name.

        Raises:
            TrainingError: the loss has no separate value for each sample.
        """
        n_samples, (after, by_name) = len(weights), data
        if SAMPLE_WEIGHT in keywords:  # the weights are applied here
            keywords = {**keywords, SAMPLE_WEIGHT: torch.ones_like(weights)}
        counts = self.counts(after[0] if after else None, by_name, n_samples)
        found, is_whole = self._of_samples(call, args, keywords, n_samples, counts)

        def reduced(values: Tensor, weights: Tensor = weights) -> Tensor:
            rows = values.flatten(1) if values.dim() > 1 else values[:, None]
            if counts is SUM_REDUCTION:
                return _mean(rows.sum(1), None, weights)
            if self._is_ctc:
                lengths = torch.as_tensor(by_name["target_lengths"])
                lengths = lengths.to(rows.device, non_blocking=True)
                rows = rows / lengths.clamp(min=1)[:, None]
            if not isinstance(counts, Tensor):
                return _mean(rows.mean(1), torch.ones_like(rows[:, 0]), weights)
            own = counts.to(rows.device, rows.dtype, non_blocking=True)
            sums = rows.sum(1) if is_whole else rows[:, 0] * own
            return _mean(torch.where(own == 0, 0, sums), own, weights)

        if self._whole is not None and n_samples > 1:
            whole, self._whole = self._whole, None
            self._compare(whole, found, lambda each: reduced(each, torch.ones_like(weights)))
        return _with_leaves(found, reduced)

    def _compare(self, whole: Any, found: Any, mean: Callable[[Tensor], Tensor]) -> None:
        """Compare the loss of a batch with the mean of the losses of its samples.

        Raises:
            TrainingError: the losses of single samples are all equal, so weights have no effect.
        """
        for total, each in zip(_leaves(whole), _leaves(found), strict=False):
            if total.numel() != 1 or not total.isfinite():
                continue
            ours, theirs = float(mean(each.detach())), float(total)
            if math.isclose(ours, theirs, rel_tol=1e-3, abs_tol=1e-6):
                continue
            numbers = f"{theirs:.4g} for a batch, and {ours:.4g} as the mean of its samples alone"
            is_none = not bool(each.isfinite().all()) or bool((each == each[0]).all())
            if is_none:
                text = f"loss {self.name!r} compares the samples of a batch with each other: it is"
                text += f" {numbers}. Remove `batch.weight`, or the sampler that learns from"
                text += " losses; or add a parameter `sample_weight`, or declare a `denominator`"
                raise TrainingError(text)
            text = "loss %r is not a mean over samples: it is %s, and the latter is weighted. Add a"
            log.warning(
                f"{text} parameter `sample_weight`, or declare a `denominator`", self.name, numbers
            )
            return

    def counted(
        self, target: Any, by_name: Mapping[str, Any], weights: Tensor
    ) -> Denominator | None:
        """Return the denominator of the weighted mean, from a target; None if not yet known."""
        counts = self.counts(target, by_name, len(weights))
        if counts is None or isinstance(counts, str):
            return counts
        if counts is ONE_PER_SAMPLE:
            return weights.sum()
        number: Tensor = (
            weights * counts.to(weights.device, weights.dtype, non_blocking=True)
        ).sum()
        return number

    def counts(self, target: Any, by_name: Mapping[str, Any], n_samples: int) -> Any:
        """Return the denominator of each sample, (sample,).

        `SUM_REDUCTION` stands for a sum, `ONE_PER_SAMPLE` for a mean over samples; None for a
        denominator that the target alone does not determine.
        """
        function, settings = _settings_of(self.function)
        if callable(getattr(function, "denominator", None)):
            return self._own_counts(target, by_name, n_samples)
        if is_sum(self.function, by_name):
            return SUM_REDUCTION
        rule, given = torch_rule(function), {**settings, **by_name}
        if rule is _classes_of_hidden:
            target = given.get("target")
        is_known = isinstance(target, Tensor) and len(target) == n_samples
        if rule is None or rule in ROW_RULES or not is_known:
            return ONE_PER_SAMPLE
        return _counts_of_torch(rule, target, given)

    def _own_counts(self, target: Any, by_name: Mapping[str, Any], n_samples: int) -> Any:
        """Return the denominators that a loss of the project declares for each sample."""
        rule: Any = denominator_rule(self.function)
        taken = {name: value for name, value in by_name.items() if name in rule.takes}
        parts = _parts(target, taken, n_samples, self.name)
        try:
            numbers = [rule(None, part, **kept) for part, kept in parts]
        except TrainingError:
            raise
        except Exception as error:
            text = f"the denominator of loss {self.name!r} fails on a sample of target"
            raise TrainingError(f"{text} {describe(target)}: {describe_error(error)}") from error
        if any(number is SUM_REDUCTION or number is None for number in numbers):
            return SUM_REDUCTION if numbers[0] is SUM_REDUCTION else None
        return torch.stack([torch.as_tensor(number, dtype=torch.float32) for number in numbers])

    @property
    def _is_ctc(self) -> bool:
        function = getattr(self.function, "func", self.function)
        return function is F.ctc_loss or isinstance(function, nn.CTCLoss)

    def _of_samples(
        self,
        call: Call,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        n_samples: int,
        counts: Any,
    ) -> tuple[Any, bool]:
        """Return a tensor (sample, ...), or several by name, and whether it is unreduced."""
        if self._loops_over_samples is None:
            self._loops_over_samples = self._needs_loop(call, args, keywords, n_samples)
        if not self._loops_over_samples:
            found = self._call_batch(call, args, keywords)
            if not _has_entry_per_sample(found, n_samples):
                text = f"loss {self.name!r} returns {describe(found)} for {n_samples} samples, not"
                text += " one value for each: call it on a batch with one row for each sample, or"
                raise TrainingError(f"{text} pass `sample_weight=` with one weight for each row")
            return found, True
        each = []
        for place, (part, kept) in enumerate(_parts(args, keywords, n_samples, self.name)):
            if isinstance(counts, Tensor):
                part = mask_empty_gradient(part, counts[place])
            each.append(call(self.function, part, kept))
        return _stack(each, self.name), False

    def _needs_loop(
        self, call: Call, args: tuple[Any, ...], keywords: dict[str, Any], n_samples: int
    ) -> bool:
        """Return whether a loss needs one call for each sample; this calls it once."""
        if torch_rule(_settings_of(self.function)[0]) is not None:
            return False
        with isolated_random_state(0), torch.no_grad():  # without side effects
            found = self._call_batch(call, args, keywords)
        if _has_entry_per_sample(found, n_samples):
            return False
        self._whole = found
        text = "loss %r is called once for each sample: a loss that takes `reduction`, or"
        log.info(f"{text} returns one number for each sample, is faster", self.name)
        return True

    def _call_batch(self, call: Call, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if not self._can_be_unreduced:
            return call(self.function, args, keywords)
        if takes_reduction(self.function):
            function = self.function
            if isinstance(function, functools.partial):
                function = functools.partial(
                    function.func, *function.args, **_without_legacy(function.keywords)
                )
            return call(function, args, {**_without_legacy(keywords), "reduction": "none"})
        with unreduced(self.function):
            return call(self.function, args, keywords)


def as_weights(weights: Any, where: str) -> Tensor:
    """Return the weights of samples as a tensor (sample,).

    Raises:
        TrainingError: there is not one number for each sample.
    """
    found = torch.as_tensor(weights)
    found = found[:, 0] if found.dim() == 2 and found.shape[1] == 1 else found
    if found.dim() != 1:
        text = f"{where}: expected one weight for each sample of a batch, found {describe(found)}"
        raise TrainingError(text)
    return found if found.is_floating_point() else found.float()


def zero_where(condition: Tensor, found: Any) -> Any:
    """Return a loss, or several by name, set to 0 without a gradient where a condition holds."""
    return _with_leaves(found, lambda value: torch.where(condition, 0, value))


def takes_reduction(function: Any) -> bool:
    """Return whether a loss takes ``reduction`` as an argument."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        return "reduction" in inspect.signature(called).parameters
    except (TypeError, ValueError):
        return False


def has_reduction(function: Any) -> bool:
    """Return whether a module has an attribute ``reduction``, as torch's losses do."""
    return isinstance(function, nn.Module) and isinstance(getattr(function, "reduction", None), str)


@contextmanager
def unreduced(module: Any) -> Iterator[None]:
    """Set the ``reduction`` of a module to ``none`` inside the block."""
    reduction, module.reduction = module.reduction, "none"
    try:
        yield
    finally:
        module.reduction = reduction


def _mean(sums: Tensor, counts: Tensor | None, weights: Tensor) -> Tensor:
    """Return the weighted mean of samples, 0 for an empty one; without counts their sum."""
    weights = weights.to(sums.device, sums.dtype, non_blocking=True)
    total = torch.where(weights == 0, 0, weights * sums).sum()
    if counts is None:
        return mark_sample_losses(total, sums)
    number = (weights * counts).sum()
    each = sums.detach() / torch.where(counts == 0, 1, counts)
    return mark_sample_losses(total / torch.where(number == 0, 1, number), each)


def _settings_of(function: Any) -> tuple[Any, dict[str, Any]]:
    """Return the loss and the arguments that the config sets."""
    if isinstance(function, functools.partial):
        return function.func, function.keywords
    if isinstance(function, nn.Module):
        return function, {**vars(function), **function._buffers}
    return function, {}


def _without_legacy(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in keywords.items() if k not in ("size_average", "reduce")}


def _has_entry_per_sample(found: Any, n_samples: int) -> bool:
    """Return whether there is an entry for each sample, in each of several losses."""
    if isinstance(found, Tensor):
        return found.dim() > 0 and len(found) == n_samples
    if isinstance(found, Mapping):
        tensors = [each for each in found.values() if isinstance(each, Tensor)]
        return bool(tensors) and all(_has_entry_per_sample(each, n_samples) for each in tensors)
    return (
        isinstance(found, tuple)
        and len(found) == 2
        and all(_has_entry_per_sample(x, n_samples) for x in found)
    )


def _counts_of_torch(rule: Any, target: Tensor, given: Mapping[str, Any]) -> Tensor:
    """Return the denominator of each sample in a loss of torch, (sample,)."""
    weight, n_samples = given.get("weight"), len(target)
    if rule in (_classes, _classes_of_hidden) and not target.is_floating_point():
        ignored = given.get("ignore_index", -100)
        is_counted = torch.ones_like(target).bool() if ignored is None else target != ignored
        entries = is_counted.float()
        if weight is not None:
            entries = entries * weight.to(target.device)[target.where(is_counted, 0).long()]
    elif rule is _weighted_elements and weight is not None:
        entries = weight.to(target.device).expand_as(target)
    else:
        number = rule(None, target, reduction=given.get("reduction", "mean"))
        return torch.full((n_samples,), float(number) / n_samples, device=target.device)
    counts: Tensor = entries.flatten(1).sum(1) if entries.dim() > 1 else entries
    return counts


def _parts(
    args: Any, keywords: dict[str, Any], n_samples: int, name: str
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the arguments of a loss for each sample."""
    for place in range(n_samples):
        try:
            part, kept = cut((args, keywords), place, place + 1, n_samples)
        except TrainingError as error:
            text = f"loss {name!r} cannot be called on single samples ({error})"
            raise TrainingError(
                f"{text}: add `reduction` or `sample_weight` as a parameter, or return one"
                " number for each sample"
            ) from error
        yield part, kept


def _stack(each: Sequence[Any], name: str) -> Any:
    """Stack the results of several calls to one tensor (sample,), or to several by name."""
    first = each[0]
    if isinstance(first, Tensor) and first.numel() == 1:
        return torch.stack([value.reshape(()) for value in each])
    if isinstance(first, Mapping):
        return {key: _stack([value[key] for value in each], name) for key in first}
    if isinstance(first, tuple):
        return tuple(_stack(list(values), name) for values in zip(*each, strict=True))
    if isinstance(first, int | float):
        return sum(each) / len(each)
    text = f"loss {name!r} must return one number for a sample, not {describe(first)}"
    raise TrainingError(text)


def _leaves(found: Any) -> list[Tensor]:
    """Return the tensors of a loss, or of several by name."""
    if isinstance(found, Mapping):
        found = tuple(found.values())
    if isinstance(found, tuple):
        return [tensor for each in found for tensor in _leaves(each)]
    return [found] if isinstance(found, Tensor) else []


def _with_leaves(found: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(found, Tensor):
        return change(found)
    if isinstance(found, Mapping):
        return {key: _with_leaves(value, change) for key, value in found.items()}
    if isinstance(found, tuple):
        return tuple(_with_leaves(value, change) for value in found)
    return found


def mask_empty_gradient(output: Any, number: Any) -> Any:
    """Return the output with a hook that sets its gradient to 0 if the denominator is 0.

    The mean over an empty part of a batch is 0/0. It adds nothing to the step (see
    `base/training/accumulation.py`), but its gradient would be NaN.
    """
    if number is SUM_REDUCTION or not torch.is_grad_enabled():
        return output
    if not isinstance(number, Tensor) and number:
        return output  # known not to be empty

    def guarded(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        seen = tensor.view_as(tensor)
        is_none = torch.as_tensor(number == 0).to(tensor.device, non_blocking=True)
        seen.register_hook(lambda gradient: torch.where(is_none, 0.0, gradient))
        return seen

    return map_tensors(output, guarded)
