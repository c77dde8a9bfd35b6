"""A loss sample by sample: for its weighted mean, and for samplers that learn from it.

The mean over a batch is ``sum(w * c * l) / sum(w * c)``: ``w`` is the weight of a sample, ``c``
what the loss itself counts by (the weight of a class, 0 for an ignored target), ``l`` the loss
there. A loss is asked for its samples in the first of these ways that it has:

- with its ``reduction`` set to ``none``: torch's, and others that take or have a `reduction`;
- as it is, where it gives one number for each sample;
- for each sample by itself, which takes longer.
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
"""What a loss divides by in each sample, where its mean there counts as one."""

Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


class PerSampleLoss:
    """Calls a loss for its samples, and takes their weighted mean.

    Args:
        name: of the loss, for messages.
    """

    def __init__(self, name: str, function: Any) -> None:
        self.name, self.function = name, function
        self._can_be_unreduced = takes_reduction(function) or has_reduction(function)
        self._loops_over_samples: bool | None = None  # None: it has not been tried
        self._whole: Any = None  # what it gave for a whole batch, until that was compared

    def __call__(
        self,
        call: Call,
        args: tuple[Any, ...],
        keywords: dict[str, Any],
        weights: Tensor,
        data: tuple[tuple[Any, ...], Mapping[str, Any]],
    ) -> Any:
        """Return the weighted mean, marked with the losses of the samples; several by their names.

        Args:
            call: calls a function in the manner of the loss.
            args: what is given by position: the output, the target, and more.
            data: the target, if there is one, and by their names what else is given.

        Raises:
            TrainingError: the loss does not tell its samples apart.
        """
        n_samples, (after, by_name) = len(weights), data
        if SAMPLE_WEIGHT in keywords:  # they are taken account of here
            keywords = {**keywords, SAMPLE_WEIGHT: torch.ones_like(weights)}
        counts = self.counts(after[0] if after else None, by_name, n_samples)
        found, is_whole = self._of_samples(call, args, keywords, n_samples, counts)

        def reduced(values: Tensor, weights: Tensor = weights) -> Tensor:
            rows = values.flatten(1) if values.dim() > 1 else values[:, None]
            if counts is SUM_REDUCTION:
                return _mean(rows.sum(1), None, weights)
            if self._is_ctc:
                lengths = torch.as_tensor(by_name["target_lengths"], device=rows.device)
                rows = rows / lengths.clamp(min=1)[:, None]
            if not isinstance(counts, Tensor):
                return _mean(rows.mean(1), torch.ones_like(rows[:, 0]), weights)
            own = counts.to(rows.device, rows.dtype)
            sums = rows.sum(1) if is_whole else rows[:, 0] * own
            return _mean(torch.where(own == 0, 0, sums), own, weights)

        if self._whole is not None and n_samples > 1:
            whole, self._whole = self._whole, None
            self._compare(whole, found, lambda each: reduced(each, torch.ones_like(weights)))
        return _with_leaves(found, reduced)

    def _compare(self, whole: Any, found: Any, mean: Callable[[Tensor], Tensor]) -> None:
        """Hold what a loss gave for a batch against the mean of what it gives for each sample.

        Raises:
            TrainingError: alone, no sample differs from another, so there is nothing to weigh.
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
                text += f" {numbers}. Leave `batch.weight`, or the sampler that learns from losses,"
                text += " out; or let it take `sample_weight`, or declare a `denominator`"
                raise TrainingError(text)
            text = "loss %r is no mean over samples: it is %s, which is what is weighted. Let it"
            log.warning(
                f"{text} take `sample_weight`, or declare a `denominator`", self.name, numbers
            )
            return

    def counted(
        self, target: Any, by_name: Mapping[str, Any], weights: Tensor
    ) -> Denominator | None:
        """Return what the weighted mean is divided by, from a target alone; None: not known yet."""
        counts = self.counts(target, by_name, len(weights))
        if counts is None or isinstance(counts, str):
            return counts
        if counts is ONE_PER_SAMPLE:
            return weights.sum()
        number: Tensor = (weights * counts.to(weights.device, weights.dtype)).sum()
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
        """Return what a loss of the project's declares for the target of each sample."""
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
        """Return a tensor (sample, ...), or several by name, and whether it is not reduced."""
        if self._loops_over_samples is None:
            self._loops_over_samples = self._needs_loop(call, args, keywords, n_samples)
        if not self._loops_over_samples:
            found = self._call_batch(call, args, keywords)
            if not _has_entry_per_sample(found, n_samples):
                text = f"loss {self.name!r} gives {describe(found)} for {n_samples} samples, which"
                text += " does not tell them apart: call it on a batch with one row a sample, or"
                raise TrainingError(f"{text} with `sample_weight=`, one for each of its rows")
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
        """Try, once, whether a loss of the project's tells its samples apart in one call."""
        if torch_rule(_settings_of(self.function)[0]) is not None:
            return False
        with isolated_random_state(0), torch.no_grad():  # as if it had not been called
            found = self._call_batch(call, args, keywords)
        if _has_entry_per_sample(found, n_samples):
            return False
        self._whole = found
        text = "loss %r is called for each sample by itself: one that takes `reduction`, or"
        log.info(f"{text} gives one number for each sample, is faster", self.name)
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
        TrainingError: they are not one number a sample.
    """
    found = torch.as_tensor(weights)
    found = found[:, 0] if found.dim() == 2 and found.shape[1] == 1 else found
    if found.dim() != 1:
        text = f"{where}: expected one weight for each sample of a batch, found {describe(found)}"
        raise TrainingError(text)
    return found if found.is_floating_point() else found.float()


def zero_where(condition: Tensor, found: Any) -> Any:
    """Return a loss, or several by name, that is 0 and has no gradient where a condition holds."""
    return _with_leaves(found, lambda value: torch.where(condition, 0, value))


def takes_reduction(function: Any) -> bool:
    """Tell whether a loss takes ``reduction`` where it is called."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        return "reduction" in inspect.signature(called).parameters
    except (TypeError, ValueError):
        return False


