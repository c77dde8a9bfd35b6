"""Resumable positions for any loader with ``__iter__``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    default_collate,
)

from base.data.batch import DEFAULT_RULES, Rules
from base.data.cut_parts import RankParts, sharded
from base.data.protocols import (
    Batch,
    SupportsPositions,
    SupportsSeeding,
    SupportsSharing,
    offered,
)
from base.data.sample_items import DrawnIndices, SampleItems, recording_indices, refuse_unknown_ids
from base.data.sampler_state import state_of_sampler
from base.data.shares import WHOLE, Share
from base.data.streams import items_of_stream, length_of_stream
from base.data.workers import SeededByRank, reporting_deaths, stop_workers
from base.errors import DataError
from base.system.seeding import cpu_streams, derive_seed, seed_cpu_streams, set_cpu_streams

log = logging.getLogger("kindling")

_ENDED = object()  # stands for a batch


def as_batches(loader: Any, seed: int, rules: Rules = DEFAULT_RULES) -> Any:
    """Return the loader, wrapped if it does not support ``batches(first, count)``.

    Args:
        rules: the config's ``batch:`` section, by which a rank cuts its part from a batch.
    """
    has_own_loop = getattr(loader, "has_own_loop", False)
    if offered(loader, SupportsPositions) is not None and not has_own_loop:
        return loader
    return ReplayedLoader(loader, seed, rules)


class ReplayedLoader:
    """Gives any loader resumable positions by drawing and dropping the batches before them.

    Each pass over the loader is seeded by (seed, pass), in random streams separate from the
    trainer's, so it is exact for the same number of workers. A loader with a length yields that
    many batches per pass. One without is read to its end, then again if it ``repeats``.
    """

    replays = True
    repeats = True

    def __init__(self, loader: Any, seed: int, rules: Rules = DEFAULT_RULES) -> None:
        if not hasattr(loader, "__iter__"):
            raise DataError(f"{type(loader).__name__} is not a data loader: it has no __iter__")
        self.loader = loader
        self.batch_size: Any = getattr(loader, "batch_size", None)
        self._n_batches = _length(loader)
        self._n_items = items_of_stream(loader)
        self._may_give_more = length_of_stream(loader) is not None
        self._may_give_fewer, self._is_filled = _length_is_estimate(loader), False
        self._items: SampleItems | None = None
        self._drawn: DrawnIndices | None = None
        self._rules = rules
        self._valid: Any = None
        self.batch_share = WHOLE
        self.n_own: int | None = None
        self._parts: RankParts | None = None  # if the part of a rank is cut from whole batches
        self._iterator: Iterator[Batch] | None = None
        self._streams: tuple[Any, ...] = ()
        self.sampler_state = getattr(loader, "sampler_state", None)
        if isinstance(loader, torch.utils.data.DataLoader):
            self.sampler_state = state_of_sampler(loader, self._draw_order)
            self._note_indices()
        self.set_seed(seed)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet: a copy is in progress
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        if self._n_batches is None:
            raise TypeError(f"{self._name} has no length")
        return self._n_batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Yield `count` batches from batch `first` of the sequence of passes 0, 1, 2, ..."""
        if self._position != first:
            self._go_to_pass(first // self._n_batches if self._n_batches else 0)
        while self._position < first:
            self._draw()
        for _ in range(count):
            try:
                batch = self._draw()
            except _PassEnded:
                return
            yield batch
            del batch  # frees it before the next one is read

    def add_to_batches(self, rules: Rules) -> None:
        """Add sample ids and weights to batches, as ``batch:`` asks.

        Raises:
            ConfigError: the samples of a batch cannot be identified.
        """
        dataset = getattr(self.loader, "dataset", None)
        gives_ids = any(getattr(each, "gives_ids", False) for each in (self.loader, dataset))
        if not gives_ids:
            refuse_unknown_ids(self.loader)
            self._note_indices(is_needed=True)
        is_plain = getattr(self.loader, "collate_fn", None) is default_collate
        pin_memory = getattr(self.loader, "pin_memory", False)
        self._items = SampleItems(rules, dataset, is_plain, pin_memory, gives_ids)
        if self.sampler_state is not None:
            self.sampler_state.places = self._items.places
        self._go_to_pass(0)

    def shard(self, rank: int, size: int) -> None:
        """Yield a rank's part of each batch from now on: its samples ``[rank::size]``.

        Positions, length and `n_drawn` stay those of the global batches. `n_own` is the number of
        samples of the last batch that belong to this rank: 0 if it has none and has borrowed the
        batch's first sample.

        torch's loader of a map-style data set reads only these samples; so does a loader with a
        ``shard`` of its own. Any other reads the whole batch, and the other rows are dropped.

        Raises:
            DataError: batches come in any order, or the loader's own sampler divides the samples.
        """
        share = Share.of_rank(rank, size)
        if size > 1:
            self._refuse_sharing()
        self.batch_share, self.n_own, self._parts = share, None, None
        if self._shares_itself:
            self.loader.shard(rank, size)
        elif self._divides_indices:
            self._divide_indices(share)
        elif size > 1:
            self._parts = RankParts(self, share, self._rules)
        if self._valid is not None:
            self._valid = sharded(self._valid, rank, size, self._rules)
        self._go_to_pass(0)

    def _refuse_sharing(self) -> None:
        """Check that all ranks draw the same batches from the loader."""
        if not getattr(self.loader, "in_order", True):
            text = f"{self._name}: in_order=False gives batches in any order, on each process"
            raise DataError(f"{text} in another one: leave it out")
        for each in _samplers_of(self.loader):
            if isinstance(each, DistributedSampler) and each.num_replicas > 1:
                text = f"{self._name}: its {type(each).__name__} divides the samples among"
                text += " processes, as Kindling does itself: leave it out, and let batch_size be"
                raise DataError(f"{text} that of all processes together")

    @property
    def cuts_batches(self) -> bool:
        """Whether each rank reads whole batches, and cuts its part from them."""
        return self._parts is not None

    @property
    def _shares_itself(self) -> bool:
        """Whether the loader has ``shard`` itself. That of a `BaseDataLoader` skips an own loop."""
        has_own_loop = getattr(self.loader, "has_own_loop", False)
        return offered(self.loader, SupportsSharing) is not None and not has_own_loop

    @property
    def _divides_indices(self) -> bool:
        """Whether each rank can read its samples alone, in the order of one process.

        A user's sampler may draw while the samples are read in the same process, so that its order
        would depend on which ones are read.
        """
        loader = self.loader
        if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
            return False
        is_own = type(loader).__iter__ is not DataLoader.__iter__
        if is_own or isinstance(loader.dataset, IterableDataset) or self._n_batches is None:
            return False
        draws_first = self.sampler_state is not None or loader.num_workers > 0
        return draws_first or not any(map(_is_of_user, _samplers_of(loader)))

    def _divide_indices(self, share: Share) -> None:
        self._note_indices(is_needed=True)
        assert self._drawn is not None
        self._drawn.share = share
        begin = self.loader.worker_init_fn
        begin = begin.wrapped if isinstance(begin, SeededByRank) else begin
        self.loader.worker_init_fn = SeededByRank(share.rank, begin) if share.size > 1 else begin

    def n_drawn(self, position: int) -> int | None:
        """Return the number of samples drawn for the batch at this position, if known."""
        sampler = getattr(self.loader, "batch_sampler", None)
        sampler = sampler.wrapped if isinstance(sampler, DrawnIndices) else sampler
        if self._n_items is not None and self._n_batches:
            first = position % self._n_batches * self.batch_size
            return int(min(self.batch_size, self._n_items - first))
        if type(sampler) is not BatchSampler or not hasattr(sampler.sampler, "__len__"):
            return None  # a loader of the user's own, batches of any size, a stream
        if self._may_give_fewer and not sampler.drop_last:
            return None
        first = position % len(sampler) * sampler.batch_size
        return min(sampler.batch_size, len(sampler.sampler) - first)  # type: ignore[arg-type]

    def split_validation(self) -> Any:
        """Return the loader's validation loader, wrapped in the same way, or None."""
        split = getattr(self.loader, "split_validation", None)
        valid = None if split is None else split()
        if valid is None:
            return None
        self._valid = as_batches(valid, self.seed, self._rules)
        if self.batch_share.size > 1:
            self._valid = sharded(self._valid, *self.batch_share, self._rules)
        return self._valid

    def set_seed(self, seed: int) -> None:
        """Set the seed of the passes, and of the loader itself if it has one."""
        self.seed = seed
        if (seeded := offered(self.loader, SupportsSeeding)) is not None:
            seeded.set_seed(seed)
        self._go_to_pass(0)

    def close(self) -> None:
        """End the current pass and stop its workers."""
        self._go_to_pass(0)

    @property
    def _name(self) -> str:
        return type(self.loader).__name__

    def _go_to_pass(self, number: int) -> None:
        """Move to the first batch of a pass."""
        iterator, self._iterator = self._iterator, None
        stop_workers(iterator)
        if isinstance(self.loader, torch.utils.data.DataLoader):
            self.loader._iterator = None  # persistent workers would continue their random streams
        self._pass, self._n_drawn = number, 0
        self._position = number * (self._n_batches or 0)

    def _draw(self) -> Batch:
        """Draw the next batch in the loader's random streams, then restore the trainer's."""
        trainers = cpu_streams()
        try:
            if self._iterator is not None:
                set_cpu_streams(self._streams)
            with reporting_deaths(self._name):
                batch = self._next_batch()
            self._streams = cpu_streams()
        finally:
            set_cpu_streams(trainers)
        self._position += 1
        self._n_drawn += 1
        if self._items is None and self.batch_share.size == 1:
            return batch
        drawn = None if self._drawn is None else self._drawn.next_indices()
        batch = batch if self._items is None else self._items.add(batch, drawn)
        return batch if self.batch_share.size == 1 else self._part_of_rank(batch)

    def _part_of_rank(self, batch: Batch) -> Batch:
        """Return the rank's part of a batch, which may have been read alone; set `n_own`."""
        if self._parts is not None:
            batch, self.n_own = self._parts.cut(batch, self._position - 1)
        else:
            self.n_own = self.loader.n_own if self._shares_itself else self._drawn.n_own  # type: ignore[union-attr]
        return batch

    def _note_indices(self, is_needed: bool = False) -> None:
        """Record the batch indices of torch's loader, for ids or for a stateful sampler."""
        is_at_once = self.sampler_state is not None
        if self._drawn is None and (is_needed or is_at_once):
            self.loader, self._drawn = recording_indices(self.loader, is_at_once)

    def _draw_order(self, number: int) -> None:
        """Draw the order of a pass with the sampler and move to its first batch."""
        self._go_to_pass(number)
        self._draw()
        self._go_to_pass(number)

    def _next_batch(self) -> Batch:
        if self._n_drawn == self._n_batches:
            self._look_for_more()
            self._go_to_pass(self._pass + 1)
        if self._iterator is None:
            self._iterator = self._begin_pass()
        # No `for` loop: a loader that is its own iterator would restart on `iter`.
        if (batch := next(self._iterator, _ENDED)) is not _ENDED:
            return batch
        if self._n_drawn and self._may_give_fewer and self.sampler_state is None:
            self._fill_pass()
            return self._next_batch()
        if self._n_batches is not None or self._n_drawn == 0:
            length = "" if self._n_batches is None else f", though its length is {self._n_batches}"
            uneven = ": its workers do not share the items evenly" * self._may_give_more
            raise DataError(f"{self._name} ended after {self._n_drawn} batches{length}{uneven}")
        if not self.repeats:
            raise _PassEnded
        position = self._position
        self._go_to_pass(self._pass + 1)
        self._position = position
        return self._next_batch()

    def _fill_pass(self) -> None:
        """Iterate again within a pass whose sampler gave fewer batches than its length."""
        if not self._is_filled:
            text = "%s ended after %d of the %d batches of its sampler's length: each pass"
            log.info(
                f"{text} is completed from another one", self._name, self._n_drawn, self._n_batches
            )
            self._is_filled = True
        self._iterator = self._begin_pass(f"filled after {self._n_drawn}")

    def _look_for_more(self) -> None:
        """Warn once if workers that share a stream yield more batches than its length."""
        if not self._may_give_more or self._iterator is None:
            return
        if next(self._iterator, _ENDED) is not _ENDED:
            self._may_give_more = False
            text = "%s yields more batches per pass than its length, %d: the others are not"
            log.warning(f"{text} used", self._name, self._n_batches)

    def _begin_pass(self, part_of_pass: str = "") -> Iterator[Batch]:
        """Start an iteration with the generators of the order and of the workers seeded."""
        if self.sampler_state is not None and self._drawn is not None:
            self.sampler_state.begin(self._pass)
        for part in (self.loader, getattr(self.loader, "sampler", None)):
            if isinstance(generator := getattr(part, "generator", None), torch.Generator):
                generator.manual_seed(
                    derive_seed(self.seed, f"generator{part_of_pass}", self._pass)
                )
            if (set_epoch := getattr(part, "set_epoch", None)) is not None:
                set_epoch(self._pass)
        seed_cpu_streams(derive_seed(self.seed, f"pass{part_of_pass}", self._pass))
        return iter(self.loader)


def _length_is_estimate(loader: Any) -> bool:
    """Return whether the length comes from a user's sampler, which may give fewer batches."""
    if not isinstance(loader, torch.utils.data.DataLoader):
        return False
    samplers = (getattr(loader, name, None) for name in ("sampler", "batch_sampler"))
    return any(_is_of_user(each) for each in samplers if each is not None)


def _samplers_of(loader: Any) -> list[Any]:
    """Return the samplers of torch's loader, without our own."""
    batched = getattr(loader, "batch_sampler", None)
    batched = batched.wrapped if isinstance(batched, DrawnIndices) else batched
    found = (getattr(loader, "sampler", None), batched, getattr(batched, "sampler", None))
    return [each for each in found if each is not None]


def _is_of_user(sampler: Any) -> bool:
    return type(sampler).__module__.partition(".")[0] != "torch"


class _PassEnded(Exception):  # noqa: N818  (not an error)
    """Raised at the end of a loader that is read only once."""


def _length(loader: Any) -> int | None:
    """Return the number of batches of a pass, or None if the loader has no length."""
    try:
        n_batches = length_of_stream(loader) or len(loader)
    except TypeError:
        return None
    if n_batches == 0:
        raise DataError(f"{type(loader).__name__} is empty: it has no batches")
    return n_batches
