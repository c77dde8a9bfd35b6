"""Numbers about predictions: counts of classes, calibration, residuals. Plain data, by numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = list[int]
"""A true class, a predicted class, and how many samples have both."""

N_BINS = 15
"""Bins of equal width of the calibration (Guo et al., 2017, use as many)."""
MOST_POINTS = 1000  # of a scatter plot
N_RESIDUAL_BINS = 30


def pair_counts(target: Array, prediction: Array) -> list[Pair]:
    """Return how often each class was predicted for each true class, without zeros.

    Args:
        target, prediction: (sample,) class numbers; samples with a negative target are left out.
    """
    known = target >= 0
    pairs = np.stack([target[known], prediction[known]], axis=1).astype(np.int64)
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return [[int(t), int(p), int(n)] for (t, p), n in zip(found, counts, strict=True)]


@dataclass(frozen=True)
class ClassScore:
    """The counts and scores of a class; None where a score is 0 / 0."""

    name: str
    support: int
    """Samples of the class."""
    predicted: int
    """Samples for which it was predicted."""
    correct: int

    @property
    def precision(self) -> float | None:
        """The share of the predictions of this class that are correct."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> float | None:
        """The share of the samples of this class that are found."""
        return _ratio(self.correct, self.support)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall."""
        return _ratio(2 * self.correct, self.support + self.predicted)

    @property
    def iou(self) -> float | None:
        """The samples (pixels) of both, relative to those of either."""
        return _ratio(self.correct, self.support + self.predicted - self.correct)


def class_scores(pairs: Sequence[Pair], names: Sequence[str]) -> list[ClassScore]:
    """Return the scores of each class."""
    support, predicted, correct = (np.zeros(len(names), dtype=np.int64) for _ in range(3))
    for true, chosen, count in pairs:
        support[true] += count
        predicted[chosen] += count
        correct[true] += count * (true == chosen)
    columns = (support.tolist(), predicted.tolist(), correct.tolist())
    return [ClassScore(*row) for row in zip(names, *columns, strict=True)]


def accuracy_of(pairs: Sequence[Pair]) -> float | None:
    """Return the share of correct predictions."""
    correct = sum(count for true, chosen, count in pairs if true == chosen)
    return _ratio(correct, sum(count for _, _, count in pairs))


def label_scores(target: Array, prediction: Array, names: Sequence[str]) -> list[ClassScore]:
    """Return the scores of each label of several that a sample may have.

    Args:
        target: (sample, label) of 0 and 1; those that are negative are unknown and left out.
        prediction: (sample, label) bool.
    """
    is_true, is_chosen = target > 0, prediction & (target >= 0)
    counts = (is_true.sum(0), is_chosen.sum(0), (is_true & is_chosen).sum(0))
    rows = zip(names, *(each.tolist() for each in counts), strict=True)
    return [ClassScore(*row) for row in rows]


def calibration(confidence: Array, is_correct: Array) -> dict[str, list[float]]:
    """Return number, mean confidence and accuracy of the samples in each bin of confidence.

    Bins are of equal width and hold their upper edge. Non-finite confidences are left out.

    Args:
        confidence: (sample,) probabilities of the predictions.
        is_correct: (sample,) bool.
    """
    known = np.isfinite(confidence)
    confidence, correct = confidence[known].astype(np.float64), is_correct[known].astype(np.float64)
    places = np.clip(np.ceil(confidence * N_BINS).astype(np.int64) - 1, 0, N_BINS - 1)
    counts = np.bincount(places, minlength=N_BINS)
    divisor = np.maximum(counts, 1)
    means = [np.bincount(places, each, N_BINS) / divisor for each in (confidence, correct)]
    columns = {"counts": counts, "confidence": means[0], "accuracy": means[1]}
    return {name: values.tolist() for name, values in columns.items()}


def expected_calibration_error(bins: dict[str, list[float]]) -> float | None:
    """Return the mean gap between confidence and accuracy of the bins, weighted by their counts.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    """
    counts, confidence, accuracy = (
        np.array(bins[name], dtype=np.float64) for name in ("counts", "confidence", "accuracy")
    )
    total = counts.sum()
    return float((counts * np.abs(confidence - accuracy)).sum() / total) if total else None


def residual_summary(target: Array, prediction: Array, name: str) -> dict[str, Any]:
    """Return errors, a histogram of the residuals and some points of one target.

    Residuals are prediction minus target, in the unit of the target. Samples with a non-finite
    value are counted and left out.

    Args:
        target, prediction: (sample,) numbers.
    """
    target, prediction = target.astype(np.float64), prediction.astype(np.float64)
    known = np.isfinite(target) & np.isfinite(prediction)
    n_nonfinite = int((~known).sum())
    target, prediction = target[known], prediction[known]
    summary: dict[str, Any] = {"name": name, "n": len(target), "n_nonfinite": n_nonfinite}
    if not len(target):
        return summary
    residuals = prediction - target
    spread = float(((target - target.mean()) ** 2).sum())
    counts, edges = np.histogram(residuals, N_RESIDUAL_BINS)
    step = -(-len(target) // MOST_POINTS)
    points = np.stack([target, prediction], axis=1)[::step]
    return {
        **summary,
        "mae": float(np.abs(residuals).mean()),
        "rmse": float(np.sqrt((residuals**2).mean())),
        "bias": float(residuals.mean()),
        "r2": 1 - float((residuals**2).sum()) / spread if spread else None,
        "counts": counts.tolist(),
        "edges": edges.tolist(),
        "points": points.tolist(),
    }


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
