"""The gradient norm of each loss, and the cosine between the gradients of two losses."""

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

    A negative cosine is a conflict: a step that reduces one loss increases the other (Yu et al.,
    2020). It is 0 if a loss has no gradient. The call changes neither ``.grad`` nor random states
    nor the graph, and does not synchronize with the device. It needs memory for a copy of the
    parameters for each loss.

    Args:
        parameters: the parameters; frozen ones are skipped.
        scale: the loss scale of fp16, which keeps small gradients from underflowing. Scaled
            gradients that overflow give non-finite values.
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
    """Return the gradient with respect to all parameters as one vector."""
    parts: Sequence[Tensor] = [torch.zeros_like(parameter) for parameter in parameters]
    if loss.requires_grad:
        scaled = loss * scale
        parts = torch.autograd.grad(scaled, parameters, retain_graph=True, materialize_grads=True)
    # Unscale in full precision: small gradients would underflow in half precision.
    return torch.cat([at_least_float32(part).flatten() for part in parts]) / scale


def due_gradients(state: TrainingState, losses: Mapping[str, Any], every: int) -> dict[str, Tensor]:
    """Return `loss_gradients` of the weighted losses of a step, once in ``every`` steps.

    With accumulation they are those of the last batch of the window.
    """
    if not state.window.is_full or (state.progress.step + 1) % every:
        return {}
    scaler = next(iter(state.steppers.values())).scaler
    scale = scaler.scale(torch.ones((), device=state.device))
    with state.precision.full():
        weighted = terms(losses, state.all_losses, state.progress.step)
        return loss_gradients(weighted, state.model.parameters(), scale)