def has_reduction(function: Any) -> bool:
    """Tell whether a module reads how to reduce from its attribute, as torch's do."""
    return isinstance(function, nn.Module) and isinstance(getattr(function, "reduction", None), str)


@contextmanager
def unreduced(module: Any) -> Iterator[None]:
    """Let a module give what it has for each entry."""
    reduction, module.reduction = module.reduction, "none"
    try:
        yield
    finally:
        module.reduction = reduction


def _mean(sums: Tensor, counts: Tensor | None, weights: Tensor) -> Tensor:
    """Return the weighted mean of samples, 0 where nothing counts; without counts their sum."""
    weights = weights.to(sums.device, sums.dtype)
    total = torch.where(weights == 0, 0, weights * sums).sum()
    if counts is None:
        return mark_sample_losses(total, sums)
    number = (weights * counts).sum()
    each = sums.detach() / torch.where(counts == 0, 1, counts)
    return mark_sample_losses(total / torch.where(number == 0, 1, number), each)


def _settings_of(function: Any) -> tuple[Any, dict[str, Any]]:
    """Return the loss itself, and what the config has set of it."""
    if isinstance(function, functools.partial):
        return function.func, function.keywords
    if isinstance(function, nn.Module):
        return function, {**vars(function), **function._buffers}
    return function, {}


def _without_legacy(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in keywords.items() if k not in ("size_average", "reduce")}


def _has_entry_per_sample(found: Any, n_samples: int) -> bool:
    """Tell whether there is an entry for each sample, in each of several losses."""
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
    """Return what a loss of torch divides by in each sample: (sample,)."""
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
    """Give what a loss takes, for each sample by itself."""
    for place in range(n_samples):
        try:
            part, kept = cut((args, keywords), place, place + 1, n_samples)
        except TrainingError as error:
            text = f"loss {name!r} cannot be called for each sample by itself ({error})"
            raise TrainingError(
                f"{text}: let it take `reduction` or `sample_weight`, or give one number for each"
            ) from error
        yield part, kept


def _stack(each: Sequence[Any], name: str) -> Any:
    """Return what several calls gave as one tensor (sample,), or several by their names."""
    first = each[0]
    if isinstance(first, Tensor) and first.numel() == 1:
        return torch.stack([value.reshape(()) for value in each])
    if isinstance(first, Mapping):
        return {key: _stack([value[key] for value in each], name) for key in first}
    if isinstance(first, tuple):
        return tuple(_stack(list(values), name) for values in zip(*each, strict=True))
    if isinstance(first, int | float):
        return sum(each) / len(each)
    text = f"loss {name!r} must give one number for a sample, not {describe(first)}"
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
    """Return the output; nothing comes back through it where a loss divides by 0.

    The mean over a part of a batch in which nothing counts is 0/0, and adds nothing to the step
    (see `base/training/accumulation.py`); its gradient would be NaN all the same.
    """
    if number is SUM_REDUCTION or not torch.is_grad_enabled():
        return output

    def guarded(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        seen = tensor.view_as(tensor)
        is_none = torch.as_tensor(number == 0, device=tensor.device)
        seen.register_hook(lambda gradient: torch.where(is_none, 0.0, gradient))
        return seen

    return map_tensors(output, guarded)
