"""The precision of a step: fp32, tf32, bf16, or fp16 with loss scaling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from base.system.torch_compat import AUTOCAST_CACHE

NO_CONTEXT = nullcontext()
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and loss scaling for a precision.

    Args:
        name: ``fp32``, ``tf32`` (fp32 with faster matrix products), ``bf16`` or ``fp16``.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        self._reduced = REDUCED.get(name)
        self.is_reduced = self._reduced is not None

    def make_scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler, enabled for fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass and the losses."""
        if self._reduced is None:
            return NO_CONTEXT
        return torch.autocast(self.device.type, self._reduced, cache_enabled=AUTOCAST_CACHE)

    def full(self) -> AbstractContextManager[Any]:
        """Return a context with autocast disabled, for the backward pass and the step."""
        return (
            NO_CONTEXT if self._reduced is None else torch.autocast(self.device.type, enabled=False)
        )
