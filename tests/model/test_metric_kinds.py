"""Binary classifiers, several labels, soft targets, ignored targets and numbers, over an epoch.

The second way is scikit-learn on the whole epoch at once; the batches are of unequal size.
"""

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as sk
from torch import Tensor

from base.errors import TrainingError
from base.training.metrics import Metric, build_metrics
from model.metric import (
    F1,
    MAE,
    R2,
    RMSE,
    AveragePrecision,
    ConfusionMatrix,
    Dice,
    IoU,
    accuracy,
    top_k_accuracy,
)

SPLIT = [32, 32, 1, 30, 6]
N = sum(SPLIT)
RANDOM = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, generator=RANDOM)
LABELS = (LOGITS + torch.randn(N, generator=RANDOM) > 0.3).long()
SCORES, CLASSES = torch.randn(N, 4, generator=RANDOM), torch.randint(0, 4, (N,), generator=RANDOM)
MANY, MANY_LABELS = torch.randn(N, 3, generator=RANDOM), torch.rand(N, 3, generator=RANDOM).round()


def metric(name: str, **args) -> Metric:
    section = {"type": name, "args": args, "name": name, "over": "batch"}
    return build_metrics([section])[name]


def measured(name: str, output: Tensor, target: Tensor, **args):
    made = metric(name, **args)
    for part in zip(output.split(SPLIT), target.split(SPLIT), strict=True):
        made.update(*part)
    return made.compute()


# --- One score for each target --------------------------------------------------------------------

