"""How the losses pull at the weights: the norm of each one's gradient, and where two disagree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from base.config.durations import parse_duration
from base.network.gradients import at_least_float32
from base.training.losses import terms

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


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


def due_gradients(trainer: BaseTrainer, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `loss_gradients` of a step's weighted losses where ``trainer.loss_gradients`` is due.

    Of batches that are accumulated, it is the last one's.
    """
    settings, lengths = trainer.settings, trainer.experiment
    if settings.loss_gradients is None or not trainer.window.is_full:
        return {}
    every = parse_duration(settings.loss_gradients).in_steps(
        lengths.steps_per_epoch, lengths.total_steps
    )
    if (trainer.progress.step + 1) % every:
        return {}
    scaler = next(iter(trainer.steppers.values())).scaler
    scale = scaler.scale(torch.ones((), device=trainer.device))
    with trainer.precision.full():
        weighted = terms(losses, trainer.experiment.all_losses, trainer.progress.step)
        return loss_gradients(weighted, trainer.model.parameters(), scale)
