"""Records the predictions of an evaluation, for ``report/predictions.csv`` and the report's page.

A recorder stands among the metrics of the evaluation, so that it receives what they do: the
trainer's predictions, in the unit of the target. It keeps a few numbers of each sample, counts of
pixels, and the inputs of the worst samples.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.config import Config
from base.data.batch import inputs_of, leaves
from base.data.cut_parts import CutLoader
from base.data.protocols import HasIds, HasPlaces, offered, underlying
from base.data.replayed_loader import ReplayedLoader
from base.errors import ConfigError, why
from base.network.capture import stretch
from base.report.pictures import Array, to_bytes
from base.report.predictions import MOST_WORST, Predictions, Worst
from base.run.loaders import ignored_by_losses
from base.training.selection import Selection
from base.training.task import HALF, Task, find_task

log = logging.getLogger("kindling")

NAME = "predictions of the report"
"""The name of the recorder among the metrics."""
MAX_SIDE = {"segmentation": 256}
USUAL_SIDE = 160
"""Pixels of the longer side of kept pictures; larger ones are reduced."""
MOST_TARGETS = 16  # numbers of a sample; of larger outputs only the mean error is kept
MOST_COLUMNS = 40  # of a table, whose values are shown of the worst samples
MOST_LABELS = 100  # whose probabilities are kept
NO_CLASS = -1
Kept = dict[str, Any]


class PredictionRecorder:
    """Records predictions. It has the methods of a metric, and adds no value to the logs.

    An error in it does not end an evaluation: it stops recording, and `fault` says why.

    Args:
        config: its losses, metrics and ``batch:`` rules say what the outputs mean.
        classes: the class names in the record of the training data, if there are any.
        rank, size: this process and the number of processes.
    """

    def __init__(
        self, config: Config, classes: Sequence[str] = (), rank: int = 0, size: int = 1
    ) -> None:
        sections: Sequence[Mapping[str, Any]] = config["loss"]
        first = Selection.from_section(sections[0] if sections else {}, "loss.0")
        self.losses = [each["type"] for each in sections]
        self.metrics = [each["type"] for each in config["metrics"]]
        self.selection, self.rules, self.classes = first, config["batch"], classes
        self.ignored = ignored_by_losses(config)
        self.rank, self.size = rank, size
        self.reset()

    def reset(self) -> None:
        """Remove all that was recorded."""
        self.task: Task | None = None
        self.rows: dict[str, list[Tensor]] = {}
        """By name, for each batch: numbers of its samples, (sample, ...)."""
        self.pixels: Tensor | None = None  # by true and predicted class
        self.worst: list[Kept] = []
        self.fault = ""
        self.has_own_predict = False
        """Whether the trainer turns outputs into predictions itself."""
        self.merged: PredictionRecorder = self
        """On rank 0, what all processes recorded."""
        self._scale: Tensor | None = None
        self._n_batches, self._n_in_batch = 0, 0

    @property
    def is_useful(self) -> bool:
        """Whether anything was recorded."""
        return bool(self.rows) and not self.fault

    def update(
        self, predictions: Any, target: Any, batch: Any = None, n_samples: int | None = None
    ) -> None:
        """Record a batch, or a part of it."""
        if self.fault or (self.task is not None and self.task.name == "other"):
            return
        try:
            self._record(predictions, target, batch)
        except Exception as error:  # the evaluation is worth more
            self.fault, self.rows, self.worst = why(error), {}, []

    def end_batch(self) -> None:
        """End a batch of all processes."""
        self._n_batches, self._n_in_batch = self._n_batches + 1, 0

    def compute(self) -> dict[str, float]:
        """Return no values: nothing is added to the logs."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what was recorded as tensors and plain data, to be sent to rank 0."""
        rows = {name: torch.cat(parts) for name, parts in self.rows.items()}
        return {
            "task": None if self.task is None else [self.task.name, *self.task.classes],
            "rows": rows,
            "pixels": self.pixels,
            "worst": self.worst,
            "fault": self.fault,
        }

    def whole(self, states: Sequence[Mapping[str, Any]]) -> PredictionRecorder:
        """Return a recorder of the samples of all processes, in the order of the data."""
        merged = copy.copy(self)
        filled = [state for state in states if state["rows"]]
        merged.fault = next((state["fault"] for state in states if state["fault"]), "")
        merged.rows, merged.worst = {}, []
        if filled and not merged.fault:
            name, *classes = filled[0]["task"]
            merged.task = Task(name, classes=tuple(classes))
            merged.rows = {
                key: [torch.cat([state["rows"][key] for state in filled])]
                for key in filled[0]["rows"]
            }
            if filled[0]["pixels"] is not None:
                merged.pixels = torch.stack([state["pixels"] for state in filled]).sum(0)
            merged.worst = _first_of([kept for state in filled for kept in state["worst"]])
        self.merged = merged
        return merged

    def _record(self, predictions: Any, target: Any, batch: Any) -> None:
        try:
            output, target = self.selection(predictions, target, batch)
        except ConfigError:  # what the trainer predicts has other parts than its outputs
            output = predictions
        if self.task is None:
            self.task = self._find_task(output, target)
        if self.task.name == "other":
            return
        output = output.detach()
        errors, rows, masks = _RECORD[self.task.name](self, output, target.to(output.device))
        n_samples = len(errors)
        within = torch.arange(self._n_in_batch, self._n_in_batch + n_samples)
        rows["order"] = (self._n_batches << 32) + within * self.size + self.rank
        self._n_in_batch += n_samples
        if self.size == 1:
            self.end_batch()
        for name, values in rows.items():
            self.rows.setdefault(name, []).append(values.detach().cpu())
        self._keep_worst(errors.detach().float().cpu(), rows["order"], batch, masks)

    def _find_task(self, output: Any, target: Any) -> Task:
        """Return the task, or "other" if outputs and targets are not tensors that match it."""
        if not all(isinstance(each, Tensor) and each.dim() for each in (output, target)):
            return Task("other")
        found = find_task(
            self.losses, output.detach(), self.classes, self.metrics, self.has_own_predict
        )
        n_samples, is_index = len(output), not target.is_floating_point()
        if len(target) != n_samples:
            fits = False
        elif found.name == "classification":
            fits = (is_index and target.shape == (n_samples,)) or target.shape == output.shape
        elif found.name == "segmentation":
            fits = target.shape[-2:] == output.shape[-2:] and output.dim() == 4
            fits &= target.numel() == n_samples * output[0, 0].numel()
        else:
            fits = target.numel() == output.numel()
        return found if fits else Task("other")

    def _known(self, target: Tensor) -> Tensor:
        """Return which targets count, bool in their shape: neither NaN nor ignored by a loss."""
        is_known = ~target.isnan()
        return is_known if self.ignored is None else is_known & (target != self.ignored)

    def _of_classes(self, output: Tensor, target: Tensor) -> Any:
        assert self.task is not None
        scores = self.task.probabilities(output)
        if target.shape == output.shape and target.dim() > 1:  # class probabilities
            is_known, target = ~target.isnan().any(1), target.argmax(1)
        else:
            is_known = self._known(target) & (target >= 0) & (target < scores.shape[1])
        best = scores.max(1)
        rows = {
            "target": torch.where(is_known, target, NO_CLASS).int(),
            "prediction": best.indices.int(),
        }
        place = target.clamp(0, scores.shape[1] - 1).long()[:, None]
        of_target = scores.gather(1, place)[:, 0]
        if self.task.has_probabilities:
            rows["probability"] = best.values
            rows["target_probability"] = torch.where(is_known, of_target, torch.nan)
        errors = (best.values - of_target).nan_to_num(nan=1.0)
        if self.task.has_probabilities:
            errors = (1 - of_target).nan_to_num(nan=1.0)
        is_wrong = is_known & (best.indices != target)
        return torch.where(is_wrong, errors.clamp_min(1e-6), 0), rows, {}

    def _of_two_classes(self, output: Tensor, target: Tensor) -> Any:
        assert self.task is not None
        second = self.task.probabilities(output).reshape(len(output))
        target = target.reshape(len(output))
        is_known, is_true, is_chosen = self._known(target), target >= HALF, second >= HALF
        of_target = torch.where(is_true, second, 1 - second)
        rows = {
            "target": torch.where(is_known, is_true.int(), NO_CLASS),
            "prediction": is_chosen.int(),
        }
        if self.task.has_probabilities:
            rows["probability"] = torch.where(is_chosen, second, 1 - second)
            rows["target_probability"] = torch.where(is_known, of_target, torch.nan)
        errors = (1 - of_target).nan_to_num(nan=1.0)
        return torch.where(is_known & (is_true != is_chosen), errors, 0), rows, {}

    def _of_labels(self, output: Tensor, target: Tensor) -> Any:
        assert self.task is not None
        found = self.task.probabilities(output).flatten(1)
        target = target.reshape(found.shape)
        is_known, is_true, is_chosen = self._known(target), target >= HALF, found >= HALF
        rows = {
            "target": torch.where(is_known, is_true.to(torch.int8), NO_CLASS),
            "prediction": is_chosen,
        }
        if self.task.has_probabilities and found.shape[1] <= MOST_LABELS:
            rows["probability"] = found
        of_target = torch.where(is_true, found, 1 - found)
        errors = _mean_of_known(-of_target.clamp_min(1e-7).log(), is_known)
        is_wrong = (is_known & (is_true != is_chosen)).any(1)
        return torch.where(is_wrong, errors.nan_to_num(nan=100.0), 0), rows, {}

    def _of_pixels(self, output: Tensor, target: Tensor) -> Any:
        assert self.task is not None
        chosen, n_classes = self.task.chosen(output), max(2, output.shape[1])
        target = target.reshape(chosen.shape)
        is_known = self._known(target)
        target = target >= HALF if output.shape[1] == 1 else target.nan_to_num()
        is_known &= (target >= 0) & (target < n_classes)
        target = torch.where(is_known, target.long(), NO_CLASS)
        total = torch.bincount(
            target[is_known] * n_classes + chosen[is_known], minlength=n_classes**2
        ).view(n_classes, n_classes)
        self.pixels = total.cpu() if self.pixels is None else self.pixels + total.cpu()
        correct = _count_each(target, is_known & (target == chosen), n_classes).double()
        of_class = _count_each(target, is_known, n_classes)
        union = of_class + _count_each(chosen, is_known, n_classes) - correct
        iou = torch.where(union > 0, correct / union, torch.nan).nanmean(1)
        accuracy = correct.sum(1) / of_class.sum(1)
        rows = {"mean_iou": iou, "pixel_accuracy": accuracy}
        return (1 - iou).nan_to_num(nan=0.0), rows, {"target_mask": target, "mask": chosen}

    def _of_numbers(self, output: Tensor, target: Tensor) -> Any:
        output, target = output.reshape(len(output), -1), target.reshape(len(target), -1)
        wide = torch.float64 if target.dtype == torch.float64 else torch.float32
        output, target = output.to(wide), target.to(wide)  # half precision would round targets
        gaps, is_known = (output - target).abs(), ~target.isnan()
        if output.shape[1] > MOST_TARGETS:  # images, whose size may differ between batches
            errors = _mean_of_known(gaps, is_known)
            rows = {"mean_absolute_error": torch.where(is_known.any(1), errors, torch.nan)}
            return errors.nan_to_num(nan=torch.inf), rows, {}
        if self._scale is None:  # so that targets in different units weigh the same
            scale = torch.stack([_spread(t[k]) for t, k in zip(target.T, is_known.T, strict=True)])
            self._scale = torch.where(scale > 0, scale, 1.0).nan_to_num(nan=1.0)
        errors = _mean_of_known(gaps / self._scale, is_known).nan_to_num(nan=torch.inf)
        return errors, {"target": target, "prediction": output}, {}

    def _keep_worst(
        self, errors: Tensor, order: Tensor, batch: Any, masks: Mapping[str, Tensor]
    ) -> None:
        """Keep the inputs of the worst samples, reduced in size."""
        assert self.task is not None
        least = self.worst[-1]["error"] if len(self.worst) >= MOST_WORST else 0.0
        chosen = errors.topk(min(MOST_WORST, len(errors))).indices.tolist()
        chosen = [place for place in chosen if errors[place] > least]
        if not chosen:
            return
        images = _images_in(batch, self.rules, len(errors))
        side = MAX_SIDE.get(self.task.name, USUAL_SIDE)
        for place in chosen:
            kept: Kept = {"error": float(errors[place]), "order": int(order[place])}
            if images is not None:
                kept["image"] = _reduced(images[place].detach().float(), side, "area").cpu()
            for name, mask in masks.items():
                kept[name] = _reduced(mask[place][None].float(), side, "nearest")[0].short().cpu()
            self.worst.append(kept)
        self.worst = _first_of(self.worst)


