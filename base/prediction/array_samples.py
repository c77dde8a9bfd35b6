"""Samples from array files, in the form of the run's data set or as inputs of its model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.datasets.array_files import array_names, as_nchw, as_tensor, read_array, read_idx
from base.datasets.in_memory import InMemoryDataset
from base.errors import UsageError, nearest
from base.prediction.file_loaders import (
    dataset_section,
    evaluation_section,
    loader_of,
    plain_loader,
)
from base.prediction.trained_model import TrainedModel
from base.system.run_folder import must_exist

ARRAYS = (".npz", ".npy", ".idx")
IDX = re.compile(r"(-idx\d-ubyte|\.idx)(\.gz)?$")
USUAL = ("inputs", "input", "images", "x", "data")
"""The names under which inputs are looked for in an npz file of several arrays."""


def is_array(word: str) -> bool:
    """Return whether a word names an array file: ``x.npy``, ``x.npz`` or ``x.npz:name``."""
    file, _ = split_word(word)
    return file.lower().endswith(ARRAYS) or IDX.search(file) is not None


def split_word(word: str) -> tuple[str, str]:
    """Split ``x.npz:name`` into a file and the name of its array, "" if none is given."""
    file, colon, name = word.rpartition(":")
    if colon and file.lower().endswith(".npz") and not Path(word).exists():
        return file, name
    return word, ""


def array_loader(run: TrainedModel, word: str, batch_size: int | None = None) -> Any:
    """Return a loader of the samples in an array file.

    Arrays are in the form of the run's data set: raw images in its layout, of its range, before
    transforms and normalization. If the run's loader prepares samples in code of its own, they are
    the model's inputs.

    Raises:
        UsageError: an array is missing, or its shape is not that of the run's data.
    """
    file, name = split_word(word)
    must_exist(file)
    if "table" not in run.record and "white" in run.record:
        return loader_of(run, _raw(run, file, name), batch_size)
    return plain_loader(run, _model_inputs(run, file, name), batch_size)


def _raw(run: TrainedModel, file: str, name: str) -> InMemoryDataset:
    section = dataset_section(evaluation_section(run))
    args = section.get("args", {})
    if IDX.search(file):
        array = read_idx(Path(file))
    elif file.lower().endswith(".npz"):
        known = [args["inputs"]] if isinstance(args.get("inputs"), str) else []
        name = name or _chosen(file, [*known, *USUAL])
        array = as_tensor(read_array(name, file), f"{file}: {name}")
    else:
        array = as_tensor(read_array(file), file)
    shape = list(run.input_shape)
    inputs = _in_layout(array, args.get("layout"), shape, file)
    has_transforms = bool(evaluation_section(run)["args"].get("valid_transforms"))
    fits = not shape or list(inputs.shape[1:]) == shape
    if not fits and not (has_transforms and inputs.dim() == 4):
        text = f"samples of shape {tuple(inputs.shape[1:])}, but the run's are {tuple(shape)}"
        raise UsageError(f"{file}: {text}")
    found = InMemoryDataset(inputs, torch.zeros(len(inputs), dtype=torch.int64), source=file)
    if inputs.dtype == torch.uint8:
        found.white = float(run.record["white"])
    return found


def _in_layout(array: Tensor, layout: str | None, shape: list[int], where: str) -> Tensor:
    """Return images as (sample, channel, height, width), found by the layout or by their shape."""
    given = list(array.shape[1:])
    if not shape or given == shape:
        return array if given == shape else as_nchw(array, layout, where)
    if len(shape) == 3 and layout is None:
        if given == [*shape[1:], shape[0]] or (array.dim() == 4 and given[-1] == shape[0]):
            layout = "NHWC"
        elif array.dim() == 3 and shape[0] == 1:
            layout = "NHW"
    return as_nchw(array, layout, where)


def _model_inputs(run: TrainedModel, file: str, name: str) -> ModelInputs:
    """Return the arrays of the model's inputs, by name if it takes several."""
    rules, example = run.config["batch"], run.example
    names = [str(each) for each in rules["inputs"] or example.get("kwargs") or ()]
    if not file.lower().endswith(".npz"):
        arrays = [as_tensor(read_array(file), file)]
    elif len(names) > 1 and not name and all(not each.isdigit() for each in names):
        return ModelInputs({each: as_tensor(read_array(each, file), file) for each in names}, rules)
    elif len(example.get("args") or ()) > 1 and not name:
        found = array_names(file)
        if len(found) < len(example["args"]):
            text = f"the model takes {len(example['args'])} inputs, and there are {len(found)}"
            raise UsageError(f"{file}: {text} arrays: {', '.join(found)}")
        found = found[: len(example["args"])]
        arrays = [as_tensor(read_array(each, file), file) for each in found]
    else:
        chosen = name or _chosen(file, [*names, *USUAL])
        arrays = [as_tensor(read_array(chosen, file), f"{file}: {chosen}")]
    expected = [each.get("shape") for each in example.get("args") or () if isinstance(each, dict)]
    for array, shape in zip(arrays, expected, strict=False):
        if shape and len(array.shape[1:]) != len(shape):
            text = f"samples of shape {tuple(array.shape[1:])}, but the model takes {tuple(shape)}"
            raise UsageError(f"{file}: {text}")
    if len(names) == len(arrays) and not any(each.isdigit() for each in names):
        return ModelInputs(dict(zip(names, arrays, strict=True)), rules)
    return ModelInputs(arrays, rules)


