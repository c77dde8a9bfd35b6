"""The task of a model, from its losses, outputs and classes: how outputs become predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

SOFTMAX = frozenset((
    "cross_entropy", "CrossEntropyLoss", "smooth_cross_entropy", "focal_loss", "FocalLoss",
    "soft_cross_entropy", "SoftTargetCrossEntropy", "LabelSmoothingCrossEntropy", "dice_loss",
    "DiceLoss",
))  # fmt: skip
"""Losses of class scores, whose probabilities are their softmax."""
LOG_PROBABILITIES = frozenset(("nll_loss", "NLLLoss", "NLLLoss2d"))
SCORES = frozenset(("multi_margin_loss", "MultiMarginLoss"))
"""Losses of class scores that have no probabilities."""
SIGMOID = frozenset((
    "binary_cross_entropy_with_logits", "BCEWithLogitsLoss", "sigmoid_focal_loss",
    "SigmoidFocalLoss", "binary_focal_loss", "BinaryFocalLoss", "soft_margin_loss",
    "SoftMarginLoss", "multilabel_soft_margin_loss", "MultiLabelSoftMarginLoss",
))  # fmt: skip
PROBABILITIES = frozenset(("binary_cross_entropy", "BCELoss"))
REGRESSION = frozenset((
    "mse_loss", "MSELoss", "l1_loss", "L1Loss", "smooth_l1_loss", "SmoothL1Loss", "huber_loss",
    "HuberLoss", "poisson_nll_loss", "PoissonNLLLoss",
))  # fmt: skip
OF_CLASSES = frozenset((
    "accuracy", "top_k_accuracy", "top_k_acc", "ConfusionMatrix", "Precision", "Recall", "F1",
    "IoU", "Dice",
))  # fmt: skip
"""Metrics that show a classification where a loss of your own does not."""
HALF = 0.5  # the probability from which a label is predicted


@dataclass(frozen=True)
class Task:
    """What the outputs of a model mean.

    ``name`` is one of

    - ``classification``: outputs (sample, class)
    - ``binary``: outputs (sample,) or (sample, 1), one score for the second class
    - ``multilabel``: outputs (sample, label), one score for each label
    - ``segmentation``: outputs (sample, class, height, width), or one channel for a binary mask
    - ``regression``: outputs (sample,) or (sample, target), or images
    - ``other``: none of these, such as the output of a generator
    """

    name: str
    activation: str = "none"
    """Turns outputs into probabilities: ``softmax``, ``exp``, ``sigmoid``, ``none``, or ``one_hot``
    for predictions that are class numbers."""
    has_probabilities: bool = False
    """Whether the activated outputs are probabilities."""
    classes: tuple[str, ...] = ()
    """The names of the classes, of the labels, or of the two classes of a binary task."""

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the activated outputs, float32, in the shape of the outputs."""
        if self.activation == "one_hot":  # class numbers
            numbers = outputs.long().clamp(0, len(self.classes) - 1)
            return F.one_hot(numbers, len(self.classes)).movedim(-1, 1).float()
        outputs = outputs.float()
        if self.activation == "softmax":
            return outputs.softmax(dim=1)
        if self.activation == "exp":
            return outputs.exp()
        return outputs.sigmoid() if self.activation == "sigmoid" else outputs

    def chosen(self, outputs: Tensor) -> Tensor:
        """Return the predicted classes, int64 without the class dimension, or the labels, bool.

        Outputs of a regression are returned unchanged.
        """
        if self.name in ("regression", "other") or self.activation == "one_hot":
            return outputs
        if self.name == "multilabel":
            return self.probabilities(outputs) >= HALF
        if self.name == "binary" or outputs.shape[1] == 1:
            is_second = self.probabilities(outputs) >= HALF
            return is_second.long().reshape(outputs.shape[:1] + outputs.shape[2:])
        return outputs.argmax(dim=1)


def find_task(
    losses: Sequence[str],
    outputs: Tensor | Sequence[int] | None,
    classes: Sequence[str] | None = None,
    metrics: Sequence[str] = (),
    has_own_predict: bool = False,
) -> Task:
    """Find the task of a model.

    Args:
        losses: the names of the losses in the config, the most important one first.
        outputs: predictions for some samples, (sample, ...), or their shape; None if they are not
            one tensor. Class numbers, and values that are probabilities already, are recognised.
        classes: the class names in the data record, if known. Outputs beyond them are named by
            their number.
        metrics: the names of the metrics in the config.
        has_own_predict: whether the trainer turns outputs into predictions itself.
    """
    if isinstance(outputs, Tensor):
        if not outputs.is_floating_point():
            return _task_of_numbers(losses, outputs.shape, tuple(classes or ()), metrics)
        found = _task_of_shape(losses, outputs.shape, tuple(classes or ()), metrics)
        return _as_returned(found, outputs.detach().float(), has_own_predict)
    if outputs is None:
        return Task("other")
    return _task_of_shape(losses, outputs, tuple(classes or ()), metrics)