_RECORD = {
    "classification": PredictionRecorder._of_classes,
    "binary": PredictionRecorder._of_two_classes,
    "multilabel": PredictionRecorder._of_labels,
    "segmentation": PredictionRecorder._of_pixels,
    "regression": PredictionRecorder._of_numbers,
}


def _count_each(classes: Tensor, is_counted: Tensor, n_classes: int) -> Tensor:
    """Return how many pixels of each sample have each class, (sample, class)."""
    shape = (-1, *[1] * (classes.dim() - 1))
    sample = torch.arange(len(classes), device=classes.device).view(shape)
    places = (sample * n_classes + classes)[is_counted]
    return torch.bincount(places, minlength=len(classes) * n_classes).view(-1, n_classes)


def _mean_of_known(values: Tensor, is_known: Tensor) -> Tensor:
    """Return the mean of the known values of each sample, (sample,); 0 without any."""
    return torch.where(is_known, values, 0).sum(1) / is_known.sum(1).clamp_min(1)


def _spread(values: Tensor) -> Tensor:
    return values.std() if len(values) > 1 else values.abs().sum()


def _first_of(kept: list[Kept]) -> list[Kept]:
    return sorted(kept, key=lambda each: (-each["error"], each["order"]))[:MOST_WORST]


def _images_in(batch: Any, rules: Any, n_samples: int) -> Tensor | None:
    """Return the images that the model received, (sample, 1 or 3, height, width), if any."""
    try:
        args, keywords = inputs_of(batch, rules)
    except ConfigError:
        return None
    for each in leaves([args, keywords]):
        if isinstance(each, Tensor) and each.dim() == 4 and each.shape[1] in (1, 3):
            return each if len(each) == n_samples else None
    return None


