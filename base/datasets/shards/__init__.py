"""Reads, indexes and writes images in tar files, for data sets larger than memory."""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.datasets.shards.reader import ShardDataset as ShardDataset
    from base.datasets.shards.writer import main as main
else:
    __getattr__, __all__ = lazy_imports(__name__)
