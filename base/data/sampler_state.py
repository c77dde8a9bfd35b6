"""Stateful samplers, which may learn from the losses and are saved and resumed with the training.

A sampler with ``state_dict`` and ``load_state_dict`` is reset to its state at the start of an
epoch whenever the order of that epoch is drawn. The order therefore depends only on this state,
the seed and the epoch, regardless of what was read before or ahead. If the sampler also has
``update(ids, losses)``, it is called at the end of each epoch with the id and loss of each trained
sample, in order and as often as it was drawn. Both tensors are on the CPU, int64 and float32.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from base.distributed import ALONE, World
from base.errors import DataError

log = logging.getLogger("kindling")


class SamplerState:
    """Holds the state of a sampler at the start of an epoch, and the losses collected since.

    Its state dict contains both, so that a run can resume in the middle of an epoch.

    Args:
        redraw: draws the order of an epoch, which may change the sampler.
    """

    def __init__(self, sampler: Any, redraw: Callable[[int], Any]) -> None:
        self.sampler, self._redraw = sampler, redraw
        self.wants_losses = learns(sampler)
        self.places: Tensor | None = None  # the id at each drawn index; None: equal to the index
        self._start = copy.deepcopy(sampler.state_dict())
        self._begun: int | None = None  # the epoch whose order was drawn last
        self._ids: list[Tensor] = []  # of the epoch so far
        self._losses: list[Tensor] = []
        self._of_step: list[tuple[int, Tensor, Tensor]] = []  # of the current step, with the batch

    def begin(self, epoch: int) -> None:
        """Prepare the sampler for drawing the order of an epoch."""
        if self._begun is not None:  # drawing may have changed the sampler
            self.sampler.load_state_dict(copy.deepcopy(self._start))
        self._begun = epoch

    def note(self, ids: Tensor, losses: Tensor, batch: int = 0) -> None:
        """Collect the losses of some samples of a batch without waiting for the device."""
        self._of_step.append((batch, ids, losses))

    def keep_step(self, world: World = ALONE) -> None:
        """Keep the losses that all ranks collected in a successful step."""
        parts, self._of_step = self._of_step, []
        if self.wants_losses and world.is_active:
            parts = _in_order(world.all_gather(parts))
        for _, ids, losses in parts:
            self._ids.append(ids)
            self._losses.append(losses)

    def drop_step(self) -> None:
        """Discard the losses collected in a failed step."""
        self._of_step = []

    def end_epoch(self, epoch: int) -> None:
        """Update the sampler with the losses of the epoch."""
        if self._begun != epoch:  # resumed after the last batch, or another order was drawn
            self._redraw(epoch)
        if self.wants_losses and self._ids:
            ids, losses = self._gathered()
            self.sampler.update(self._indices_of(ids), losses)
        self._ids, self._losses, self._begun = [], [], None
        self._start = copy.deepcopy(self.sampler.state_dict())

    def state_dict(self) -> dict[str, Any]:
        ids, losses = self._gathered()
        return {"start": self._start, "ids": ids, "losses": losses}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._start = copy.deepcopy(state_dict["start"])
        self.sampler.load_state_dict(copy.deepcopy(self._start))
        self._ids, self._losses = [state_dict["ids"]], [state_dict["losses"]]
        self._of_step, self._begun = [], None

    def _indices_of(self, ids: Tensor) -> Tensor:
        """Return the sampler's indices, which are positions within a torch `Subset`, if any."""
        if self.places is None:
            return ids
        known, indices = self.places.sort(stable=True)
        return indices[torch.searchsorted(known, ids)]

    def _gathered(self) -> tuple[Tensor, Tensor]:
        """Return all ids and losses of the epoch on the CPU. This waits for the device."""
        ids = [each.cpu() for each in self._ids] or [torch.empty(0, dtype=torch.int64)]
        losses = [each.cpu() for each in self._losses] or [torch.empty(0)]
        return torch.cat(ids), torch.cat(losses)


def _in_order(ranks: Sequence[Sequence[tuple[int, Tensor, Tensor]]]) -> list[Any]:
    """Return the losses of each batch in its order, of which rank ``r`` has the samples [r::size].

    Args:
        ranks: the collected losses of each rank.
    """
    whole = []
    for batch in sorted({number for parts in ranks for number, _, _ in parts}):
        found = [
            (len(ranks) * place + rank, ids, loss)
            for rank, parts in enumerate(ranks)
            for place, (ids, loss) in enumerate(_samples_of(parts, batch))
        ]
        _, ids, losses = zip(*sorted(found, key=lambda one: one[0]), strict=True)
        whole.append((batch, torch.stack(ids), torch.stack(losses)))
    return whole


def _samples_of(
    parts: Sequence[tuple[int, Tensor, Tensor]], batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for number, ids, losses in parts:
        if number == batch:
            yield from zip(ids.cpu(), losses.cpu(), strict=True)


def learns(sampler: Any) -> bool:
    """Return whether a sampler has ``update(ids, losses)``."""
    update = getattr(sampler, "update", None)
    try:
        parameters = inspect.signature(update).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    needed = [each for each in parameters if each.default is each.empty]
    return len(needed) == 2 and all(each.kind is each.POSITIONAL_OR_KEYWORD for each in needed)


def state_of_sampler(loader: Any, redraw: Callable[[int], Any]) -> SamplerState | None:
    """Return the state of the sampler of torch's loader, or None if it has no state."""
    batched = getattr(loader, "batch_sampler", None)
    for sampler in (batched, getattr(loader, "sampler", None), getattr(batched, "sampler", None)):
        if sampler is not None and has_state(sampler):
            return SamplerState(sampler, redraw)
    return None


def has_state(sampler: Any, is_given: bool = False) -> bool:
    """Return whether the state of a sampler should be saved.

    Args:
        is_given: whether it is the `sampler` argument of a `BaseDataLoader`. Other samplers may
            predate this interface and are left alone if they do not implement it.

    Raises:
        DataError: it learns from losses but has no state to save.
    """
    missing = [
        verb
        for verb in ("state_dict", "load_state_dict")
        if not callable(getattr(sampler, verb, None))
    ]
    if missing and learns(sampler):
        name, needed = type(sampler).__name__, " and ".join(missing)
        if is_given:
            text = f"{name} has update(ids, losses), so what it learns must be saved"
            raise DataError(f"{text}: give it {needed}")
        text = "%s: its update(ids, losses) is not called, as it has no %s"
        log.warning(text, name, needed)
    return not missing