SHAPES = {
    "(N,) (N,)": (LOGITS, LABELS),
    "(N, 1) (N,)": (LOGITS[:, None], LABELS),
    "(N,) (N, 1)": (LOGITS, LABELS[:, None]),
    "(N, 1) (N, 1) numbers": (LOGITS[:, None], LABELS[:, None].float()),
    "bools": (LOGITS[:, None], LABELS.bool()),
    "probabilities": (LOGITS.sigmoid()[:, None], LABELS.float()[:, None]),
    "half precision": (LOGITS.bfloat16()[:, None], LABELS),
    "smoothed": (LOGITS, LABELS * 0.8 + 0.1),
    "plus and minus one": (LOGITS, LABELS * 2.0 - 1),
    "(N, 1, 1) (N, 1)": (LOGITS[:, None, None], LABELS[:, None]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_one_logit_is_a_binary_classifier(name: str):
    output, target = SHAPES[name]
    threshold = 0.5 if name == "probabilities" else 0.0
    true, taken = LABELS.numpy(), (LOGITS > 0).numpy()
    assert measured("accuracy", output, target, threshold=threshold) == pytest.approx(
        sk.accuracy_score(true, taken)
    )
    table = measured("ConfusionMatrix", output, target, threshold=threshold)
    assert table.tolist() == sk.confusion_matrix(true, taken).tolist()
    scorers = {
        "F1": sk.f1_score, "Precision": sk.precision_score, "Recall": sk.recall_score,
        "IoU": sk.jaccard_score, "Dice": sk.f1_score,
    }  # fmt: skip
    for scorer_name, scorer in scorers.items():
        values = measured(scorer_name, output, target, threshold=threshold)
        each = scorer(true, taken, average=None)
        assert [values["0"], values["1"]] == pytest.approx(list(each))
        mean = "mean" if scorer_name in ("IoU", "Dice") else "macro"
        assert values[mean] == pytest.approx(each.mean())


def test_masks_of_one_channel_are_counted_by_pixel():
    scores = torch.randn(N, 1, 4, 5, generator=RANDOM)
    masks = torch.randint(0, 2, (N, 4, 5), generator=RANDOM)
    true, taken = masks.flatten().numpy(), (scores > 0).flatten().numpy()
    for target in (masks, masks[:, None], masks.float()[:, None]):
        share = measured("accuracy", scores, target, threshold=0.0)
        assert share == pytest.approx(sk.accuracy_score(true, taken))
        values = measured("IoU", scores, target, threshold=0.0)
        assert values["1"] == pytest.approx(sk.jaccard_score(true, taken))
        values = measured("Dice", scores, target, threshold=0.0)
        assert values["1"] == pytest.approx(sk.f1_score(true, taken))
    assert measured("accuracy", scores[:, 0], masks, threshold=0.0) == pytest.approx(share)


def test_one_score_means_nothing_without_a_threshold():
    for output in (LOGITS, LOGITS[:, None], LOGITS.sigmoid()):
        for name in ("accuracy", "F1", "ConfusionMatrix", "IoU"):
            with pytest.raises(TrainingError, match=r"threshold: 0\}` for logits"):
                measured(name, output, LABELS)


def test_a_place_among_the_best_needs_scores_for_each_class():
    for output in (LOGITS, LOGITS[:, None]):
        with pytest.raises(ValueError, match="use accuracy"):
            top_k_accuracy(output, LABELS, k=1)
    with pytest.raises(TrainingError, match=r"k is 5, and there are scores for 4 classes: .*k: 3"):
        measured("top_k_accuracy", SCORES, CLASSES, k=5)
    with pytest.raises(ValueError, match="k is 0"):
        top_k_accuracy(SCORES, CLASSES, k=0)


def test_shapes_that_do_not_go_together_are_refused():
    for output, target in [
        (SCORES, CLASSES[:, None]), (SCORES[:, None], CLASSES),
        (torch.zeros(6, 4, 5), torch.ones(6, 4)), (CLASSES[:, None], CLASSES),
        (MANY, MANY_LABELS[:, :2]),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"\(6.*does not match|\(101.*does not match"):
            accuracy(output, target.long())


# --- Several labels, and shares of classes --------------------------------------------------------


def test_each_of_several_labels_counts_by_itself():
    true, taken = MANY_LABELS.numpy(), (MANY > 0).numpy()
    for target in (MANY_LABELS, MANY_LABELS.long(), MANY_LABELS.bool()):
        share = measured("accuracy", MANY, target, threshold=0.0)
        assert share == pytest.approx((true == taken).mean())
        for name, scorer in (("F1", sk.f1_score), ("IoU", sk.jaccard_score)):
            values = measured(name, MANY, target, threshold=0.0)
            each = scorer(true, taken, average=None)
            assert [values[str(i)] for i in range(3)] == pytest.approx(list(each))
    with pytest.raises(TrainingError, match="several labels"):
        measured("ConfusionMatrix", MANY, MANY_LABELS, threshold=0.0)
    with pytest.raises(TrainingError, match="add the channel dimension to masks"):
        measured("IoU", MANY[:, :, None], MANY_LABELS[:, :, None], threshold=0.0)


def test_labels_that_are_ignored_are_left_out_of_each():
    target = MANY_LABELS.clone()
    target[::4, 1] = -1
    values = measured("F1", MANY, target, threshold=0.0, ignore_index=-1)
    keep = target[:, 1] >= 0
    expected = sk.f1_score(MANY_LABELS[keep, 1], MANY[keep, 1] > 0)
    assert values["1"] == pytest.approx(expected)
    share = measured("accuracy", MANY, target, threshold=0.0, ignore_index=-1)
    kept = target >= 0
    assert share == pytest.approx(((MANY > 0) == MANY_LABELS.bool())[kept].double().mean().item())


def test_the_larger_share_of_a_mixed_target_is_its_class():
    share = torch.rand(N, 1, generator=RANDOM) * 0.4 + 0.55
    mixed = share * F.one_hot(CLASSES, 4) + (1 - share) * F.one_hot((CLASSES + 1) % 4, 4)
    for name, args in {"accuracy": {}, "top_k_accuracy": {"k": 2}}.items():
        plain = measured(name, SCORES, CLASSES, **args)
        assert measured(name, SCORES, mixed, **args) == pytest.approx(plain)
        assert measured(name, SCORES, mixed, **args, ignore_index=-100) == pytest.approx(plain)
    assert measured("ConfusionMatrix", SCORES, mixed).equal(
        measured("ConfusionMatrix", SCORES, CLASSES)
    )


# --- Ignored targets ------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [-100, 255, 0])
@pytest.mark.parametrize(
    ("name", "args"), [("accuracy", {}), ("top_k_accuracy", {"k": 2}), ("top_k_acc", {"k": 3})]
)
def test_a_mean_is_over_the_targets_that_count(name: str, args: dict, ignored: int):
    output = torch.randn(N, 4, 3, 3, generator=RANDOM)
    target = torch.randint(0, 4, (N, 3, 3), generator=RANDOM)
    target[torch.rand(target.shape, generator=RANDOM) < 0.5] = ignored
    target[:3] = ignored
    target[64] = ignored  # a batch of which nothing counts
    keep = target != ignored
    pixels, true = output.movedim(1, -1)[keep], target[keep]
    k = args.get("k", 1)
    expected = sk.top_k_accuracy_score(true, pixels, k=k, labels=range(4))
    assert measured(name, output, target, **args, ignore_index=ignored) == pytest.approx(expected)


def test_nothing_that_counts_is_not_a_number():
    nothing = torch.full((N,), -100)
    for name in ("accuracy", "top_k_accuracy"):
        assert math.isnan(measured(name, SCORES, nothing, ignore_index=-100))
    assert math.isnan(measured("IoU", SCORES, nothing, ignore_index=-100)["mean"])
    assert math.isnan(measured("AUROC", SCORES, nothing, ignore_index=-100)["macro"])


def test_called_by_hand_they_give_the_mean():
    target = CLASSES.clone()
    target[:50] = 255
    right = (SCORES.argmax(1) == CLASSES)[50:].double().mean().item()
    assert accuracy(SCORES, target, ignore_index=255).item() == pytest.approx(right)
    whole = measured("accuracy", LOGITS, LABELS, threshold=0.0)
    assert accuracy(LOGITS, LABELS, threshold=0).item() == pytest.approx(whole)


def test_intersections_are_those_of_the_epoch_not_means_of_batches():
    output = torch.randn(N, 3, 4, 4, generator=RANDOM)
    target = torch.randint(0, 2, (N, 4, 4), generator=RANDOM)  # class 2 never occurs, but is taken
    target[:, 0] = 255
    keep = target != 255
    true, taken = target[keep], output.argmax(1)[keep]
    for name, scorer in (("IoU", sk.jaccard_score), ("Dice", sk.f1_score)):
        values = measured(name, output, target, ignore_index=255)
        each = scorer(true, taken, average=None, labels=range(3))
        assert [values[str(i)] for i in range(3)] == pytest.approx(list(each))
        assert values["mean"] == pytest.approx(scorer(true, taken, average="macro"))
    for made in (IoU(n_classes=5), Dice(n_classes=5)):  # classes 3 and 4 occur nowhere
        made.update(taken, true)
        full = made.compute()
        assert full["mean"] == pytest.approx(sum(full[str(i)] for i in range(3)) / 3)


# --- Rankings -------------------------------------------------------------------------------------

TIES = (LOGITS * 2).round() / 2


@pytest.mark.parametrize("scores", [LOGITS, TIES, LOGITS.bfloat16(), LOGITS.double() * 1e-9 + 1])
@pytest.mark.parametrize(
    ("name", "scorer"),
    [("AUROC", sk.roc_auc_score), ("AveragePrecision", sk.average_precision_score)],
)
def test_a_ranking_of_one_score_is_that_of_scikit_learn(name, scorer, scores: Tensor):
    expected = scorer(LABELS, scores.double() if scores.dtype == torch.double else scores.float())
    for output, target in [
        (scores, LABELS), (scores[:, None], LABELS), (scores, LABELS.float()[:, None]),
        (scores[:, None], LABELS.bool()[:, None]),
    ]:  # fmt: skip
        assert measured(name, output, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "scorer"),
    [("AUROC", sk.roc_auc_score), ("AveragePrecision", sk.average_precision_score)],
)
def test_labels_are_ranked_each_by_itself(name, scorer):
    values = measured(name, MANY, MANY_LABELS)
    each = scorer(MANY_LABELS, MANY, average=None)
    assert [values[str(i)] for i in range(3)] == pytest.approx(list(each))
    assert values["macro"] == pytest.approx(scorer(MANY_LABELS, MANY, average="macro"))
    target = MANY_LABELS.clone()
    target[::3, 2] = -1
    keep = target[:, 2] >= 0
    values = measured(name, MANY, target, ignore_index=-1)
    assert values["2"] == pytest.approx(scorer(MANY_LABELS[keep, 2], MANY[keep, 2]))


@pytest.mark.parametrize("form", ["logits", "log-probabilities", "probabilities"])
def test_classes_are_ranked_one_against_the_rest(form: str):
    shares = SCORES.softmax(1)
    output = {"logits": SCORES, "log-probabilities": shares.log(), "probabilities": shares}[form]
    true = F.one_hot(CLASSES, 4)
    expected = sk.roc_auc_score(true, shares, average=None)
    values = measured("AUROC", output, CLASSES)
    assert [values[str(i)] for i in range(4)] == pytest.approx(list(expected), abs=1e-6)
    assert values["macro"] == pytest.approx(
        sk.roc_auc_score(CLASSES, shares.double() / shares.double().sum(1, keepdim=True),
                         multi_class="ovr"), abs=1e-6,
    )  # fmt: skip
    target = CLASSES.clone()
    target[:20] = -100
    values = measured("AUROC", output, target, ignore_index=-100)
    assert values["2"] == pytest.approx(sk.roc_auc_score(true[20:, 2], shares[20:, 2]), abs=1e-6)


def test_one_kind_alone_has_no_ranking():
    assert math.isnan(measured("AUROC", LOGITS, torch.ones(N)))
    assert math.isnan(measured("AUROC", LOGITS, torch.zeros(N)))
    assert math.isnan(measured("AveragePrecision", LOGITS, torch.zeros(N)))
    assert measured("AveragePrecision", LOGITS, torch.ones(N)) == pytest.approx(1)
    assert math.isnan(measured("AUROC", torch.full((N,), math.nan), LABELS))
    only = MANY_LABELS.clone()
    only[:, 1] = 0
    values = measured("AUROC", MANY, only)
    assert math.isnan(values["1"])
    assert values["macro"] == pytest.approx((values["0"] + values["2"]) / 2)
    missing = CLASSES.clamp(max=2)
    values = measured("AUROC", SCORES, missing)
    assert math.isnan(values["3"])
    assert values["macro"] == pytest.approx(sum(values[str(i)] for i in range(3)) / 3)


def test_scores_are_copies_and_much_of_them_goes_to_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(AveragePrecision, "LIMIT", 500)
    made, reused = metric("AveragePrecision"), torch.empty(N)
    for scores, labels in zip(LOGITS.split(SPLIT), LABELS.split(SPLIT), strict=True):
        made.update(reused[: len(scores)].copy_(scores), labels)  # as a compiled model does
    assert made.compute() == pytest.approx(sk.average_precision_score(LABELS, LOGITS))


# --- Numbers --------------------------------------------------------------------------------------

FAR = torch.randn(N, 2, generator=RANDOM) + torch.tensor([1e5, 0.0])
NEAR = FAR + 0.5 * torch.randn(N, 2, generator=RANDOM)


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (NEAR[:, 1], FAR[:, 1]),
        (NEAR[:, :1], FAR[:, :1]),
        (NEAR, FAR),
        (NEAR.double(), FAR.double()),
    ],
)
def test_errors_are_those_of_the_epoch(output: Tensor, target: Tensor):
    a, b = output.double().numpy(), target.double().numpy()
    assert measured("MAE", output, target) == pytest.approx(sk.mean_absolute_error(b, a), rel=1e-6)
    squares = sk.mean_squared_error(b, a)
    assert measured("RMSE", output, target) == pytest.approx(np.sqrt(squares), rel=1e-6)
    assert measured("R2", output, target) == pytest.approx(sk.r2_score(b, a), rel=1e-6)
    parts = [math.sqrt(F.mse_loss(*part)) for part in zip(output.split(SPLIT), target.split(SPLIT),
                                                         strict=True)]  # fmt: skip
    assert measured("RMSE", output, target) != pytest.approx(np.mean(parts), rel=1e-4)


