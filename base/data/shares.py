"""Which samples of each batch a rank reads, if several processes train one model."""

from __future__ import annotations

from typing import Any, NamedTuple

from base.errors import DataError


class Share(NamedTuple):
    """The part of each global batch that one rank reads: the samples ``[rank::size]``.

    A rank without a sample of a batch reads the batch's first sample, so that it takes the same
    steps as the others. That sample is borrowed: it belongs to rank 0.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of_rank(cls, rank: int, size: int) -> Share:
        """Return the share of a rank.

        Raises:
            DataError: the world has no such rank.
        """
        if not 0 <= rank < size:
            raise DataError(f"shard: rank {rank} of {size}: ranks are 0 to size - 1")
        return cls(rank, size)

    def count_own(self, n_samples: int) -> int:
        """Return how many samples of a global batch belong to this rank."""
        return len(range(self.rank, n_samples, self.size))

    def count_read(self, n_samples: int) -> int:
        """Return how many samples of a global batch this rank reads: at least 1 of any batch."""
        return len(range(n_samples)[self.rows(n_samples)])

    def rows(self, n_samples: int) -> slice:
        """Return the positions in a global batch that this rank reads."""
        return slice(self.rank, None, self.size) if n_samples > self.rank else slice(0, 1)

    def of(self, indices: Any) -> Any:
        """Return the part of a batch's indices that this rank reads, of the same type."""
        return indices[self.rows(len(indices))]


WHOLE = Share()
"""The share of a single process."""


def fault_of_batch_size(loader: Any, n_ranks: int) -> str:
    """Return an error message if some ranks would never have a sample of their own, else "".

    This is for training. In evaluation a rank may be left without samples.
    """
    size = getattr(loader, "batch_size", None)
    if size is None and hasattr(loader, "n_drawn"):
        size = loader.n_drawn(0)
    if size is None or size >= n_ranks:
        return ""
    return (
        f"the batch_size is {size}, but {n_ranks} processes share each batch, so that"
        f" {n_ranks - size} of them would have no sample: set it to {n_ranks} or more, or start"
        " fewer processes"
    )