def _reduced(image: Tensor, side: int, mode: str) -> Tensor:
    """Return an image or mask (channel, height, width) whose longer side is at most ``side``."""
    height, width = image.shape[-2:]
    factor = side / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return F.interpolate(image[None], size=size, mode=mode)[0]


@contextmanager
def recording(trainer: BaseTrainer, classes: Sequence[str] = ()) -> Iterator[PredictionRecorder]:
    """Record the predictions of an evaluation inside the block::

    with recording(trainer, classes) as recorder:
        trainer.evaluate(loader, "test")
    """
    state, world = trainer.training_state, trainer.world
    recorder = PredictionRecorder(trainer.config, classes, world.rank, world.size)
    recorder.has_own_predict = type(trainer).predict is not BaseTrainer.predict
    metrics, of_phase = state.valid_metrics, state.phase_metrics
    state.valid_metrics = {**metrics, NAME: recorder}
    try:
        yield recorder
    finally:
        state.valid_metrics, state.phase_metrics = metrics, of_phase


def predictions_of(
    recorder: PredictionRecorder,
    loader: Any,
    part: str,
    record: Mapping[str, Any],
    bad: Sequence[int] = (),
) -> Predictions:
    """Return what a recorder holds, with the names of samples and targets.

    Args:
        loader: the loader of the evaluation.
        part: ``valid`` or ``test``.
        record: the record of the training data.
        bad: the indices of unreadable samples, which were skipped.
    """
    recorder = recorder.merged
    assert recorder.task is not None
    rows = {name: torch.cat(parts) for name, parts in recorder.rows.items()}
    order = rows.pop("order").argsort()
    columns = {name: _array(values[order]) for name, values in rows.items()}
    n_samples = len(order)
    samples = _samples(loader, n_samples, bad)
    ids, indices, dataset = samples if samples else ([], [], None)
    row_of = {number: row for row, number in enumerate(_sorted(recorder))}
    worst = [
        _with_place(_as_worst(kept, row_of[kept["order"]], record), dataset, indices, ids)
        for kept in recorder.worst
    ]
    empty = np.zeros((n_samples, 0), dtype=np.float32)
    names: Sequence[str] = recorder.task.classes
    if recorder.task.name == "regression":
        names = _target_names(record, columns.get("target", empty).shape[1])
    pairs: list[list[int]] = []
    if recorder.pixels is not None:
        places = recorder.pixels.nonzero()
        pairs = [[int(t), int(p), int(recorder.pixels[t, p])] for t, p in places]
        n_classes = len(recorder.pixels)
        names = names if len(names) == n_classes else list(map(str, range(n_classes)))
    known = ("target", "prediction", "probability", "target_probability")
    return Predictions(
        part=part,
        task=recorder.task.name,
        ids=ids or list(map(str, range(1, n_samples + 1))),
        names=names,
        target=columns.get("target", empty),
        prediction=columns.get("prediction", empty),
        probability=columns.get("probability"),
        target_probability=columns.get("target_probability"),
        scores={name: values for name, values in columns.items() if name not in known},
        pairs=pairs,
        worst=worst,
        are_ids_known=bool(ids),
    )


