"""Numbers that are none: where they are, and that no checkpoint holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from base.errors import TrainingError

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


def refuse_bad_weights(trainer: BaseTrainer) -> None:
    """Make sure that what is about to be saved is of use.

    Raises:
        TrainingError: names the first parameter that holds a number that is none.
    """
    name = first_nonfinite(trainer.model.named_parameters())
    if name is not None:
        raise TrainingError(_not_saved("weights", trainer.progress.step, name))


def refuse_bad_optimizers(state: Mapping[str, Any]) -> None:
    """Make sure that no optimizer in a state remembers infinity: Adam would never move again.

    Raises:
        TrainingError: names the first such tensor.
    """
    named = (
        (f"{key} of parameter {number} in {name}", tensor)
        for name, part in state.items()
        if name.startswith("optimizer.") and isinstance(part.get("state"), dict)
        for number, kept in part["state"].items()
        for key, tensor in (kept.items() if isinstance(kept, dict) else ())
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    )
    name = first_nonfinite(named)
    if name is not None:
        raise TrainingError(_not_saved("numbers of an optimizer", state["progress"]["step"], name))


def _not_saved(what: str, step: int, name: str) -> str:
    return (
        f"the {what} are not finite after step {step} ({name} is the first): not saved, so the "
        "last checkpoint is good; lower the rate, set clip_norm, or trainer.on_nonfinite=skip"
    )


def first_nonfinite(
    named: Iterable[tuple[str, Tensor | None]], with_squares: bool = False
) -> str | None:
    """Return the name of the first tensor with a number that is none.

    The device waits once: squares, which are summed eight times as quickly as the largest is found
    on a CPU, hide no such number, and only where they overflow is there a second look.

    Args:
        with_squares: name also a tensor whose squares are too large; Adam and norms need them.
    """
    plain = {n: t for n, t in named if t is not None and t.layout is torch.strided and t.numel()}
    if not plain:
        return None
    tensors = [tensor.detach() for tensor in plain.values()]
    for order in (2,) if with_squares else (2, math.inf):
        norms = [norm.cpu().double() for norm in torch._foreach_norm(tensors, order)]
        is_finite = torch.stack(norms).isfinite().tolist()
        if all(is_finite):
            return None
    return next(n for n, finite in zip(plain, is_finite, strict=True) if not finite)
