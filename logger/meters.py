"""Running means that never wait for the device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Number = Tensor | float | int


class Meters:
    """Keep the weighted mean of each named value, on the device where the value lives.

    >>> meters = Meters()
    >>> meters.update({"loss": loss, "accuracy": 0.5}, n=len(target))
    >>> meters.compute()
    {"loss": 0.6931, "accuracy": 0.5}
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        """With `device` given, sums live there; else each lives with its first value."""
        self.device = None if device is None else torch.device(device)
        self.reset()

    def update(self, values: Mapping[str, Number], n: int = 1) -> None:
        """Add one value a name, each standing for `n` samples."""
        for name, value in values.items():
            self._counts[name] = self._counts.get(name, 0) + n
            if isinstance(value, Tensor):
                total = self._tensors.get(name)
                if total is None or value.dim() or total.device != value.device:
                    total, value = self._prepare(name, value)
                total.add_(value.detach(), alpha=n)
            else:
                self._numbers[name] = self._numbers.get(name, 0.0) + float(value) * n

    def compute(self) -> dict[str, float]:
        """Return the means so far, in the order in which names first came."""
        totals = dict(self._numbers)
        for device in {total.device for total in self._tensors.values()}:
            here = {k: total for k, total in self._tensors.items() if total.device == device}
            # The one wait for the device: all sums that live there come in one copy.
            for name, total in zip(here, torch.stack(list(here.values())).tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + total
        return {k: totals[k] / n if n else float("nan") for k, n in self._counts.items()}

    def reset(self) -> None:
        """Forget everything: the next update begins a new mean."""
        self._counts: dict[str, int] = {}
        self._numbers: dict[str, float] = {}
        self._tensors: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the bare sums, so that a resumed mean is equal bit for bit."""
        tensors = {name: total.clone() for name, total in self._tensors.items()}
        return {"counts": dict(self._counts), "numbers": dict(self._numbers), "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from sums that `state_dict` gave, on this or another device."""
        self._counts = dict(state["counts"])
        self._numbers = dict(state["numbers"])
        with torch.inference_mode(False):
            self._tensors = {
                name: total.to(self.device or total.device, copy=True)
                for name, total in state["tensors"].items()
            }

    def _prepare(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum, on its right device, and the value without dimensions."""
        if value.numel() != 1:
            raise ValueError(f"{name}: one number was expected, found shape {tuple(value.shape)}")
        total = self._tensors.get(name)
        device = self.device or value.device
        kind = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        # A sum made under inference mode could not be added to outside of it.
        with torch.inference_mode(False):
            if total is None:
                total = torch.zeros((), dtype=kind, device=device)
            self._tensors[name] = total = total.to(device, kind)
        return total, value.detach().reshape(()).to(device, non_blocking=True)