def _task_of_shape(
    losses: Sequence[str], outputs: Sequence[int], known: tuple[str, ...], metrics: Sequence[str]
) -> Task:
    if not 1 <= len(outputs) <= 5:
        return Task("other")
    n_channels = outputs[1] if len(outputs) > 1 else 1
    names = _names_of_outputs(known, n_channels)
    two = known if len(known) == 2 else ("0", "1")
    has_classes = len(outputs) == 2 and len(known) == n_channels > 1
    told = [each for each in losses if _activation(each) is not None]
    of_classes = [each for each in told if each not in REGRESSION]
    loss = next(iter((has_classes and of_classes) or told), "")
    activation, is_probability = _activation(loss) or ("none", False)
    is_spatial = len(outputs) > 3
    if loss in REGRESSION and not has_classes:
        return Task("regression")
    if loss in SIGMOID | PROBABILITIES:
        several = "segmentation" if is_spatial else "multilabel"
        one = "segmentation" if is_spatial else "binary"
        name, labels = (one, two) if n_channels == 1 else (several, names)
        return Task(name, activation, is_probability, labels)
    shows_classes = bool(known) and len(known) in (n_channels, n_channels + (n_channels == 1))
    shows_classes |= any(each in OF_CLASSES for each in metrics)
    if loss in SOFTMAX | LOG_PROBABILITIES | SCORES or shows_classes:
        if n_channels == 1 and loss:  # the scores are gone, as after a maximum over the classes
            return Task("other")
        if n_channels == 1:  # a loss of your own, with one score for two classes
            return Task("segmentation" if is_spatial else "binary", "sigmoid", True, two)
        if not loss:  # a loss of your own of class scores
            activation, is_probability = "softmax", True
        if len(outputs) == 3:  # a class for each position of a sequence
            return Task("other")
        name = "segmentation" if is_spatial else "classification"
        return Task(name, activation, is_probability, names)
    return Task("other" if is_spatial else "regression")


def _task_of_numbers(
    losses: Sequence[str], shape: Sequence[int], classes: tuple[str, ...], metrics: Sequence[str]
) -> Task:
    """Return the task of predictions that are class numbers, of samples or of pixels."""
    of_classes = any(each in SOFTMAX | LOG_PROBABILITIES | SCORES for each in losses)
    of_classes |= any(each in OF_CLASSES for each in metrics)
    if not of_classes or not classes or len(shape) not in (1, 3):
        return Task("other")
    return Task("classification" if len(shape) == 1 else "segmentation", "one_hot", False, classes)


def _as_returned(task: Task, outputs: Tensor, has_own_predict: bool) -> Task:
    """Return a task without its activation if the predictions are probabilities already."""
    if task.activation in ("softmax", "exp") and outputs.dim() > 1:
        sums = outputs.sum(1)
        is_done = bool((outputs >= 0).all() and ((sums - 1).abs() < 1e-3).all())
    else:
        is_sigmoid = task.activation == "sigmoid" and has_own_predict
        is_done = is_sigmoid and bool(((outputs >= 0) & (outputs <= 1)).all())
    return replace(task, activation="none") if is_done else task


def _names_of_outputs(known: tuple[str, ...], n_channels: int) -> tuple[str, ...]:
    """Return a name for each output: the known ones, and the numbers of those beyond them."""
    if len(known) > n_channels:
        return tuple(map(str, range(n_channels)))
    beyond = range(len(known), n_channels)
    return known + tuple(f"output {k}" if str(k) in known else str(k) for k in beyond)


def _activation(loss: str) -> tuple[str, bool] | None:
    """Return the activation of a loss and whether it gives probabilities; None if unknown."""
    if loss in SOFTMAX:
        return "softmax", True
    if loss in LOG_PROBABILITIES:
        return "exp", True
    if loss in SIGMOID:
        return "sigmoid", True
    if loss in PROBABILITIES:
        return "none", True
    return ("none", False) if loss in SCORES | REGRESSION else None
