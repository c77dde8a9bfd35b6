"""Memory options of optimizers: fused kernels, offloaded states, steps in the backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from base.errors import ConfigError, Problem, TrainingError
from base.system.pinned_memory import exact_pinned_memory

Section = Mapping[str, Any]

IMPLEMENTATIONS = {"fused", "foreach", "capturable", "differentiable"}
PART_BYTES = 64 << 20  # of parameters whose states are on the device at once


def choose_fused(
    construct: Callable[[Section], Optimizer], section: Section, wish: bool | str, where: str
) -> Optimizer:
    """Build an optimizer, fused if torch supports it for these parameters.

    An implementation that the section names takes precedence.

    Raises:
        ConfigError: ``fused: true``, but torch has no fused implementation.
    """
    optimizer = construct(section)
    named = {key for part in (section["args"], *section["param_groups"]) for key in part}
    if not wish or named & IMPLEMENTATIONS:
        return optimizer
    fault = _why_not_fused(optimizer)
    if not fault:
        return construct({**section, "args": {**section["args"], "fused": True}})
    if wish is True:
        raise ConfigError([Problem(where, f"{fault}; write `memory: {{fused: auto}}`")])
    return optimizer


def note_loaded_kernel(optimizer: Any) -> None:
    """Unscale gradients of fp16 before the step, if a loaded state says that it is not fused.

    torch notes only when it builds an optimizer that its kernel unscales them.
    """
    is_fused = all(group.get("fused") for group in optimizer.param_groups)
    if not is_fused and hasattr(optimizer, "_step_supports_amp_scaling"):
        optimizer._step_supports_amp_scaling = False


def _why_not_fused(optimizer: Optimizer) -> str:
    """Return why the fused implementation cannot be used, from a trial step; empty if it can."""
    name, accepted = type(optimizer).__name__, inspect.signature(type(optimizer)).parameters
    if "fused" not in accepted:
        return f"{name} has no fused implementation"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kinds = {
        (p.device, p.dtype): nn.Parameter(torch.zeros_like(p[:1])) for p in parameters if p.dim()
    }
    options = {key: value for key, value in optimizer.defaults.items() if key in accepted}
    try:
        twin = type(optimizer)(list(kinds.values()), **{**options, "fused": True})
        for parameter in kinds.values():
            parameter.grad = torch.zeros_like(parameter)
        twin.step()
    except RuntimeError as error:
        return f"{name} has no fused implementation here: {error}"
    return ""


@contextmanager
def restrict_parameters(
    optimizer: Optimizer, number: int, parameters: list[Tensor]
) -> Iterator[None]:
    """Restrict an optimizer to some parameters of one group inside the block.

    Raises:
        TrainingError: the step changes options of its group, which it would do for each part.
    """
    groups, group = optimizer.param_groups, optimizer.param_groups[number]
    part = {**group, "params": parameters}
    optimizer.param_groups = [part]
    try:
        yield
    finally:
        optimizer.param_groups = groups
    if changed := [key for key in part if key != "params" and part[key] is not group.get(key)]:
        text = f"{type(optimizer).__name__} changes options of its groups ({', '.join(changed)})"
        raise TrainingError(
            f"{text}: it cannot step in parts; remove memory.offload_optimizer "
            "and memory.optimizer_in_backward"
        )


class OffloadedState:
    """Keeps the states of an optimizer in CPU memory; each step copies them to the device in parts.

    It replaces the optimizer's ``step``; ``state_dict`` and ``load_state_dict`` do not change.

    Args:
        to_host: copies a tensor to the given host tensor, or to a new one, and returns it.
        to_device: copies a host tensor to the device of a parameter.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        to_host: Callable[[Tensor, Tensor | None], Tensor],
        to_device: Callable[[Tensor, Tensor], Tensor],
        part_bytes: int = PART_BYTES,
    ) -> None:
        self.optimizer, self.part_bytes = optimizer, part_bytes
        self._to_host, self._to_device = to_host, to_device
        self._hosts: dict[Tensor, dict[str, Tensor]] = {}
        self._full_step = optimizer.step
        # torch's schedulers wrap `step` and expect a method.
        step = MethodType(lambda _, closure=None: self.step(), optimizer)
        optimizer.step = step  # type: ignore[method-assign]
        optimizer.register_load_state_dict_post_hook(self._move_loaded)

    def step(self) -> None:
        """Step all parameters that have a gradient, in parts."""
        for number, group in enumerate(self.optimizer.param_groups):
            for part in self._parts(p for p in group["params"] if p.grad is not None):
                self._copy_to_device(part)
                with restrict_parameters(self.optimizer, number, part):
                    self._full_step()
                self._copy_to_host(part)

    def _parts(self, parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
        part: list[Tensor] = []
        n_bytes = 0
        for parameter in parameters:
            part.append(parameter)
            n_bytes += parameter.nbytes
            if n_bytes >= self.part_bytes:
                yield part
                part, n_bytes = [], 0
        if part:
            yield part

    def _copy_to_device(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            for key, host in self._hosts.get(parameter, {}).items():
                self.optimizer.state[parameter][key] = self._to_device(host, parameter)

    def _copy_to_host(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            state = self.optimizer.state.get(parameter, {})
            hosts = self._hosts.setdefault(parameter, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim():  # step counts stay on their device
                    state[key] = hosts[key] = self._to_host(value, hosts.get(key))

    def _move_loaded(self, optimizer: Optimizer) -> None:
        self._hosts.clear()
        self._copy_to_host(list(optimizer.state))


def offload_state(optimizer: Optimizer, device: torch.device) -> None:
    """Keep the states in CPU memory; on CUDA it is pinned, and copies are asynchronous."""
    if device.type == "cpu":
        return  # the states are on the CPU already
    is_cuda = device.type == "cuda"

    def to_host(value: Tensor, host: Tensor | None) -> Tensor:
        if host is None:
            with exact_pinned_memory() if is_cuda else nullcontext():
                host = torch.empty_like(value, device="cpu", pin_memory=is_cuda)
        return host.copy_(value, non_blocking=is_cuda)

    if is_cuda:  # wait for the copies before the states are read on the CPU
        optimizer.register_state_dict_pre_hook(lambda _: torch.cuda.synchronize(device))
    OffloadedState(
        optimizer, to_host, lambda host, like: host.to(like.device, non_blocking=is_cuda)
    )


class StepInBackward:
    """Steps each parameter as soon as its gradient is accumulated, and frees the gradient."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.stepped: set[Tensor] = set()
        self._is_armed = False
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                is_trained = parameter.requires_grad  # a frozen parameter may be unfrozen later
                parameter.requires_grad_(True)
                parameter.register_post_accumulate_grad_hook(partial(self._use, number))
                parameter.requires_grad_(is_trained)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Step parameters during the backward pass inside the block.

        Raises:
            TrainingError: there was another backward pass since the last update.
        """
        if self.stepped:
            text = "memory.optimizer_in_backward: a second backward pass before `self.update()`"
            raise TrainingError(f"{text}: its gradients would be a separate step")
        self._is_armed = True
        try:
            yield
        finally:
            self._is_armed = False

    def _use(self, number: int, parameter: Tensor) -> None:
        if self._is_armed:
            with restrict_parameters(self.optimizer, number, [parameter]):
                self.optimizer.step()
            parameter.grad = None
            self.stepped.add(parameter)
