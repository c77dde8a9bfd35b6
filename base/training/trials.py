"""Trial steps before training, which update nothing and restore all state."""

from __future__ import annotations

import copy
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from base.distributed.shard import local_part
from base.training.state import TrainingState


class KeptCopies:
    """Copies of tensors, in memory that the next copy of the same ones reuses."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def take(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return copies, which are valid until the next call."""
        known = zip(tensors, self._tensors, self._copies, strict=False)
        is_known = len(tensors) == len(self._tensors) and all(
            one is before and one.shape == copied.shape for one, before, copied in known
        )
        if is_known:
            copy_all(self._copies, tensors)
        else:
            self._tensors, self._copies = tensors, [one.detach().clone() for one in tensors]
        return self._copies


def copy_all(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy values, by one call for all plain tensors of a device and type: on a GPU one kernel."""
    groups: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        if type(target) is not Tensor or target.layout is not torch.strided:
            target.copy_(source)  # such as rows of a sharded tensor
            continue
        group = groups.setdefault((target.device, target.dtype), ([], []))
        group[0].append(target)
        group[1].append(source)
    for group in groups.values():
        torch._foreach_copy_(*group)


def keep_buffers(
    modules: Iterable[nn.Module], copies: KeptCopies | None = None
) -> Callable[[], None]:
    """Return a function that restores all buffers and their values.

    Args:
        copies: holds the values, in memory that is reused at the next step; new by default.
    """
    owned = [(module._buffers, dict(module._buffers)) for module in modules if module._buffers]
    values = [buffer for _, kept in owned for buffer in kept.values() if buffer is not None]
    formers = (copies or KeptCopies()).take(values)

    def put_back() -> None:
        for buffers, kept in owned:
            buffers.update(kept)
        with torch.no_grad():
            copy_all(values, formers)

    return put_back


@contextmanager
def trial(state: TrainingState, owner: object) -> Iterator[None]:
    """Disable updates and metrics inside the block; restore all other state after it.

    Gradients, of which there are none before training, are freed.

    Args:
        owner: an object whose attributes are restored too, such as the user's trainer.
    """
    put_back = keep_buffers(state.model.modules())
    put_attributes_back = keep_attributes(owner)
    states = {
        name: (one, copy.deepcopy(one.state_dict()))
        for name, one in state.stateful.items()
        if name != "model" and not name.startswith("optimizer.")
    }
    metrics = state.phase_metrics
    state.phase_metrics, state.finite.is_on = {}, False
    try:
        with state.window.aside():
            yield
    finally:
        put_attributes_back()
        state.phase_metrics = metrics
        state.finite.all_finite()  # reset
        state.finite.is_on = True
        for parameter in state.model.parameters():
            parameter.grad = None
        put_back()
        for one, former in states.values():
            one.load_state_dict(former)


def keep_attributes(owner: object) -> Callable[[], None]:
    """Return a function that restores an object's attributes, containers and tensors.

    Containers and tensors keep their identity, because other objects may reference them.
    """
    attributes = dict(vars(owner))
    containers = [
        (value, copy.copy(value))
        for value in attributes.values()
        if isinstance(value, list | dict | set | deque)
    ]
    tensors = [(v, v.detach().clone()) for v in attributes.values() if isinstance(v, Tensor)]

    def put_back() -> None:
        vars(owner).clear()
        vars(owner).update(attributes)
        for container, former in containers:
            container.clear()
            add = container.extend if isinstance(container, list | deque) else container.update
            add(former)
        for tensor, numbers in tensors:
            # A tensor that an evaluation computed can only be changed in inference mode.
            with torch.inference_mode(tensor.is_inference()), torch.no_grad():
                tensor.copy_(numbers)

    return put_back


@contextmanager
def kept_weights(model: nn.Module, optimizers: Iterable[Optimizer]) -> Iterator[None]:
    """Restore weights and optimizers after a block that may step an optimizer."""
    weights = [(p, p.detach().to("cpu", copy=True)) for p in model.parameters()]
    states = [(one, copy.deepcopy(one.state_dict())) for one in optimizers]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, former in weights:
                parameter.copy_(former)
        for optimizer, state in states:
            optimizer.load_state_dict(state)


class SavedBytes(saved_tensors_hooks):
    """Counts the bytes that autograd saves inside the block, each storage once.

    ``peak`` is the maximum at one time, since a step may have several backward passes; ``largest``
    is the largest single tensor.

    Args:
        kept: tensors that exist anyway and are not counted: parameters, the batch.
    """

    def __init__(self, kept: list[Tensor]) -> None:
        self.peak = self.largest = self._now = 0
        self._uses: Counter[int] = Counter()
        known = {local_part(tensor).untyped_storage().data_ptr() for tensor in kept}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            saved = tensor.detach()  # the tensor itself would keep its graph node alive
            if storage.data_ptr() not in known:
                self._count(storage.data_ptr(), storage.nbytes(), +1)
                weakref.finalize(saved, self._count, storage.data_ptr(), storage.nbytes(), -1)
            return saved

        super().__init__(note, lambda tensor: tensor)

    def _count(self, place: int, n_bytes: int, uses: int) -> None:
        was_kept = self._uses[place] > 0
        self._uses[place] += uses
        self._now += n_bytes * ((self._uses[place] > 0) - was_kept)
        self.peak, self.largest = max(self.peak, self._now), max(self.largest, n_bytes)
