"""The columns and cells of each task."""

import math

import pytest
import torch

from base.errors import UsageError
from base.prediction.task_columns import table_of
from base.training.task import Task

NAMES = ("cat", "dog", "eel", "fox")
SCORES = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.15, 0.05]])


def test_the_likeliest_classes_come_first() -> None:
    table = table_of(Task("classification", "softmax", True, NAMES), SCORES.shape, top_k=3)
    assert table.columns == [
        "class", "probability", "class_2", "probability_2", "class_3", "probability_3",
    ]  # fmt: skip
    for cells, scores in zip(table.cells(SCORES), SCORES.tolist(), strict=True):
        pairs = sorted(zip(scores, NAMES, strict=True), reverse=True)[:3]
        assert cells[::2] == [name for _, name in pairs]
        assert cells[1::2] == [score for score, _ in pairs]


def test_there_are_no_more_columns_than_classes() -> None:
    table = table_of(Task("classification", "softmax", True, NAMES), SCORES.shape, top_k=9)
    assert len(table.columns) == 8
    assert [len(row) for row in table.cells(SCORES)] == [8, 8]


def test_scores_without_probabilities_are_called_scores() -> None:
    table = table_of(Task("classification", "none", False, NAMES), SCORES.shape)
    assert table.columns == ["class", "score"]


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_a_binary_task_names_the_chosen_class_and_its_probability(shape: tuple[int, ...]) -> None:
    scores = torch.tensor([0.2, 0.6, 0.9]).reshape(shape)
    task = Task("binary", "sigmoid", True, ("no", "yes"))
    cells = table_of(task, scores.shape).cells(scores)
    assert [name for name, _ in cells] == ["no", "yes", "yes"]
    assert [p for _, p in cells] == pytest.approx([0.8, 0.6, 0.9])
    strict = table_of(task, scores.shape, threshold=0.7, top_k=2).cells(scores)
    assert [row[0] for row in strict] == ["no", "no", "yes"]
    assert strict[1][1::2] == pytest.approx([0.4, 0.6])


def test_labels_are_those_from_the_threshold_on() -> None:
    scores = torch.tensor([[0.5, 0.4, 0.9], [0.1, 0.2, 0.3]])
    task = Task("multilabel", "sigmoid", True, ("red", "round", "small"))
    table = table_of(task, scores.shape)
    assert table.columns == ["labels", "red", "round", "small"]
    assert [row[0] for row in table.cells(scores)] == ["red|small", ""]
    assert table.cells(scores)[0][1:] == pytest.approx([0.5, 0.4, 0.9])
    low = table_of(task, scores.shape, threshold=0.2)
    assert [row[0] for row in low.cells(scores)] == ["red|round|small", "round|small"]


def test_a_segmentation_has_the_share_of_each_class() -> None:
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 2, 0] = 1
    scores[0, 0, 1, 1] = 1
    scores[0, 1, 1, 0] = 1
    task = Task("segmentation", "softmax", True, ("sky", "road", "car"))
    table = table_of(task, scores.shape)
    assert table.columns == ["sky", "road", "car"]
    assert table.cells(scores) == [[0.25, 0.25, 0.5]]


def test_a_mask_of_one_channel_has_two_classes() -> None:
    scores = torch.tensor([[[[0.2, 0.6], [0.7, 0.9]]]])
    task = Task("segmentation", "sigmoid", True, ("no", "yes"))
    assert table_of(task, scores.shape).cells(scores) == [[0.25, 0.75]]
    assert table_of(task, scores.shape, threshold=0.8).cells(scores) == [[0.75, 0.25]]


@pytest.mark.parametrize(
    ("shape", "targets", "columns"),
    [
        ((2,), ["price"], ["price"]),
        ((2, 1), ["price"], ["price"]),
        ((2, 2), ["price", "age"], ["price", "age"]),
        ((2, 2), ["price"], ["prediction_1", "prediction_2"]),
        ((2,), [], ["prediction"]),
    ],
)
def test_a_regression_has_the_names_of_its_targets(
    shape: tuple[int, ...], targets: list[str], columns: list[str]
) -> None:
    values = torch.arange(math.prod(shape)).float().reshape(shape)
    table = table_of(Task("regression"), shape, targets)
    assert table.columns == columns
    assert table.cells(values) == values.reshape(2, -1).tolist()


@pytest.mark.parametrize(
    ("task", "shape", "how", "text"),
    [
        ("other", (2, 3, 4, 4), {}, "returns 3 x 4 x 4 for each sample.*-o predictions.npz"),
        ("regression", (2, 3, 4, 4), {}, "-o predictions.npz"),
        ("classification", (2, 4), {"threshold": 0.3}, "--threshold: .* is a classification"),
        ("regression", (2, 1), {"threshold": 0.3}, "--threshold"),
        ("regression", (2, 1), {"top_k": 2}, "--top-k: .* is a regression"),
        ("multilabel", (2, 4), {"top_k": 2}, "--top-k"),
    ],
)
def test_what_does_not_apply_to_a_task_is_refused(
    task: str, shape: tuple[int, ...], how: dict, text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        table_of(Task(task, "softmax", True, NAMES), shape, **how)
