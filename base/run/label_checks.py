"""Checks all labels of the data sets against the number of classes that the model has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from base.base_trainer import BaseTrainer
from base.errors import DataError
from base.training.batch_arguments import item_compared

CLASSIFYING = {"cross_entropy", "CrossEntropyLoss", "nll_loss", "NLLLoss", "multi_margin_loss"}
BINARY = {
    "binary_cross_entropy", "BCELoss", "binary_cross_entropy_with_logits", "BCEWithLogitsLoss",
}  # fmt: skip
MOST = 5  # samples that are named


@contextmanager
def check_labels(trainer: BaseTrainer) -> Iterator[None]:
    """Hold all labels of the data sets against the first outputs of the model, (sample, class).

    Those of a binary cross entropy, whatever the outputs, must be from 0 to 1: torch takes any.

    Data sets that can say where a sample is listed give their ``targets`` as they are; those of
    others, or after a `collate_fn` or losses of one's own, may be other ones by then.

    Raises:
        DataError: some are out of range; it names the samples.
    """

    def look(_: Any, __: Any, outputs: Any) -> None:
        handle.remove()
        has_classes = isinstance(outputs, Tensor) and outputs.dim() == 2
        has_classes = has_classes and has_classification_loss(trainer)
        is_binary = not BINARY.isdisjoint(name for name, _ in _whole_losses(trainer))
        for loader in (trainer.train_loader, trainer.valid_loader):
            if getattr(loader, "collate_fn", None) is default_collate:
                if has_classes:
                    refuse_labels_out_of_range(loader.dataset, outputs.shape[1])
                if is_binary:
                    refuse_targets_outside_unit_interval(loader.dataset)

    handle = trainer.model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def has_classification_loss(trainer: BaseTrainer) -> bool:
    """Tell whether a loss takes outputs and targets whole, and the targets for class numbers."""
    return any(
        name in CLASSIFYING and settings.get("ignore_index", -100) == -100
        for name, settings in _whole_losses(trainer)
    )


def _whole_losses(trainer: BaseTrainer) -> Iterator[tuple[str, Any]]:
    """Yield name and settings of the losses that take outputs and targets as they are."""
    if type(trainer).compute_losses is not BaseTrainer.compute_losses:
        return
    rules = trainer.config["batch"]
    # The second item of a sample, which is the target where nothing else is said.
    own = (1, -1) if isinstance(rules["target"], Mapping) else (None,)
    for loss in trainer.losses.values():
        function = getattr(loss.function, "func", loss.function)
        name = getattr(function, "__name__", type(function).__name__)
        item = item_compared(loss.takes, loss.compared.target, rules)
        if loss.compared.output is None and item in own:
            yield name, getattr(loss.function, "keywords", vars(loss.function))


def refuse_labels_out_of_range(dataset: Any, n_classes: int) -> None:
    """Raise with the places of all labels of a data set that are not 0 to n_classes - 1."""
    targets = _placed_targets(dataset)
    if targets is None or targets.dim() != 1:
        return
    if targets.is_floating_point() or targets.dtype == torch.bool:
        return
    wrong = ((targets < 0) | (targets >= n_classes)) & (targets != -100)
    highest, advice = int(targets.max()) if len(targets) else 0, "mend the labels"
    if highest >= n_classes:
        advice += f", or give the model {highest + 1} outputs"
    _refuse(
        dataset,
        [(i, f"class {int(targets[i])}") for i in wrong.nonzero()[:, 0].tolist()],
        f"the model has outputs for {n_classes} classes, 0 to {n_classes - 1}: {advice}",
    )


def refuse_targets_outside_unit_interval(dataset: Any) -> None:
    """Raise with the places of all samples that have a label below 0 or above 1."""
    targets = _placed_targets(dataset)
    if targets is None or targets.dtype == torch.bool or targets.dim() not in (1, 2):
        return  # masks may be too many to read before each training
    rows = targets.reshape(len(targets), -1)
    wrong = ((rows < 0) | (rows > 1)).any(dim=1)
    found = [(i, rows[i][(rows[i] < 0) | (rows[i] > 1)][0].item()) for i in wrong.nonzero()[:, 0]]
    text = "binary cross entropy takes targets from 0 to 1: mend them, or take another loss"
    _refuse(dataset, [(int(i), f"{value:g}") for i, value in found], text)


def _placed_targets(dataset: Any) -> Tensor | None:
    """Return all targets of a data set that can say where each is from."""
    targets = getattr(dataset, "targets", None)
    has_places = hasattr(getattr(dataset, "reads_from", dataset), "place")
    return targets if has_places and isinstance(targets, Tensor) else None


def _refuse(dataset: Any, wrong: list[tuple[int, str]], text: str) -> None:
    if not wrong:
        return
    place = getattr(dataset, "reads_from", dataset).place
    shown = "".join(f"\n  {place(i)}: {what}" for i, what in wrong[:MOST])
    more = f"\n  and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
    raise DataError(f"{text}; out of range are{shown}{more}")
