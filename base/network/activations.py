"""Reduces activation memory by recomputing activations or keeping them in CPU memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from base.errors import ConfigError, Problem, TrainingError
from base.network.patterns import NoMatch, match_modules
from base.system.contexts import NO_CONTEXT

WHERE = "memory.checkpoint_activations"


def checkpoint_activations(model: nn.Module, patterns: Sequence[Any]) -> None:
    """Recompute the matched modules' activations in the backward pass instead of keeping them.

    See ``torch.utils.checkpoint``. The random state is preserved, so dropout drops the same units.
    The first call of each module is checked for buffers and inputs changed by the forward pass.

    Raises:
        ConfigError: nothing matches, or each forward pass of a matched module changes its state,
            such as the running statistics of a BatchNorm or the vectors of a spectral norm.
    """
    modules = dict(model.named_modules())
    try:
        names = match_modules(model, list(patterns))
    except NoMatch as error:
        raise ConfigError([Problem(WHERE, str(error))]) from error
    faults, chosen = [], set(names)
    for name in names:
        changing = next(filter(None, map(_changing_state, modules[name].modules())), None)
        if changing is not None:
            state, alternative = changing
            text = f"{name!r} contains {state} would be updated twice; exclude it{alternative}"
            faults.append(Problem(WHERE, text))
        elif chosen.isdisjoint(_around(name)):
            modules[name].forward = _recomputed(name, modules[name], modules[name].forward)
    if faults:
        raise ConfigError(faults)


def _around(name: str) -> list[str]:
    """Return the names of the modules that hold a module: ``a`` and ``a.b`` of ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _changing_state(module: nn.Module) -> tuple[str, str] | None:
    """Return the state of a module that each forward pass changes, and an alternative."""
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
        return f"a {type(module).__name__}, whose running statistics", ", or use GroupNorm"
    hooks = (type(hook).__name__ for hook in module._forward_pre_hooks.values())
    if type(module).__name__ == "_SpectralNorm" or "SpectralNorm" in hooks:
        return "a spectral norm, whose vectors", ""
    return None


def _recomputed(name: str, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    is_checked = False

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_checked
        if not (module.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        before = {} if is_checked or torch.compiler.is_compiling() else _versions(module, args)
        output = checkpoint(forward, *args, use_reentrant=False, **kwargs)
        if before and (changed := _changed(before, _versions(module, args))):
            text = f"{WHERE}: {name!r} changes {changed} in its forward pass, and would change it"
            raise TrainingError(f"{text} again in the backward pass: exclude {name!r}")
        is_checked = True
        return output

    return recomputed


def _versions(module: nn.Module, args: Iterable[Any]) -> dict[str, tuple[int, int]]:
    """Return the identity and version counter of each buffer and input."""
    tensors = {f"the buffer {key!r}": value for key, value in module.named_buffers()}
    inputs = (value for value in args if isinstance(value, Tensor))
    tensors |= {f"its input {number}": value for number, value in enumerate(inputs)}
    return {key: (id(value), value._version) for key, value in tensors.items()}


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return ", ".join(key for key in after if before.get(key) != after[key])


def offload_activations(
    is_wanted: bool, device: torch.device
) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that creates the context of a training step, which is empty on the CPU."""
    if not is_wanted or device.type == "cpu":
        return _no_context
    return functools.partial(OffloadedActivations, device)


def _no_context() -> AbstractContextManager[Any]:
    return NO_CONTEXT


class OffloadedActivations(saved_tensors_hooks):
    """Keeps tensors saved by autograd in CPU memory until the backward pass needs them.

    Like ``torch.autograd.graph.save_on_cpu``, with pinned memory on CUDA, where nothing waits for
    the copies in any version of torch. Weights are not moved, as they stay on the device anyway.
    """

    def __init__(self, device: torch.device) -> None:
        is_cuda = device.type == "cuda"

        def pack(tensor: Tensor) -> Any:
            base = tensor if tensor._base is None else tensor._base  # a layer saves weight.t()
            if isinstance(base, nn.Parameter):
                return tensor, tensor._version
            is_ahead = is_cuda and tensor.layout is torch.strided
            host = torch.empty_like(tensor, device="cpu", pin_memory=is_ahead)
            return tensor.device, host.copy_(tensor, non_blocking=is_ahead)

        def unpack(packed: Any) -> Tensor:
            first, second = packed
            if not isinstance(first, Tensor):
                back: Tensor = second.to(first, non_blocking=is_cuda)
                return back
            if first._version != second:  # autograd does not check versions with hooks
                raise RuntimeError("a weight was modified by an inplace operation before backward")
            return first

        super().__init__(pack, unpack)
