"""The precision to compute in: fp32, tf32, bf16 or fp16 with loss scaling."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from base.system.torch_compat import AUTOCAST_CACHE

NO_CONTEXT = nullcontext()
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
            return NO_CONTEXT
        return torch.autocast(self.device.type, self._reduced, cache_enabled=AUTOCAST_CACHE)

    def full(self) -> AbstractContextManager[Any]:
        """Return the context for what autocast must not touch: the backward pass."""
        return (
            NO_CONTEXT if self._reduced is None else torch.autocast(self.device.type, enabled=False)
        )
