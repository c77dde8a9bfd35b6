"""Metrics. A function ``(output, target) -> number`` is averaged over samples; one that returns
``(sum, count)`` is averaged over its counts. A class has ``update(output, target)`` for each batch,
``compute()`` for the end of the epoch, and ``reset()``; to train in several processes, it also has
``merge(states)``, which sets it to the whole of their attributes. Further parameters receive the
items of the batch with their names.

``output`` is the result of the trainer's ``predict``: scores ``(batch, n_classes, ...)``, one score
for each sample or pixel (binary classification, ``(batch,)`` or ``(batch, 1, ...)``), or class
indices in the shape of ``target``. Scores in the shape of the targets mean several labels.

``ignore_index`` and ``threshold`` default to those of the loss: ignored targets do not count, and
one score means class 1 above 0 if the loss takes logits, above 0.5 if it takes probabilities. See
docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from base import (
    SUM_REDUCTION,
    DataParameters,
    build_losses,
    count_samples,
    denominator_of,
    flatten_terms,
    get_device,
    mean_of_counts,
)

Counts = tuple[Tensor, Tensor | int]
States = Sequence[Mapping[str, Any]]  # the attributes of a metric in each process


@mean_of_counts(by_sample=True)
def accuracy(
    output: Tensor,
    target: Tensor,
    ignore_index: int | None = None,
    threshold: float | None = None,
) -> Counts:
    """The share of samples whose highest score is that of the true class.

    With several labels for each sample, each label counts. Targets that are class probabilities,
    such as those of MixUp, count as their most probable class.
    """
    predicted, true, given = _as_classes(output, target, threshold)
    return _share(predicted == true, given, ignore_index)


@mean_of_counts(by_sample=True)
def top_k_accuracy(
    output: Tensor, target: Tensor, k: int = 3, ignore_index: int | None = None
) -> Counts:
    """The share of samples whose true class is among the ``k`` highest scores."""
    return _among_the_best(output, target, k, ignore_index)


@mean_of_counts(by_sample=True)
def top_k_acc(
    output: Tensor, target: Tensor, k: int = 3, ignore_index: int | None = None
) -> Counts:
    """``top_k_accuracy`` under its name in pytorch-template."""
    return _among_the_best(output, target, k, ignore_index)


def _among_the_best(output: Tensor, target: Tensor, k: int, ignore_index: int | None) -> Counts:
    n_classes = output.shape[1] if output.ndim > 1 else 1
    if n_classes == 1 or not output.is_floating_point():
        raise ValueError("top-k accuracy needs scores for each class; use accuracy")
    if not 1 <= k <= n_classes:
        text = f"k is {k}, and there are scores for {n_classes} classes"
        raise ValueError(f"{text}: set `args: {{k: {max(n_classes - 1, 1)}}}`, or another k")
    if _has_scores_by_class(output, target):
        true = given = target
    else:
        _, true, given = _as_classes(output, target, None)
    best = output.topk(k, dim=1).indices  # (batch, k, ...)
    is_right = best == true.unsqueeze(1)  # for one of the k at most
    if ignore_index is None:
        return is_right.count_nonzero(), true.numel()
    return _share(is_right.any(dim=1), given, ignore_index)


def _share(is_right: Tensor, target: Tensor, ignore_index: int | None) -> Counts:
    """Return how many samples are right and how many count."""
    if ignore_index is None:
        return is_right.count_nonzero(), is_right.numel()
    is_counted = target != ignore_index
    return (is_right & is_counted).count_nonzero(), is_counted.count_nonzero()


def _as_classes(
    output: Tensor, target: Tensor, threshold: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return predicted classes, true classes and the target, all in one shape.

    Raises:
        ValueError: the shapes do not match, or a binary score has no threshold.
    """
    if not output.is_floating_point():
        if output.shape != target.shape:
            raise ValueError(_shape_mismatch(output, target))
        return output, target, target
    if _has_scores_by_class(output, target):
        return output.argmax(dim=1), target, target
    if _is_single(output, target):
        target = target.reshape(output.shape)
    elif output.shape != target.shape:
        raise ValueError(_shape_mismatch(output, target))
    elif threshold is None and target.is_floating_point():  # class probabilities
        largest = target.argmax(dim=1)
        return output.argmax(dim=1), largest, largest
    if threshold is None:
        raise ValueError(
            "there is one score for each target, and no loss sets the threshold of class 1: set "
            "`args: {threshold: 0}` for logits, `{threshold: 0.5}` for probabilities. For several "
            "classes, a model needs an output for each class"
        )
    if target.is_floating_point():
        return output > threshold, target > 0.5, target
    # Some data sets use -1 for class 0.
    true = target if target.dtype == torch.bool else target.clamp(min=0)
    return output > threshold, true, target


