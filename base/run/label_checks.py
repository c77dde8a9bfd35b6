"""Checks all labels of the data sets against the number of classes that the model has."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from base.base_trainer import BaseTrainer
from base.checkpoint.data_record import class_names
from base.errors import DataError, listed
from base.training.batch_arguments import item_compared
from base.training.task import LOG_PROBABILITIES, SCORES, SOFTMAX

log = logging.getLogger("kindling")

CLASSIFICATION_LOSSES = {
    "cross_entropy",
    "CrossEntropyLoss",
    "nll_loss",
    "NLLLoss",
    "multi_margin_loss",
}
BINARY_LOSSES = {
    "binary_cross_entropy", "BCELoss", "binary_cross_entropy_with_logits", "BCEWithLogitsLoss",
}  # fmt: skip
MAX_SHOWN = 5  # samples in an error message
OUTPUT_COUNTS = ("n_classes", "num_classes", "n_outputs", "out_channels", "out_features")


@contextmanager
def check_labels(trainer: BaseTrainer) -> Iterator[None]:
    """Check all labels of the data sets once the model gives its first outputs, (sample, class).

    Class indices must be below the number of outputs. Targets of binary cross entropy must lie in
    [0, 1], which torch does not check. Only data sets with ``targets`` and ``place(index)`` are
    checked, and only if no custom `collate_fn` or `compute_losses` may change the targets. A number
    of outputs that is not the number of classes is a warning.

    Raises:
        DataError: labels are out of range; the message names the samples.
    """

    def check_targets(_: Any, __: Any, outputs: Any) -> None:
        handle.remove()
        if isinstance(outputs, Tensor) and outputs.dim() in (2, 4):
            warn_of_other_classes(trainer, outputs.shape[1])
        has_classes = isinstance(outputs, Tensor) and outputs.dim() == 2
        has_classes = has_classes and has_classification_loss(trainer)
        is_binary = not BINARY_LOSSES.isdisjoint(name for name, _ in _direct_losses(trainer))
        for loader in (trainer.train_loader, trainer.valid_loader):
            if getattr(loader, "collate_fn", None) is default_collate:
                if has_classes:
                    refuse_labels_out_of_range(loader.dataset, outputs.shape[1])
                if is_binary:
                    refuse_targets_outside_unit_interval(loader.dataset)

    handle = trainer.model.register_forward_hook(check_targets)
    try:
        yield
    finally:
        handle.remove()


def warn_of_other_classes(trainer: BaseTrainer, n_outputs: int) -> None:
    """Warn if a loss compares the outputs with classes and the data names another number of them.

    More outputs may be meant, such as for classes that other data will have.
    """
    classes = class_names(getattr(trainer.train_loader, "dataset", None)) or []
    losses = SOFTMAX | LOG_PROBABILITIES | SCORES | CLASSIFICATION_LOSSES
    if len(classes) in (0, n_outputs) or losses.isdisjoint(n for n, _ in _direct_losses(trainer)):
        return
    args = trainer.config["model"]["args"] if "model" in trainer.config else {}
    counts = [name for name in OUTPUT_COUNTS if args.get(name) == n_outputs]
    advice = (
        f"set model.args.{counts[0]}" if counts else "give the model as many, such as n_classes"
    )
    log.warning(
        "the model has %d outputs, the data %d classes (%s): if that is not meant, %s: "
        '"${data_loader.n_classes}"',
        n_outputs, len(classes), listed(classes), advice,
    )  # fmt: skip


def has_classification_loss(trainer: BaseTrainer) -> bool:
    """Return whether a loss takes the outputs as scores and the targets as class indices."""
    return any(
        name in CLASSIFICATION_LOSSES and settings.get("ignore_index", -100) == -100
        for name, settings in _direct_losses(trainer)
    )


def _direct_losses(trainer: BaseTrainer) -> Iterator[tuple[str, Any]]:
    """Yield the name and settings of each loss that takes the outputs and targets themselves."""
    if type(trainer).compute_losses is not BaseTrainer.compute_losses:
        return
    rules = trainer.config["batch"]
    # The second item of a sample, the target by default.
    own = (1, -1) if isinstance(rules["target"], Mapping) else (None,)
    for loss in trainer.losses.values():
        function = getattr(loss.function, "func", loss.function)
        name = getattr(function, "__name__", type(function).__name__)
        item = item_compared(loss.takes, loss.selection.target, rules)
        if loss.selection.output is None and item in own:
            yield name, getattr(loss.function, "keywords", vars(loss.function))


def refuse_labels_out_of_range(dataset: Any, n_classes: int) -> None:
    """Raise a DataError that names the samples with labels outside 0 to n_classes - 1."""
    targets = _targets_with_places(dataset)
    if targets is None or targets.dim() != 1:
        return
    if targets.is_floating_point() or targets.dtype == torch.bool:
        return
    if len(targets) and int(targets.min()) >= 0 and int(targets.max()) < n_classes:
        return  # the usual case, in a tenth of the time
    wrong = ((targets < 0) | (targets >= n_classes)) & (targets != -100)
    highest, advice = int(targets.max()) if len(targets) else 0, "fix the labels"
    if highest >= n_classes:
        advice += f", or give the model {highest + 1} outputs"
    _refuse(
        dataset,
        [(i, f"class {int(targets[i])}") for i in wrong.nonzero()[:, 0].tolist()],
        f"the model has outputs for {n_classes} classes, 0 to {n_classes - 1}: {advice}",
    )


def refuse_targets_outside_unit_interval(dataset: Any) -> None:
    """Raise a DataError that names the samples with targets below 0 or above 1."""
    targets = _targets_with_places(dataset)
    if targets is None or targets.dtype == torch.bool or targets.dim() not in (1, 2):
        return  # masks: reading them all would take too long
    rows = targets.reshape(len(targets), -1)
    wrong = ((rows < 0) | (rows > 1)).any(dim=1)
    found = [(i, rows[i][(rows[i] < 0) | (rows[i] > 1)][0].item()) for i in wrong.nonzero()[:, 0]]
    text = "binary cross entropy needs targets from 0 to 1: fix them, or use another loss"
    _refuse(dataset, [(int(i), f"{value:g}") for i, value in found], text)


def _targets_with_places(dataset: Any) -> Tensor | None:
    """Return the targets of a data set that knows the place of each sample, else None."""
    targets = getattr(dataset, "targets", None)
    has_places = hasattr(getattr(dataset, "reads_from", dataset), "place")
    return targets if has_places and isinstance(targets, Tensor) else None


def _refuse(dataset: Any, wrong: list[tuple[int, str]], text: str) -> None:
    """Raise a DataError with the place of the first wrong samples, if there are any."""
    if not wrong:
        return
    place = getattr(dataset, "reads_from", dataset).place
    shown = "".join(f"\n  {place(i)}: {what}" for i, what in wrong[:MAX_SHOWN])
    more = f"\n  and {len(wrong) - MAX_SHOWN} more" if len(wrong) > MAX_SHOWN else ""
    raise DataError(f"{text}; out of range:{shown}{more}")
