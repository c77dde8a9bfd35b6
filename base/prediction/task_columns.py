"""Turns the predictions of a task into the cells of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from base.errors import UsageError
from base.training.task import HALF, Task

Cell = str | int | float


class Table(NamedTuple):
    """The columns of predictions, and a function that returns the cells of a batch."""

    columns: list[str]
    cells: Any  # (scores: Tensor) -> list[list[Cell]]


def table_of(
    task: Task,
    shape: Sequence[int],
    targets: Sequence[str] = (),
    top_k: int = 1,
    threshold: float | None = None,
) -> Table:
    """Return the table of a task, whose cells come from the scores of a batch.

    - classification and binary: the class and its probability, ``top_k`` of them
    - multilabel: the labels from the threshold on, and the probability of each
    - segmentation: the share of the pixels of each class
    - regression: the value of each target

    Scores are the activated outputs, float32 in the shape of the outputs.

    Args:
        shape: of the scores, (sample, ...).
        targets: the names of the targets of a regression, if known.
        threshold: the probability from which a label, or the second class, is chosen: 0.5.

    Raises:
        UsageError: a table has no place for such predictions.
    """
    n_values = 1 if len(shape) == 1 else shape[1]
    is_of_two = task.name in ("binary", "multilabel") or (
        task.name == "segmentation" and n_values == 1
    )
    if threshold is not None and not is_of_two:
        text = "it is for labels and for binary tasks, whose probability it is compared with"
        raise UsageError(f"--threshold: {text}; this run is a {task.name}")
    if task.name in ("classification", "binary"):
        return _classes(task, top_k, threshold)
    if top_k > 1:
        raise UsageError(f"--top-k: it is for classes, and this run is a {task.name}")
    if task.name == "multilabel":
        return _labels(task, HALF if threshold is None else threshold)
    if task.name == "segmentation":
        return _shares(task, threshold)
    if task.name == "regression" and len(shape) <= 2:
        named = list(targets) if len(targets) == n_values else []
        several = [f"prediction_{number}" for number in range(1, n_values + 1)]
        names = named or (["prediction"] if n_values == 1 else several)
        return Table(names, lambda scores: scores.reshape(len(scores), -1).tolist())
    if len(shape) == 1:  # one number of unknown meaning, such as that of a class without a name
        return Table(["prediction"], lambda scores: [[value] for value in scores.tolist()])
    text = f"the model returns {_shape_text(shape)} for each sample, which is not a row of a table"
    raise UsageError(f"{text}: write arrays, -o predictions.npz")


def chosen_classes(scores: Tensor, threshold: float | None = None) -> Tensor:
    """Return the class of each pixel or sample, int64: scores (sample, class, ...)."""
    if scores.shape[1] == 1:
        return (scores[:, 0] >= (HALF if threshold is None else threshold)).long()
    return scores.argmax(dim=1)


def _classes(task: Task, top_k: int, threshold: float | None) -> Table:
    kind = "probability" if task.has_probabilities else "score"
    n_shown = min(top_k, len(task.classes))
    columns = [f"{name}{'' if n == 1 else f'_{n}'}" for n in range(1, n_shown + 1)
               for name in ("class", kind)]  # fmt: skip

    def cells(scores: Tensor) -> list[list[Cell]]:
        if task.name == "binary":
            scores = scores.reshape(len(scores), 1)
            is_second = chosen_classes(scores, threshold).bool()
            scores = torch.cat([1 - scores, scores], dim=1)
            order = torch.stack([is_second.long(), 1 - is_second.long()], dim=1)
        else:
            order = scores.argsort(dim=1, descending=True, stable=True)
        order = order[:, :n_shown]
        values = scores.gather(1, order).tolist()
        names = [[task.classes[number] for number in row] for row in order.tolist()]
        return [
            [cell for pair in zip(*row, strict=True) for cell in pair]
            for row in zip(names, values, strict=True)
        ]

    return Table(columns, cells)


def _labels(task: Task, threshold: float) -> Table:
    def cells(scores: Tensor) -> list[list[Cell]]:
        return [
            ["|".join(n for n, p in zip(task.classes, row, strict=True) if p >= threshold), *row]
            for row in scores.tolist()
        ]

    return Table(["labels", *task.classes], cells)


def _shares(task: Task, threshold: float | None) -> Table:
    def cells(scores: Tensor) -> list[list[Cell]]:
        classes = chosen_classes(scores, threshold).flatten(1)
        counts = [torch.bincount(each, minlength=len(task.classes)) for each in classes]
        rows: list[list[Cell]] = (torch.stack(counts) / classes.shape[1]).tolist()
        return rows

    return Table(list(task.classes), cells)


def _shape_text(shape: Sequence[int]) -> str:
    return "one number" if len(shape) == 1 else " x ".join(map(str, shape[1:]))