def test_errors_of_images_and_of_half_precision():
    images, drawn = torch.rand(N, 3, 4, 4, generator=RANDOM), torch.rand(N, 3, 4, 4)
    expected = F.mse_loss(drawn.double(), images.double()).sqrt().item()
    assert measured("RMSE", drawn, images) == pytest.approx(expected, rel=1e-6)
    half = drawn.bfloat16()
    expected = (half.double() - images.double()).abs().mean().item()
    assert measured("MAE", half, images) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(TrainingError, match="n_outputs"):
        measured("R2", drawn, images)


def test_what_explains_nothing_and_what_explains_all():
    for value in (0.5, 0.1):
        constant = torch.full((N,), value)
        assert measured("R2", constant, constant) == 1
        assert measured("R2", LOGITS, constant) == 0
    constant = np.full(N, 0.5)
    assert (sk.r2_score(constant, constant), sk.r2_score(constant, LOGITS)) == (1, 0)
    assert measured("R2", FAR, FAR) == 1
    one = R2()
    one.update(LOGITS[:1], LOGITS[:1])
    assert math.isnan(one.compute())


@pytest.mark.parametrize("made", [MAE, RMSE, R2])
def test_numbers_in_other_shapes_are_refused(made):
    with pytest.raises(ValueError, match=r"\(101, 1\) and target \(101,\) differ in shape"):
        made().update(LOGITS[:, None], LOGITS)