def _chosen(file: str, wanted: list[str]) -> str:
    """Return the name of the array with the inputs."""
    names = array_names(file)
    chosen = next((name for name in wanted if name in names), None)
    if chosen is None and len(names) == 1:
        return str(names[0])
    if chosen is None:
        hint = nearest(wanted[0], names)
        text = f"which array has the inputs? It has {', '.join(names) or 'none'}{hint}"
        raise UsageError(f"{file}: {text}; name it: {file}:{names[0] if names else 'NAME'}")
    return chosen


class ModelInputs(Dataset[Any]):
    """Inputs of a model in memory, by position or by name, with zeros in place of targets."""

    def __init__(
        self, inputs: list[Tensor] | Mapping[str, Tensor], rules: Mapping[str, Any]
    ) -> None:
        self.inputs, self.rules = inputs, rules
        arrays = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
        lengths = sorted({len(array) for array in arrays})
        if len(lengths) > 1:
            raise UsageError(f"arrays of {' and '.join(map(str, lengths))} samples")
        self.n_samples = lengths[0]

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("batches are read at once")

    def get_batch(self, indices: Tensor) -> Any:
        """Return a batch in the form that the config's ``batch:`` section describes."""
        target = torch.zeros(len(indices), dtype=torch.int64)
        named = self.rules["target"]
        if isinstance(self.inputs, Mapping):
            names = list(named.values()) if isinstance(named, Mapping) else [named or "target"]
            targets = {str(name): target for name in names}
            return {**targets, **{k: _model_input(v[indices]) for k, v in self.inputs.items()}}
        items = [_model_input(array[indices]) for array in self.inputs]
        places = self.rules["inputs"] or range(len(items))
        if not all(isinstance(place, int) and place >= 0 for place in places):
            return [*items, target]
        last = named if isinstance(named, int) and named >= 0 else max(places) + 1
        batch = [target] * (max(*places, last) + 1)
        for place, item in zip(places, items, strict=False):
            batch[place] = item
        return batch


def _model_input(array: Tensor) -> Tensor:
    """Return integers as int64 and other numbers as float32, as a data set's own loader would."""
    is_image = array.dtype == torch.uint8 and array.dim() > 2
    return array.float() if array.is_floating_point() or is_image else array.long()