def _sorted(recorder: PredictionRecorder) -> list[int]:
    order: list[int] = torch.cat(recorder.rows["order"]).sort().values.tolist()
    return order


def _array(values: Tensor) -> Array:
    if values.dtype in (torch.bfloat16, torch.float16):  # numpy has no bfloat16
        values = values.float()
    return np.asarray(values)


def _target_names(record: Mapping[str, Any], n_targets: int) -> list[str]:
    names = record.get("table", {}).get("targets", [])
    if len(names) == n_targets:
        return list(names)
    return ["target"] if n_targets == 1 else [str(number) for number in range(n_targets)]


def _samples(
    loader: Any, n_samples: int, bad: Sequence[int]
) -> tuple[list[str], list[int], Any] | None:
    """Return the id and index of each sample in the order of evaluation, and the data set.

    None if the order of the loader is not known.
    """
    loader = loader.built() if hasattr(loader, "built") else loader
    while isinstance(loader, CutLoader | ReplayedLoader):
        loader = loader.loader
    if isinstance(loader, BaseDataLoader):
        order = loader.order_of_evaluation()
    elif isinstance(loader, DataLoader) and type(loader.sampler) is SequentialSampler:
        order = torch.arange(len(loader.dataset))  # type: ignore[arg-type]
    else:
        return None
    if bad:
        order = order[~torch.isin(order, torch.tensor(bad))]
    indices: list[int] = order[:n_samples].tolist()
    if len(indices) != n_samples:
        return None
    dataset = loader.dataset
    named = offered(dataset, HasIds)
    ids = None if named is None else named.ids
    names = [str(index) if ids is None else str(ids[index]) for index in indices]
    return names, indices, underlying(dataset)


