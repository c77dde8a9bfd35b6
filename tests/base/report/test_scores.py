"""The numbers of the report agree with scikit-learn, scipy, and a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from base.report.comparison import EXACT_UP_TO, mcnemar
from base.report.scores import (
    N_BINS,
    ClassScore,
    accuracy_of,
    calibration,
    class_scores,
    expected_calibration_error,
    label_scores,
    pair_counts,
    residual_summary,
)

NAMES = ["a", "b", "c", "d", "e"]


def classes(n_samples: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and predictions; class d is never predicted, class e never true."""
    draw = np.random.default_rng(0)
    target = draw.integers(0, 4, n_samples)
    prediction = np.where(draw.random(n_samples) < 0.7, target, draw.integers(0, 5, n_samples))
    return target, np.where(prediction == 3, 4, prediction)


def test_confusions_are_those_of_scikit_learn() -> None:
    target, prediction = classes()
    found = np.zeros((5, 5), dtype=int)
    for true, chosen, count in pair_counts(target, prediction):
        found[true, chosen] = count
    assert (found == metrics.confusion_matrix(target, prediction, labels=range(5))).all()


def test_samples_without_a_class_are_left_out() -> None:
    pairs = pair_counts(np.array([0, -1, 1, -1]), np.array([0, 1, 0, 0]))
    assert pairs == [[0, 0, 1], [1, 0, 1]]
    assert pair_counts(np.array([-1]), np.array([0])) == []


def test_scores_of_classes_are_those_of_scikit_learn() -> None:
    target, prediction = classes()
    pairs = pair_counts(target, prediction)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        target, prediction, labels=range(5), zero_division=np.nan
    )
    jaccard = metrics.jaccard_score(target, prediction, labels=range(5), average=None)
    for number, score in enumerate(class_scores(pairs, NAMES)):
        assert score.support == support[number]
        for ours, theirs in ((score.precision, precision), (score.recall, recall), (score.f1, f1)):
            wanted = theirs[number]
            assert (ours is None and np.isnan(wanted)) or ours == pytest.approx(wanted)
        assert score.iou == pytest.approx(jaccard[number])
    assert accuracy_of(pairs) == pytest.approx(metrics.accuracy_score(target, prediction))


def test_scores_of_labels_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(1)
    target, prediction = draw.random((80, 3)) < 0.4, draw.random((80, 3)) < 0.5
    precision, recall, f1, support = metrics.precision_recall_fscore_support(target, prediction)
    found = label_scores(target, prediction, NAMES[:3])
    assert [each.support for each in found] == list(support)
    for name, wanted in (("precision", precision), ("recall", recall), ("f1", f1)):
        assert [getattr(each, name) for each in found] == pytest.approx(list(wanted))


def test_a_score_of_nothing_is_none() -> None:
    score = ClassScore("never", support=0, predicted=0, correct=0)
    assert (score.precision, score.recall, score.f1, score.iou) == (None, None, None, None)


def test_the_calibration_error_is_that_of_a_plain_loop() -> None:
    draw = np.random.default_rng(2)
    confidence = np.concatenate([draw.random(500), [0.0, 1.0, 1 / 3, 0.2]])
    is_correct = draw.random(504) < confidence**2
    wanted = 0.0
    for number in range(N_BINS):
        low, high = number / N_BINS, (number + 1) / N_BINS
        within = (confidence > low) & (confidence <= high) | (confidence == 0) & (number == 0)
        if within.any():
            gap = abs(confidence[within].mean() - is_correct[within].mean())
            wanted += gap * within.mean()
    bins = calibration(confidence, is_correct)
    assert sum(bins["counts"]) == 504
    assert expected_calibration_error(bins) == pytest.approx(wanted)


def test_the_accuracy_of_bins_is_that_of_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve

    draw = np.random.default_rng(3)
    confidence = draw.random(400)
    is_correct = draw.random(400) < confidence
    bins = calibration(confidence, is_correct)
    accuracy, mean = calibration_curve(is_correct, confidence, n_bins=N_BINS)
    filled = [number for number, count in enumerate(bins["counts"]) if count]
    assert [bins["accuracy"][number] for number in filled] == pytest.approx(list(accuracy))
    assert [bins["confidence"][number] for number in filled] == pytest.approx(list(mean))


def test_confidences_that_are_not_finite_are_left_out() -> None:
    bins = calibration(np.array([np.nan, 0.9, np.inf]), np.array([True, True, False]))
    assert sum(bins["counts"]) == 1
    assert expected_calibration_error(calibration(np.array([]), np.array([], bool))) is None


def test_residuals_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(4)
    target = draw.normal(size=5000)
    prediction = target + draw.normal(0.2, 0.3, size=5000)
    found = residual_summary(target, prediction, "height")
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(target, prediction))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(target, prediction))
    assert found["r2"] == pytest.approx(metrics.r2_score(target, prediction))
    assert found["bias"] == pytest.approx((prediction - target).mean())
    assert sum(found["counts"]) == 5000
    assert len(found["points"]) <= 1000


def test_residuals_leave_out_what_is_not_finite() -> None:
    found = residual_summary(np.array([1.0, np.nan, 2.0]), np.array([1.0, 2.0, np.inf]), "x")
    assert (found["n"], found["n_nonfinite"], found["mae"]) == (1, 2, 0.0)
    assert found["r2"] is None  # of one sample, which has no spread
    assert residual_summary(np.array([np.nan]), np.array([0.0]), "x")["n"] == 0


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 0), (5, 9), (20, 20), (200, 260)])
def test_mcnemars_test_is_a_binomial_test(a: int, b: int) -> None:
    from scipy.stats import binomtest

    wanted = 1.0 if a + b == 0 else binomtest(a, a + b).pvalue
    assert mcnemar(a, b) == pytest.approx(wanted)


def test_mcnemars_test_of_many_samples_is_that_of_chi_squared() -> None:
    from scipy.stats import chi2

    a, b = EXACT_UP_TO, EXACT_UP_TO + 60
    assert mcnemar(a, b) == pytest.approx(chi2.sf((a - b) ** 2 / (a + b), df=1))
    assert math.isclose(mcnemar(a, b), mcnemar(b, a))
