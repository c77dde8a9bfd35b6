"""Cuts a rank's part from whole batches, for loaders that cannot read the part alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from base.data.batch import DEFAULT_RULES, Rules, SampleCount, cut_rows, map_leaves
from base.data.protocols import Batch, SupportsSharing, offered
from base.data.shares import WHOLE, Share
from base.errors import TrainingError

REMEDY = (
    "processes can share batches whose items have one row for each sample; read other data by"
    " torch's DataLoader or a BaseDataLoader, or give the loader `shard(rank, size)` and `n_own`"
)


def sharded(loader: Any, rank: int, size: int, rules: Rules = DEFAULT_RULES) -> Any:
    """Return a loader of `as_batches` that yields a rank's part of each batch from now on.

    It is the same loader if it has ``shard(rank, size)``. A user's loader that has only
    ``batches(first, count)`` is wrapped.
    """
    if offered(loader, SupportsSharing) is None:
        loader = CutLoader(loader, rules)
    loader.shard(rank, size)
    return loader


class RankParts:
    """Cuts a rank's part from each batch of a loader.

    Args:
        rules: the config's ``batch:`` section, by which samples are counted.
    """

    def __init__(self, loader: Any, share: Share, rules: Rules) -> None:
        self.share, self.name = share, type(getattr(loader, "loader", loader)).__name__
        self._in_whole = SampleCount(rules, loader, is_whole=True)
        self._in_part = SampleCount(rules, loader)

    def cut(self, batch: Batch, position: int) -> tuple[Batch, int]:
        """Return the part of a batch, and the number of its samples that belong to the rank.

        Tensors are copied, so that the whole batch is freed.

        Raises:
            TrainingError: an item of the batch does not have one row per sample.
        """
        n_samples = self._in_whole(batch, position)
        try:
            part = cut_rows(batch, self.share.rows(n_samples), n_samples, REMEDY)
        except TrainingError as error:
            raise TrainingError(f"{self.name}: {error}") from error
        n_read, n_found = self.share.count_read(n_samples), self._in_part(part, position)
        if n_found != n_read:
            text = f"{n_read} of the {n_samples} samples of a batch were cut, but {n_found} are"
            raise TrainingError(f"{self.name}: {text} counted in this part: {REMEDY}")
        part = map_leaves(part, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
        return part, self.share.count_own(n_samples)


class CutLoader:
    """Adds ``shard(rank, size)`` to a user's loader that has only ``batches(first, count)``."""

    cuts_batches = True

    def __init__(self, loader: Any, rules: Rules) -> None:
        self.loader, self._rules = loader, rules
        self.batch_share = WHOLE
        self.n_own: int | None = None
        self._valid: Any = None

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet: a copy is in progress
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.loader)

    def shard(self, rank: int, size: int) -> None:
        """Yield a rank's part of each batch from now on."""
        self.batch_share, self.n_own = Share.of_rank(rank, size), None
        if self._valid is not None:
            self._valid.shard(rank, size)

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Yield the part of `count` batches from batch `first`."""
        if self.batch_share.size == 1:
            yield from self.loader.batches(first, count)
            return
        parts = RankParts(self, self.batch_share, self._rules)
        position = first
        for batch in self.loader.batches(first, count):
            batch, self.n_own = parts.cut(batch, position)
            position += 1
            yield batch
            del batch  # frees it before the next one is read

    def split_validation(self) -> Any:
        """Return the loader's validation loader, shared in the same way, or None."""
        split = getattr(self.loader, "split_validation", None)
        valid = None if split is None else split()
        if valid is not None:
            self._valid = valid = sharded(valid, *self.batch_share, self._rules)
        return valid