# --- A run that is stopped ------------------------------------------------------------------------


CASES = [
    ("accuracy", SCORES, CLASSES, {"ignore_index": 0}),
    ("accuracy", LOGITS, LABELS, {"threshold": 0.0}),
    ("IoU", SCORES, CLASSES, {"ignore_index": 0}),
    ("F1", MANY, MANY_LABELS, {"threshold": 0.0}),
    ("AUROC", SCORES, CLASSES, {}), ("AveragePrecision", TIES, LABELS, {}),
    ("MAE", NEAR, FAR, {}), ("RMSE", NEAR, FAR, {}), ("R2", NEAR, FAR, {}),
]  # fmt: skip
each_case = pytest.mark.parametrize(
    ("name", "output", "target", "args"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else "",
)


@each_case
def test_an_epoch_that_is_resumed_in_the_middle_ends_the_same(name, output, target, args):
    cut, resumed = metric(name, **args), metric(name, **args)
    batches = list(zip(output.split(SPLIT), target.split(SPLIT), strict=True))
    for batch in batches[:2]:
        cut.update(*batch)
    file = io.BytesIO()
    torch.save(cut.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches[2:]:
        resumed.update(*batch)
    assert resumed.compute() == measured(name, output, target, **args)


@pytest.mark.gpu
@each_case
def test_the_same_on_a_gpu(name, output, target, args):
    on_gpu = measured(name, output.cuda(), target.cuda(), **args)
    assert on_gpu == pytest.approx(measured(name, output, target, **args), rel=1e-6)


@each_case
def test_epochs_do_not_mix(name, output, target, args):
    made = metric(name, **args)
    made.update(-output[:40], target[:40])
    made.reset()
    made.update(output, target)
    assert made.compute() == pytest.approx(measured(name, output, target, **args))


def test_a_class_that_no_output_stands_for_is_an_error():
    for made in (ConfusionMatrix(threshold=0.0), F1(threshold=0.0), IoU()):
        output = LOGITS if made.threshold is not None else SCORES
        with pytest.raises(RuntimeError, match="out of bounds"):
            made.update(output, torch.full((N,), 7))
