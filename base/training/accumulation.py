"""Accumulation windows, and events that are due after a duration."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from base.config.durations import RunLength, parse_duration
from base.data.batch import SampleCount, cut
from base.distributed.agreement import Kind, Message, Ticket
from base.distributed.group import ALONE, World
from base.distributed.shard import local_part
from base.training.denominators import SUM_REDUCTION, LossDenominator, denominator_of, terms_of
from base.training.losses import WeightedLoss

log = logging.getLogger("kindling")


NEVER = sys.maxsize
"""A number of steps that no run makes."""


class Outcome(Enum):
    """The outcome of a window's step."""

    MADE = "made"
    DROPPED = "dropped"
    """The remaining batches are skipped, and no optimizer steps."""
    REPEATED = "repeated"
    """It starts again from its first batch."""
    LOST = "lost"
    """This rank ran out of memory; at the end of the window all ranks repeat it."""


class Window:
    """The batches of one optimizer step; the last window of an epoch may be shorter.

    The gradient of a step equals that of one batch with all samples of the window. The mean over a
    part is weighted by its share: its denominator divided by that of the window, which is known in
    advance from the targets (see `base/training/denominators.py`). With several ranks, the window
    has the samples of all of them: each rank sends its denominators when it has read a window, and
    the shares of all ranks sum to 1.

    Args:
        accumulate: the number of batches in a window.
        micro_batch: the number of samples in a part of a batch; None does not split batches.
        losses: the losses of the config, by name.
        count: returns the number of samples in a batch, given its position.
        own: the losses that the trainer builds, by name; more may be added later.
        world: the ranks that share each batch.
    """

    def __init__(
        self,
        accumulate: int,
        micro_batch: int | None,
        losses: Mapping[str, WeightedLoss],
        count: SampleCount,
        own: Mapping[str, WeightedLoss] = MappingProxyType({}),
        world: World = ALONE,
    ) -> None:
        self.accumulate, self.micro_batch, self.world = accumulate, micro_batch, world
        self.losses, self.own, self.count = losses, own, count
        self.size, self.is_full = 1, True
        self.n_samples = 0
        self.outcome = Outcome.MADE
        self._is_plain = False  # whether each batch, whole, of this process alone is a window
        self._is_whole = False  # whether this window is such a batch
        self._whole = Denominators(0, {})  # all batches of the window, of all ranks
        self._part = self._whole  # the part in progress
        self.is_shared = False
        """Whether the part in progress is less than the window."""
        self._ahead: deque[Denominators] = deque()  # windows that are read but have not begun
        self._deferred = DeferredDenominators()
        self.requests: Callable[[], Mapping[str, float]] = dict
        """Returns what this rank asks of the others when it has read a window."""
        self.on_message: Callable[[Message], None] = _ignore
        """Receives the messages of all ranks for a window."""
        self.next_step: Callable[[], int] = int
        """Returns the number of the step to come."""
        self._counts: deque[int] = deque()  # this rank's samples of the batches that are read
        self._tickets: deque[Ticket] = deque()  # of the windows in `_ahead`
        self._ticket: Ticket | None = None  # of this window, until its message is needed
        self.n_own = 0  # this rank's samples of the window

    def drop(self) -> None:
        """Skip the remaining batches of the window and its step."""
        self.outcome = Outcome.DROPPED

    def repeat(self) -> None:
        """Skip the remaining batches of the window and repeat its step."""
        self.outcome, self.is_full = Outcome.REPEATED, False

    def lose(self) -> None:
        """Skip the remaining batches of the window on this rank; the ranks then repeat its step."""
        self.outcome = Outcome.LOST

    def restart(self) -> None:
        """Begin the repeated step."""
        self.outcome = Outcome.MADE

    def read_ahead(self, batches: Iterator[Any], first: int) -> Iterator[Any]:
        """Yield batches from position ``first``; read all batches of a window before its first."""
        self._ahead.clear()
        is_alone = self.accumulate == 1 and not self.world.is_active
        self._is_plain = is_alone and self.micro_batch is None
        if self.world.is_active:
            self._counts.clear()
            self._tickets.clear()
            return self._windows_of_rank(batches, first)
        return batches if self.accumulate == 1 else self._windows(batches, first)

    def _windows(self, batches: Iterator[Any], first: int) -> Iterator[Any]:
        while chunk := list(islice(batches, self.accumulate)):
            self._ahead.append(self._denominators_of_window(chunk, first))
            first += len(chunk)
            while chunk:
                yield chunk.pop(0)

    def _windows_of_rank(self, batches: Iterator[Any], first: int) -> Iterator[Any]:
        """Yield batches; for each window, send this rank's denominators to the other ranks."""
        assert self.world.agreement is not None
        while True:
            chunk, whole = [], Denominators(0, {})
            for batch in islice(batches, self.accumulate):
                n_own = self.count.of_rank(batch, first)
                whole.add(self._denominators(batch, n_own))
                self._counts.append(n_own)
                chunk.append(batch)
                first += 1
            if not chunk:
                return
            del batch
            numbers = [0.0 if one is None else one for one in map(whole.number, self._names)]
            step = self.next_step() + len(self._ahead)
            sent = {"n_samples": whole.n_samples, **self.requests()}
            ticket = self.world.agreement.begin(Kind.WINDOW, step, numbers, **sent)
            self._ahead.append(whole)
            self._tickets.append(ticket)
            while chunk:
                yield chunk.pop(0)

    @property
    def _names(self) -> list[str]:
        return [*self.losses, *self.own]

    def receive(self) -> None:
        """Wait for the message of this window of all ranks, once.

        Raises:
            PeerError, RankLostError: another rank has failed, or does not answer.
        """
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            return
        assert self.world.agreement is not None
        message = self.world.agreement.finish(ticket)
        names = self._names
        totals = dict(zip(names, message.denominators(len(names)), strict=False))
        counted = {
            name: one if one.number is SUM_REDUCTION else one._replace(number=totals[name])
            for name, one in self._whole.counted.items()
        }
        self._whole = Denominators(int(sum(message["n_samples"])), counted)
        self.on_message(message)

    def take(self, batch: Any) -> None:
        """Make this batch a window of its own."""
        next(self.read_ahead(iter([batch]), 0))
        self.place(0, 1)

    def place(self, number: int, count: int) -> None:
        """Move to batch ``number`` of the ``count`` remaining in the epoch."""
        self._is_whole = self._is_plain and not self._deferred.assumed
        if self._is_whole:  # the common case
            self.outcome, self.is_full, self.is_shared = Outcome.MADE, True, False
            return
        position = number % self.accumulate
        if position == 0:
            self.outcome = Outcome.MADE
            if self._deferred.assumed or self._deferred.is_ruled_out:
                self._deferred = DeferredDenominators()
            if self._ahead:
                self._whole = self._ahead.popleft()
                self.n_own = self._whole.n_samples
                if self._tickets:
                    self._ticket = self._tickets.popleft()
        self.size = min(self.accumulate, count - number + position)
        self.is_full = position == self.size - 1

    def parts(self, batch: Any, position: int) -> Iterable[tuple[Any, int]]:
        """Yield the parts of a batch, each with its number of samples."""
        if self._is_whole:
            self.n_samples = self.count(batch, position)
            return ((batch, self.n_samples),)
        is_of_rank = self.world.is_active
        n_samples = self._counts.popleft() if is_of_rank else self.count(batch, position)
        self.n_samples = n_samples
        if self.outcome is not Outcome.MADE:
            return ()
        if self.micro_batch is not None:
            n_parts = -(-n_samples // self.micro_batch)
            if self.world.is_sharded:
                n_parts = max(self.world.all_gather(n_parts))  # the ranks run each part together
            if n_parts > 1:
                return self._cut(batch, n_samples, self.micro_batch, n_parts)
        self.is_shared = self.accumulate > 1 or is_of_rank
        self._part = self._denominators(batch, n_samples) if self.is_shared else self._whole
        return ((batch, n_samples),)

    @property
    def n_counted(self) -> int:
        """The samples to count after the current batch: those of all ranks, after the last one."""
        if not self.world.is_active:
            return self.n_samples
        return self._whole.n_samples if self.is_full else 0

    def share(self, loss: Tensor) -> Tensor:
        """Return the contribution of a loss of the current part to the loss of the window."""
        if not self.is_shared:
            return loss
        self.receive()
        terms = terms_of(loss)
        if terms is None:
            return self._shared(loss)
        # Terms with a denominator come first, because the others depend on them.
        trained = (term for term in terms.values() if term.requires_grad)
        order = sorted(trained, key=lambda term: denominator_of(term) is None)
        shared = [self._shared(term) for term in order]
        return sum(shared[1:], start=shared[0]) if shared else loss

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Compute something outside of training: no step is due, and losses are not scaled."""
        kept = vars(self).copy()
        self.is_full, self.is_shared = False, False
        try:
            yield
        finally:
            vars(self).update(kept)

    def _cut(
        self, batch: Any, n_samples: int, length: int, n_parts: int
    ) -> Iterator[tuple[Any, int]]:
        is_last, self.is_shared = self.is_full, True
        if self.accumulate == 1 and not self.world.is_active:
            self._whole = self._denominators(batch, n_samples)
        for number in range(n_parts):
            begin = number * length
            n_own = max(0, min(length, n_samples - begin))
            # A rank without samples for a part borrows the first one of the batch.
            ends = (begin, begin + n_own) if n_own else (0, 1)
            part = cut(batch, *ends, max(n_samples, 1))
            self._part = self._denominators(part, n_own)
            self.is_full = is_last and number == n_parts - 1
            yield part, n_own
            if self.outcome is not Outcome.MADE:
                break
        self.is_full = is_last and self.outcome is not Outcome.REPEATED
        self.is_shared = False

    def _denominators_of_window(self, batches: Sequence[Any], first: int) -> Denominators:
        whole = Denominators(0, {})
        for position, batch in enumerate(batches, start=first):
            whole.add(self._denominators(batch, self.count(batch, position)))
        return whole

    def _denominators(self, batch: Any, n_samples: int) -> Denominators:
        rules, all_losses = self.count.rules, (*self.losses.items(), *self.own.items())
        found = ((name, loss.counted_in(batch, rules)) for name, loss in all_losses)
        counted = {name: one for name, one in found if one is not None}
        if n_samples == 0:  # a borrowed sample, on a rank that has none of its own
            counted = {
                name: one if one.number is SUM_REDUCTION else one._replace(number=0)
                for name, one in counted.items()
            }
        return Denominators(n_samples, counted)

    def _shared(self, term: Tensor) -> Tensor:
        counted = denominator_of(term)
        if self._part.n_samples == 0:
            return _scale(term, 0.0)
        if counted is not None and counted.number is SUM_REDUCTION:
            return _scale(term, self._deferred.compensation())
        is_own = counted is not None and counted.name in self.own
        is_alone = len(self.losses) == 1 and not is_own
        share = None if counted is None else self._known_share(counted, is_alone)
        if share is not None:
            if not is_own:
                self._deferred.is_ruled_out = (
                    self._deferred.is_ruled_out or not self._deferred.assumed
                )
            return _scale(term, share * self._deferred.compensation())
        by_samples = self._part.n_samples / max(self._whole.n_samples, 1)
        if counted is None or not is_alone or self._deferred.is_ruled_out:
            return _scale(term, by_samples * self._deferred.compensation())
        return _scale(term, self._deferred.share(counted, self._part, by_samples))

    def _known_share(self, counted: LossDenominator, is_alone: bool) -> Any:
        """Return the share of a part; None if its denominators are not known in advance."""
        part, whole = (each.counted.get(counted.name) for each in (self._part, self._whole))
        if part is None or whole is None or not part.is_for(counted, is_alone):
            return None
        is_empty = not isinstance(whole.number, Tensor) and not whole.number
        return 0.0 if is_empty else part.number / whole.number

    @property
    def is_deferred(self) -> bool:
        """Whether `correct` will scale the gradients of this rank."""
        return self._deferred.assumed != 0

    @property
    def found(self) -> float:
        """The denominator that was known only in the step, of this rank; 0 if there is none."""
        return float(self._deferred.found) if self._deferred.assumed else 0.0

    def correct(self, optimizer: Optimizer, found: float | None = None) -> None:
        """Scale the gradients of a window by its actual denominators.

        Args:
            found: the sum of `found` over all ranks; None for a single process.
        """
        if self.is_deferred:
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            gradients = [local_part(p.grad) for p in parameters if p.grad is not None]
            torch._foreach_mul_(gradients, self._deferred.correction(found))


def _ignore(_: Message) -> None: ...


def warn_of_batch_norm(model: nn.Module, micro_batch: int | None, batch_size: int | None) -> None:
    """Warn if BatchNorm computes its statistics over parts of a batch."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if norms and not (batch_size and micro_batch and micro_batch >= batch_size):
        text = "memory.micro_batch: the %d BatchNorm layers see %d samples at a time, not the whole"
        log.warning(f"{text} batch: statistics and results differ", len(norms), micro_batch)


def _scale(term: Tensor, share: Any) -> Tensor:
    """Return a share of a mean; 0 for an empty part, whose mean is 0/0."""
    # As a number, a share takes one operation; the result has the same bits.
    if isinstance(share, Tensor) and share.is_cpu and share.dtype == term.dtype:
        number = float(share)
        is_plain = number != 0 and math.isfinite(number) and not share.requires_grad
        share = number if is_plain else share
    if not isinstance(share, Tensor):
        return term * float(share) if share else term.nan_to_num() * 0.0
    share = share.to(term.device, non_blocking=True)
    return torch.where(share.nan_to_num() == 0, 0.0, term * share.nan_to_num())


@dataclass
class Denominators:
    """The number of samples in a batch or window, and the denominators of its losses."""

    n_samples: int
    counted: dict[str, LossDenominator]

    def add(self, other: Denominators) -> None:
        """Add another batch of the window."""
        self.n_samples += other.n_samples
        for name, one in other.counted.items():
            self.counted[name] = one if name not in self.counted else self.counted[name].plus(one)

    def number(self, name: str) -> float | None:
        """Return the denominator of a loss; None for a sum or an unknown one."""
        one = self.counted.get(name)
        return None if one is None or one.number is SUM_REDUCTION else float(one.number)


@dataclass
class DeferredDenominators:
    """The denominators of a single loss whose targets are not those of the batch, in one window.

    The shifted or masked targets of a language model, for example, are known only as each part is
    computed. The first call of the loss in each part is taken as the main one: its denominator is
    assumed to be proportional to the number of samples, and when the window is full all gradients
    are corrected by the actual sum. Other terms are weighted by their samples, divided by the
    correction that is known so far.
    """

    assumed: float = 0.0  # of the whole window
    assumed_yet: float = 0.0  # of the parts so far
    found: Any = 0.0  # of the parts so far
    is_ruled_out: bool = False
    """Whether the first call of the loss had the target of the batch."""
    _part: Denominators | None = None
    _first: Any = 0.0  # the denominator of the first call in that part

    def share(self, counted: LossDenominator, part: Denominators, by_samples: float) -> Any:
        """Return the share of a call in the window; a later call may repeat the first of a part."""
        if not self.assumed:
            self.assumed = max(counted.n_elements, 1) / (by_samples or 1.0)
        if self._part is not part:
            self._part, self._first = part, counted.number
            self.assumed_yet += self.assumed * by_samples
            self.found = self.found + counted.number
            return counted.number / self.assumed
        other = by_samples * self.compensation()
        is_repeated = counted.number == self._first
        if isinstance(is_repeated, Tensor):
            return torch.where(is_repeated, counted.number / self.assumed, other)
        return counted.number / self.assumed if is_repeated else other

    def correction(self, found: float | None = None) -> Any:
        """Return the factor for all gradients; 0 if the window is empty.

        Args:
            found: the denominator of all ranks; None takes that of this process.
        """
        return _divide(self.assumed, self.found if found is None else found)

    def compensation(self) -> Any:
        """Return the factor that cancels the correction expected so far."""
        return self.found / self.assumed_yet if self.assumed else 1.0


def _divide(number: Any, other: Any) -> Any:
    """Return the quotient; 0 for a divisor of 0."""
    if isinstance(other, Tensor):
        return torch.where(other == 0, 0.0, number / other)
    return number / other if other else 0.0


class Every:
    """Is due once in each duration: a number of steps, of whole epochs, or of minutes.

    Minutes are measured by the monotonic clock, since it was last due.
    """

    def __init__(self, text: str, length: RunLength) -> None:
        duration = parse_duration(text, with_time=True)
        is_whole = duration.unit == "epochs" and duration.amount == int(duration.amount)
        self.epochs = int(duration.amount) if is_whole else 0
        self.seconds = 60 * duration.amount if duration.unit == "minutes" else 0.0
        is_timed = is_whole or self.seconds > 0
        self.steps = 0 if is_timed else duration.in_steps(length)
        self._began = time.monotonic()

    def is_due_at_step(self, step: int) -> bool:
        """Return whether it is due after this step."""
        if self.seconds:
            return self.is_due_by_clock()
        return step % (self.steps or NEVER) == 0

    def is_due_by_count(self, step: int) -> bool:
        """Return whether a number of steps is complete after this step."""
        return step % (self.steps or NEVER) == 0

    def is_due_by_clock(self) -> bool:
        """Return whether a duration in minutes has passed; the next one then begins."""
        if self.seconds and time.monotonic() - self._began >= self.seconds:
            self._began = time.monotonic()
            return True
        return False

    def is_due_after_epoch(self, epoch: int) -> bool:
        """Return whether it is due after this number of epochs."""
        return self.epochs > 0 and epoch % self.epochs == 0