def _as_worst(kept: Kept, row: int, record: Mapping[str, Any]) -> Worst:
    worst = Worst(row)
    if "image" in kept:
        worst.image = _as_pixels(kept["image"], record)
        if "mask" in kept:
            worst.mask, worst.target_mask = kept["mask"].numpy(), kept["target_mask"].numpy()
    return worst


def _as_pixels(image: Tensor, record: Mapping[str, Any]) -> Array:
    """Return an input (channel, height, width) as uint8 pixels, its normalisation undone."""
    mean, std = record.get("mean"), record.get("std")
    if mean and std and len(mean) in (1, len(image)):
        image = image * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    elif image.min() < 0 or image.max() > 1:
        image = stretch(image)
    pixels = to_bytes(image.numpy().transpose(1, 2, 0))
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def _with_place(worst: Worst, dataset: Any, indices: Sequence[int], ids: Sequence[str]) -> Worst:
    """Add the location of a sample, and the values of a table's columns."""
    if not indices:
        return worst
    index = indices[worst.row]
    located = offered(dataset, HasPlaces)
    if located is not None and getattr(dataset, "ids_are_numbers", False):
        place = located.place(index)
        worst.place = f"sample {index}" if place.endswith(f": sample {index}") else place
    worst.columns = _cells(getattr(dataset, "columns", None), index)
    return worst


def _cells(columns: Any, index: int) -> dict[str, str]:
    """Return the first values of a table's row before they were encoded; {} for joined tables."""
    cells: dict[str, str] = {}
    if not all(hasattr(columns, each) for each in ("inputs", "numbers", "categories")):
        return cells  # not those of a table
    for name in columns.inputs[:MOST_COLUMNS]:
        if name in columns.numbers:
            cells[name] = f"{float(columns.numbers[name][index]):.6g}"
        elif name in columns.categories:
            found = columns.categories[name]
            cells[name] = str(found.values[int(found.numbers[index])])
    n_more = len(columns.inputs) - MOST_COLUMNS
    return {**cells, "...": f"{n_more:,} more columns"} if n_more > 0 else cells
