"""Class numbers that no output of the model stands for, found before training meets them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from base.base_trainer import BaseTrainer
from base.errors import DataError

CLASSIFYING = {"cross_entropy", "CrossEntropyLoss", "nll_loss", "NLLLoss", "multi_margin_loss"}
MOST = 5  # samples that are named


@contextmanager
def checked_labels(trainer: BaseTrainer) -> Iterator[None]:
    """Hold all labels of the data sets against the first outputs of the model, (sample, class).

    Data sets that can say where a sample is listed give their ``targets`` as they are; those of
    others, or after a `collate_fn` or losses of one's own, may be other ones by then.

    Raises:
        DataError: some are out of range; it names the samples.
    """

    def look(_: Any, __: Any, outputs: Any) -> None:
        handle.remove()
        if isinstance(outputs, Tensor) and outputs.dim() == 2 and is_over_classes(trainer):
            for loader in (trainer.train_loader, trainer.valid_loader):
                if getattr(loader, "collate_fn", None) is default_collate:
                    refuse_wrong_labels(loader.dataset, outputs.shape[1])

    handle = trainer.model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def is_over_classes(trainer: BaseTrainer) -> bool:
    """Tell whether a loss takes outputs and targets whole, and the targets for class numbers."""
    if type(trainer).compute_losses is not BaseTrainer.compute_losses:
        return False
    for loss in trainer.losses.values():
        function = getattr(loss.function, "func", loss.function)
        name = getattr(function, "__name__", type(function).__name__)
        settings = getattr(loss.function, "keywords", vars(loss.function))
        is_whole = loss.compared.output is None and loss.compared.target is None
        if name in CLASSIFYING and is_whole and settings.get("ignore_index", -100) == -100:
            return trainer.config["batch"]["target"] is None
    return False


def refuse_wrong_labels(dataset: Any, n_classes: int) -> None:
    """Raise with the places of all labels of a data set that are not 0 to n_classes - 1."""
    place = getattr(getattr(dataset, "reads_from", dataset), "place", None)
    targets = getattr(dataset, "targets", None)
    if place is None or not isinstance(targets, Tensor):
        return
    if targets.dim() != 1 or targets.is_floating_point() or targets.dtype == torch.bool:
        return
    is_wrong = ((targets < 0) | (targets >= n_classes)) & (targets != -100)
    wrong = is_wrong.nonzero()[:, 0].tolist()
    if not wrong:
        return
    shown = "".join(f"\n  {place(i)}: class {int(targets[i])}" for i in wrong[:MOST])
    more = f"\n  and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
    highest, advice = int(targets.max()), "mend the labels"
    if highest >= n_classes:
        advice += f", or give the model {highest + 1} outputs"
    raise DataError(
        f"the model has outputs for {n_classes} classes, 0 to {n_classes - 1}: {advice}; out of "
        f"range are{shown}{more}"
    )
