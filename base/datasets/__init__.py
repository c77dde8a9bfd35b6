"""Kinds of data: image folders, tables, arrays, shards; how they are decoded, cached and changed.

Each file stands alone: delete what you do not need, with its line here. Names are loaded on first
use, so that a data set that is not used costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# What a config may name, by kind, and the file that holds it.
_NAMED = {
    "data_loader": {"DatasetLoader": "dataset_loader"},
    "dataset": {
        "ArrayFileDataset": "array_files",
        "IdxDataset": "array_files",
        "CachedImages": "decoded_cache",
        "ConcatenatedDataset": "composed",
        "SubsetDataset": "composed",
        "CsvDataset": "tables",
        "ImageCsvDataset": "tables",
        "DigitScenesDataset": "digit_scenes",
        "ImageFiles": "image_files",
        "ImageFolderDataset": "image_files",
        "ImageListDataset": "image_files",
        "InMemoryDataset": "in_memory",
        "SyntheticDataset": "in_memory",
        "LmdbImageDataset": "lmdb_images",
        "MaskFolderDataset": "mask_folder",
        "ShardDataset": "shards",
        "TransformedDataset": "pipeline",
    },
    "sampler": {"HardExampleSampler": "samplers"},
    "transform": {
        "CutMix": "mixing",
        "KeyedTransform": "transforms",
        "MixUp": "mixing",
        "RandomCutout": "transforms",
        "RandomFlip": "transforms",
        "RandomShift": "transforms",
    },
}
# What data loaders of your own are built with.
_PARTS = {
    "GivenImages": "pipeline",
    "Pipeline": "pipeline",
    "load_in_memory": "public_sets",
    "load_one_by_one": "public_sets",
    "read_idx": "array_readers",
    "read_npz": "array_readers",
    "synthetic_images": "in_memory",
}
_FILES = {**_PARTS, **{name: file for kind in _NAMED.values() for name, file in kind.items()}}
__all__ = sorted([*_FILES, "names_of_kind"])


class _Named(Mapping[str, Any]):
    """The members of a kind by name, each imported when it is looked up."""

    def __init__(self, kind: str) -> None:
        files = _NAMED.get(kind, {})
        self._files = {n: f for n, f in files.items() if find_spec(f"base.datasets.{f}")}

    def __getitem__(self, name: str) -> Any:
        return getattr(import_module(f"base.datasets.{self._files[name]}"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def names_of_kind(kind: str) -> Mapping[str, Any]:
    """Return what a config may name of a kind (``"dataset"``), by name."""
    return _Named(kind)


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'base.datasets' has no attribute {name!r}")
    return getattr(import_module(f"base.datasets.{_FILES[name]}"), name)
