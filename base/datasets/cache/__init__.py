"""Caches decoded images in memory for one run, or in a file on disk for later runs too."""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.datasets.cache.decoded import CachedImages as CachedImages
    from base.datasets.cache.decoded import cached as cached
else:
    __getattr__, __all__ = lazy_imports(__name__)
