"""Metrics leave out what the loss ignores, and read one logit as the loss does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import CONFIG, make, train_in

from base.errors import ConfigError, TrainingError
from base.names.registry import find
from base.run.checks import check
from base.training import metric_defaults
from base.training.metric_defaults import ignore_index_of, threshold_of
from model.loss import smooth_cross_entropy
from trainer.trainer import Trainer


def own_loss(output, target, ignore_index: int = 7):
    return F.cross_entropy(output, target, ignore_index=ignore_index)


def plain_loss(output, target):
    return F.cross_entropy(output, target)


def declared_loss(output, target):
    return F.cross_entropy(output, target)


declared_loss.denominator = own_loss


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.CrossEntropyLoss(ignore_index=9)


def settings(*overrides: str, **how: Any) -> dict[str, Any]:
    """The ``ignore_index`` and ``threshold`` that the first metric ends up with."""
    (metric, *_) = make(*overrides, **how).metrics.values()
    instance = getattr(metric, "instance", None)
    found = vars(instance) if instance is not None else getattr(metric.function, "keywords", {})
    return {key: found.get(key) for key in ("ignore_index", "threshold")}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (F.cross_entropy, -100), (nn.CrossEntropyLoss(), -100), (nn.NLLLoss(ignore_index=3), 3),
        (F.mse_loss, None), (nn.BCEWithLogitsLoss(), None), (own_loss, 7), (plain_loss, None),
        (Wrapped(), 9), (max, None), (declared_loss, 7), (smooth_cross_entropy, -100),
    ],
)  # fmt: skip
def test_a_loss_says_what_it_ignores(loss: Any, expected: int | None):
    assert ignore_index_of(loss) == expected


@pytest.mark.parametrize(
    "loss",
    [
        "{type: cross_entropy, args: {ignore_index: 1}}",
        "[{type: CrossEntropyLoss, args: {ignore_index: 1}}]",
        "[{type: cross_entropy, args: {ignore_index: 1}}, {type: nll_loss, weight: 0}]",
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "metric", ["accuracy", "top_k_accuracy", "top_k_acc", "F1", "IoU", "AUROC"]
)
def test_metrics_take_what_the_loss_ignores(loss: str, metric: str):
    assert settings(f"loss={loss}", f"metrics=[{metric}]")["ignore_index"] == 1
    own = f"metrics=[{{type: {metric}, args: {{ignore_index: 2}}}}]"
    assert settings(f"loss={loss}", own)["ignore_index"] == 2
    none = f"metrics=[{{type: {metric}, args: {{ignore_index: null}}}}]"
    assert settings(f"loss={loss}", none)["ignore_index"] is None
    assert settings("loss=cross_entropy", f"metrics=[{metric}]")["ignore_index"] == -100
    assert settings("loss=mse_loss", f"metrics=[{metric}]")["ignore_index"] is None


def test_losses_of_another_target_say_nothing_and_those_of_one_must_agree():
    first = "{type: cross_entropy, args: {ignore_index: 1}, name: a}"
    other = "{type: cross_entropy, args: {ignore_index: 2}, name: b, target: 1}"
    found = settings(f"loss=[{first}, {other}]", "metrics=[{type: F1, target: 1}]")
    assert found["ignore_index"] == 2
    assert settings(f"loss=[{first}, {other}]", "metrics=[F1]")["ignore_index"] == 1
    second = "{type: cross_entropy, args: {ignore_index: 2}, name: b}"
    with pytest.raises(ConfigError, match=r"metrics\.0: the losses ignore .*\(a 1, b 2\)"):
        settings(f"loss=[{first}, {second}]", "metrics=[F1]")
    chosen = "metrics=[{type: F1, args: {ignore_index: 1}}]"
    assert settings(f"loss=[{first}, {second}]", chosen)["ignore_index"] == 1


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("binary_cross_entropy_with_logits", 0.0), ("BCEWithLogitsLoss", 0.0), ("BCELoss", 0.5),
        ("{type: BCEWithLogitsLoss, args: {pos_weight: [2.0]}}", 0.0), ("soft_margin_loss", 0.0),
        ("{type: binary_cross_entropy, args: {reduction: sum}}", 0.5), ("mse_loss", None),
        ("cross_entropy", None), ("[mse_loss, BCELoss]", 0.5),
        ("[BCELoss, BCEWithLogitsLoss]", None), ("{type: BCELoss, output: a}", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("metric", ["accuracy", "F1", "Dice", "ConfusionMatrix"])
def test_one_logit_is_read_as_the_loss_reads_it(loss: str, expected: float | None, metric: str):
    assert settings(f"loss={loss}", f"metrics=[{metric}]")["threshold"] == expected
    own = f"metrics=[{{type: {metric}, args: {{threshold: 0.3}}}}]"
    assert settings(f"loss={loss}", own)["threshold"] == 0.3


def test_a_function_of_ones_own_with_the_name_of_torchs_is_not_taken_for_it():
    def binary_cross_entropy(output, target):
        return F.binary_cross_entropy(output.sigmoid(), target)

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = nn.BCELoss()

    assert threshold_of(binary_cross_entropy) is None
    assert threshold_of(Inner()) is None
    assert threshold_of(F.binary_cross_entropy) == 0.5


def test_a_trainer_that_changes_outputs_says_the_threshold_itself(monkeypatch: pytest.MonkeyPatch):
    class Sigmoid(Trainer):
        def predict(self, outputs):
            return outputs.sigmoid()

    class OwnLosses(Trainer):
        def compute_losses(self, outputs, batch):
            return super().compute_losses(outputs.sigmoid(), batch)

    for trainer in (Sigmoid, OwnLosses):
        monkeypatch.setattr(
            metric_defaults,
            "find",
            lambda kind, name, own=trainer: own if kind == "trainer" else find(kind, name),
        )
        found = settings("loss=BCEWithLogitsLoss", "metrics=[accuracy]")
        assert found["threshold"] is None


BINARY = CONFIG.replace("n_outputs: 3", "n_outputs: 1").replace("n_classes: 3", "n_classes: 2")


def validation(trainer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """All inputs and targets of the validation data."""
    found = trainer.valid_loader.batches(0, len(trainer.valid_loader))
    inputs, targets = zip(*found, strict=True)
    return torch.cat(inputs), torch.cat(targets)


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
@pytest.mark.parametrize("loss", ["BCEWithLogitsLoss", "cross_entropy", "mse_loss"])
def test_a_binary_classifier_is_measured_or_refused(shape: tuple[int, ...], loss: str):
    made = make(f"loss={loss}", "metrics=[accuracy, F1, AUROC]", text=BINARY)
    dataset = made.train_loader.dataset
    dataset.targets = dataset.targets.float().reshape(shape)
    if loss == "BCEWithLogitsLoss" and shape == (-1, 1):
        values = train_in(made)
        inputs, targets = validation(made)
        with torch.no_grad():
            right = (made.model(inputs) > 0) == targets.bool()
        assert values["valid/accuracy"] == pytest.approx(right.double().mean().item())
        return
    with pytest.raises((TrainingError, ConfigError)):
        check(made)


def test_more_places_than_classes_are_told_before_training():
    made = make("metrics=[{type: top_k_accuracy, args: {k: 4}}]")
    with pytest.raises(TrainingError, match="k is 4, and there are scores for 3 classes"):
        check(made)


def test_half_of_the_targets_ignored_in_a_training():
    half = "data_loader.args.validation_split=12"
    ignored = int(validation(make(half))[1][0])
    loss = f"loss={{type: cross_entropy, args: {{ignore_index: {ignored}}}}}"
    made = make(half, loss, "metrics=[accuracy, ConfusionMatrix]")
    values = train_in(made)
    inputs, targets = validation(made)
    with torch.no_grad():
        right = made.model(inputs).argmax(1) == targets
    kept = targets != ignored
    assert 0 < kept.sum() < len(kept)
    assert values["valid/accuracy"] == pytest.approx(right[kept].double().mean().item())


@pytest.mark.parametrize("target", ["", ", target: classes"])
def test_what_is_ignored_is_found_for_one_of_several_targets(target: str):
    """Whether a section names the target, or the function has a parameter of its name."""
    loss = f"loss={{type: cross_entropy, args: {{ignore_index: 1}}{target}}}"
    name = "classes" if target else "target"
    batch = f"batch={{inputs: [0], target: {{image: 0, {name}: 1}}}}"
    metric = f"metrics=[{{type: F1, target: {name}}}]"
    assert settings(batch, loss, metric)["ignore_index"] == 1
    other = "metrics=[{type: F1, target: image}]"
    assert settings(batch, loss, other)["ignore_index"] is None
    if not target:
        assert settings(batch, loss, "metrics=[F1]")["ignore_index"] == 1
        assert settings(batch, loss, "metrics=[accuracy]")["ignore_index"] == 1
