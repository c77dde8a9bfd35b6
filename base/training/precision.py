"""The numbers to compute in, and the watch for those that are none."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from base.system.torch_compat import AUTOCAST_CACHE

NOTHING = nullcontext()
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Runs the step in the precision asked for; scales the loss where fp16 needs it.

    Args:
        name: ``fp32``, ``tf32`` (fp32 with faster products), ``bf16`` or ``fp16``.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        self._reduced = REDUCED.get(name)
        self.is_reduced = self._reduced is not None

    def make_scaler(self) -> torch.amp.GradScaler:
        """Return a loss scaler; it does nothing unless the precision is fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which forward and losses are computed."""
        if self._reduced is None:
            return NOTHING
        return torch.autocast(self.device.type, self._reduced, cache_enabled=AUTOCAST_CACHE)

    def full(self) -> AbstractContextManager[Any]:
        """Return the context for what autocast must not touch: the backward pass."""
        return NOTHING if self._reduced is None else torch.autocast(self.device.type, enabled=False)


class FiniteWatch:
    """Notices a loss that is not finite without making the device wait.

    On the CPU the value is looked at when it is there. On CUDA a flag is copied out behind the
    forward pass, while the backward pass is already queued; reading it before the optimizer's step
    waits for the forward pass only.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []
        self._is_finite = True
        self.is_on = True  # off in what is only tried

    def watch(self, loss: Tensor) -> None:
        """Take note of a loss that is about to be minimised."""
        if loss.is_cuda:
            flag = torch.isfinite(loss.detach()).to("cpu", non_blocking=True)
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
        return is_finite or not self.is_on
