"""Running means that are updated without waiting for the device."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TERM = "\0"
"""Separates the name of a value from the name of one of its terms."""


class Meters:
    """Weighted means of named values, summed on the device of each value.

    The weight of a value is its denominator, such as the number of samples.

    meters.update({"loss": loss, "accuracy": 0.5}, n=len(target))
    meters.compute()  # {"loss": 0.6931, "accuracy": 0.5}
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        """With a `device`, keep all sums of tensors on it."""
        self.device = None if device is None else torch.device(device)
        self._is_on_cpu = self.device is None or self.device.type == "cpu"
        self.reset()

    def reset(self) -> None:
        """Remove all values."""
        self._counts: dict[str, float] = defaultdict(int)
        self._numbers: dict[str, float] = defaultdict(float)
        self._tensors: dict[str, Tensor] = {}
        self._tensor_counts: dict[str, Tensor] = {}
        self._sums: set[str] = set()

    def update(self, values: Mapping[str, Tensor | float], n: float = 1) -> None:
        """Add one value for each name, each the mean of `n` samples."""
        for name, value in values.items():
            self.add(name, value, n)

    def add(self, name: str, value: Tensor | float, count: Tensor | float | None) -> None:
        """Add a value that was divided by ``count``, or a sum if ``count`` is None.

        Names that differ only after `TERM` are terms of one value, which is the sum of their means.
        """
        if count is None:
            self._sums.add(name)
            count = 1
        if self._is_on_cpu:  # reading a tensor on the CPU does not synchronize
            if isinstance(count, Tensor) and count.is_cpu:
                count = float(count.item())
            if isinstance(value, Tensor) and value.is_cpu:
                if value.dim():
                    _refuse_many(name, value)
                value = value.item()
        if isinstance(count, Tensor):
            count = self._add_count(name, count)
        else:
            self._counts[name] += count
        if not isinstance(value, Tensor):
            self._numbers[name] += float(value) * float(count) if count else 0.0
            return
        total = self._tensors.get(name)
        if total is None or value.dim() or total.device != value.device:
            total, value = self._prepare(name, value)
        if isinstance(count, Tensor):  # a value without samples is 0/0
            total.add_(torch.where(count == 0, 0.0, value.detach() * count))
        else:
            total.add_(value.detach(), alpha=count)

    def means(self) -> dict[str, Tensor | float]:
        """Return the current means, in the order of the first `add`, without synchronizing."""
        totals: dict[str, Any] = dict(self._numbers)
        counts: dict[str, Any] = dict(self._counts)
        for found, there in ((totals, self._tensors), (counts, self._tensor_counts)):
            for name, value in there.items():
                found[name] = found.get(name, 0) + value
        return self._divide(totals, counts)

    def compute(self) -> dict[str, float]:
        """Return the means as floats."""
        totals, counts = dict(self._numbers), dict(self._counts)
        tensors = [
            (found, name, value)
            for found, there in ((totals, self._tensors), (counts, self._tensor_counts))
            for name, value in there.items()
        ]
        for device in {value.device for _, _, value in tensors}:
            here = [one for one in tensors if one[2].device == device]
            # The only synchronization: one copy transfers all sums of the device.
            read = torch.stack([value for *_, value in here]).tolist()
            for (found, name, _), number in zip(here, read, strict=True):
                found[name] = found.get(name, 0.0) + number
        return self._divide(totals, counts)

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the sums, so that a resumed mean is equal bit for bit."""
        return {
            "counts": dict(self._counts),
            "numbers": dict(self._numbers),
            "tensors": {name: total.clone() for name, total in self._tensors.items()},
            "tensor_counts": {name: count.clone() for name, count in self._tensor_counts.items()},
            "sums": sorted(self._sums),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load sums of `state_dict`, on this device or another."""
        self._counts = defaultdict(int, state["counts"])
        self._numbers = defaultdict(float, state["numbers"])
        self._sums = set(state.get("sums", ()))  # older checkpoints have no denominators
        with torch.inference_mode(False):
            self._tensors, self._tensor_counts = (
                {name: x.to(self.device or x.device, copy=True) for name, x in there.items()}
                for there in (state["tensors"], state.get("tensor_counts", {}))
            )

    @staticmethod
    def merged(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the state of all processes from the `state_dict` of each, in rank order.

        Totals and counts are added. A name may be missing from some states. To resume with another
        number of processes, rank 0 loads this state and the others start empty.
        """
        whole: dict[str, Any] = {
            key: _added([state.get(key, {}) for state in states])
            for key in ("counts", "numbers", "tensors", "tensor_counts")
        }
        order = _merged_order([state["counts"] for state in states])
        whole["counts"] = {name: whole["counts"][name] for name in order}
        whole["sums"] = sorted({name for state in states for name in state.get("sums", ())})
        return whole

    def _divide(self, totals: Mapping[str, Any], counts: Mapping[str, Any]) -> dict[str, Any]:
        means: dict[str, Any] = {}
        for key, count in counts.items():
            name = key.partition(TERM)[0]
            if key in self._sums:
                mean = totals[key]
            else:
                is_empty = not isinstance(count, Tensor) and not count
                mean = float("nan") if is_empty else totals[key] / count
            means[name] = means[name] + mean if name in means else mean
        return means

    def _add_count(self, name: str, count: Tensor) -> Tensor:
        """Add a count to its sum on the device; return it there."""
        device = self.device or count.device
        kind = torch.float32 if device.type == "mps" else torch.float64
        with torch.inference_mode(False):
            total = self._tensor_counts.get(name)
            if total is None:
                self._tensor_counts[name] = total = torch.zeros((), dtype=kind, device=device)
                self._counts.setdefault(name, 0)  # keeps the order of the names
            count = count.detach().to(device, kind, non_blocking=device.type == "cuda")
            total.add_(count)
        return count

    def _prepare(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum and the value as scalars on the same device."""
        _refuse_many(name, value)
        total = self._tensors.get(name)
        # A sum moves to an accelerator once and stays there, as copying it back would synchronize.
        stays = total is not None and total.device.type != "cpu"
        device = self.device or (total.device if total is not None and stays else value.device)
        kind = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        with torch.inference_mode(False):  # inference tensors cannot be used outside
            if total is None:
                total = torch.zeros((), dtype=kind, device=device)
            is_ahead = device.type == "cuda"  # a copy to the CPU must not be read too early
            self._tensors[name] = total = total.to(device, kind, non_blocking=is_ahead)
        return total, value.detach().reshape(()).to(device, non_blocking=is_ahead)


def as_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return values as floats. One copy from each device transfers all of its tensors."""
    read: dict[str, float] = {}
    far = {k: v for k, v in values.items() if isinstance(v, Tensor) and not v.is_cpu}
    for device in {value.device for value in far.values()}:
        here = {name: value for name, value in far.items() if value.device == device}
        kind = torch.float32 if device.type == "mps" else torch.float64
        tensors = [value.detach().reshape(()).to(kind) for value in here.values()]
        read.update(zip(here, torch.stack(tensors).tolist(), strict=True))
    return {name: read[name] if name in read else float(v) for name, v in values.items()}


def _added(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add numbers and tensors by name."""
    total: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            value = value.cpu() if isinstance(value, Tensor) else value
            total[name] = total[name] + value if name in total else value
    return total


def _merged_order(parts: Sequence[Iterable[str]]) -> list[str]:
    """Return all names, each after the name that precedes it in the first part that has it."""
    first, *others = map(list, parts)
    order = first
    for names in others:
        if names == order:  # nearly always, and then no name is searched for
            continue
        place = 0
        for name in names:
            if name in order:
                place = order.index(name) + 1
            else:
                order.insert(place, name)
                place += 1
    return order


def _refuse_many(name: str, value: Tensor) -> None:
    if value.numel() != 1:
        raise ValueError(f"{name}: expected one number, found shape {tuple(value.shape)}")
