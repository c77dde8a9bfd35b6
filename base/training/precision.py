"""The precision of a step: fp32, tf32, bf16, or fp16 with loss scaling."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from base.system.contexts import NO_CONTEXT
from base.system.torch_compat import AUTOCAST_CACHE

BF16_OF_CPUS = ("amx_bf16", "avx512_bf16")
REDUCED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(device: torch.device) -> tuple[str, str]:
    """Return the precision that ``memory.precision: auto`` means on a device, and the reason.

    It is bf16 where the device computes bf16 in units of its own, which emulation would only slow
    down; elsewhere fp32. fp16 is never chosen: it needs a loss scale, and can overflow.
    """
    if device.type == "cuda":
        if torch.version.hip:
            return "bf16", "ROCm"
        major, minor = torch.cuda.get_device_capability(device)
        text = f"compute capability {major}.{minor}"
        return ("bf16", text) if major >= 8 else ("fp32", f"{text} has no units for bf16")
    if device.type == "xpu" and torch.xpu.is_bf16_supported():
        return "bf16", "XPU"
    if device.type == "cpu":
        found = [name for name in BF16_OF_CPUS if _cpu_has(name)]
        text = found[0].replace("_", "-").upper() if found else "this CPU has no units for bf16"
        return ("bf16" if found else "fp32"), text
    return "fp32", f"{device.type} is not known to be faster in bf16"


def _cpu_has(name: str) -> bool:
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.11
        return bool(torch.cpu.get_capabilities().get(name, False))
    older = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return bool(getattr(torch.cpu, older[name])())


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
