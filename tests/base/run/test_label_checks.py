"""Labels that no output stands for are found before the first step, each by its place."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset
from toy import make

from base.base_data_loader import BaseDataLoader
from base.errors import DataError
from base.run.checks import check
from base.run.dry_run_report import dry_run
from base.run.label_checks import (
    check_labels,
    has_classification_loss,
    refuse_labels_out_of_range,
    refuse_targets_outside_unit_interval,
)
from trainer.trainer import Trainer


class Listed:
    """A data set whose samples have a place."""

    def __init__(self, targets: Any) -> None:
        self.targets = targets

    def place(self, index: int) -> str:
        return f"list.txt:{index + 3}"


def test_labels_out_of_range_are_named_with_the_highest():
    with pytest.raises(DataError) as caught:
        refuse_labels_out_of_range(Listed(torch.tensor([0, 7, 2, -1, 1])), 3)
    assert str(caught.value) == (
        "the model has outputs for 3 classes, 0 to 2: fix the labels, or give the model 8 outputs"
        "; out of range:\n  list.txt:4: class 7\n  list.txt:6: class -1"
    )


def test_no_more_outputs_help_against_a_negative_label():
    with pytest.raises(DataError, match=r"2: fix the labels; out of range:\n  list\.txt:4"):
        refuse_labels_out_of_range(Listed(torch.tensor([0, -1, 2])), 3)


def test_only_a_few_of_many_are_named():
    with pytest.raises(DataError, match=r"list\.txt:7: class 4\n  and 15 more"):
        refuse_labels_out_of_range(Listed(torch.full((20,), 4)), 3)


@pytest.mark.parametrize(
    "targets",
    [
        torch.tensor([0, 1, 2, -100]), [], torch.tensor([[5, 6]]), torch.tensor([9.5]), ["cat"],
        torch.tensor([True, False]), None,
    ],
)  # fmt: skip
def test_what_is_in_range_ignored_or_no_class_number_passes(targets: Any):
    refuse_labels_out_of_range(Listed(targets), 3)
    refuse_labels_out_of_range(object(), 3)


def test_targets_that_a_data_set_may_change_on_the_way_are_left_to_the_loss():
    refuse_labels_out_of_range(
        SimpleNamespace(targets=torch.tensor([1, 2, 3])), 3
    )  # a target_transform

    class Shifted(Trainer):
        def compute_losses(self, outputs, batch):
            return super().compute_losses(outputs, [batch[0], batch[1] - 1])

    assert not has_classification_loss(make("loss=cross_entropy", trainer=Shifted))
    trainer = make("loss=cross_entropy")
    for loader in (trainer.train_loader, trainer.valid_loader):
        loader.dataset.targets = loader.dataset.targets + 1
        loader.collate_fn = lambda samples: None
    with check_labels(trainer):
        trainer.model(torch.zeros(2, 1, 1, 5))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("loss=cross_entropy", True),
        ("loss={type: CrossEntropyLoss}", True),
        ("loss={type: cross_entropy, args: {label_smoothing: 0.1}}", True),
        ("loss={type: cross_entropy, args: {ignore_index: 255}}", False),
        ("loss={type: cross_entropy, target: 0}", False),
        ("loss=mse_loss", False),
        ("batch={target: 1}", False),
    ],
)
def test_only_a_loss_over_class_numbers_says_what_they_are(override: str, expected: bool):
    assert has_classification_loss(make(override)) is expected


@pytest.mark.parametrize("check_data", [check, dry_run])
def test_it_is_reported_before_training_whichever_batch_it_is_in(check_data: Any, tmp_path: Path):
    trainer = make()
    dataset = trainer.train_loader.dataset
    first = next(index for index in range(24) if index not in trainer.train_loader._order(0)[:8])
    dataset.targets[first] = 3
    with pytest.raises(DataError, match=f"sample {first}: class 3"):
        check_data(trainer)
    assert not trainer.model._forward_hooks


@pytest.mark.parametrize("targets", [torch.tensor([0.0, 1.0, 2.0]), torch.tensor([[0], [1], [-1]])])
def test_a_target_that_is_no_share_is_named_where_the_loss_takes_any(targets: torch.Tensor):
    wrong = targets[2].item()
    with pytest.raises(DataError, match=rf"from 0 to 1: .*\n  list\.txt:5: {wrong:g}$"):
        refuse_targets_outside_unit_interval(Listed(targets))
    refuse_targets_outside_unit_interval(Listed(targets.clamp(0, 1)))


@pytest.mark.parametrize("loss", ["BCEWithLogitsLoss", "binary_cross_entropy_with_logits"])
def test_it_is_reported_before_training_for_one_logit(loss: str):
    trainer = make(f"loss={loss}", "model.args.n_outputs=1", "data_loader.args.n_classes=2")
    dataset = trainer.train_loader.dataset
    dataset.targets = dataset.targets.float()[:, None]
    check(trainer)
    dataset.targets[7] = 2
    with pytest.raises(DataError, match="sample 7: 2"):
        check(trainer)


def test_it_is_reported_for_one_of_several_targets_too():
    named = "batch={inputs: [0], target: {classes: 1, image: 0}}"
    first = "loss={type: cross_entropy, target: classes}"
    for settings in ((named, first), (named.replace("classes", "target"), "loss=cross_entropy")):
        trainer = make(*settings)
        check(trainer)
        trainer.train_loader.dataset.targets[7] = 3
        with pytest.raises(DataError, match="sample 7: class 3"):
            check(trainer)


PETS = ["cat", "dog", "fox"]


def pets(n_outputs: Any, folder: Path) -> tuple[str, ...]:
    for name in PETS:
        (folder / name).mkdir(exist_ok=True)
        for number in range(6):
            Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(folder / name / f"{number}.png")
    loader = f"{{dataset: {{type: ImageFolderDataset, args: {{root: {folder}}}}}, batch_size: 4}}"
    return (
        f"model={{type: SmallCNN, args: {{n_classes: {n_outputs}, width: 4, n_stages: 1}}}}",
        f"data_loader={{type: DatasetLoader, args: {loader}}}",
        "data_loader.args.split=0.3",
    )


@pytest.mark.parametrize("start", [check, dry_run])
@pytest.mark.parametrize("loss", ["cross_entropy", "smooth_cross_entropy"])
def test_more_outputs_than_classes_are_told_once(tmp_path: Path, caplog, start, loss: str):
    start(make(*pets(4, tmp_path), f"loss={loss}"))
    told = [each.message for each in caplog.records if "outputs" in each.message]
    assert told == [
        "the model has 4 outputs, the data 3 classes (cat, dog, fox): if that is not meant, set "
        'model.args.n_classes: "${data_loader.n_classes}"'
    ]


def test_the_loader_gives_the_model_its_number_of_classes(tmp_path: Path, caplog):
    trainer = make(*pets('"${data_loader.n_classes}"', tmp_path), "loss=cross_entropy")
    assert trainer.model.head.out_features == 3
    check(trainer)
    assert not [each for each in caplog.records if "outputs" in each.message]


def test_a_data_set_without_classes_has_no_number_of_them():
    with pytest.raises(AttributeError, match="TensorDataset names no classes"):
        _ = BaseDataLoader(TensorDataset(torch.zeros(4, 1)), 2, False, 0, 0).n_classes
