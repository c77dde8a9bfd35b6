"""A network with what comes before and after it: pixels or columns in, probabilities out.

It is traced with the network, so that an exported file takes raw uint8 images or the numbers of a
table's columns, and needs neither statistics nor classes of the training data.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from base.data.batch import inputs_of, to_device
from base.datasets.pipeline import DETERMINISTIC, Pipeline
from base.errors import UsageError
from base.prediction.file_loaders import image_loader, image_settings
from base.prediction.network_inputs import Inputs
from base.prediction.trained_run import TrainedRun
from base.training.task import Task

if TYPE_CHECKING:  # a project may leave tables out
    from base.datasets.table_encoding import TableEncoding, TargetScale

Stage = Callable[[Tensor], Tensor]
UNKNOWN = "\0"  # equals no value of a category


@dataclass
class Raw:
    """A network with its preprocessing, what it takes, and what is left to the caller."""

    network: RawNetwork
    inputs: Inputs
    kind: str
    """``images``, ``table`` or ``numbers``."""
    steps: list[str]
    """What the graph does before the network, in words."""
    left_to_caller: list[str] = field(default_factory=list)
    resizes: bool = False
    """Whether the graph resizes images, which decoders do with other rounding."""


def with_raw_inputs(run: TrainedRun, network: nn.Module) -> Raw:
    """Return a network of a run with the preprocessing of its validation data, and its task.

    Raises:
        UsageError: the data of the run are prepared in a way that a graph cannot hold.
    """
    if network is not run.model:
        raise UsageError("--preprocessing is for the whole model, not for a --module of it")
    record = run.record
    if "table" in record:
        return _table(run, record["table"])
    if "white" in record and len(run.input_shape) == 3:
        return _images(run)
    if "white" in record and run.input_shape:
        return _numbers(run)
    name = run.config["data_loader"]["type"]
    text = f"{name} prepares its samples in code of its own, which is not part of the model"
    raise UsageError(f"--preprocessing: {text}: export without it")


class RawNetwork(nn.Module):
    """Prepares the inputs, calls the network, and turns its outputs into predictions."""

    def __init__(self, run: TrainedRun, prepare: nn.Module, scale: TargetScale | None) -> None:
        super().__init__()
        self.prepare, self.network = prepare, run.model
        self._rules, self._predict, self.scale = run.config["batch"], run.trainer.predict, scale
        if run.trainer._predict_takes_batch:
            text = "the trainer's `predict` takes the batch, which a graph does not have"
            raise UsageError(f"--preprocessing: {text}: export without it")
        self.task = Task("other")

    def find_task(self, run: TrainedRun, inputs: Tensor) -> Task:
        """Note the task of the network, from its predictions for raw inputs; return it."""
        with torch.no_grad():
            predictions = self(inputs)
        self.task = run.task(predictions)
        return self.task

    def forward(self, inputs: Tensor) -> Any:
        prepared = self.prepare(inputs)
        parts = list(prepared) if isinstance(prepared, tuple) else [prepared]
        args, kwargs = inputs_of([*parts, parts[0]], self._rules)  # the last stands for the target
        predictions = self._predict(self.network(*args, **kwargs))
        if not isinstance(predictions, Tensor):
            return predictions
        if self.scale is not None:
            return self.scale.undo(predictions)
        return self.task.probabilities(predictions) if self.task.has_probabilities else predictions


class ImagePreparation(nn.Module):
    """Applies stages to pixels (sample, channel, height, width), then scales and normalizes."""

    std: Tensor
    shift: Tensor

    def __init__(self, stages: Sequence[Stage], pipeline: Pipeline) -> None:
        super().__init__()
        self.stages, self.white = list(stages), pipeline.white
        self.register_buffer("std", pipeline.std.float())
        self.register_buffer("shift", (pipeline.mean / pipeline.std).float())

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:
            images = stage(images)
        shape = (-1, *[1] * (images.dim() - 2))
        white = 1.0 if images.is_floating_point() else self.white
        return images * (1 / (white * self.std.view(shape))) - self.shift.view(shape)


class Resized(nn.Module):
    """Resizes pixels as torchvision and the decoders do: antialiased, and rounded for uint8.

    Args:
        size: the shorter side in pixels, or [height, width].
    """

    def __init__(self, size: int | Sequence[int], mode: str = "bilinear", antialias: bool = True):
        super().__init__()
        sides = [size] if isinstance(size, int) else list(size)
        self.sides, self.mode = sides, mode
        self.options = {"antialias": antialias} if mode in ("bilinear", "bicubic") else {}

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        size: Any = self.sides
        if len(size) == 1:
            shorter = torch.sym_min(height, width)
            size = [size[0] * height // shorter, size[0] * width // shorter]
        resized = F.interpolate(images.float(), size, mode=self.mode, **self.options)
        if images.is_floating_point():
            return resized
        return resized.round().clamp(0, 255).to(images.dtype)


class CentreCropped(nn.Module):
    """Crops the centre as torchvision does, from images of at least the size."""

    def __init__(self, size: int | Sequence[int]) -> None:
        super().__init__()
        sides = [size] if isinstance(size, int) else list(size)
        self.height, self.width = sides[0], sides[-1]

    def forward(self, images: Tensor) -> Tensor:
        top = _half(images.shape[-2] - self.height)
        left = _half(images.shape[-1] - self.width)
        return images[..., top : top + self.height, left : left + self.width]


def _half(number: int) -> int:
    """Return half of a number; a fraction of one half is rounded to the even neighbour."""
    half = number // 2
    return half + (number % 2) * (half % 2)


class TablePreparation(nn.Module):
    """Encodes the columns of a table, float64 (sample, column), as the training data were.

    A category is the place of its value in the record, counted from 1; 0 is an unknown one. NaN is
    an empty cell: it is filled in where the run's `missing` says so.

    Args:
        columns: their facts, of `column_facts`.
    """

    def __init__(self, encoding: TableEncoding, columns: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        self.encoding, self.columns = encoding, list(columns)

    def forward(self, columns: Tensor) -> Any:
        numbers, codes = [], []
        for place, fact in enumerate(self.columns):
            column = columns[:, place]
            if fact["kind"] != "category":
                if fact["missing"] is not None:
                    column = torch.where(column.isnan(), fact["missing"], column)
                if "mean" in fact:
                    column = (column - fact["mean"]) / fact["std"]
                numbers.append(column.float()[:, None])
                continue
            n_values = len(self.encoding.categories[fact["name"]])
            values = torch.arange(1, n_values + 1, device=columns.device)
            is_trained = [code in fact["codes"].values() for code in range(1, n_values + 1)]
            column = torch.where(column.isnan(), fact["codes"].get(fact["missing"], 0), column)
            is_value = column[:, None] == values  # (sample, value)
            is_value = is_value & torch.tensor(is_trained, device=columns.device)
            if self.encoding.encode == "codes":
                codes.append((is_value * values).sum(dim=1))
            else:
                numbers.append(is_value.float())
        inputs = torch.cat(numbers, dim=1) if numbers else columns[:, :0].float()
        return (inputs, torch.stack(codes, dim=1)) if codes else inputs


def sample_rows(run: TrainedRun, raw: Raw, folder: Path) -> list[tuple[Tensor, Tensor]] | None:
    """Return raw inputs of one sample each, with what the run predicts for them.

    Images are written as files and read as those of ``predict.py``; None if the caller has to
    prepare them, or if the run gives no tensors.

    Args:
        folder: a new folder for the files, which is removed.
    """
    if raw.left_to_caller or raw.kind == "numbers":
        return None
    inputs = raw.inputs.random(4)[0][0].cpu()
    if raw.kind == "table":
        return _predicted_rows(run, raw, inputs)
    coarse = inputs[:, :, ::4, ::4].float()  # blobs, as noise has no size
    images = F.interpolate(coarse, inputs.shape[2:], mode="bilinear").round().to(torch.uint8)
    folder.mkdir()
    try:
        paths = [folder / f"{number}.png" for number in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            Image.fromarray(pixels.contiguous().numpy()).save(path)
        rows = []
        for numbers, predictions in run.predictions(image_loader(run, paths, len(paths))):
            if not isinstance(predictions, Tensor):
                return None
            final = raw.network.task.probabilities(predictions)
            given = images[numbers].to(run.device)
            rows += [(x[None], y[None]) for x, y in zip(given, final, strict=True)]
    finally:
        shutil.rmtree(folder)
    return rows


def _predicted_rows(
    run: TrainedRun, raw: Raw, inputs: Tensor
) -> list[tuple[Tensor, Tensor]] | None:
    """Return rows of random columns with their predictions, by the encoding of the run.

    The last row is empty where a column may be.
    """
    from base.datasets.table_columns import Categories
    from base.datasets.table_encoding import Columns, TableEncoding
    from base.prediction.table_facts import column_facts

    encoding = TableEncoding.from_record(run.record["table"])
    numbers, categories = {}, {}
    for place, fact in enumerate(column_facts(run)):
        name, gap = fact["name"], fact["missing"]
        if fact["kind"] == "category":
            values = [UNKNOWN, *encoding.categories[name]]
            codes = torch.arange(len(inputs)) % len(values)
            inputs[:, place] = codes
            if gap is not None:
                codes[-1] = values.index(gap) if gap in values else 0
            categories[name] = Categories(values, codes)
        else:
            inputs[:, place] = inputs[:, place] * fact.get("std", 1.0) + fact.get("mean", 0.0)
            numbers[name] = inputs[:, place].clone()
            if gap is not None:
                numbers[name][-1] = math.nan
        if gap is not None:
            inputs[-1, place] = math.nan
    targets = torch.zeros(len(inputs), max(len(encoding.targets), 1), dtype=torch.float64)
    columns = Columns("", [], encoding.inputs, encoding.targets, numbers, categories, {}, targets,
                      "regression", encoding.encode)  # fmt: skip
    made = encoding.apply(columns)
    batch = to_device([each for each in made if each is not None], run.device)
    with run.evaluating():
        predictions = run.trainer.predict(run.trainer.forward(batch))
    if not isinstance(predictions, Tensor):
        return None
    undo = raw.network.scale
    task = raw.network.task
    final = task.probabilities(predictions) if undo is None else undo.undo(predictions)
    given = inputs.to(run.device)
    return [(x[None], y[None]) for x, y in zip(given, final, strict=True)]


def _images(run: TrainedRun) -> Raw:
    try:
        loader = image_loader(run, [Path("raw")])  # reads no file
        mode, resize = image_settings(run)
    except UsageError as error:
        raise UsageError(f"--preprocessing: {error}") from error
    pipeline: Pipeline = loader.dataset.pipeline
    stages = [_traceable(stage) for stage in pipeline.stages]
    names = [_stage_text(stage) for stage in pipeline.stages]
    left: list[str] = []
    if resize is not None:
        stages, names = [Resized(resize), *stages], [f"resize to {_size_text(resize)}", *names]
    lacking = [number for number, stage in enumerate(stages) if stage is None]
    if lacking:
        left, names = names[: lacking[-1] + 1], names[lacking[-1] + 1 :]
        stages = stages[lacking[-1] + 1 :]
    is_scaled = any(name in ("ToTensor", "ToDtype", "ConvertImageDtype") for name in left)
    kept: list[Stage] = [stage for stage in stages if stage is not None]
    network = RawNetwork(run, ImagePreparation(kept, pipeline), None).to(run.device).eval()
    n_channels = {"grey": 1}.get(mode, 3)
    size = run.input_shape[1:]
    dtype = "float32" if is_scaled else "uint8"
    inputs = _fitting(network, [n_channels, *size], dtype, run.device)
    network.find_task(run, inputs.random(2)[0][0])
    white = [] if is_scaled else [f"divide by {pipeline.white:g}"]
    if pipeline.is_normalised:
        mean, std = pipeline.mean.tolist(), pipeline.std.tolist()
        white.append(f"subtract the mean {_numbers_text(mean)}, divide by std {_numbers_text(std)}")
    resizes = any(isinstance(stage, Resized) for stage in kept)
    return Raw(network, inputs, "images", [*names, *white], left, resizes)


def _fitting(network: nn.Module, shape: list[int], dtype: str, device: torch.device) -> Inputs:
    """Return inputs of a size that the stages bring to what the network takes."""
    errors = []
    for factor in (1, 2, 4):
        sizes = [shape[0], *(factor * side for side in shape[1:])]
        inputs = Inputs([{"shape": sizes, "dtype": dtype}], {}, device=device)
        try:
            with torch.no_grad():
                network(*inputs.random(2)[0])
        except Exception as error:  # of the user's network, for another size
            errors.append(error)
        else:
            return inputs
    text = f"raw images do not fit: {' '.join(str(errors[0]).split())[:200]}"
    raise UsageError(f"--preprocessing: {text}; export without it") from errors[0]


def _traceable(stage: Any) -> Stage | None:
    """Return a stage of a pipeline as what can be traced; None for a random or unknown one."""
    function: Any = getattr(stage, "function", None)
    name = getattr(function, "__name__", type(function).__name__)
    if name == "Resize" and getattr(function, "max_size", None) is None:
        mode = str(getattr(function.interpolation, "value", "bilinear"))
        if function.size is None or mode not in ("bilinear", "bicubic", "nearest-exact"):
            return None
        return Resized(function.size, mode, bool(function.antialias))
    if name == "CenterCrop":
        return CentreCropped(function.size)
    if name in (*DETERMINISTIC - {"Resize"}, "_to_float"):
        chosen: Stage = function
        return chosen
    return None


def _table(run: TrainedRun, facts: Any) -> Raw:
    from base.datasets.table_encoding import TableEncoding, TargetScale
    from base.prediction.table_facts import column_facts

    encoding, columns = TableEncoding.from_record(facts), column_facts(run)
    scale = encoding.target_mean, encoding.target_std
    undo = TargetScale(*scale) if encoding.target_mean else None
    network = RawNetwork(run, TablePreparation(encoding, columns), undo).to(run.device).eval()
    inputs = Inputs([{"shape": [len(encoding.inputs)], "dtype": "float64"}], {}, device=run.device)
    with explained():
        network.find_task(run, inputs.random(2)[0][0])
    steps = []
    if filled := [fact["name"] for fact in columns if fact["missing"] is not None]:
        steps.append(f"fill in missing values of {', '.join(filled)}")
    if encoding.mean:
        steps.append("standardize numbers by the training data")
    if encoding.categories:
        steps.append({"codes": "pass codes of categories on"}.get(encoding.encode, "one-hot codes"))
    return Raw(network, inputs, "table", steps)


def _numbers(run: TrainedRun) -> Raw:
    record = run.record
    given = {key: record[key] for key in ("mean", "std") if key in record}
    pipeline = Pipeline((), float(record["white"]), **given)
    network = RawNetwork(run, ImagePreparation((), pipeline), None).to(run.device).eval()
    inputs = Inputs([{"shape": run.input_shape, "dtype": "float32"}], {}, device=run.device)
    with explained():
        network.find_task(run, inputs.random(2)[0][0])
    steps = ["subtract the mean, divide by the standard deviation"] if given else []
    return Raw(network, inputs, "numbers", steps)


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error of the user's model or trainer into a line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        text = f"the model cannot be called on raw inputs: {type(error).__name__}: {error}"
        text = " ".join(text.split())[:250]
        raise UsageError(f"--preprocessing: {text}; export without it") from error


def _stage_text(stage: Any) -> str:
    """Return in words what a stage does, or its name."""
    function = getattr(stage, "function", stage)
    name = type(function).__name__
    if name == "Resize" and function.size is not None:
        return f"resize to {_size_text(function.size)}"
    if name == "CenterCrop":
        return (
            f"crop the centre to {_size_text([*function.size] * (1 + (len(function.size) == 1)))}"
        )
    return name


def _size_text(size: Any) -> str:
    if isinstance(size, int) or len(size) == 1:
        return f"a shorter side of {size if isinstance(size, int) else size[0]}"
    return " x ".join(map(str, size))


def _numbers_text(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers if math.isfinite(number))
