"""Data sets of image folders, tables, arrays and shards, with decoding, caching and transforms.

You may delete the files that you do not need, and their lines here. Names are imported on first
use, so unused data sets cost nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.lazy_imports import exports, lazy_imports

if TYPE_CHECKING:
    from base.datasets.array_files import ArrayFileDataset as ArrayFileDataset
    from base.datasets.array_files import IdxDataset as IdxDataset
    from base.datasets.array_files import read_idx as read_idx
    from base.datasets.array_files import read_npz as read_npz
    from base.datasets.cache.decoded import cached as cached
    from base.datasets.composed import ConcatenatedDataset as ConcatenatedDataset
    from base.datasets.composed import SubsetDataset as SubsetDataset
    from base.datasets.dataset_loader import DatasetLoader as DatasetLoader
    from base.datasets.digit_scenes import DigitScenesDataset as DigitScenesDataset
    from base.datasets.image_files import ImageFiles as ImageFiles
    from base.datasets.image_files import ImageFolderDataset as ImageFolderDataset
    from base.datasets.image_files import ImageListDataset as ImageListDataset
    from base.datasets.images import decode_image as decode_image
    from base.datasets.in_memory import InMemoryDataset as InMemoryDataset
    from base.datasets.in_memory import SyntheticDataset as SyntheticDataset
    from base.datasets.in_memory import synthetic_images as synthetic_images
    from base.datasets.lmdb_images import LmdbImageDataset as LmdbImageDataset
    from base.datasets.mask_folder import MaskFolderDataset as MaskFolderDataset
    from base.datasets.mixing import CutMix as CutMix
    from base.datasets.mixing import Mixer as Mixer
    from base.datasets.mixing import MixUp as MixUp
    from base.datasets.pipeline import Pipeline as Pipeline
    from base.datasets.pipeline import TransformedDataset as TransformedDataset
    from base.datasets.public_sets import load_in_memory as load_in_memory
    from base.datasets.public_sets import load_one_by_one as load_one_by_one
    from base.datasets.samplers import HardExampleSampler as HardExampleSampler
    from base.datasets.shards.reader import ShardDataset as ShardDataset
    from base.datasets.tables import CsvDataset as CsvDataset
    from base.datasets.tables import ImageCsvDataset as ImageCsvDataset
    from base.datasets.transforms import KeyedTransform as KeyedTransform
    from base.datasets.transforms import RandomCutout as RandomCutout
    from base.datasets.transforms import RandomFlip as RandomFlip
    from base.datasets.transforms import RandomShift as RandomShift
else:
    __getattr__, __all__ = lazy_imports(__name__)

# The names that a config may use, by kind.
_NAMED = {
    "data_loader": ("DatasetLoader",),
    "dataset": (
        "ArrayFileDataset", "ConcatenatedDataset", "CsvDataset", "DigitScenesDataset", "IdxDataset",
        "ImageCsvDataset", "ImageFolderDataset", "ImageListDataset", "LmdbImageDataset",
        "MaskFolderDataset", "ShardDataset", "SubsetDataset", "SyntheticDataset",
    ),
    "sampler": ("HardExampleSampler",),
    "transform": ("CutMix", "MixUp", "RandomCutout", "RandomFlip", "RandomShift"),
}  # fmt: skip


class _Named(Mapping[str, Any]):
    """The members of a kind by name, each imported on first access."""

    def __init__(self, kind: str) -> None:
        self._names = [name for name in _NAMED.get(kind, ()) if _is_there(name)]

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return getattr(sys.modules[__name__], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def names_of_kind(kind: str) -> Mapping[str, Any]:
    """Return the objects of a kind (``"dataset"``) that a config may name, except deleted ones."""
    return _Named(kind)


def _is_there(name: str) -> bool:
    """Return whether a name is listed above and its file exists."""
    if name not in exports(__name__):
        return False
    module, _ = exports(__name__)[name]
    path = Path(__file__).parent.joinpath(*module.split(".")[2:])
    return path.with_suffix(".py").exists()
