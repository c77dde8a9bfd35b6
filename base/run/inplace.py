"""``inplace``: activations overwrite their inputs where a trial shows that nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from base.data.batch import cut, tensors_in
from base.errors import TrainingError
from base.training.trials import trial

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

N_SAMPLES = 8  # of the first batch: the plain way must fit beside what it is compared with
NOISE = 0.02  # on the weights: what is initialised to 0 would hide what lies behind it

Switches = list[nn.Module]


def choose_inplace(trainer: BaseTrainer, batch: Any) -> str:
    """Switch on as many activations as give the values, outputs and gradients of the plain way.

    Each that is switched on was tried together with all others that are. Return what to tell.
    """
    modules = trainer.model.modules()
    switches = [one for one in modules if isinstance(getattr(one, "inplace", None), bool)]
    n_samples = trainer.window.count(batch)
    sample = cut(batch, 0, min(N_SAMPLES, n_samples), n_samples)
    with _noisy(trainer.model):
        plain, again = _run(trainer, sample), _run(trainer, sample)
        # A device that adds up in any order gives other last digits each time.
        pairs = zip(plain, again, strict=True)
        spread = [2 * (a - b).abs().nan_to_num().max().item() for a, b in pairs]

        def is_safe(chosen: Switches) -> bool:
            try:
                with _switched(chosen):
                    found = _run(trainer, sample)
            except (RuntimeError, TrainingError):
                return False
            return len(found) == len(plain) and all(map(_equal, found, plain, spread))

        safe = _largest(is_safe, [], [one for one in switches if not one.inplace])
    for module in safe:
        module.inplace = True  # type: ignore[assignment]
    n_switched = sum(bool(module.inplace) for module in switches)
    return f"inplace: {n_switched} of {len(switches)} activations"


def _largest(is_safe: Callable[[Switches], bool], kept: Switches, others: Switches) -> Switches:
    """Return those of the others that are safe beside the kept ones, by halves."""
    if not others or is_safe(kept + others):
        return others
    if len(others) == 1:
        return []
    middle = len(others) // 2
    first = _largest(is_safe, kept, others[:middle])
    return first + _largest(is_safe, kept + first, others[middle:])


def _run(trainer: BaseTrainer, batch: Any) -> list[Tensor]:
    """Return all that a step and a validation of it give: outputs, values, gradients, the batch."""
    batch = copy.deepcopy(batch)
    seen: list[Any] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen.extend(tensor.detach().clone() for tensor in tensors_in(output))

    handle = trainer.model.register_forward_hook(note)
    try:
        with trial(trainer.state, trainer):
            seen.extend(trainer.try_step(batch).values())
            seen.extend(p.grad for p in trainer.model.parameters() if p.grad is not None)
            trainer.model.eval()
            with torch.no_grad(), trainer.precision.autocast():
                seen.extend(trainer.valid_step(batch).values())
    finally:
        handle.remove()
        trainer.epoch_start.begin()
    tensors = (torch.as_tensor(one).detach().float() for one in (*seen, *tensors_in(batch)))
    return [tensor for tensor in tensors if tensor.numel()]


def _equal(one: Tensor, other: Tensor, spread: float) -> bool:
    is_of_one_shape = one.shape == other.shape
    return is_of_one_shape and torch.allclose(one, other, rtol=0, atol=spread, equal_nan=True)


@contextmanager
def _switched(modules: Switches) -> Iterator[None]:
    for module in modules:
        module.inplace = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in modules:
            module.inplace = False  # type: ignore[assignment]


@contextmanager
def _noisy(model: nn.Module) -> Iterator[None]:
    """Move all weights a little within the block."""
    weights = [p.detach() for p in model.parameters() if p.is_floating_point()]
    former = [weight.clone() for weight in weights]
    generators = {w.device: torch.Generator(w.device).manual_seed(0) for w in weights}
    for weight in weights:
        weight.add_(torch.empty_like(weight).normal_(0, NOISE, generator=generators[weight.device]))
    try:
        yield
    finally:
        for weight, kept in zip(weights, former, strict=True):
            weight.copy_(kept)
