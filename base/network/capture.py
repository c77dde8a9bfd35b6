"""The ``capture:`` section: records activations and gradients of modules every n steps.

A record covers the whole accumulation window of its step, like a single batch, without the loss
scale. Hooks are registered only for due steps, and do not change any values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from base.config.durations import RunLength, parse_duration
from base.errors import ConfigError, Problem
from base.network.gradients import at_least_float32
from base.network.patterns import NoMatch, match_modules, match_parameters
from base.system.contexts import NO_CONTEXT
from logger.writers import Histogram, Writer

MAX_SLICES = 64
BUCKETS = [1e-12 * 1.1**power for power in range(1215)]  # TensorBoard's, up to float32's largest
LIMITS = [-limit for limit in reversed(BUCKETS)] + BUCKETS

Rules = Sequence[Mapping[str, Any]]


class Capture:
    """Records the activations and gradients that the rules select. Rules are cumulative.

    A trainer calls, around the batches of a step::

        capture.start(step)                     # before each batch; the first of a due step counts
        with capture.backward(scaler): ...      # around each backward pass
        capture.read_parameters(mine, scaler)   # before an optimizer steps, with its parameters
        capture.finish(writers)                 # after the step
        capture.remove()                        # after an error or a stop

    A record holds all forward calls of a module within the step, and all backward passes. Gradients
    through one output add up, as in ``.grad``; those through other outputs are kept separately.
    It excludes gradients that a train step computes itself, as for a penalty, and activations that
    checkpointing recomputes. An output that is a view and is overwritten in place has no recorded
    gradient. For a module that returns its input, the gradient is that of the input.

    Args:
        rules: the config's section, in its normal form.

    Raises:
        ConfigError: a rule matches nothing, or selects modules of a compiled model.
    """

    def __init__(self, rules: Rules, model: nn.Module, length: RunLength) -> None:
        self._model = model
        self._rules: list[tuple[int, list[str], Mapping[str, Any]]] = []
        problems: list[Problem] = []
        for number, rule in enumerate(rules):
            n_steps = parse_duration(rule["every"]).in_steps(length)
            try:
                self._rules.append((n_steps, _names(model, rule), rule))
            except NoMatch as error:
                problems.append(Problem(f"capture.{number}.match", str(error)))
        if problems:
            raise ConfigError(problems)

        self.is_used = bool(self._rules)
        self.is_recording = False
        """Whether the current step is recorded."""
        self._step, self._call_numbers = 0, count()
        self._scaler: torch.amp.GradScaler | None = None  # of the current backward pass
        self._handles: list[Any] = []
        self._wanted: dict[tuple[str, str], set[str]] = {}
        # The recorded parts of a value, by format, tag and call number.
        self._records: dict[str, dict[str, dict[int, Tensor]]] = {}

    def start(self, step: int) -> None:
        """Start the record of a step if it is due. Further calls in the same step do nothing."""
        if not self._rules or step == self._step:
            return
        self.remove()
        self._step = step
        for n_steps, names, rule in self._rules:
            for name in names if step % n_steps == 0 else ():
                self._wanted.setdefault((name, rule["of"]), set()).update(rule["record"])
        self.is_recording = bool(self._wanted)
        for name in dict.fromkeys(name for name, of in self._wanted if of != "parameters"):
            module = self._model.get_submodule(name)
            self._handles.append(module.register_forward_hook(partial(self._record_call, name)))

    def backward(self, scaler: torch.amp.GradScaler) -> AbstractContextManager[None]:
        """Record the gradients of the backward pass in this block, without the loss scale."""
        return self._backward(scaler) if self._wanted else NO_CONTEXT

    @contextmanager
    def _backward(self, scaler: torch.amp.GradScaler) -> Iterator[None]:
        self._scaler = scaler
        try:
            yield
        finally:
            self._scaler = None

    def read_parameters(self, parameters: Iterable[Tensor], scaler: torch.amp.GradScaler) -> None:
        """Record the gradients of these parameters, before they are clipped and used."""
        if not self._wanted:
            return
        mine = set(map(id, parameters))
        for name, parameter in self._model.named_parameters():
            formats = self._wanted.get((name, "parameters"))
            if formats and id(parameter) in mine and parameter.grad is not None:
                self._keep(f"{name}/gradient", 0, _unscaled(parameter.grad, scaler), formats)

    def finish(self, writers: Writer) -> None:
        """Write the record of the step, then remove it and all hooks."""
        if not self._wanted:
            return
        scalars: dict[str, float] = {}
        for tag, sums in self._summed("scalars").items():
            scalars.update({f"{tag}/{name}": value for name, value in _numbers(sums).items()})
        histograms = {
            tag: Histogram(LIMITS, counts) for tag, counts in self._summed("histograms").items()
        }
        if scalars:
            writers.add_scalars(scalars, self._step)
        if histograms:
            writers.add_histograms(histograms, self._step)
        for tag, parts in self._recorded("images").items():
            writers.add_images(tag, stretch(parts[0]), self._step)
        self.remove()

    def remove(self) -> None:
        """Remove all hooks and the record."""
        for handle in self._handles:
            handle.remove()
        self._step, self.is_recording = 0, False
        self._handles.clear()
        self._wanted.clear()
        self._records.clear()

    def _record_call(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        # In a backward pass, modules are called only by recomputation.
        is_new = torch._C._current_graph_task_id() == -1
        for path, value in _tensors(output):
            number = next(self._call_numbers)
            if is_new and (formats := self._wanted.get((name, "activations"))):
                self._keep(f"{name}/activation{path}", number, value.detach(), formats)
            if value.requires_grad and (formats := self._wanted.get((name, "gradients"))):
                self._record_gradient(f"{name}/gradient{path}", number, value, formats)

    def _record_gradient(self, tag: str, number: int, value: Tensor, formats: set[str]) -> None:
        total: Tensor | None = None  # lives as long as the graph, for further backward passes

        def add(gradient: Tensor | None) -> None:  # None: within a penalty's double backward
            nonlocal total
            if gradient is not None and self._scaler is not None:
                found = _unscaled(gradient, self._scaler)
                total = found if total is None else total + found
                self._keep(tag, number, total, formats)

        self._handles.append(value.register_hook(add))

    def _keep(self, tag: str, number: int, value: Tensor, formats: set[str]) -> None:
        for name in formats:
            if name != "images" or value.dim() > 2:
                calls = self._records.setdefault(name, {}).setdefault(f"capture/{tag}", {})
                calls[number] = REDUCE[name](value)

    def _summed(self, name: str) -> dict[str, list[float]]:
        """Return the sums over all calls of a module, by tag."""
        sums = {tag: torch.stack(parts).sum(dim=0) for tag, parts in self._recorded(name).items()}
        # The only synchronization, at the end of a due step: one copy transfers all of them.
        return (
            dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) if sums else {}
        )

    def _recorded(self, name: str) -> dict[str, list[Tensor]]:
        tags = self._records.get(name, {})
        return {tag: [calls[number] for number in sorted(calls)] for tag, calls in tags.items()}


def _names(model: nn.Module, rule: Mapping[str, Any]) -> list[str]:
    if rule["of"] == "parameters":
        return match_parameters(model, rule["match"])
    if any(module._compiled_call_impl is not None for module in model.modules()):
        text = "modules of a compiled model call no hooks: remove memory.compile, or record"
        raise NoMatch(f"{text} `of: parameters`")
    return match_modules(model, rule["match"])


def _tensors(output: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point tensors in an output, each with its path: ``/1/0``."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield path, output
    elif isinstance(output, (Mapping, list, tuple)):
        for key, item in output.items() if isinstance(output, Mapping) else enumerate(output):
            yield from _tensors(item, f"{path}/{key}")


def _unscaled(gradient: Tensor, scaler: torch.amp.GradScaler) -> Tensor:
    value = at_least_float32(gradient)
    # Keep the scale on the device: reading it would synchronize.
    return value / scaler.scale(value.new_ones(())) if scaler.is_enabled() else value


def _sums(value: Tensor) -> Tensor:
    """Return sums that can be added over calls: count, sum, sum of squares and zeros  # (4,)"""
    wide = torch.float32 if value.device.type == "mps" else torch.float64
    n_values = value.new_full((), value.numel(), dtype=wide)
    squares = torch.linalg.vector_norm(value, dtype=wide).square()
    zeros = (value == 0).sum(dtype=wide)
    return torch.stack([n_values, value.sum(dtype=wide), squares, zeros])


def _numbers(sums: list[float]) -> dict[str, float]:
    n_values, total, squares, zeros = sums
    mean = total / n_values
    std = math.sqrt(max(squares / n_values - mean * mean, 0.0))  # of the population
    return {"mean": mean, "std": std, "norm": math.sqrt(squares), "zeros": zeros / n_values}


def _counts(value: Tensor) -> Tensor:
    """Count the values in each bucket. Non-finite values are ignored."""
    return torch.searchsorted(value.flatten().float().sort().values, _limits(value.device)).diff()


@cache
def _limits(device: torch.device) -> Tensor:
    return torch.tensor(LIMITS, device=device)


def _slices(value: Tensor) -> Tensor:
    """Return the first sample's channels  # (channel, 1, height, width)"""
    first = value[0].float()
    return first.reshape(-1, 1, *first.shape[-2:])[:MAX_SLICES].clone()


def stretch(image: Tensor) -> Tensor:
    """Scale an image to the range 0 to 1 by its minimum and maximum."""
    image = image.nan_to_num(posinf=0, neginf=0)
    low, high = image.min(), image.max()
    return (image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)


REDUCE = {"scalars": _sums, "histograms": _counts, "images": _slices}
