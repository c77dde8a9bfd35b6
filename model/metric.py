"""The metrics. A function ``(output, target) -> number`` is averaged over samples; a class has
``update(output, target)`` for each batch, ``compute()`` at the end of the epoch and ``reset()``.

``output`` is what ``predict`` of the trainer gives: scores ``(batch, n_classes, ...)`` or, where
it gives them so, class indices in the shape of ``target``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from base.losses import build_losses


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """The share of samples whose best-scored class is the true one."""
    return (_classes(output, target) == target).float().mean()


def top_k_accuracy(output: Tensor, target: Tensor, k: int = 3) -> Tensor:
    """The share of samples whose true class is among the ``k`` best-scored ones."""
    best = output.topk(k, dim=1).indices  # (batch, k, ...)
    return (best == target.unsqueeze(1)).any(dim=1).float().mean()


def top_k_acc(output: Tensor, target: Tensor, k: int = 3) -> Tensor:
    """The name of ``top_k_accuracy`` in pytorch-template."""
    return top_k_accuracy(output, target, k)


def _classes(output: Tensor, target: Tensor) -> Tensor:
    if output.ndim > target.ndim:
        return output.argmax(dim=1)
    if output.is_floating_point():
        raise ValueError("scores (batch, n_classes, ...) or class indices are needed")
    return output


class ConfusionMatrix:
    """How often each true class (row) was taken for each class (column).

    ``n_classes`` is read from the scores if not given; targets equal to ``ignore_index`` are left
    out. The counts stay on the device until they are asked for.
    """

    def __init__(self, n_classes: int | None = None, ignore_index: int | None = None) -> None:
        self.n_classes = n_classes
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        self.counts: Tensor | None = None  # (n_classes, n_classes)

    def update(self, output: Tensor, target: Tensor) -> None:
        predicted, true = _classes(output, target).flatten(), target.flatten().long()
        if self.counts is None:
            n = self.n_classes or (output.shape[1] if output.ndim > target.ndim else None)
            if n is None:
                raise ValueError("class indices do not say how many classes there are: n_classes")
            self.counts = torch.zeros(n, n, dtype=torch.long, device=output.device)
        is_counted = torch.ones_like(true)
        if self.ignore_index is not None:
            is_counted = (true != self.ignore_index).long()
            true = true * is_counted
        n = len(self.counts)
        if output.ndim > target.ndim and output.shape[1] > n:
            raise ValueError(f"there are scores for {output.shape[1]} classes, not for {n}")
        # A class that is none falls outside of the table, where torch refuses it.
        places = torch.where((predicted >= 0) & (predicted < n), true * n + predicted, -1)
        self.counts.view(-1).scatter_add_(0, places, is_counted)

    def compute(self) -> Any:
        """Return the counts so far, as a table on the CPU."""
        return self.counts.cpu() if self.counts is not None else torch.zeros(0, 0)


class _ClassScores(ConfusionMatrix):
    """A score for each class, and ``macro``: their plain mean over the classes that occur."""

    def compute(self) -> dict[str, float]:
        matrix = super().compute().double()
        hits, taken, true = matrix.diagonal(), matrix.sum(dim=0), matrix.sum(dim=1)
        # A class of which there is nothing to count has the score 0, as in scikit-learn.
        scores = torch.nan_to_num(self.score(hits, taken, true), nan=0.0)
        occurs = taken + true > 0
        result = {"macro": scores[occurs].mean().item()}
        result.update((str(index), score) for index, score in enumerate(scores.tolist()))
        return result

    def score(self, hits: Tensor, taken: Tensor, true: Tensor) -> Tensor:
        """Return the scores from the counts: right ones, taken for the class, truly of it."""
        raise NotImplementedError


class Precision(_ClassScores):
    """Of the samples taken for a class, the share that is of it; by class, and ``macro``."""

    def score(self, hits: Tensor, taken: Tensor, true: Tensor) -> Tensor:
        return hits / taken


class Recall(_ClassScores):
    """Of the samples of a class, the share that is found; by class, and ``macro``."""

    def score(self, hits: Tensor, taken: Tensor, true: Tensor) -> Tensor:
        return hits / true


class F1(_ClassScores):
    """The harmonic mean of precision and recall; by class, and ``macro``."""

    def score(self, hits: Tensor, taken: Tensor, true: Tensor) -> Tensor:
        return 2 * hits / (taken + true)


class MeanLoss:
    """The mean over samples of any loss, trained on or not: ``{loss: l1_loss}``."""

    def __init__(self, loss: str = "cross_entropy", args: dict[str, Any] | None = None) -> None:
        section = {"type": loss, "args": args or {}, "name": loss, "weight": 1.0}
        self.loss = build_losses([section])[loss]
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | float = 0.0
        self.n_samples = 0

    def update(self, output: Any, target: Tensor) -> None:
        if not self.n_samples:
            self.loss.to(target.device)
        self.total = self.total + self.loss(output, target).double() * len(target)
        self.n_samples += len(target)

    def compute(self) -> Tensor | float:
        return self.total / self.n_samples
