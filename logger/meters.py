"""Running means that never wait for the device."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Meters:
    """Keep the weighted mean of each named value, summed on the accelerator where the value lives.

    meters.update({"loss": loss, "accuracy": 0.5}, n=len(target))
    meters.compute()  # {"loss": 0.6931, "accuracy": 0.5}
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        """With `device` given, all sums of tensors live there."""
        self.device = None if device is None else torch.device(device)
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._counts: dict[str, int] = {}
        self._numbers: dict[str, float] = {}
        self._tensors: dict[str, Tensor] = {}

    def update(self, values: Mapping[str, Tensor | float], n: int = 1) -> None:
        """Add one value a name, each the mean of `n` samples."""
        for name, value in values.items():
            if isinstance(value, Tensor) and not is_at_hand(value, self.device):
                total = self._tensors.get(name)
                if total is None or value.dim() or total.device != value.device:
                    total, value = self._prepare(name, value)
                total.add_(value.detach(), alpha=n)
            else:
                number = _number(name, value) if isinstance(value, Tensor) else float(value)
                self._numbers[name] = self._numbers.get(name, 0.0) + number * n
            self._counts[name] = self._counts.get(name, 0) + n

    def compute(self) -> dict[str, float]:
        """Return the means so far, in the order in which the names came."""
        totals = dict(self._numbers)
        for device in {total.device for total in self._tensors.values()}:
            here = {k: total for k, total in self._tensors.items() if total.device == device}
            # The one wait for the device: all sums that live there come in one copy.
            for name, total in zip(here, torch.stack(list(here.values())).tolist(), strict=True):
                totals[name] = totals.get(name, 0.0) + total
        return {k: totals[k] / n if n else float("nan") for k, n in self._counts.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the bare sums: a mean that goes on from them is equal bit for bit."""
        tensors = {name: total.clone() for name, total in self._tensors.items()}
        return {"counts": dict(self._counts), "numbers": dict(self._numbers), "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from sums that `state_dict` gave, on this device or another."""
        self._counts = dict(state["counts"])
        self._numbers = dict(state["numbers"])
        with torch.inference_mode(False):
            self._tensors = {
                name: total.to(self.device or total.device, copy=True)
                for name, total in state["tensors"].items()
            }

    def _prepare(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum and the value, both without dimensions and on one device."""
        _refuse_many(name, value)
        total = self._tensors.get(name)
        # A sum goes to an accelerator once and stays: coming back would be a wait.
        stays = total is not None and total.device.type != "cpu"
        device = self.device or (total.device if total is not None and stays else value.device)
        kind = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        with torch.inference_mode(False):  # a sum born in inference mode could not leave it
            total = torch.zeros((), dtype=kind) if total is None else total
            self._tensors[name] = total = total.to(device, kind)
        return total, value.detach().reshape(()).to(device, non_blocking=True)


def is_at_hand(value: Tensor, device: torch.device | None) -> bool:
    """Tell whether a number can be read without a wait, and its sum is not kept elsewhere."""
    return value.is_cpu and (device is None or device.type == "cpu")


def _number(name: str, value: Tensor) -> float:
    """Return a number that lies on the CPU, where nothing is waited for."""
    if value.dim():
        _refuse_many(name, value)
    return float(value.item())


def _refuse_many(name: str, value: Tensor) -> None:
    if value.numel() != 1:
        raise ValueError(f"{name}: one number was expected, found shape {tuple(value.shape)}")
