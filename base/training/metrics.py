"""One interface for all metrics: functions, the project's classes and torchmetrics' objects."""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType, SimpleNamespace
from typing import Any, final

import torch
from torch import Tensor, nn

from base.checkpoint.object_state import get_object_state, set_object_state
from base.data.batch import DEFAULT_RULES, WEIGHT, Rules, Targets, count_samples, extras_of
from base.errors import ConfigError, Problem, TrainingError
from base.names.construction import build as build_named
from base.names.discovery import describe_error
from base.names.final_methods import refuse_overridden
from base.training.batch_arguments import DataParameters
from base.training.losses import WeightedLoss
from base.training.metric_defaults import fill_from_losses
from base.training.metric_merging import HOW_TO_MERGE, can_merge, disable_sync, merge_states
from base.training.metric_values import (
    as_result,
    describe_call,
    detached,
    get_device,
    interleave,
    join,
    on_cpu,
)
from base.training.sample_losses import as_weights
from base.training.selection import Selection, build_list
from base.training.shape_agreement import ShapeAgreement

Result = float | dict[str, float] | Tensor


class Metric(ABC):
    """``update`` for each batch, ``compute`` at the end, ``reset`` before the next epoch."""

    agreement: ShapeAgreement | None = None
    """Checks the shapes of outputs and targets on the first batches."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_overridden(cls, {"update": "override _update", "compute": "override _compute"})

    def __init__(self, name: str, takes: DataParameters | None = None) -> None:
        self.name = name
        self.selection = Selection()
        self.takes = takes or DataParameters()
        self.rules: Rules = DEFAULT_RULES  # the config's ``batch:`` section

    @final
    def update(
        self, output: Any, target: Any, batch: Any = None, n_samples: int | None = None
    ) -> None:
        """Update the metric with a batch; errors are raised as TrainingError with its name.

        The config's ``output`` and ``target`` select parts of both (see `Selection`). Of several
        targets, the batch, and the ids and weights of its samples, the metric receives those that
        it has parameters for.

        Args:
            n_samples: the number of samples in the batch; None counts the targets.
        """
        picked = target
        if not self.selection.is_whole:
            output, picked = self.selection(output, target, batch)
        after: tuple[Any, ...] = (picked,)
        found: dict[str, Any] = {}
        if isinstance(target, Targets) or not self.takes.is_plain:
            who = (self.selection.where, f"metric {self.name!r}")
            extras = extras_of(batch, self.rules, self.takes.needed)
            after, found = self.takes.bind(picked, target, batch, who=who, extras=extras)
        try:
            self._update((detached(output), *after), found, n_samples)
        except ConfigError:
            raise
        except Exception as error:
            given = describe_call(output, after, found)
            text = f"metric {self.name!r} fails on {given}: {describe_error(error)}"
            raise TrainingError(text).with_trace_of(error) from error

    @final
    def compute(self) -> Result:
        """Return a number, numbers by name, or a 2-D tensor; NaN before the first batch."""
        try:
            return as_result(self._compute())
        except (ConfigError, TrainingError):  # the latter from batches that were held
            raise
        except Exception as error:
            text = f"metric {self.name!r} cannot be computed: {describe_error(error)}"
            raise TrainingError(text).with_trace_of(error) from error

    @final
    def whole(self, states: Sequence[Mapping[str, Any]]) -> Metric:
        """Return a copy of the metric that holds the samples of all processes.

        Args:
            states: the `state_dict` of the metric in each process, in rank order.

        Raises:
            TrainingError: the states cannot be merged.
        """
        other = copy.copy(self)
        try:
            other._take(states)
        except Exception as error:
            text = f"metric {self.name!r} cannot be merged: {describe_error(error)}"
            raise TrainingError(text).with_trace_of(error) from error
        return other

    @final
    def merged(self, states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the state of all processes; the metric keeps its own.

        To resume with another number of processes, rank 0 loads it and the others start empty.

        Args:
            states: the `state_dict` of the metric in each process, in rank order.
        """
        return self.whole(states).state_dict()

    def end_batch(self) -> None:  # noqa: B027  (only some metrics count batches)
        """End a batch of all processes. This one may have passed it in parts, or none of it."""

    @abstractmethod
    def reset(self) -> None:
        """Reset the metric to its initial state."""

    @abstractmethod
    def _take(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Replace the accumulated values by those of all processes, and change no object."""

    @abstractmethod
    def _update(
        self, args: tuple[Any, ...], keywords: dict[str, Any], n_samples: int | None
    ) -> None:
        """Update the metric with the output and target, and with keyword arguments."""

    @abstractmethod
    def _compute(self) -> Any: ...

    def _call(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        """Call a function of the metric, with shape checks on the first batches."""
        if self.agreement is None:
            return function(*args, **keywords)
        is_pure = not isinstance(self, ObjectMetric)
        call = self.agreement.call_function if is_pure else self.agreement.call
        return call(self.selection.where, function, *args, **keywords)

    def state_dict(self) -> dict[str, Any]:
        """Return the accumulated values as tensors and plain data."""
        state = get_object_state(self)
        del state["selection"], state["takes"], state["rules"]  # from the config and the function
        state.pop("agreement", None)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``state_dict``."""
        set_object_state(self, state)


def mean_of_counts(
    counts: Callable[..., Any] | None = None, *, by_sample: bool = False
) -> Callable[..., Any]:
    """Decorate a function that returns (sum, count), so that calling it returns the mean.

    During training, sums and counts are accumulated separately over an epoch.

    Args:
        by_sample: whether both are sums of integers over the samples, each of which counts the
            same whatever else is in its batch. Small batches are then counted several at a time.
    """
    if counts is None:
        return functools.partial(mean_of_counts, by_sample=by_sample)

    @functools.wraps(counts)
    def mean(*args: Any, **kwargs: Any) -> Any:
        total, count = counts(*args, **kwargs)
        return total / count

    mean.counts, mean.by_sample = counts, by_sample  # type: ignore[attr-defined]
    return mean


def _counts_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of (sum, count) behind one that `mean_of_counts` decorated."""
    if not isinstance(function, functools.partial):
        return getattr(function, "counts", function)
    return functools.partial(_counts_of(function.func), *function.args, **function.keywords)


def _is_by_sample(function: Callable[..., Any]) -> bool:
    """Return whether a function counts each sample by itself, as `mean_of_counts` was told."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "by_sample", False) is True


HELD_BATCHES, HELD_BYTES = 16, 1 << 16  # batches that are counted at once; of one output


def update_all(
    metrics: Mapping[str, Metric], output: Any, target: Any, batch: Any, n_samples: int | None
) -> None:
    """Update metrics with a batch; those that may count several batches at once hold a copy."""
    pair, others = None, []
    for metric in metrics.values():
        if isinstance(metric, SampleMean) and metric.may_hold(output, target):
            pair = pair or (output.detach().clone(), target.detach().clone())
            metric.hold(pair)
        else:
            others.append(metric)
    if others:
        with torch.no_grad():
            for metric in others:
                metric.update(output, target, batch, n_samples)


class SampleMean(Metric):
    """The mean of a function over all samples of an epoch.

    The function returns the mean over the samples of a batch, or ``(sum, count)`` if it counts
    something other than samples, such as words or pixels that are not ignored.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.function = _counts_of(function)
        super().__init__(name, DataParameters.from_function(self.function))
        self.needs_cpu = False
        is_own = type(self) is SampleMean  # a subclass may read the sums in other methods
        self._is_by_sample = is_own and self.takes.is_plain and _is_by_sample(function)
        self._held: list[tuple[Tensor, Tensor]] = []  # outputs and targets not counted yet
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | float = 0.0
        self.n_samples: Tensor | float = 0  # or the sum of the counts
        self._held = []

    def may_hold(self, output: Any, target: Any) -> bool:
        """Return whether this batch may be counted later, together with others.

        Between two steps an operation on a small tensor finds cold caches, and takes many times
        as long as in a loop of its own (docs/decisions/0023).
        """
        return (
            self._is_by_sample
            and self.agreement is None
            and type(output) is Tensor
            and type(target) is Tensor
            and self.selection.is_whole
            and output.nbytes <= HELD_BYTES
            and output.shape[:1] == target.shape[:1] != ()
        )

    def hold(self, pair: tuple[Tensor, Tensor]) -> None:
        """Hold copies of a batch's output and target, to be counted with others."""
        if self._held and _form(self._held[-1]) != _form(pair):
            self._count_held()
        self._held.append(pair)
        if len(self._held) == HELD_BATCHES:
            self._count_held()

    def _count_held(self) -> None:
        if self._held:
            outputs, targets = zip(*self._held, strict=True)
            with torch.no_grad():
                self.update(torch.cat(outputs), torch.cat(targets))
            self._held = []  # kept after an error

    def state_dict(self) -> dict[str, Any]:
        """Return the accumulated values as tensors and plain data."""
        self._count_held()
        state = super().state_dict()
        del state["_held"], state["_is_by_sample"]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``state_dict``."""
        self._held = []
        super().load_state_dict(state)

    def _update(
        self, args: tuple[Any, ...], keywords: dict[str, Any], n_samples: int | None
    ) -> None:
        value = self._value(args, keywords)
        if isinstance(value, tuple):
            total, count = value
            self.total = _plus(self.total, total)
            is_number = type(count) is int
            self.n_samples = self.n_samples + count if is_number else _plus(self.n_samples, count)
            return
        if WEIGHT in keywords:  # a weighted mean
            weight = as_weights(keywords[WEIGHT], f"metric {self.name!r}").sum()
            value = torch.as_tensor(value, device=weight.device)
            self.total = _plus(self.total, torch.where(weight == 0, 0.0, value * weight))
            self.n_samples = _plus(self.n_samples, weight)
            return
        n_samples = count_samples(args) if n_samples is None else n_samples
        self.total = _plus(self.total, value, n_samples)
        self.n_samples = self.n_samples + n_samples

    def _value(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call the function; pass copies on the CPU if it uses numpy."""
        if not self.needs_cpu:
            try:
                if self.agreement is None:
                    return self.function(*args, **keywords)
                return self._call(self.function, *args, **keywords)
            except TypeError as error:
                if "numpy" not in str(error) and "ScalarType" not in str(error):
                    raise
                self.needs_cpu = True
        return self._call(self.function, *on_cpu(args), **on_cpu(keywords))

    def _take(self, states: Sequence[Mapping[str, Any]]) -> None:
        self._held = []  # in the states
        parts = [_attributes_in(state) for state in states]
        self.total = sum((part.total for part in parts), start=0.0)
        self.n_samples = sum((part.n_samples for part in parts), start=0)
        self.needs_cpu = any(part.needs_cpu for part in parts)

    def _compute(self) -> Any:
        self._count_held()
        return self.total / self.n_samples if self.n_samples else float("nan")


def _form(pair: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
    """Return what must be equal in two batches for them to be concatenated as they are."""
    one, other = pair
    return one.shape[1:], other.shape[1:], one.dtype, other.dtype, one.device, other.device


def _attributes_in(state: Mapping[str, Any]) -> SimpleNamespace:
    """Return the attributes in the state of an object; all tensors are on the CPU."""
    attributes = SimpleNamespace()
    set_object_state(attributes, state)
    return attributes


def _plus(total: Tensor | float, value: Any, times: int = 1) -> Tensor | float:
    """Add a number to a sum, without synchronizing with the device."""
    if not isinstance(value, Tensor):
        return total + times * (value if isinstance(value, int) else float(value))
    if not value.dim():
        if isinstance(total, Tensor) and total.device == value.device:
            return torch.add(total, value.detach(), alpha=times)
    elif value.numel() != 1:
        raise ValueError(f"it returns shape {tuple(value.shape)}, not one number")
    # The sum stays on the device, in double precision if supported.
    dtype = torch.float32 if value.device.type == "mps" else torch.float64
    if isinstance(total, Tensor):
        total = total.to(value.device, dtype)
    else:  # made on the device: a copy from the CPU would wait for it
        total = torch.full((), total, dtype=dtype, device=value.device)
    return torch.add(total, value.detach().reshape(()), alpha=times)


class WholeEpoch(Metric):
    """A function called once on all outputs and targets of an epoch, collected on the CPU."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        super().__init__(name, DataParameters.from_function(function))
        self.function = function
        self.reset()

    def reset(self) -> None:
        self.outputs: list[Any] = []
        self.targets: list[Any] = []
        self.keywords: list[dict[str, Any]] = []
        self.sizes: list[int] = []
        """The number of samples that this process has of each batch, 0 if it has none.

        Batches without a size precede the others: they are whole, of one process or merged from
        several before a resume.
        """
        self.n_closed, self.n_open_samples = 0, 0  # values of ended batches, samples after them

    def _update(
        self, args: tuple[Any, ...], keywords: dict[str, Any], n_samples: int | None
    ) -> None:
        output, *targets = on_cpu(args)
        self.outputs.append(output)
        self.targets += targets  # empty if the function takes no target
        self.keywords.append(on_cpu(keywords))
        if n_samples is None:
            with suppress(ConfigError):
                n_samples = count_samples(args)
        self.n_open_samples += n_samples or 1

    def end_batch(self) -> None:
        """Join the parts of a batch, so that it can be put in order with those of other ranks."""
        self.sizes.append(self.n_open_samples)
        first, self.n_open_samples = self.n_closed, 0
        for values in (self.outputs, self.targets, self.keywords):
            if len(values) - first > 1:
                values[first:] = [join(values[first:])]
        self.n_closed = len(self.outputs)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``state_dict``; those of earlier versions have no sizes."""
        added = {"sizes": [], "n_open_samples": 0, "n_closed": len(state["outputs"])}
        super().load_state_dict({**added, **state})

    def _take(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Put the samples back in the order of the epoch."""
        parts = [_attributes_in({"sizes": [], **state}) for state in states]
        if len({len(part.sizes) for part in parts}) > 1:
            counts = ", ".join(str(len(part.sizes)) for part in parts)
            text = f"the processes measured {counts} batches, in rank order: call `measure` for"
            raise ValueError(f"{text} each batch, whatever the rank")
        batches = [_batches_of(part) for part in parts]
        whole = []
        for part, own in zip(parts, batches, strict=True):
            n_own = len(part.sizes) - part.sizes.count(0)
            whole += [next(own) for _ in range(len(part.outputs) - n_own)]
        for sizes in zip(*(part.sizes for part in parts), strict=True):
            held = [(next(own), size) for own, size in zip(batches, sizes, strict=True) if size]
            if held:
                whole.append(interleave(*zip(*held, strict=True)))
        self.reset()
        self.outputs = [batch["output"] for batch in whole]
        self.targets = [batch["target"] for batch in whole if "target" in batch]
        self.keywords = [batch["keywords"] for batch in whole]
        self.n_closed = len(self.outputs)

    def _compute(self) -> Any:
        if not self.outputs:
            return float("nan")
        args = [join(each) for each in (self.outputs, self.targets) if each]
        return self._call(self.function, *args, **join(self.keywords or [{}]))


def _batches_of(part: SimpleNamespace) -> Iterator[dict[str, Any]]:
    """Yield what a process kept of each batch."""
    for number, (output, keywords) in enumerate(zip(part.outputs, part.keywords, strict=True)):
        target = {"target": part.targets[number]} if part.targets else {}
        yield {"output": output, **target, "keywords": keywords}


class ObjectMetric(Metric):
    """An object with ``update(output, target)``, ``compute()`` and ``reset()``.

    For several processes it also needs ``merge(states)``, unless it is of torchmetrics.
    """

    def __init__(self, name: str, instance: Any) -> None:
        own = getattr(instance, "data_parameters", None)
        super().__init__(name, own or DataParameters.from_function(instance.update))
        self.instance = instance
        self.n_updates = 0
        self.parts: list[Mapping[str, Any]] = []
        """States of the object in several processes, merged in `compute`; see `merged`."""
        self._unplaced: Mapping[str, Any] | None = {}

    def reset(self) -> None:
        self.instance.reset()
        self.n_updates, self.parts = 0, []

    def _update(
        self, args: tuple[Any, ...], keywords: dict[str, Any], n_samples: int | None
    ) -> None:
        if self._unplaced is not None:
            self._place(get_device(args[0]))
        self._call(self.instance.update, *args, **keywords)
        self.n_updates += 1

    def _place(self, device: torch.device) -> None:
        """Move the object, and a state loaded on the CPU, to the device of the batches."""
        if isinstance(self.instance, nn.Module):
            self.instance.to(device)
        set_object_state(self.instance, self._unplaced or {}, device)
        self._unplaced = None

    def _take(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Keep the parts of the processes that have samples; `_compute` merges them."""
        self.n_updates, self.parts = 0, []
        for state in states:
            self.parts += state.get("parts", [])
            self.parts += [state["instance"]] if state["n_updates"] else []
        self.instance, self._unplaced = copy.deepcopy(self.instance), {}
        self.instance.reset()

    def _compute(self) -> Any:
        if not (self.n_updates or self.parts):
            return float("nan")
        instance = self.instance
        if self.parts:
            own = [get_object_state(instance)] if self.n_updates else []
            instance = merge_states(instance, [*self.parts, *own])
        disable_sync(instance)
        return self._call(instance.compute)

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes of the object and the number of updates."""
        state = {"n_updates": self.n_updates, "instance": get_object_state(self.instance)}
        return {**state, "parts": self.parts} if self.parts else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.n_updates, self._unplaced = state["n_updates"], state["instance"]
        self.parts = list(state.get("parts", []))
        set_object_state(self.instance, state["instance"])


def cannot_merge(metrics: Mapping[str, Metric]) -> list[Problem]:
    """Return a problem for each metric that several processes cannot compute together."""
    return [
        Problem(
            metric.selection.where, f"metric {name!r}: {HOW_TO_MERGE.format(type(it).__name__)}"
        )
        for name, metric in metrics.items()
        if isinstance(metric, ObjectMetric) and not can_merge(it := metric.instance)
    ]


def build_metrics(
    sections: Sequence[Mapping[str, Any]],
    build: Callable[..., Any] = build_named,
    losses: Mapping[str, WeightedLoss] = MappingProxyType({}),
    has_outputs: bool = True,
    rules: Rules = DEFAULT_RULES,
) -> dict[str, Metric]:
    """Build the metrics of the config's ``metrics`` list (normal form), by name.

    Args:
        losses: the losses that give metrics their defaults, see `fill_from_losses`.
        has_outputs: whether metrics and losses receive the same outputs.
        rules: the config's ``batch:`` section.

    Raises:
        ConfigError: a name is taken or unknown, or arguments do not fit. It reports all such
            errors together.
    """

    def make(section: Mapping[str, Any], where: str) -> Metric:
        if section["name"] == "loss":
            raise ConfigError(
                [Problem(f"{where}.name", "'loss' is the name of the loss; choose another")]
            )
        if losses:
            section = fill_from_losses(section, where, losses, has_outputs, rules)
        metric = _adapt(section["name"], build("metric", section, where=where), section, where)
        metric.selection, metric.rules = Selection.from_section(section, where), rules
        return metric

    return build_list("metric", "metrics", sections, make)


def _adapt(name: str, built: Any, section: Mapping[str, Any], where: str) -> Metric:
    missing = [verb for verb in ("update", "compute", "reset") if not hasattr(built, verb)]
    if not missing:
        return ObjectMetric(name, built)
    if not callable(built):
        text = f"{section['type']} is not a metric: it has no {missing[0]}() and cannot be called"
        raise ConfigError([Problem(where, text)])
    kind = WholeEpoch if section["over"] == "epoch" else SampleMean
    return kind(name, built)
