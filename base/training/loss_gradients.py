"""How the losses pull at the weights: the norm of each one's gradient, and where two disagree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from base.network.gradients import at_least_float32
from base.training.losses import terms
from base.training.state import TrainingState


def loss_gradients(
    losses: Mapping[str, Tensor], parameters: Iterable[Tensor], scale: Tensor | float = 1.0
) -> dict[str, Tensor]:
    """Return ``grad_norm/<name>`` of each loss and ``grad_cosine/<a>/<b>`` of each pair.

    A cosine below 0 is a conflict: what lessens one loss raises the other (Yu et al., 2020). It is
    0 where one has no gradient. ``.grad``, random streams and the graph stay as they are, nothing
    waits for the device. There are as many copies of the parameters as losses for that while.

    Args:
        parameters: frozen ones are left out.
        scale: that of fp16. Small gradients would vanish on their way through half precision, so
            they travel scaled, as in training; where they overflow then, the values are not finite.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    norms, directions = {}, {}
    for name, loss in losses.items():
        gradient = _gradient(loss, trainable, scale)
        norms[name] = gradient.norm()
        directions[name] = gradient / norms[name].clamp_min(torch.finfo(gradient.dtype).tiny)
    values = {f"grad_norm/{name}": norm for name, norm in norms.items()}
    for one, other in combinations(directions, 2):
        values[f"grad_cosine/{one}/{other}"] = directions[one] @ directions[other]
    return values


def _gradient(loss: Tensor, parameters: Sequence[Tensor], scale: Tensor | float) -> Tensor:
    """Return the gradient by all parameters as one vector; 0 where the loss does not reach."""
    parts: Sequence[Tensor] = [torch.zeros_like(parameter) for parameter in parameters]
    if loss.requires_grad:
        scaled = loss * scale
        parts = torch.autograd.grad(scaled, parameters, retain_graph=True, materialize_grads=True)
    # In full precision before it is divided: a half would lose what the scale has saved.
    return torch.cat([at_least_float32(part).flatten() for part in parts]) / scale


def due_gradients(state: TrainingState, losses: Mapping[str, Any], every: int) -> dict[str, Tensor]:
    """Return `loss_gradients` of a step's weighted losses, each ``every`` steps.

    Of batches that are accumulated, they are those of the last one.
    """
    if not state.window.is_full or (state.progress.step + 1) % every:
        return {}
    scaler = next(iter(state.steppers.values())).scaler
    scale = scaler.scale(torch.ones((), device=state.device))
    with state.precision.full():
        weighted = terms(losses, state.all_losses, state.progress.step)
        return loss_gradients(weighted, state.model.parameters(), scale)
