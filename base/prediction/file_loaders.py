"""Loaders that turn files into the inputs of a trained model, as its validation data were.

Nothing but the run is needed: decoding, transforms and normalization come from the run's config and
from the record of its training data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from base.datasets.dataset_loader import DatasetLoader
from base.datasets.image_files import ImageFiles
from base.errors import DataError
from base.names.construction import build
from base.names.registry import find
from base.prediction.trained_run import TrainedRun
from base.run.loaders import prepare_loader

OF_TRAINING = frozenset((
    "dataset", "valid_dataset", "test_dataset", "split", "sampling", "sampler", "cache",
    "cache_dir", "transforms", "drop_last", "shuffle",
))  # fmt: skip
"""The arguments of a `DatasetLoader` that predictions do not use."""


def image_loader(run: TrainedRun, files: Sequence[Path], batch_size: int | None = None) -> Any:
    """Return a loader of image files, prepared as the run's validation images are.

    Batches have the index of each sample, its place in ``files``, added to them.

    Args:
        batch_size: images at a time; by default the run's.

    Raises:
        DataError: the run's loader prepares images in code of its own.
    """
    section = run.config["data_loader"]
    mode, resize = image_settings(run)
    images = ListedImages("", list(map(str, files)), torch.zeros(len(files), dtype=torch.int64))
    images.mode, images.resize = mode, resize
    size = batch_size or int(section["args"].get("batch_size", 32))
    given: dict[str, Any] = {"test_dataset": images, "training": False, "batch_size": size}
    if is_dataset_loader(section):
        kept = {k: v for k, v in section["args"].items() if k not in OF_TRAINING and k != "mode"}
        section = {"type": section["type"], "args": {**kept, "dataset": None, **given}}
        section = run.trainer.experiment.references.resolve(
            "data_loader", ("data_loader",), section
        )
        loader = build("data_loader", section, where=run.config.where("data_loader"))
    else:
        loader = DatasetLoader(None, shuffle=False, **normalization(run), **given)
    return prepared(run, loader)


def prepared(run: TrainedRun, loader: Any) -> Any:
    """Give a loader the record of the run, and let its batches have the index of each sample."""
    loader = prepare_loader(run.config, loader)
    loader.use_record({k: v for k, v in run.record.items() if k != "classes"})
    loader.add_to_batches({**run.config["batch"], "ids": True, "weight": None})
    return loader


def image_settings(run: TrainedRun) -> tuple[str, Any]:
    """Return the mode of the run's images, RGB or grey, and the size to which files are resized.

    Raises:
        DataError: the run's loader prepares images in code of its own.
    """
    section, record = run.config["data_loader"], run.record
    if "table" in record:
        raise DataError("this run was trained on a table: give a CSV file with its columns")
    if "white" not in record:
        text = f"{section['type']} prepares its samples in code of its own"
        raise DataError(f"{text}, so files cannot be read: give the model's inputs as an npz file")
    shape = run.input_shape
    n_channels = shape[0] if len(shape) == 3 else len(record.get("mean", ())) or 3
    mode: str = record.get("mode") or ("grey" if n_channels == 1 else "RGB")
    if is_dataset_loader(section) and (source := dataset_section(section)):
        resizes = source.get("args", {}).get("resize")
        if "resize" in source.get("args", {}) or reads_files(source):
            return mode, resizes
    if section["args"].get("valid_transforms"):
        return mode, None
    return mode, record.get("size") or (shape[1:] if len(shape) == 3 else None)


def is_dataset_loader(section: Mapping[str, Any]) -> bool:
    """Return whether a ``data_loader`` section names a `DatasetLoader`."""
    named = find("data_loader", section["type"])
    return isinstance(named, type) and issubclass(named, DatasetLoader)


def dataset_section(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section of the first data set that a loader's arguments name, or {}."""
    for name in ("dataset", "valid_dataset", "test_dataset"):
        given = section["args"].get(name)
        while isinstance(given, Mapping) and "type" in given:
            inner = (given.get("args") or {}).get("datasets")
            if not inner:
                return given
            given = inner[0]
    return {}


def reads_files(section: Mapping[str, Any]) -> bool:
    """Return whether a data set decodes image files of any size."""
    named = find("dataset", section["type"])
    return isinstance(named, type) and issubclass(named, ImageFiles)


def normalization(run: TrainedRun) -> dict[str, Any]:
    """Return the argument `normalize` that gives the run's mean and std, if it has them."""
    record = run.record
    if "mean" not in record:
        return {}
    return {"normalize": {"mean": record["mean"], "std": record["std"]}}


class ListedImages(ImageFiles):
    """Image files in the given order; a missing or repeated one is found when it is read."""

    def refuse_missing(self) -> None:
        """Do nothing: a missing file is reported as an unreadable one."""

    def _refuse_repeats(self) -> None:
        """Do nothing: a file may be given twice."""