def _has_scores_by_class(output: Tensor, target: Tensor) -> bool:
    shape = output.shape
    return len(shape) > 1 and shape[1] > 1 and shape[:1] + shape[2:] == target.shape


def _is_single(output: Tensor, target: Tensor) -> bool:
    """Return whether there is one score for each target, with or without a class dimension."""
    one, other = output.shape, target.shape
    without = [shape[:1] + shape[2:] if shape[1:2] == (1,) else shape for shape in (one, other)]
    is_last = one == (*other, 1) or other == (*one, 1)  # sequences (batch, length, 1)
    has_classes = one == other and output.ndim > 1 and one[1] > 1
    return (without[0] == without[1] or is_last) and not has_classes


def _shape_mismatch(output: Tensor, target: Tensor) -> str:
    text = f"output {tuple(output.shape)} does not match target {tuple(target.shape)}"
    return f"{text}: use scores (batch, n_classes, ...) or class indices, and targets (batch, ...)"


class _OverClasses:
    """Base of the metrics that count true and predicted classes.

    ``n_classes`` defaults to the number of scores. Targets equal to ``ignore_index`` do not count.
    The counts stay on the device until ``compute``.
    """

    def __init__(
        self,
        n_classes: int | None = None,
        ignore_index: int | None = None,
        threshold: float | None = None,
    ) -> None:
        self.n_classes = n_classes
        self.ignore_index = ignore_index
        self.threshold = threshold
        self.reset()

    def reset(self) -> None:
        raise NotImplementedError

    def _find_n_classes(self, output: Tensor, target: Tensor) -> int:
        n = self.n_classes or _n_classes(output, target)
        if n is None:
            raise ValueError("class indices do not give the number of classes: set n_classes")
        return n

    def _pairs(self, output: Tensor, target: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the predicted and the true class of each sample, and 1 where it counts, else 0."""
        predicted, true, given = _as_classes(output, target, self.threshold)
        predicted, true, given = predicted.flatten().long(), true.flatten().long(), given.flatten()
        is_counted = torch.ones_like(true)
        if self.ignore_index is not None:
            is_counted = (given != self.ignore_index).long()
            true = true * is_counted
        if (n_scores := _n_classes(output, target) or 0) > n:
            raise ValueError(f"there are scores for {n_scores} classes, and n_classes is {n}")
        return predicted, true, is_counted


class ConfusionMatrix(_OverClasses):
    """Counts of each true class (row) and predicted class (column)."""

    def reset(self) -> None:
        self.counts: Tensor | None = None  # (n_classes, n_classes)

    def update(self, output: Tensor, target: Tensor) -> None:
        if _has_several_labels(output, target, self.threshold):
            text = "a confusion matrix does not take several labels for each sample"
            raise ValueError(f"{text}: use F1, IoU or AUROC; masks have the shape (batch, 1, ...)")
        if self.counts is None:
            n = self._find_n_classes(output, target)
            self.counts = torch.zeros(n, n, dtype=torch.long, device=output.device)
        n = len(self.counts)
        predicted, true, is_counted = self._pairs(output, target, n)
        # Torch raises an error for an invalid class, which falls outside of the table.
        places = torch.where((predicted >= 0) & (predicted < n), true * n + predicted, -1)
        self.counts.view(-1).scatter_add_(0, places, is_counted)

    def merge(self, states: States) -> None:
        self.counts = _added(states, "counts")

    def compute(self) -> Any:
        """Return the counts as a table on the CPU."""
        return self.counts.cpu() if self.counts is not None else torch.zeros(0, 0)


def _added(states: States, name: str) -> Tensor | None:
    """Return the sum of an attribute over all processes that have set it."""
    found = [state[name] for state in states if state[name] is not None]
    return torch.stack(found).sum(dim=0) if found else None


def _n_classes(output: Tensor, target: Tensor) -> int | None:
    """Return the number of classes that have scores; None for class indices."""
    if not output.is_floating_point():
        return None
    return 2 if _is_single(output, target) else output.shape[1]


def _has_several_labels(output: Tensor, target: Tensor, threshold: float | None) -> bool:
    is_same = output.is_floating_point() and output.shape == target.shape
    return is_same and threshold is not None and output.ndim > 1 and output.shape[1] > 1


class _ClassScores(_OverClasses):
    """A score for each class, and the mean over the classes that occur.

    With several labels for each sample, (batch, n_labels, ...), each label is a class.
    """

    mean_name = "macro"

    def reset(self) -> None:
        self.sums: Tensor | None = None  # true positives, predicted, true  # (3, n_classes)

    def update(self, output: Tensor, target: Tensor) -> None:
        if _has_several_labels(output, target, self.threshold):
            self._update_labels(output, target)
            return
        if self.sums is None:
            n = self._find_n_classes(output, target)
            self.sums = torch.zeros(3, n, dtype=torch.long, device=output.device)
        predicted, true, is_counted = self._pairs(output, target, self.sums.shape[1])
        # Torch raises an error for an invalid class, which falls outside of the vector.
        true_positives, of_predicted, of_true = self.sums
        true_positives.scatter_add_(0, true, (predicted == true) * is_counted)
        of_predicted.scatter_add_(0, predicted, is_counted)
        of_true.scatter_add_(0, true, is_counted)

    def _update_labels(self, output: Tensor, target: Tensor) -> None:
        if output.ndim == 3:
            text = (
                f"{tuple(output.shape)} may be masks or labels: add the channel dimension to masks"
            )
            raise ValueError(f"{text}, (batch, 1, height, width), in the output and in the target")
        predicted, true, given = (each.transpose(0, 1).flatten(1) for each in
                              _as_classes(output, target, self.threshold))  # fmt: skip
        true = true == 1
        if self.ignore_index is not None:
            is_counted = given != self.ignore_index
            predicted, true = predicted & is_counted, true & is_counted
        sums = torch.stack([(predicted & true).sum(1), predicted.sum(1), true.sum(1)])
        self.sums = sums if self.sums is None else self.sums.to(sums.device) + sums

    def _set_earlier_counts(self, table: Tensor | None) -> None:
        """Take the table of pairs of classes that checkpoints of earlier versions hold."""
        if table is not None:
            self.sums = torch.stack([table.diagonal(), table.sum(dim=0), table.sum(dim=1)])

    def _set_earlier_labels(self, sums: Tensor | None) -> None:
        """Take the sums of labels, which had this name there."""
        if sums is not None:
            self.sums = sums

    def _refuse_earlier(self) -> NoReturn:
        text = "scores keep no counts of pairs: `sums`, (3, n_classes), holds the true positives,"
        text += " the predictions and the samples of each class; ConfusionMatrix counts pairs"
        raise AttributeError(text)

    counts = property(_refuse_earlier, _set_earlier_counts)
    labels = property(_refuse_earlier, _set_earlier_labels)

    def merge(self, states: States) -> None:
        self.sums = _added(states, "sums")

    def compute(self) -> dict[str, float]:
        sums = torch.zeros(3, 0) if self.sums is None else self.sums.cpu()
        true_positives, predicted, true = sums.double()
        # A class without samples has a score of 0, as in scikit-learn.
        scores = torch.nan_to_num(self.score(true_positives, predicted, true), nan=0.0)
        occurs = predicted + true > 0
        result = {self.mean_name: scores[occurs].mean().item()}
        result.update((str(index), score) for index, score in enumerate(scores.tolist()))
        return result

    def score(self, true_positives: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        """Return the scores from true positives, predictions of the class, and its samples."""
        raise NotImplementedError


class Precision(_ClassScores):
    """The share of the predictions of a class that are right; by class, and ``macro``."""

    def score(self, true_positives: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        return true_positives / predicted


class Recall(_ClassScores):
    """The share of the samples of a class that are predicted; by class, and ``macro``."""

    def score(self, true_positives: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        return true_positives / true


class F1(_ClassScores):
    """The harmonic mean of precision and recall; by class, and ``macro``."""

    def score(self, true_positives: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        return 2 * true_positives / (predicted + true)


class IoU(_ClassScores):
    """Intersection over union (Jaccard), over all pixels of the epoch; by class, and ``mean``."""

    mean_name = "mean"

    def score(self, true_positives: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
        return true_positives / (predicted + true - true_positives)


class Dice(F1):
    """Twice the intersection over the sum of the areas (F1 of pixels); by class, and ``mean``."""

    mean_name = "mean"


class _OverValues:
    """A mean over all values of an epoch, summed on the device in double precision."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | float = 0.0
        self.n_values = 0

    def update(self, output: Tensor, target: Tensor) -> None:
        output, target = _as_values(output, target)
        self.total = self.total + _sum(self.penalty(output - target))
        self.n_values += target.numel()

    def penalty(self, error: Tensor) -> Tensor:
        """Return the term of each error in the sum."""
        raise NotImplementedError

    def merge(self, states: States) -> None:
        self.total = sum(state["total"] for state in states)
        self.n_values = sum(state["n_values"] for state in states)

    def compute(self) -> float:
        return float(self.total) / self.n_values if self.n_values else float("nan")


class MAE(_OverValues):
    """The mean absolute error over all values of the epoch."""

    def penalty(self, error: Tensor) -> Tensor:
        return error.abs()


class RMSE(_OverValues):
    """The root mean squared error over all values of the epoch."""

    def penalty(self, error: Tensor) -> Tensor:
        return error.square()

    def compute(self) -> float:
        return super().compute() ** 0.5


class R2:
    """The coefficient of determination: 1 is perfect, 0 is no better than the mean of the targets.

    With several outputs, (batch, n_outputs), it is the mean over the outputs.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.n_samples = 0
        self.shift: Tensor | float = 0.0  # near the mean, for the precision of the squares
        self.sums: Tensor | float = 0.0  # of targets, their squares, squared errors  # (3, outputs)

    def update(self, output: Tensor, target: Tensor) -> None:
        output, target = _as_values(output, target)
        if target.ndim > 2 or target.ndim == 0:
            raise ValueError(
                f"targets need (batch,) or (batch, n_outputs), not {tuple(target.shape)}"
            )
        errors, target = (output - target).reshape(len(target), -1), target.reshape(len(target), -1)
        if target.device.type != "mps":
            errors, target = errors.double(), target.double()
        if not self.n_samples:
            self.shift = target.mean(dim=0)
        shifted = target - self.shift
        parts = torch.stack([shifted, shifted.square(), errors.square()])
        self.sums = self.sums + parts.sum(dim=1)
        self.n_samples += len(target)

    def merge(self, states: States) -> None:
        for state in (state for state in states if state["n_samples"]):
            self.shift = self.shift if self.n_samples else state["shift"]
            self.sums = self.sums + _shifted(state, state["shift"] - self.shift)
            self.n_samples += state["n_samples"]

    def compute(self) -> float:
        if self.n_samples < 2:
            return float("nan")
        total, squares, residual = torch.as_tensor(self.sums).cpu()
        spread = squares - total.square() / self.n_samples
        # For equal targets it is 1 if predictions are exact, else 0, as in scikit-learn.
        is_spread = spread > 1e-12 * squares
        explained = torch.where(is_spread, 1 - residual / spread, (residual == 0).to(spread))
        return explained.mean().item()


def _shifted(state: Mapping[str, Any], by: Tensor) -> Tensor:
    """Return the sums of an `R2` whose targets are all larger by a number."""
    n, (total, squares, residual) = state["n_samples"], state["sums"]
    mean = total / n + by
    # Equal targets stay equal: what remains of their difference is rounding.
    mean = torch.where(mean.abs() <= 1e-14 * state["shift"].abs(), 0, mean)
    spread = squares - total.square() / n
    spread = torch.where(spread > 1e-12 * squares, spread, 0)
    return torch.stack([n * mean, spread + n * mean.square(), residual])


def _as_values(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return values in single precision or more; refuse shapes that would broadcast."""
    if output.shape != target.shape:
        text = f"output {tuple(output.shape)} and target {tuple(target.shape)} differ in shape"
        raise ValueError(f"{text}: give the target the shape of the output")
    dtype = torch.promote_types(torch.promote_types(output.dtype, target.dtype), torch.float32)
    return output.to(dtype), target.to(dtype)


def _sum(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.float32 if values.device.type == "mps" else torch.float64)


class _Ranking:
    """A ranking metric, exact over the whole epoch.

    One score for each sample gives one value. Several labels, (batch, n_labels, ...) in outputs and
    targets, and classes, each against the rest, give one value each and ``macro``, the mean over
    those with positives and negatives; the others are NaN. Scores by class may be logits,
    log-probabilities or probabilities.
    """

    LIMIT = 64 * 2**20  # bytes kept on the device; more are moved to the CPU

    def __init__(self, ignore_index: int | None = None) -> None:
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        self.scores: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.n_bytes = 0
        self.by_class = False

    def update(self, output: Tensor, target: Tensor) -> None:
        if not output.is_floating_point():
            raise ValueError("this metric needs scores, not class indices")
        self.by_class = _has_scores_by_class(output, target)
        if self.by_class:
            output, target = output.movedim(1, -1).flatten(0, -2), target.flatten()
        elif _is_single(output, target):
            output, target = output.reshape(-1, 1), target.reshape(-1, 1)
        elif output.shape == target.shape:
            output, target = (each.movedim(1, -1).flatten(0, -2) for each in (output, target))
        else:
            raise ValueError(_shape_mismatch(output, target))
        # Copies, as a compiled model reuses its output. Below the limit nothing waits for a device.
        self.scores.append(output.detach().clone())
        self.targets.append(target.clone())
        self.n_bytes += output.nbytes + target.nbytes
        if self.n_bytes > self.LIMIT:
            self.scores = [torch.cat([each.cpu() for each in self.scores])]
            self.targets = [torch.cat([each.cpu() for each in self.targets])]
            self.n_bytes = 0

    def merge(self, states: States) -> None:
        self.scores = [scores for state in states for scores in state["scores"]]
        self.targets = [targets for state in states for targets in state["targets"]]
        self.by_class = any(state["by_class"] for state in states)

    def compute(self) -> float | dict[str, float]:
        if not self.scores:
            return float("nan")
        scores = torch.cat([each.cpu() for each in self.scores])
        targets = torch.cat([each.cpu() for each in self.targets])
        scores = scores if scores.dtype == torch.float64 else scores.float()
        is_counted = targets != self.ignore_index if self.ignore_index is not None else None
        if self.by_class:
            scores = scores if _are_probabilities(scores) else scores.softmax(dim=1)
            targets = targets[:, None] == torch.arange(scores.shape[1])
            is_counted = is_counted if is_counted is None else is_counted[:, None].expand_as(scores)
        found = []
        for label in range(scores.shape[1]):
            keep = slice(None) if is_counted is None else is_counted[:, label]
            found.append(self._of_label(scores[keep, label], targets[keep, label] > 0.5))
        if len(found) == 1:
            return found[0]
        defined = [value for value in found if value == value]
        macro = sum(defined) / len(defined) if defined else float("nan")
        return {"macro": macro, **{str(label): value for label, value in enumerate(found)}}

    def _of_label(self, scores: Tensor, is_positive: Tensor) -> float:
        """Return the score of one label; samples with equal scores count together."""
        order = scores.argsort(descending=True)
        if not len(scores) or scores.isnan().any():
            return float("nan")
        scores, is_positive = scores[order], is_positive[order].double()
        is_last = torch.ones(len(scores), dtype=torch.bool)
        is_last[:-1] = scores[1:] != scores[:-1]
        above = torch.arange(1, len(scores) + 1, dtype=torch.double)[is_last]
        true_positives = is_positive.cumsum(0)[is_last]
        return self.score(true_positives, above - true_positives)

    def score(self, true_positives: Tensor, false_positives: Tensor) -> float:
        """Return the metric from the positives and negatives at or above each score."""
        raise NotImplementedError


class AUROC(_Ranking):
    """The area under the ROC curve: how often a positive scores above a negative.

    NaN for an epoch without positives or without negatives.
    """

    def score(self, true_positives: Tensor, false_positives: Tensor) -> float:
        if not true_positives[-1] or not false_positives[-1]:
            return float("nan")
        zero = torch.zeros(1, dtype=torch.double)
        area = torch.trapezoid(
            torch.cat([zero, true_positives]), torch.cat([zero, false_positives])
        )
        return float(area / (true_positives[-1] * false_positives[-1]))


class AveragePrecision(_Ranking):
    """The mean precision at each positive, by descending score; NaN without positives."""

    def score(self, true_positives: Tensor, false_positives: Tensor) -> float:
        if not true_positives[-1]:
            return float("nan")
        found = torch.diff(true_positives, prepend=torch.zeros(1, dtype=torch.double))
        return float(
            (found * true_positives / (true_positives + false_positives)).sum() / true_positives[-1]
        )


def _are_probabilities(scores: Tensor) -> bool:
    are_shares = bool((scores >= 0).all()) and bool((scores <= 1).all())
    return are_shares and torch.allclose(scores.sum(dim=1), scores.new_ones(()), atol=1e-2)


class MeanLoss:
    """The mean of a loss over all samples, whether or not it is trained on: ``{loss: l1_loss}``."""

    def __init__(self, loss: str = "cross_entropy", args: dict[str, Any] | None = None) -> None:
        section = {"type": loss, "args": args or {}, "name": loss, "weight": 1.0}
        self.loss = build_losses([section])[loss]
        self.reset()

    def reset(self) -> None:
        self.total: Tensor | float = 0.0
        self.count: Tensor | float = 0.0

    @property
    def data_parameters(self) -> DataParameters:
        """The parameters of the loss that receive items of the batch."""
        return self.loss.takes

    def update(self, *args: Any, **keywords: Any) -> None:
        if not isinstance(self.count, Tensor) and not self.count:
            self.loss.to(get_device(args))
        output, target = args if len(args) > 1 else (*args, None)
        found = flatten_terms(
            {self.loss.name: self.loss(output, target, **keywords)}, (self.loss.name,)
        )
        first, *others = [term.value for term in found.values() if term.is_minimised]
        value, counted = sum(others, start=first), denominator_of(first)
        number = count_samples((output, target)) if counted is None else counted.number
        if number is SUM_REDUCTION:
            self.total, self.count = self.total + value.double(), 1.0
            return
        # Without a count the mean is 0/0.
        if isinstance(number, Tensor):
            count = number.to(value.device, torch.float64, non_blocking=True)
        else:  # made on the device: a copy from the CPU would wait for it
            count = torch.full((), number, dtype=torch.float64, device=value.device)
        self.total = self.total + torch.where(count == 0, 0.0, value.double() * count)
        self.count = self.count + count

    def merge(self, states: States) -> None:
        self.total = sum(state["total"] for state in states)
        counts = [state["count"] for state in states]
        # A sum is divided by 1 in each process, and so is that of all of them.
        self.count = sum(counts) if any(isinstance(each, Tensor) for each in counts) else 1.0

    def compute(self) -> Tensor | float:
        return self.total / self.count
