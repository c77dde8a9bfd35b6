"""The shipped metrics, over unequal batches, against the whole set counted directly."""

import time

import pytest
import torch
from sklearn import metrics as sk
from torch.nn import functional as F

from base.errors import TrainingError
from base.training.metrics import build_metrics
from model.metric import (
    F1,
    ConfusionMatrix,
    Dice,
    IoU,
    Precision,
    Recall,
    accuracy,
    top_k_acc,
    top_k_accuracy,
)

torch.manual_seed(0)
N_CLASSES = 5
OUTPUT, TARGET = torch.randn(101, N_CLASSES), torch.randint(0, N_CLASSES - 1, (101,))
PREDICTED = OUTPUT.argmax(dim=1)
SPLIT = [32, 32, 32, 5]
BATCHES = list(zip(OUTPUT.split(SPLIT), TARGET.split(SPLIT), strict=True))


def measured(name: str, **args):
    section = {"type": name, "args": args, "name": name, "over": "batch"}
    metric = build_metrics([section])[name]
    for output, target in BATCHES:
        metric.update(output, target)
    return metric.compute()


def by_hand(true_class: int, taken_class: int) -> int:
    pairs = zip(TARGET.tolist(), PREDICTED.tolist(), strict=True)
    return sum(pair == (true_class, taken_class) for pair in pairs)


TABLE = torch.tensor([[by_hand(t, p) for p in range(N_CLASSES)] for t in range(N_CLASSES)])


def test_accuracy_is_the_share_of_right_ones_over_all_batches():
    assert measured("accuracy") == pytest.approx((PREDICTED == TARGET).double().mean().item())


@pytest.mark.parametrize("k", [1, 2, 3, N_CLASSES])
def test_top_k_looks_among_the_k_best_scores(k):
    right = 0
    for scores, true in zip(OUTPUT.tolist(), TARGET.tolist(), strict=True):
        right += true in sorted(range(N_CLASSES), key=lambda c: -scores[c])[:k]
    assert measured("top_k_accuracy", k=k) == pytest.approx(right / len(TARGET))
    assert measured("top_k_acc", k=k) == measured("top_k_accuracy", k=k)
    assert top_k_acc(OUTPUT, TARGET) == top_k_accuracy(OUTPUT, TARGET, k=3)


def test_the_confusion_matrix_counts_true_classes_in_rows():
    assert measured("ConfusionMatrix").equal(TABLE)
    assert measured("ConfusionMatrix", n_classes=7).shape == (7, 7)


@pytest.mark.parametrize("output", [OUTPUT, F.one_hot(TARGET % 2, N_CLASSES).float()])
def test_scores_are_those_of_scikit_learn(output):
    true, taken = TARGET.tolist(), output.argmax(dim=1).tolist()
    scorers = {Precision: sk.precision_score, Recall: sk.recall_score, F1: sk.f1_score}
    for metric_class, scorer in scorers.items():
        metric = metric_class()
        for part, target in zip(output.split(SPLIT), TARGET.split(SPLIT), strict=True):
            metric.update(part, target)
        scores = metric.compute()
        assert list(scores) == ["macro", *map(str, range(N_CLASSES))]
        each = scorer(true, taken, average=None, labels=range(N_CLASSES), zero_division=0)
        assert [scores[str(index)] for index in range(N_CLASSES)] == pytest.approx(list(each))
        macro = scorer(true, taken, average="macro", zero_division=0)
        assert scores["macro"] == pytest.approx(macro)


def test_the_mean_loss_is_that_over_all_samples():
    expected = F.cross_entropy(OUTPUT, TARGET).item()
    assert measured("MeanLoss") == pytest.approx(expected, rel=1e-6)
    smoothed = F.cross_entropy(OUTPUT, TARGET, label_smoothing=0.1).item()
    found = measured("MeanLoss", loss="smooth_cross_entropy", args={"smoothing": 0.1})
    assert found == pytest.approx(smoothed, rel=1e-6)


def test_segmentation_is_measured_by_pixel():
    output, target = torch.randn(3, 4, 6, 5), torch.randint(0, 4, (3, 6, 5))
    expected = (output.argmax(dim=1) == target).double().mean().item()
    assert accuracy(output, target).item() == pytest.approx(expected)
    matrix = ConfusionMatrix()
    matrix.update(output, target)
    assert matrix.compute().diagonal().sum() == round(expected * target.numel())
    best = output.topk(2, dim=1).indices
    hits = (best[:, 0] == target) | (best[:, 1] == target)
    assert top_k_accuracy(output, target, k=2) == hits.float().mean()


def test_ignored_targets_are_not_counted():
    target = TARGET.clone()
    target[::3] = -100
    matrix, kept = ConfusionMatrix(ignore_index=-100), ConfusionMatrix()
    matrix.update(OUTPUT, target)
    kept.update(OUTPUT[target >= 0], target[target >= 0])
    assert matrix.compute().equal(kept.compute())


def test_predictions_may_come_as_class_indices():
    assert accuracy(PREDICTED, TARGET) == accuracy(OUTPUT, TARGET)
    matrix = ConfusionMatrix(n_classes=N_CLASSES)
    matrix.update(PREDICTED, TARGET)
    assert matrix.compute().equal(TABLE)
    with pytest.raises(ValueError, match="n_classes"):
        ConfusionMatrix().update(PREDICTED, TARGET)
    with pytest.raises(ValueError, match="or class indices"):
        accuracy(OUTPUT, TARGET[:, None])


@pytest.mark.parametrize("wrong", [N_CLASSES, -1])
def test_a_target_that_is_no_class_is_an_error_not_a_count_elsewhere(wrong):
    target = TARGET.clone()
    target[3] = wrong
    section = {"type": "ConfusionMatrix", "args": {}, "name": "table", "over": "batch"}
    with pytest.raises(TrainingError, match="metric 'table' fails"):
        build_metrics([section])["table"].update(OUTPUT, target)


