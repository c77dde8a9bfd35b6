"""Loaders that turn files into the inputs of a trained model, as its validation data were.

Nothing but the run is needed: decoding, transforms and normalization come from the run's config and
from the record of its training data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from base.base_data_loader import BaseDataLoader
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.image_files import ImageFiles
from base.datasets.images import use_decoder
from base.errors import UsageError
from base.names.construction import build
from base.names.registry import find
from base.names.signatures import signature
from base.prediction.trained_model import TrainedModel
from base.run.loaders import prepare_loader

OF_TRAINING = frozenset((
    "dataset", "valid_dataset", "test_dataset", "split", "sampling", "sampler", "cache",
    "cache_dir", "transforms", "drop_last", "shuffle", "training", "batch_size",
))  # fmt: skip
"""The arguments of a `DatasetLoader` that predictions do not use."""
HOOK = "prepare_file"
"""The function of a loader's or data set's own class that turns a file into an input."""


def image_loader(
    run: TrainedModel, files: Sequence[Path | str], batch_size: int | None = None
) -> Any:
    """Return a loader of image files, prepared as the run's validation images are.

    Batches have the index of each sample, its place in ``files``, added to them.

    Args:
        batch_size: images at a time; by default the run's.

    Raises:
        UsageError: the run's loader prepares images in code of its own.
    """
    mode, resize = image_settings(run)
    names = list(map(str, files))
    images = ListedImages("", names, torch.zeros(len(names), dtype=torch.int64))
    images.mode, images.resize = mode, resize
    return loader_of(run, images, batch_size)


def own_loader(
    run: TrainedModel, files: Sequence[Path | str], hook: Callable[..., Any], batch_size: int | None
) -> Any:
    """Return a loader of files that the project's own ``prepare_file`` reads."""
    section = evaluation_section(run)
    place = section if hasattr(find("data_loader", section["type"]), HOOK) else None
    args = (place or dataset_section(section)).get("args", {})
    taken = {k: v for k, v in args.items() if k in list(signature("dataset", hook).parameters)[1:]}
    prepared_files = PreparedFiles(list(map(str, files)), hook, taken)
    if place is None:  # the loader transforms and normalizes what the data set returns
        return loader_of(run, prepared_files, batch_size)
    return plain_loader(run, prepared_files, batch_size)


def loader_of(run: TrainedModel, dataset: Any, batch_size: int | None) -> Any:
    """Return a loader of raw samples: the run's decoder, transforms and normalization are used."""
    use_decoder(run.record.get("decoder"))
    section = evaluation_section(run)
    given: dict[str, Any] = {"test_dataset": dataset, "training": False}
    given["batch_size"] = batch_size or batch_size_of(run)
    if not is_dataset_loader(section):
        return prepared(run, DatasetLoader(None, shuffle=False, **normalization(run), **given))
    no_mode = {"mode"} if hasattr(dataset, "images") or hasattr(dataset, "image") else set()
    args = {k: v for k, v in section["args"].items() if k not in OF_TRAINING | no_mode}
    section = {"type": section["type"], "args": {**args, "dataset": None, **given}}
    references = run.trainer.experiment.references
    resolved = references.resolve("data_loader", ("data_loader",), section)
    loader = build("data_loader", resolved, where=run.config.where("data_loader"))
    return prepared(run, loader)


def plain_loader(run: TrainedModel, dataset: Any, batch_size: int | None) -> Any:
    """Return a loader of model inputs, which are used as they are."""
    size = batch_size or batch_size_of(run)
    n_workers = evaluation_section(run)["args"].get("num_workers", 0)
    return prepared(run, BaseDataLoader(dataset, size, False, 0, n_workers))


def prepared(run: TrainedModel, loader: Any) -> Any:
    """Give a loader the record of the run, and let its batches have the index of each sample."""
    loader = prepare_loader(run.config, loader)
    loader.use_record({k: v for k, v in run.record.items() if k != "classes"})
    loader.add_to_batches({**run.config["batch"], "ids": True, "weight": None})
    return loader


