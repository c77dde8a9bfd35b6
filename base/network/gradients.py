"""Gradient tools for any module: gradient penalty, saliency, and gradients by layer or module.

All but `layer_gradient_norms` use ``torch.autograd.grad`` and leave ``.grad``, ``requires_grad``
and the mode of the module unchanged. They compute in full precision, outside of autocast, so that
fp16 does not round small gradients to 0 and no loss scale needs undoing. They also work under
``no_grad`` and ``inference_mode``, as in ``valid_step``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from base.errors import TrainingError, nearest
from base.system.torch_compat import without_compilation


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, target: float = 1.0
) -> Tensor:
    """Return the gradient penalty of WGAN-GP: the mean of (gradient norm - target) squared.

    The gradient is the critic's at random points between real and fake (Gulrajani et al. 2017,
    "Improved Training of Wasserstein GANs"). Add the penalty to the critic's loss times a weight
    (10 there), and pass the sum to ``self.backward``, which applies the loss scale of fp16 once.

    Args:
        critic: returns one or more numbers for each sample, independent of the other samples.
        real, fake: tensors of one shape, (batch, ...); neither gets a gradient.

    Raises:
        TrainingError: the shapes differ.
    """
    if real.shape != fake.shape:
        shapes = f"{tuple(real.shape)} and {tuple(fake.shape)}"
        raise TrainingError(
            f"gradient_penalty: real and fake must have the same shape, not {shapes}"
        )
    create_graph = torch.is_grad_enabled()
    real, fake = _detached(real), _detached(fake)
    with _full_precision(real.device):
        share = torch.rand_like(real.flatten(1)[:, :1]).reshape(-1, *[1] * (real.dim() - 1))
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=create_graph)
        return torch.square(slope.flatten(1).norm(dim=1) - target).mean()


def saliency(model: nn.Module, inputs: Tensor, target: int | Tensor | None = None) -> Tensor:
    """Return the absolute gradient of each sample's score with respect to its inputs.

    Simonyan et al. 2014, "Deep Inside Convolutional Networks". The model runs in evaluation mode.
    Each image gives one map, (batch, 1, height, width), the maximum over the channels. Other
    inputs keep their shape.

    Args:
        target: the class of the score, one for all samples or one per sample; by default the
            class with the highest score.

    Raises:
        TrainingError: the model does not return one tensor.
    """
    inputs, modes = _detached(inputs), {module: module.training for module in model.modules()}
    model.eval()
    try:
        with _full_precision(inputs.device):
            inputs = inputs.clone().requires_grad_()  # inference tensors cannot join a graph
            output = model(inputs)
            if not isinstance(output, Tensor):
                found = type(output).__name__
                raise TrainingError(
                    f"the model must return one tensor (batch, classes), not {found}"
                )
            scores = output.reshape(len(output), -1)
            chosen = scores.argmax(dim=1) if target is None else target
            chosen = torch.as_tensor(chosen, device=scores.device).expand(len(scores))
            score = scores.gather(1, chosen.unsqueeze(1)).sum()
            slope = torch.autograd.grad(score, inputs)[0].abs()
    finally:
        for module, mode in modes.items():
            module.training = mode
    return slope.amax(dim=1, keepdim=True) if slope.dim() == 4 else slope


def layer_gradient_norms(model: nn.Module, scale: float | Tensor = 1.0) -> dict[str, Tensor]:
    """Return the norm of the ``.grad`` of each layer's own parameters, by name.

    Args:
        scale: the factor on the loss, such as ``scaler.get_scale()``.
    """
    norms = {}
    for name, module in model.named_modules():
        gradients = [p.grad for p in module.parameters(recurse=False) if p.grad is not None]
        if gradients:
            total = nn.utils.get_total_norm(map(at_least_float32, gradients))
            norms[name or "(model)"] = total / scale
    return norms


def gradient_of(model: nn.Module, name: str, loss_fn: Callable[[], Tensor]) -> Tensor:
    """Return the gradient of a loss with respect to the output of the module ``name``.

    Args:
        loss_fn: runs one forward pass in the model's current mode and returns the loss.

    Raises:
        TrainingError: the module does not exist, was not called exactly once or did not return
            a single floating-point tensor, or the loss does not depend on it.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        raise TrainingError(f"the model has no module {name!r}{nearest(name, modules)}")
    points: list[Tensor] = []

    def branch(module: nn.Module, args: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            found = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise TrainingError(f"{name!r} returns {found}, not one floating-point tensor")
        points.append(output if output.requires_grad else output.detach().requires_grad_())
        return points[-1].clone()  # so that in-place operations do not change the point

    handle = modules[name].register_forward_hook(branch)
    try:
        with _full_precision(next(model.parameters(), torch.empty(0)).device):
            loss, gradient = loss_fn(), None
            if len(points) != 1:
                raise TrainingError(f"{name!r} was called {len(points)} times, not exactly once")
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, points, allow_unused=True)
    finally:
        handle.remove()
    if gradient is None:
        raise TrainingError(f"the loss does not depend on the output of {name!r}")
    return gradient


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor detached, dense, and in float32 or wider."""
    return tensor.detach().to_dense().to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Leave autocast, ``inference_mode``, and with it ``no_grad``; and compiled code.

    A compiled network has no second derivatives, and calls no hooks.
    """
    eager = without_compilation()
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False), eager:
        yield


def _detached(tensor: Tensor) -> Tensor:
    """Detach a tensor, and under autocast convert it to the precision of the weights."""
    is_reduced = torch.is_autocast_enabled(tensor.device.type)
    return at_least_float32(tensor) if is_reduced else tensor.detach()