def test_a_prediction_that_is_no_class_is_an_error_not_a_count_elsewhere():
    with pytest.raises(RuntimeError, match="out of bounds"):
        ConfusionMatrix(n_classes=3).update(torch.tensor([0, 3]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="scores for 5 classes, and n_classes is 3"):
        ConfusionMatrix(n_classes=3).update(OUTPUT, TARGET)


def test_counts_stay_tensors_until_they_are_asked_for():
    assert isinstance(accuracy(OUTPUT, TARGET), torch.Tensor)
    matrix = ConfusionMatrix()
    matrix.update(OUTPUT, TARGET)
    assert isinstance(matrix.counts, torch.Tensor)


def test_accuracy_is_cheap():
    output, target = torch.randn(128, 10), torch.randint(0, 10, (128,))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(50):
            accuracy(output, target)
        best = min(best, (time.perf_counter() - start) / 50)
    torch.set_num_threads(threads)
    assert best < 50e-6  # 10 us on a quiet machine


def table_scores(metric_class, table: torch.Tensor) -> dict[str, float]:
    """Return the scores as earlier versions computed them, from the whole confusion matrix."""
    matrix = table.double()
    parts = matrix.diagonal(), matrix.sum(dim=0), matrix.sum(dim=1)
    scores = torch.nan_to_num(metric_class().score(*parts), nan=0.0)
    occurs = parts[1] + parts[2] > 0
    return {
        metric_class.mean_name: scores[occurs].mean().item(),
        **{str(index): score for index, score in enumerate(scores.tolist())},
    }


@pytest.mark.parametrize("metric_class", [F1, Precision, Recall, IoU, Dice])
@pytest.mark.parametrize("n", [2, 3, 40])
def test_scores_equal_those_of_the_whole_table_to_the_bit(metric_class, n):
    generator = torch.Generator().manual_seed(n)
    output = torch.randn(500, n, generator=generator)
    target = torch.randint(0, n, (500,), generator=generator)
    target[::7] = -100
    scores, table = metric_class(ignore_index=-100), ConfusionMatrix(ignore_index=-100)
    for part, true in zip(output.split(64), target.split(64), strict=True):
        scores.update(part, true)
        table.update(part, true)
    assert scores.compute() == table_scores(metric_class, table.compute())


@pytest.mark.parametrize("wrong", [N_CLASSES, -1])
@pytest.mark.parametrize("where", ["target", "prediction"])
def test_a_score_refuses_a_class_that_does_not_exist(where, wrong):
    pair = {"target": TARGET.clone(), "prediction": PREDICTED.clone()}
    pair[where][3] = wrong
    with pytest.raises(RuntimeError, match="out of bounds"):
        F1(n_classes=N_CLASSES).update(pair["prediction"], pair["target"])


def test_the_state_of_scores_grows_with_the_classes_and_not_with_their_square():
    sizes = []
    for n in (1000, 2000):
        metric = F1(n_classes=n)
        metric.update(torch.tensor([0, n - 1]), torch.tensor([n - 1, n - 1]))
        held = [value.numel() for value in vars(metric).values() if isinstance(value, torch.Tensor)]
        sizes.append(sum(held))
    assert sizes[0] <= 10 * 1000
    assert sizes[1] <= 2.2 * sizes[0]


@pytest.mark.parametrize("metric_class", [F1, Precision, Recall, IoU, Dice])
@pytest.mark.parametrize("n", [3, 7])
def test_a_checkpoint_with_a_table_goes_on_within_the_epoch(metric_class, n):
    generator = torch.Generator().manual_seed(n)
    output = torch.randn(90, n, generator=generator)
    target = torch.randint(0, n, (90,), generator=generator)
    section = {"type": metric_class.__name__, "args": {}, "name": "it", "over": "batch"}
    whole, resumed = (build_metrics([section])["it"] for _ in range(2))
    whole.update(output, target)
    earlier = ConfusionMatrix()
    earlier.update(output[:50], target[:50])
    attributes = {"n_classes": None, "ignore_index": None, "threshold": None}
    # What version 0.2 wrote for this metric.
    written = {"n_updates": 1, "instance": {**attributes, "counts": earlier.counts, "labels": None}}
    resumed.load_state_dict(written)
    resumed.update(output[50:], target[50:])
    assert resumed.compute() == whole.compute()
    new = build_metrics([section])["it"]
    new.update(output[50:], target[50:])
    assert new.whole([written, new.state_dict()]).compute() == whole.compute()


def test_a_checkpoint_with_sums_of_labels_goes_on_within_the_epoch():
    output, target = torch.randn(60, 4), torch.randint(0, 2, (60, 4))
    section = {"type": "F1", "args": {"threshold": 0.0}, "name": "it", "over": "batch"}
    whole, half, resumed = (build_metrics([section])["it"] for _ in range(3))
    whole.update(output, target)
    half.update(output[:20], target[:20])
    attributes = {"n_classes": None, "ignore_index": None, "threshold": 0.0}
    labels = half.instance.sums
    resumed.load_state_dict(
        {"n_updates": 1, "instance": {**attributes, "counts": None, "labels": labels}}
    )
    resumed.update(output[20:], target[20:])
    assert resumed.compute() == whole.compute()


@pytest.mark.parametrize("metric_class", [F1, Precision, Recall, IoU, Dice])
@pytest.mark.parametrize("name", ["counts", "labels"])
def test_an_attribute_of_earlier_versions_names_the_one_in_its_place(metric_class, name):
    with pytest.raises(AttributeError, match="`sums`"):
        getattr(metric_class(), name)
