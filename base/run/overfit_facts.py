"""What a batch allows: the lowest loss that outputs could have, and targets that contradict."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from base.base_trainer import BaseTrainer
from base.data.batch import inputs_of, map_tensors, target_of, tensors_in
from base.training.trials import trial

MOST_VALUES = 4_000_000  # of the outputs, whose lowest loss is searched
SEARCH_STEPS = 200


@dataclass
class Twins:
    """Samples with equal inputs and different targets: ``groups`` numbers the equal inputs."""

    n: int = 0
    groups: Tensor | None = None
    places: str = ""


def contradictions(trainer: BaseTrainer, batch: Any, n_samples: int) -> Twins:
    """Return the samples of a batch that have the inputs of another one, and another target."""
    args, keywords = inputs_of(batch, trainer.config["batch"])
    inputs = _rows([*args, *keywords.values()], n_samples)
    targets = _rows(target_of(batch, trainer.config["batch"]), n_samples)
    if inputs is None or targets is None:
        return Twins()
    _, groups, counts = inputs.unique(dim=0, return_inverse=True, return_counts=True)
    several = (counts[groups] > 1).nonzero()[:, 0].tolist()
    firsts: dict[int, int] = {}
    wrong = []
    for place in several:
        first = firsts.setdefault(int(groups[place]), place)
        if not torch.equal(targets[place], targets[first]):
            wrong.append((first, place))
    places = ", ".join(f"{one + 1} and {other + 1}" for one, other in wrong[:3])
    return Twins(len(wrong), groups, f"positions {places}{', ...' * (len(wrong) > 3)}")


def _rows(values: Any, n_samples: int) -> Tensor | None:
    """Return one row of numbers for each sample; None if a value has none for each."""
    tensors = [values] if isinstance(values, Tensor) else list(tensors_in(values))
    if not tensors or any(not t.dim() or len(t) != n_samples for t in tensors):
        return None
    return torch.cat([t.detach().reshape(n_samples, -1).double().cpu() for t in tensors], dim=1)


def lowest_loss(trainer: BaseTrainer, batch: Any, groups: Tensor | None) -> float | None:
    """Return the lowest loss that any outputs have, found by changing the outputs themselves.

    Args:
        groups: of each sample, the number of its input; equal inputs then have equal outputs.

    Returns:
        None if it is not known: the trainer computes losses in its own step, for example.
    """
    if not trainer.has_plain_step:
        return None
    try:
        with trial(trainer.training_state, trainer), trainer.precision.full():
            return _search(trainer, batch, groups)
    except (RuntimeError, ValueError, TypeError):  # a loss may need the model, or other outputs
        return None


def _search(trainer: BaseTrainer, batch: Any, groups: Tensor | None) -> float | None:
    outputs = trainer.forward(batch)
    free: list[Tensor] = []
    makers: list[Callable[[], Tensor]] = []

    def replace(output: Tensor) -> Tensor:
        if not (output.requires_grad and output.is_floating_point()):
            return output.detach()
        start, shape = _unbounded(output.detach().float())
        if groups is not None:
            if not start.dim() or len(start) != len(groups):
                raise ValueError("the outputs have no row for each sample")
            index = groups.to(start.device)
            n_groups = int(index.max()) + 1
            sums = start.new_zeros(n_groups, *start.shape[1:]).index_add_(0, index, start)
            value = (sums / index.bincount().view(-1, *[1] * (start.dim() - 1))).requires_grad_()
            makers.append(lambda: shape(value[index]))
        else:
            value = start.clone().requires_grad_()
            makers.append(lambda: shape(value))
        free.append(value)
        return output

    map_tensors(outputs, replace)
    if not free or sum(value.numel() for value in free) > MOST_VALUES:
        return None

    def loss() -> Tensor:
        made = iter(makers)

        def take(output: Tensor) -> Tensor:
            is_free = output.requires_grad and output.is_floating_point()
            return next(made)() if is_free else output.detach()

        total: Tensor = trainer.total(trainer.compute_losses(map_tensors(outputs, take), batch))[
            "loss"
        ]
        return total

    with torch.enable_grad():
        first = float(loss().detach())
        found = min(first, *_minimise(loss, free))
    # A loss without a lower bound shows nothing.
    return found if found > -abs(first) and found == found else None


def _minimise(loss: Callable[[], Tensor], free: list[Tensor]) -> list[float]:
    """Return the losses at the end of two searches, one of which suits losses with corners."""
    search = torch.optim.LBFGS(free, max_iter=SEARCH_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = loss()
        value.backward()
        return value

    search.step(closure)
    found = [float(loss().detach())]
    scale = max(float(value.detach().abs().mean()) for value in free)
    adam = torch.optim.Adam(free, lr=0.1 * (scale or 1.0))
    fall = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 1e-3, SEARCH_STEPS)
    for _ in range(SEARCH_STEPS):
        adam.zero_grad()
        loss().backward()
        adam.step()
        fall.step()
    return [*found, float(loss().detach())]


def _unbounded(output: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return free numbers for outputs, and the function that makes outputs of their kind again.

    Probabilities stay probabilities, and their logarithms too; else a loss would have no bound.
    """
    has_classes = output.dim() > 1 and output.shape[1] > 1
    if has_classes and torch.allclose(output.exp().sum(1), torch.ones(()).to(output), atol=1e-3):
        return output, lambda value: value.log_softmax(1)
    if bool(((output >= 0) & (output <= 1)).all()):
        inside = output.clamp(1e-6, 1 - 1e-6)
        if has_classes and torch.allclose(output.sum(1), torch.ones(()).to(output), atol=1e-3):
            return inside.log(), lambda value: value.softmax(1)
        return inside.logit(), torch.sigmoid
    return output, lambda value: value


def has_equal_outputs(trainer: BaseTrainer, batch: Any, n_samples: int) -> bool:
    """Return whether the outputs are the same for every sample of several."""
    if n_samples < 2 or not trainer.has_plain_step:
        return False
    was_training = trainer.model.training
    with torch.no_grad():
        outputs = list(tensors_in([trainer.forward(batch)]))
    trainer.model.train(was_training)
    rows = [o.float() for o in outputs if o.dim() and len(o) == n_samples]
    return bool(rows) and all(
        bool((o - o[:1]).abs().max() <= 1e-6 * o.abs().max().clamp(min=1e-30)) for o in rows
    )


def soft_targets_text(trainer: BaseTrainer, batch: Any) -> str:
    """Return why the lowest possible loss is above 0, as far as the config and the batch show."""
    for loss in trainer.losses.values():
        for name in ("label_smoothing", "smoothing"):
            share = setting_of(loss.function, name)
            if share:
                return f"the loss {loss.name!r} smooths the labels ({name} {share:g})"
    if mixes := getattr(trainer.train_loader, "mixes", ""):
        return f"{mixes} makes the targets class probabilities, whose entropy is left"
    targets = list(tensors_in([target_of(batch, trainer.config["batch"])]))
    if any(t.is_floating_point() and bool(((t > 0) & (t < 1)).any()) for t in targets):
        return "the targets are probabilities between 0 and 1, whose entropy is left"
    return "no outputs fit these targets better under this loss"


def setting_of(function: Any, name: str) -> Any:
    """Return an argument of a loss: of a partial function, its default, or a module's attribute."""
    keywords = getattr(function, "keywords", {})
    if name in keywords:
        return keywords[name]
    if isinstance(function, nn.Module):
        return getattr(function, name, None)
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):
        return None
    is_set = parameter is not None and parameter.default is not Parameter.empty
    return parameter.default if parameter is not None and is_set else None
