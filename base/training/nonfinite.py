"""Finds NaN and infinite values, and keeps them out of checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from base.distributed.shard import Rows, local_part
from base.errors import TrainingError


def refuse_bad_weights(model: nn.Module, step: int) -> None:
    """Check that the weights to be saved after a step are finite.

    Raises:
        TrainingError: a parameter holds NaN or infinite values.
    """
    name = first_nonfinite(model.named_parameters())
    if name is not None:
        raise TrainingError(_not_saved("weights", step, name))


def refuse_bad_optimizers(state: Mapping[str, Any]) -> None:
    """Check that the optimizer states to be saved are finite: otherwise Adam cannot recover.

    Raises:
        TrainingError: a tensor holds NaN or infinite values.
    """
    named = (
        (f"{key} of parameter {number} in {name}", rows)
        for name, part in state.items()
        if name.startswith("optimizer.") and isinstance(part.get("state"), dict)
        for number, kept in part["state"].items()
        for key, tensor in (kept.items() if isinstance(kept, dict) else ())
        if isinstance(rows := tensor.tensor if isinstance(tensor, Rows) else tensor, Tensor)
        and rows.is_floating_point()
    )
    name = first_nonfinite(named)
    if name is not None:
        raise TrainingError(_not_saved("states of an optimizer", state["progress"]["step"], name))


def _not_saved(what: str, step: int, name: str) -> str:
    return (
        f"the {what} are not finite after step {step} (first: {name}). They are not saved, and the "
        "last checkpoint is good: lower the learning rate, set clip_norm, or set "
        "trainer.on_nonfinite=skip"
    )


def first_nonfinite(
    named: Iterable[tuple[str, Tensor | None]], with_squares: bool = False
) -> str | None:
    """Return the name of the first tensor with NaN or infinite values, in the rows of this process.

    It synchronizes with the device once. The sum of squares, eight times as fast as the maximum on
    a CPU, is finite only for finite values; the maximum is computed only if the squares overflow.

    Args:
        with_squares: also return a tensor whose squares overflow, which Adam and norms compute.
    """
    local = ((name, local_part(tensor)) for name, tensor in named if tensor is not None)
    plain = {name: t for name, t in local if t.layout is torch.strided and t.numel()}
    if not plain:
        return None
    tensors = [tensor.detach() for tensor in plain.values()]
    for order in (2,) if with_squares else (2, math.inf):
        is_finite = _are_finite(torch._foreach_norm(tensors, order))
        if all(is_finite):
            return None
    return next(n for n, finite in zip(plain, is_finite, strict=True) if not finite)


def _are_finite(numbers: Sequence[Tensor]) -> list[bool]:
    """Return whether each number is finite, with one copy from each device."""
    by_device: dict[torch.device, dict[torch.dtype, list[int]]] = {}
    for place, number in enumerate(numbers):
        by_device.setdefault(number.device, {}).setdefault(number.dtype, []).append(place)
    found: dict[int, bool] = {}
    for kinds in by_device.values():
        flags = [torch.stack([numbers[place] for place in each]) for each in kinds.values()]
        read = torch.cat([flag.isfinite() for flag in flags]).tolist()
        found.update(zip(chain.from_iterable(kinds.values()), read, strict=True))
    return [found[place] for place in range(len(numbers))]


class FiniteWatch:
    """Detects non-finite losses with little synchronization.

    On the CPU the value is checked at once. On CUDA a flag is copied to the host after the forward
    pass, while the backward pass is already queued; reading it before the optimizer's step waits
    for the forward pass only.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []
        self._is_finite = True
        self.is_on = True  # off in trial steps

    def watch(self, loss: Tensor) -> None:
        """Check a loss that is about to be minimised."""
        if loss.is_cuda:
            flag = torch.isfinite(loss.detach()).to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending.append((flag, event))
        elif not math.isfinite(loss.item()):  # no synchronization on the CPU
            self._is_finite = False

    def all_finite(self) -> bool:
        """Return whether all losses since the last call were finite."""
        is_finite = self.is_finite()
        self._pending.clear()
        self._is_finite = True
        return is_finite

    def is_finite(self) -> bool:
        """Return whether all losses since the last call of `all_finite` were finite."""
        is_finite = self._is_finite
        for flag, event in self._pending:
            event.synchronize()
            is_finite = is_finite and bool(flag)
        return is_finite or not self.is_on
