"""Losses from a config: a function, a module class or a module instance, each with a weight."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from base.config.durations import RunLength, parse_duration
from base.data.batch import (
    DEFAULT_RULES,
    Rules,
    Targets,
    extras_of,
    ids_of,
    in_full_precision,
    sample_weight_of,
    target_of,
    tensors_in,
)
from base.errors import ConfigError, KindlingError, Problem, TrainingError
from base.names.construction import build as build_named
from base.names.discovery import describe_error
from base.training.batch_arguments import DataParameters
from base.training.denominators import (
    SUM_REDUCTION,
    LossDenominator,
    OwnRule,
    Rule,
    changes_rule,
    denominator_of,
    denominator_rule,
    is_sum,
    is_unreduced,
    mark_denominator,
    mark_sample_losses,
    sample_losses_of,
    without_reduction,
)
from base.training.loss_terms import TOTAL, Term, as_terms, flatten_terms, is_of_terms, refuse_many
from base.training.metric_values import describe, describe_call
from base.training.sample_losses import (
    SAMPLE_WEIGHT,
    PerSampleLoss,
    as_weights,
    mask_empty_gradient,
    zero_where,
)
from base.training.selection import Selection, build_list
from base.training.shape_agreement import BroadcastError, ShapeAgreement

ONE_STEP = RunLength(steps_per_epoch=1, total_steps=1)


@dataclass(frozen=True)
class Ramp:
    """A weight that changes from one value to another as a function of the step; it has no state.

    ``cosine`` follows half a period, slow at both ends; ``step`` jumps after ``over`` steps.

    Args:
        over: the optimizer steps that the change takes.
        after: the optimizer steps before it begins.
    """

    start: float
    end: float
    over: int
    after: int = 0
    shape: str = "linear"

    def at(self, step: int) -> float:
        """Return the weight after ``step`` steps."""
        done = min(max((step - self.after) / self.over, 0.0), 1.0)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        elif self.shape == "step":
            done = float(done == 1)
        return (1 - done) * self.start + done * self.end


class Weight:
    """The attribute ``weight`` of a loss; records that it was read, for `weight_use.py`."""

    def __get__(self, loss: WeightedLoss | None, _: object = None) -> float | Ramp:
        if loss is None:
            return 1.0  # the default
        loss.weight_was_read = True
        weight: float | Ramp = vars(loss)["weight"]
        return weight

    def __set__(self, loss: WeightedLoss, weight: float | Ramp) -> None:
        vars(loss)["weight"] = weight


NOTHING: Mapping[str, Any] = MappingProxyType({})


class _Call(NamedTuple):
    """The arguments of one call of a loss.

    Args:
        args, named: all arguments for the function, by position and by name.
        after: the positional arguments after the output that are from the batch.
        found: the keyword arguments from the batch.
        given: all arguments of the caller except output and target, by name.
        weights: the weights of the samples; None weights them equally.
        is_per_sample: the loss of each sample is needed.
    """

    output: Any
    after: tuple[Any, ...]
    args: tuple[Any, ...]
    named: Mapping[str, Any] = NOTHING
    found: Mapping[str, Any] = NOTHING
    given: Mapping[str, Any] = NOTHING
    weights: Tensor | None = None
    is_per_sample: bool = False


@dataclass
class WeightedLoss:
    """One named loss: calling it returns the unweighted loss, ``weight`` scales it in the sum."""

    name: str
    function: Callable[..., Any]
    weight: Weight = Weight()
    selection: Selection = field(default_factory=Selection)
    agreement: ShapeAgreement | None = field(default=None, repr=False, compare=False)
    rules: Rules = field(default_factory=lambda: DEFAULT_RULES, repr=False)
    """The config's ``batch:`` section, which names the ids and weights of samples."""
    needs_sample_losses: bool = False
    """Whether a sampler needs the loss of each sample."""
    weight_was_read: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.takes = DataParameters.from_function(self.function)
        self.as_built = copy.deepcopy(self._whole_state())  # on the CPU: nothing has moved yet
        is_weighted = self.needs_sample_losses or self.rules["weight"] is not None
        self._takes_pairs = self.takes.is_plain and not is_weighted
        # The rule made before `to` keeps class weights on the CPU, for targets on the CPU.
        self._rule_on_cpu = denominator_rule(self.function)
        self._set_rule(self._rule_on_cpu)
        self._per_sample = PerSampleLoss(self.name, self.function)
        self.was_weighted = False  # by the weights of samples

    def __call__(self, *args: Any, batch: Any = None, **keywords: Any) -> Any:
        """Return the unweighted loss: a tensor with one number, or terms by name.

        With ``reduction="none"`` the caller reduces the result.

        Args:
            args: the output, the target, and further arguments of the function. The config's
                ``output`` and ``target`` select parts of them; of several targets, the function
                receives those that it has parameters for.
            batch: the batch, which holds the weights of samples and items that ``target`` may
                name; a function with a parameter ``batch`` receives it.
            keywords: further arguments; output and target may be given by keyword too.

        Raises:
            ConfigError: an argument that the function requires is missing.
            TrainingError: the loss raises an error, or does not return a number.
        """
        if self.agreement is None and self._takes_whole_pairs and len(args) == 2:
            output, target = args
            is_pair = isinstance(output, Tensor) and isinstance(target, Tensor) and not keywords
            if is_pair and not torch.is_autocast_enabled(output.device.type):
                return self._of_pair(output, target)
        return self._of_arguments(args, batch, keywords)

    def _of_arguments(self, args: tuple[Any, ...], batch: Any, keywords: dict[str, Any]) -> Any:
        """Return the loss of any arguments, selected, weighted or found in the batch."""
        call = self._bind_arguments(args, batch, keywords)
        counted = None
        if isinstance(self._rule, OwnRule) and not call.is_per_sample:
            counted = self._counted(call)
        if counted is not None:
            guarded = mask_empty_gradient(call.output, counted.number)
            has_output = len(call.args) > 0 and call.args[0] is call.output
            args = (guarded, *call.args[1:]) if has_output else call.args
            call = call._replace(output=guarded, args=args)
        try:
            value = self._value(call, batch)
        except (KindlingError, torch.OutOfMemoryError, BroadcastError):
            raise
        except Exception as error:
            raise self._failure(error, call.output, call.after, call.found) from error
        is_scalar = isinstance(value, Tensor) and not value.dim()
        if not is_scalar and isinstance(value, Tensor) and is_unreduced(self.function, call.given):
            return value
        if counted is None:
            counted = self._counted(call)
        if keywords and counted is not None and SAMPLE_WEIGHT in keywords:
            counted = counted._replace(is_of_call=True)
        if is_scalar:
            return mark_denominator(value, counted)
        if not isinstance(value, Tensor) and is_of_terms(value):
            return as_terms(self.name, value, self._scalar, counted)
        return mark_denominator(self._scalar(value, f"loss {self.name!r}"), counted)

    def _of_pair(self, output: Tensor, target: Tensor) -> Any:
        """Return the loss in the common case: of a whole output and target, without weights."""
        try:
            value = self.function(output, target)
        except (KindlingError, torch.OutOfMemoryError, BroadcastError):
            raise
        except Exception as error:
            raise self._failure(error, output, (target,)) from error
        is_scalar = isinstance(value, Tensor) and not value.dim()
        if not is_scalar and isinstance(value, Tensor) and is_unreduced(self.function, NOTHING):
            return value
        counted = None
        rule = self._pair_rule_on_cpu if target.is_cpu else self._pair_rule
        if rule is not None and (number := rule(output, target)) is not None:
            counted = LossDenominator(self.name, number, target.numel(), _address(target))
        if not is_scalar:
            if not isinstance(value, Tensor) and is_of_terms(value):
                return as_terms(self.name, value, self._scalar, counted)
            value = self._scalar(value, f"loss {self.name!r}")
        return mark_denominator(value, counted)

    def _failure(
        self,
        error: Exception,
        output: Any,
        after: tuple[Any, ...],
        found: Mapping[str, Any] = NOTHING,
    ) -> TrainingError:
        """Return what to raise for an error of the function: with its arguments."""
        text = f"loss {self.name!r} fails on {describe_call(output, after, found)}"
        text = f"{text}: {describe_error(error)}{_describe_classes(after, error)}"
        return TrainingError(text).with_trace_of(error)

    def _bind_arguments(self, args: tuple[Any, ...], batch: Any, keywords: dict[str, Any]) -> _Call:
        """Combine the arguments of the caller with those that the batch holds."""
        is_pair = self._takes_pairs and len(args) == 2 and not keywords
        if is_pair and not isinstance(args[1], Targets):  # the common case
            args = args if self.selection.is_whole else self.selection(args[0], args[1], batch)
            return _Call(args[0], args[1:], args)
        weights, keywords = self._sample_weights(batch, keywords)
        output, target, more = self._split(args, keywords)
        given = {**self.takes.named(more), **keywords} if more else keywords
        output, picked = self.selection(output, target, batch)
        who = (self.selection.where, f"loss {self.name!r}")
        extras = extras_of(batch, self.rules, self.takes.needed)
        after, found = self.takes.bind(picked, target, batch, given, who, extras)
        self.was_weighted = self.was_weighted or weights is not None
        takes_weights = SAMPLE_WEIGHT in found or SAMPLE_WEIGHT in keywords
        is_needed = self.needs_sample_losses and torch.is_grad_enabled()  # not in evaluation
        is_per_sample = is_needed or not (weights is None or takes_weights)
        has_output = bool(args) or not self.takes.is_by_name_only
        return _Call(
            output=output,
            after=after,
            args=(*((output,) if has_output else ()), *after, *more),
            named={**found, **keywords},
            found=found,
            given=given,
            weights=weights,
            is_per_sample=is_per_sample and not is_unreduced(self.function, given),
        )

    def _value(self, call: _Call, batch: Any) -> Any:
        """Call the function on the whole batch, or for each sample where they are weighted."""
        weights = call.weights
        if weights is None and not call.is_per_sample:
            return self._in_full_precision(self.function, call.args, call.named)
        args, named = call.args, call.named
        if call.is_per_sample:
            each = self._unit_weights(batch) if weights is None else weights
            known = (call.after, {**call.given, **call.found})
            return self._per_sample(self._in_full_precision, args, dict(named), each, known)
        value = self._in_full_precision(self.function, args, _replace_zero_weights(named, weights))
        if weights is None or is_unreduced(self.function, call.given):
            return value
        return zero_where(weights.sum() == 0, value)

    def _sample_weights(
        self, batch: Any, keywords: dict[str, Any]
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Return the weights of the samples, and the other keyword arguments."""
        if SAMPLE_WEIGHT in keywords:
            given = keywords[SAMPLE_WEIGHT]
            weights = None if given is None else as_weights(given, f"loss {self.name!r}")
            takes_it = SAMPLE_WEIGHT in self.takes.needed
            keywords = {k: v for k, v in keywords.items() if k != SAMPLE_WEIGHT or takes_it}
            return weights, keywords
        if self.rules["weight"] is None:
            return None, keywords
        if batch is None:
            text = f"loss {self.name!r} is called without its batch, which holds the weights of"
            text += " its samples: pass `batch=batch`, or `sample_weight=None` for an unweighted"
            raise TrainingError(f"{text} loss")
        return as_weights(sample_weight_of(batch, self.rules), "batch.weight"), keywords

    def _unit_weights(self, batch: Any) -> Tensor:
        """Return a weight of 1 for each sample of a batch."""
        if batch is None:
            text = f"loss {self.name!r} is called without its batch, which holds the ids of its"
            raise TrainingError(f"{text} samples: pass `batch=batch`")
        ids: Tensor = ids_of(batch, self.rules)
        return torch.ones(len(ids), device=ids.device)

    def _split(
        self, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[Any, Any, tuple[Any, ...]]:
        """Return output, target and the rest; remove output and target from the keywords."""
        if len(args) > 1:
            return args[0], args[1], args[2:]
        if self.takes.is_by_name_only and not args:
            return None, None, ()
        named = (("output", self.takes.first), ("target", self.takes.second))
        for place, name in named[len(args) :]:
            given = [each for each in (name, place) if each in keywords]
            if given and given[0] not in self.takes.needed:
                args = (*args, keywords.pop(given[0]))
            elif name:
                raise TrainingError(f"loss {self.name!r} is called without its {place}")
            else:
                args = (*args, None)  # the function has no such parameter
        return args[0], args[1], ()

    def _scalar(self, value: Any, whose: str) -> Tensor:
        """Return a tensor without dimensions."""
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            advice = "; return several as a dict" if isinstance(value, list | tuple) else ""
            raise TrainingError(f"{whose} must return a tensor of one number, not {found}{advice}")
        return value.reshape(()) if value.dim() else value  # `reshape` adds a node to the graph

    def counted_in(self, batch: Any, rules: Mapping[str, Any]) -> LossDenominator | None:
        """Return the denominator of the loss on a batch, from its target; None if unknown.

        It does not hold for a trainer that passes other targets than the batch's to its losses.
        """
        try:
            target = target_of(batch, rules)
            picked = self.selection.pick_target(target, batch)
            weights, _ = self._sample_weights(batch, {})
            extras = extras_of(batch, self.rules, self.takes.needed)
        except (ConfigError, TrainingError):
            return None  # the step itself raises
        after, found = self.takes.bind(picked, target, batch, extras=extras)
        return self._counted(_Call(None, after, after, found, found, weights=weights))

    def _counted(self, call: _Call) -> LossDenominator | None:
        """Return the denominator of the loss."""
        rule: Any = self._rule
        found, given = call.found, call.given
        target = call.after[0] if call.after else None
        if call.weights is not None:
            counted = self._counted_by_weight(target, {**given, **found}, call.weights)
            is_of_call = rule is not None and changes_rule(rule, given)
            return counted and counted._replace(is_of_call=is_of_call)
        if rule is None:
            return None
        is_own = isinstance(rule, OwnRule)
        if not (isinstance(target, Tensor) or is_own):  # a sum needs no target
            return (
                LossDenominator(self.name, SUM_REDUCTION, 0)
                if is_sum(self.function, given)
                else None
            )
        n_elements, address, is_on_cpu = _extent(target)
        if is_on_cpu and self._rule_on_cpu is not None:
            rule = self._rule_on_cpu
        is_of_call = False
        if found or given:
            is_of_call = changes_rule(rule, given)
            rule = functools.partial(rule, **found, **given)
        if is_own:
            number = self._own_denominator(functools.partial(rule, call.output, target), target)
        else:
            number = rule(call.output, target)
        if number is None:
            return None
        return LossDenominator(self.name, number, n_elements, address, is_of_call)

    def _counted_by_weight(
        self, target: Any, given: Mapping[str, Any], weights: Tensor
    ) -> LossDenominator | None:
        """Return the denominator of the weighted mean."""
        if SAMPLE_WEIGHT not in given:
            number: Any = self._per_sample.counted(target, given, weights)
        elif is_sum(self.function, given):
            number = SUM_REDUCTION
        elif isinstance(rule := self._rule, OwnRule):
            number = self._own_denominator(lambda: rule(None, target, **given), target)
        else:  # the function applies the weights itself
            number = weights.sum()
        if number is None:
            return None
        n_elements, address, _ = _extent(target)
        return LossDenominator(self.name, number, n_elements, address)

    def _own_denominator(self, count: Callable[[], Any], target: Any) -> Any:
        """Return the denominator that a loss of the project computes for a target."""
        try:
            number = count()
        except Exception as error:
            text = f"the denominator of loss {self.name!r} fails on target {describe(target)}"
            raise TrainingError(f"{text}: {describe_error(error)}") from error
        if isinstance(number, Tensor) and number.numel() == 1:
            return number.reshape(())
        if number is None or number is SUM_REDUCTION or isinstance(number, int | float | np.number):
            return number
        found = describe(number) if isinstance(number, Tensor) else repr(number)
        raise TrainingError(
            f"the denominator of loss {self.name!r} must be one number, not {found}"
        )

    def _in_full_precision(
        self, function: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> Any:
        """Call a function with autocast disabled: squares overflow fp16, and bf16 rounds a sum."""
        first = args[0] if args else None
        if not isinstance(first, Tensor):
            first = next(tensors_in((args, keywords)), None)
        if first is None or not torch.is_autocast_enabled(first.device.type):
            if self.agreement is None:
                return function(*args, **keywords)
            return self._call(function, args, keywords)
        with torch.autocast(first.device.type, enabled=False):
            return self._call(function, in_full_precision(args), in_full_precision(keywords))

    def _call(self, function: Any, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """Call a function; on the first batches, check the shapes of output and target."""
        if self.agreement is None:
            return function(*args, **keywords)
        return self.agreement.call(self.selection.where, function, *args, **keywords)

    def weight_at(self, step: int | None) -> float:
        """Return the weight after ``step`` steps; None returns the final weight."""
        weight = self.weight
        if not isinstance(weight, Ramp):
            return weight
        return weight.end if step is None else weight.at(step)

    @property
    def is_moving(self) -> bool:
        """Whether the weight changes during training."""
        return isinstance(vars(self)["weight"], Ramp)

    @property
    def is_weighted(self) -> bool:
        """Whether the weight in the config differs from 1."""
        return bool(vars(self)["weight"] != 1)

    def counts_at(self, step: int) -> bool:
        """Return whether the weight after ``step`` steps is not 0, without recording a read."""
        weight = vars(self)["weight"]
        return bool(weight.at(step) if isinstance(weight, Ramp) else weight)

    def to(self, device: torch.device | str) -> WeightedLoss:
        """Move the tensors of the loss, such as class weights."""
        if isinstance(self.function, nn.Module):
            self.function.to(device)
        elif isinstance(self.function, functools.partial):
            keywords = {
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in self.function.keywords.items()
            }
            self.function = functools.partial(self.function.func, **keywords)
        self._set_rule(denominator_rule(self.function))
        self._per_sample = PerSampleLoss(self.name, self.function)
        return self

    def follow_weights(self) -> None:
        """Update the denominator rule after the class weights of the loss were replaced."""
        rule = self._rule_on_cpu = denominator_rule(self.function)
        if isinstance(rule, functools.partial):
            on_cpu = {k: v.cpu() for k, v in rule.keywords.items() if isinstance(v, Tensor)}
            self._rule_on_cpu = functools.partial(rule, **on_cpu)
        self._set_rule(rule)

    def _set_rule(self, rule: Rule | None) -> None:
        """Set the denominator rule, and what it is for a pair of output and target alone."""
        self._rule = rule
        is_own = isinstance(rule, OwnRule)
        self._takes_whole_pairs = self._takes_pairs and self.selection.is_whole and not is_own
        self._pair_rule = without_reduction(rule)
        self._pair_rule_on_cpu = without_reduction(self._rule_on_cpu)

    @property
    def needs_whole_batches(self) -> bool:
        """Whether the loss declares that it compares the samples of a batch with each other."""
        function = getattr(self.function, "func", self.function)
        return bool(getattr(function, "needs_whole_batches", False))

    @property
    def has_state(self) -> bool:
        return bool(self._whole_state())

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors that changed since the loss was built; the config gives the others."""
        return {
            name: value
            for name, value in self._whole_state().items()
            if not _is_same(value, self.as_built.get(name))
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if isinstance(self.function, nn.Module):
            whole = {**copy.deepcopy(self.as_built), **state}
            for name in whole.keys() ^ self._whole_state().keys():  # a buffer that was None
                owner, _, key = name.rpartition(".")
                buffers = self.function.get_submodule(owner)._buffers
                if key in buffers:
                    buffers[key] = whole[name].clone() if name in whole else None
            self.function.load_state_dict(whole)
            self.follow_weights()

    def _whole_state(self) -> dict[str, Any]:
        return self.function.state_dict() if isinstance(self.function, nn.Module) else {}


def _replace_zero_weights(keywords: Mapping[str, Any], weights: Tensor | None) -> Mapping[str, Any]:
    """Replace weights that are all 0 by ones, for a loss that takes the weights itself."""
    if weights is None or SAMPLE_WEIGHT not in keywords:
        return keywords
    ones = torch.ones_like(weights)
    return {**keywords, SAMPLE_WEIGHT: torch.where(weights.sum() == 0, ones, weights)}


def _extent(target: Any) -> tuple[int, int, bool]:
    """Return the number of entries of a target, its address, and whether it is on the CPU."""
    if isinstance(target, Tensor):
        return target.numel(), _address(target), target.is_cpu
    tensors = list(tensors_in(target))
    address = _address(tensors[0]) if tensors else 0
    return sum(each.numel() for each in tensors), address, all(each.is_cpu for each in tensors)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # it has no storage, as inside torch.func
        return 0


def _is_same(value: Any, other: Any) -> bool:
    are_tensors = isinstance(value, Tensor) and isinstance(other, Tensor)
    return are_tensors and torch.equal(value.cpu(), other)


def terms(
    losses: Mapping[str, Any], weighted: Mapping[str, WeightedLoss], step: int | None = None
) -> dict[str, Tensor]:
    """Return the terms of the sum: each loss times its weight after ``step`` steps.

    A term of weight 0 is left out unless all weights are 0, so that it costs no backward pass and
    its non-finite values have no effect. A ``"loss"`` of the trainer is the only term.

    Args:
        step: the number of steps made; None takes the final weights.

    Raises:
        TrainingError: a loss is not a single number.
    """
    found = flatten_terms(losses, weighted)
    return weigh_terms({k: it for k, it in found.items() if it.is_minimised}, weighted, step)


def lone_total(losses: Any, weighted: Mapping[str, WeightedLoss]) -> Tensor | None:
    """Return the sum in the common case of one loss with one number; None in all others."""
    if type(losses) is not dict or len(losses) != 1:
        return None
    ((name, value),) = losses.items()
    if name == TOTAL or not isinstance(value, Tensor) or value.numel() != 1:
        return None
    if (loss := weighted.get(name)) is None or getattr(value, "term_of", name) != name:
        return None
    weight = loss.weight
    if weight == 1:
        return value
    return None if isinstance(weight, Ramp) else scale_loss(value, weight)


def weigh_terms(
    found: Mapping[str, Term], weighted: Mapping[str, WeightedLoss], step: int | None
) -> dict[str, Tensor]:
    """Return `terms` of flattened terms that are minimised."""
    weights = {}
    for name, term in found.items():
        refuse_many(name, term.value)
        loss = weighted.get(term.loss)
        weights[name] = 1.0 if loss is None else loss.weight_at(step)
    parts = {}
    for name, weight in weights.items():
        value = found[name].value
        if weight == 1:  # a product would be one more operation, forward and backward
            parts[name] = value
        elif weight != 0 or not any(weights.values()):
            parts[name] = scale_loss(value, weight)
    return parts


def scale_loss(loss: Tensor, weight: float) -> Tensor:
    """Return a loss times its weight, with its denominator and sample losses."""
    of_samples = sample_losses_of(loss)
    product = mark_denominator(loss * weight, denominator_of(loss))
    return mark_sample_losses(product, None if of_samples is None else of_samples * weight)


def build_losses(
    sections: Sequence[Mapping[str, Any]],
    length: RunLength = ONE_STEP,
    build: Callable[..., Any] = build_named,
    rules: Rules = DEFAULT_RULES,
    needs_sample_losses: bool = False,
) -> dict[str, WeightedLoss]:
    """Build the losses of the config's ``loss`` list (normal form), by name.

    Args:
        length: the length of the training, for weights that change over a duration.
        rules: the config's ``batch:`` section.
        needs_sample_losses: whether a sampler needs the loss of each sample.

    Raises:
        ConfigError: a name is taken or unknown, arguments do not fit, or a loss has trainable
            parameters. It reports all such errors together.
    """

    def steps(duration: str) -> int:
        return parse_duration(duration).in_steps(length)

    def make(section: Mapping[str, Any], where: str) -> WeightedLoss:
        name, weight = section["name"], section["weight"]
        if name == "loss" and (len(sections) > 1 or weight != 1):
            raise ConfigError(
                [Problem(f"{where}.name", f"{name!r} is the name of the sum of all losses")]
            )
        function = build("loss", section, where=where)
        _check(function, section["type"], where)
        if isinstance(weight, Mapping):
            after = 0 if weight["after"] is None else steps(weight["after"])
            ends = (weight["from"], weight["to"])
            weight = Ramp(*ends, steps(weight["over"]), after, weight["shape"])
        selection = Selection.from_section(section, where)
        loss = WeightedLoss(name, function, weight, selection, None, rules, needs_sample_losses)
        if loss.needs_whole_batches and (needs_sample_losses or rules["weight"] is not None):
            text = f"{name} compares the samples of a batch with each other and has no loss of each"
            text += " sample, which `batch.weight` and a sampler that learns from losses need"
            raise ConfigError([Problem(where, text)])
        return loss

    return build_list("loss", "loss", sections, make)


def _check(function: Any, type_name: str, where: str) -> None:
    """Raise ConfigError for an object that is not a loss, or has trainable parameters."""
    if not callable(function):
        text = f"{type_name} is not a loss: it cannot be called with (output, target)"
        raise ConfigError([Problem(where, text)])
    named = function.named_parameters() if isinstance(function, nn.Module) else ()
    trainable = [name for name, parameter in named if parameter.requires_grad]
    if trainable:
        text = f"no optimizer trains {', '.join(trainable[:5])} of {type_name}: move trainable"
        text += " parameters to the model, or freeze them with `requires_grad_(False)`"
        raise ConfigError([Problem(where, text)])


def _describe_classes(after: tuple[Any, ...], error: Exception) -> str:
    """Return the range of classes in a target that exceeds the model's outputs."""
    target = after[0] if after else None
    if "out of bounds" not in str(error) or not isinstance(target, Tensor):
        return ""
    low, high = (int(x) for x in torch.aminmax(target))
    advice = "the first class is 0" if low < 0 else "set n_classes, one output for each class"
    return f" (targets are {low} to {high}: {advice}; or correct the labels)"