def batch_size_of(run: TrainedModel) -> int:
    """Return the number of samples in the run's batches, or 32 if its loader has no such size."""
    size = evaluation_section(run)["args"].get("batch_size", run.config["data_loader"]["args"])
    size = size.get("batch_size") if isinstance(size, Mapping) else size
    return size if isinstance(size, int) else 32


def evaluation_section(run: TrainedModel) -> dict[str, Any]:
    """Return the section of the run's loader, with the transforms of its validation data."""
    section = run.config["valid_data_loader"]
    if section is None:
        return dict(run.config["data_loader"])
    args = dict(section["args"])
    if "transforms" in args:  # a loader of its own has the validation data as its only part
        args["valid_transforms"] = args.pop("transforms")
    return {**section, "args": args}


def image_settings(run: TrainedModel) -> tuple[str, Any]:
    """Return the mode of the run's images, RGB or grey, and the size to which files are resized.

    Raises:
        UsageError: the run has no images, or its loader prepares them in code of its own.
    """
    section, record = evaluation_section(run), run.record
    shape = run.input_shape
    if "table" in record:
        raise UsageError("this run was trained on a table: give a CSV file with its columns")
    if "white" not in record:
        text = f"{section['type']} prepares its samples in code of its own: give it a static method"
        text = f"{text} `{HOOK}(path)`, or give the model's inputs as an npz file"
        raise UsageError(f"files cannot be read: {text}")
    if shape and len(shape) != 3:
        text = f"the model takes inputs of shape {tuple(shape)}, not images: give an npz file"
        raise UsageError(text)
    n_channels = shape[0] if shape else len(record.get("mean", ())) or 3
    mode: str = record.get("mode") or ("grey" if n_channels == 1 else "RGB")
    if is_dataset_loader(section) and "resize" in dataset_section(section).get("args", {}):
        return mode, dataset_section(section)["args"]["resize"]
    keeps_any_size = len((run.example.get("outputs") or {}).get("shape", ())) == 3
    if section["args"].get("valid_transforms") or (keeps_any_size and reads_files(run)):
        return mode, None
    return mode, record.get("size") or shape[1:] or None


def is_dataset_loader(section: Mapping[str, Any]) -> bool:
    """Return whether a ``data_loader`` section names a `DatasetLoader`."""
    named = find("data_loader", section["type"])
    return isinstance(named, type) and issubclass(named, DatasetLoader)


def dataset_section(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section of the first data set that a loader's arguments name, or {}.

    Validation data come first: predictions are prepared as these are.
    """
    for name in ("valid_dataset", "dataset", "test_dataset"):
        given = section["args"].get(name)
        while isinstance(given, Mapping) and "type" in given:
            args = given.get("args") or {}
            inner = args.get("dataset") or next(iter(args.get("datasets") or ()), None)
            if not isinstance(inner, Mapping):
                return {**given, "args": args}
            given = inner
    return {}


def reads_files(run: TrainedModel) -> bool:
    """Return whether the run's data set decodes image files of any size."""
    section = dataset_section(evaluation_section(run))
    named = find("dataset", section["type"]) if section else None
    return isinstance(named, type) and issubclass(named, ImageFiles)


def file_hook(run: TrainedModel) -> Callable[..., Any] | None:
    """Return the ``prepare_file`` of the run's loader, or of its data set, if there is one."""
    section = evaluation_section(run)
    inner = dataset_section(section)
    found = [find("data_loader", section["type"])]
    found += [find("dataset", inner["type"])] if inner else []
    return next((getattr(each, HOOK) for each in found if hasattr(each, HOOK)), None)


def normalization(run: TrainedModel) -> dict[str, Any]:
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


class PreparedFiles(Dataset[Any]):
    """Files that a project's own function turns into inputs, each with 0 in place of a target."""

    def __init__(
        self, files: list[str], prepare: Callable[..., Any], args: Mapping[str, Any]
    ) -> None:
        self.files, self.prepare, self.args = files, prepare, args

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        inputs = self.prepare(Path(self.files[index]), **self.args)
        if isinstance(inputs, Mapping):
            return {**inputs, "target": 0}
        return [*inputs, 0] if isinstance(inputs, list | tuple) else [inputs, 0]

    def place(self, index: int) -> str:
        """Return the path of a file."""
        return self.files[index]
