"""Options that trade precision, time and memory: the ``memory:`` section of a config."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from base.errors import ConfigError, Problem
from base.match import NoMatch, match_modules

REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def prepare_model(model: nn.Module, memory: Mapping[str, Any], device: torch.device) -> None:
    """Apply the options that change how the model runs; its parameters' names stay as they are.

    Raises:
        ConfigError: a pattern matches no module, or an option would change what is computed.
    """
    if memory["channels_last"]:
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if memory["inplace"]:
        for module in model.modules():
            if hasattr(module, "inplace") and isinstance(module.inplace, bool):
                module.inplace = True
    if memory["checkpoint_activations"]:
        checkpoint_activations(model, memory["checkpoint_activations"])
    if memory["precision"] == "tf32":
        torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = memory["cudnn_benchmark"]
    if memory["compile"]:
        model.compile()


def checkpoint_activations(model: nn.Module, patterns: Sequence[Any]) -> None:
    """Recompute the matched modules' activations in the backward pass instead of keeping them.

    See ``torch.utils.checkpoint``; the random state is kept, so dropout drops the same units.

    Raises:
        ConfigError: nothing matches, or a matched module holds a BatchNorm or the like, whose
            running statistics the second forward would move once more.
    """
    where = "memory.checkpoint_activations"
    modules = dict(model.named_modules())
    try:
        names = match_modules(model, list(patterns))
    except NoMatch as error:
        raise ConfigError([Problem(where, str(error))]) from error
    for name in names:
        module = modules[name]
        moving = next((inner for inner in module.modules() if _has_running_statistics(inner)), None)
        if moving is not None:
            text = f"{name!r} holds a {type(moving).__name__}"
            text += ", whose running statistics would be moved twice"
            raise ConfigError([Problem(where, f"{text}; leave it out, or use GroupNorm")])
        if not any(name.startswith(f"{other}.") for other in names):
            module.forward = _recomputed(module, module.forward)


def _has_running_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats


def _recomputed(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if module.training and torch.is_grad_enabled():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)

    return recomputed


class Precision:
    """Runs the step in the precision asked for; scales the loss where fp16 needs it.

    Args:
        name: ``fp32``, ``tf32`` (fp32 with faster products), ``bf16`` or ``fp16``.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device

    def make_scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler; it does nothing unless the precision is fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward and losses are computed."""
        if self.name in REDUCED:
            return torch.autocast(self.device.type, dtype=REDUCED[self.name])
        return nullcontext()

    def full(self) -> AbstractContextManager[Any]:
        """Return the context for what autocast must not touch: the backward pass."""
        if self.name in REDUCED:
            return torch.autocast(self.device.type, enabled=False)
        return nullcontext()


class FiniteWatch:
    """Notices a loss that is not finite without making the device wait.

    On the CPU the value is looked at when it is there. On CUDA a flag is copied out behind the
    forward pass, while the backward pass is already queued; reading it before the optimizer's step
    waits for the forward pass only.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []
        self._is_finite = True

    def watch(self, loss: Tensor) -> None:
        """Take note of a loss that is about to be minimised."""
        loss = loss.detach()
        if loss.device.type == "cuda":
            flag = torch.isfinite(loss).to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending.append((flag, event))
        elif not math.isfinite(loss.item()):  # on the CPU nothing is waited for
            self._is_finite = False

    def all_finite(self) -> bool:
        """Return whether all losses since the last call were finite."""
        is_finite = self._is_finite
        for flag, event in self._pending:
            event.synchronize()
            is_finite = is_finite and bool(flag)
        self._pending.clear()
        self._is_finite = True
        return is_finite
