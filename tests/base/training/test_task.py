"""A model's task follows from its losses, the shape of its outputs and the classes."""

from __future__ import annotations

import pytest
import torch

from base.training.task import find_task

PETS = ["cat", "dog", "fox"]


@pytest.mark.parametrize(
    ("losses", "outputs", "classes", "metrics", "name", "names"),
    [
        (["cross_entropy"], (8, 3), PETS, [], "classification", tuple(PETS)),
        (["CrossEntropyLoss"], (8, 3), None, [], "classification", ("0", "1", "2")),
        (["mse_loss", "cross_entropy"], (8, 3), PETS, [], "classification", tuple(PETS)),
        (["my_loss"], (8, 3), PETS, [], "classification", tuple(PETS)),
        (["my_loss"], (8, 3), None, ["accuracy"], "classification", ("0", "1", "2")),
        (["my_loss"], (8, 3), None, [], "regression", ()),
        (["BCEWithLogitsLoss"], (8,), ["no", "yes"], [], "binary", ("no", "yes")),
        (["BCEWithLogitsLoss"], (8, 1), None, [], "binary", ("0", "1")),
        (["BCELoss"], (8, 3), PETS, [], "multilabel", tuple(PETS)),
        (["cross_entropy"], (8, 3, 4, 5), PETS, [], "segmentation", tuple(PETS)),
        (["BCEWithLogitsLoss"], (8, 1, 4, 5), ["sky", "sea"], [], "segmentation", ("sky", "sea")),
        (["mse_loss"], (8, 2), None, ["MAE"], "regression", ()),
        (["mse_loss"], (8, 3, 16, 16), None, [], "regression", ()),
        (["cross_entropy"], (8, 3, 20), None, [], "other", ()),
        (["own"], (8, 3, 16, 16), None, [], "other", ()),
        (["cross_entropy"], None, PETS, [], "other", ()),
        (["cross_entropy"], (), PETS, [], "other", ()),
    ],
)
def test_the_task_of_a_model(losses, outputs, classes, metrics, name, names) -> None:
    task = find_task(losses, outputs, classes, metrics)
    assert (task.name, task.classes) == (name, names)


def test_probabilities_are_those_of_the_loss() -> None:
    scores = torch.tensor([[1.0, 2.0, 4.0]])
    by_hand = scores.exp() / scores.exp().sum()
    assert torch.allclose(find_task(["cross_entropy"], (1, 3)).probabilities(scores), by_hand)
    logs = by_hand.log()
    assert torch.allclose(find_task(["nll_loss"], (1, 3)).probabilities(logs), by_hand)
    one = find_task(["BCEWithLogitsLoss"], (2,))
    assert torch.allclose(
        one.probabilities(torch.tensor([0.0, 2.0])), torch.tensor([0.5, 1 / (1 + 2.718281828**-2)])
    )
    assert find_task(["BCELoss"], (2,)).probabilities(torch.tensor([0.3])) == torch.tensor([0.3])


def test_predictions_have_no_class_dimension() -> None:
    maps = torch.randn(2, 3, 4, 5)
    assert find_task(["cross_entropy"], maps.shape).chosen(maps).equal(maps.argmax(1))
    mask = torch.randn(2, 1, 4, 5)
    assert find_task(["BCEWithLogitsLoss"], mask.shape).chosen(mask).equal((mask[:, 0] >= 0).long())
    for shape in ((6,), (6, 1)):
        scores = torch.randn(shape)
        chosen = find_task(["BCEWithLogitsLoss"], shape).chosen(scores)
        assert chosen.equal((scores.flatten() >= 0).long())
    labels = torch.randn(6, 3)
    assert find_task(["BCEWithLogitsLoss"], labels.shape).chosen(labels).equal(labels >= 0)


def test_the_probabilities_of_several_losses_are_those_of_the_loss_of_classes() -> None:
    scores = torch.randn(8, 3)
    task = find_task(["mse_loss", "cross_entropy"], scores, PETS)
    assert torch.allclose(task.probabilities(scores), scores.softmax(1))


def test_predictions_that_are_class_numbers_keep_their_classes() -> None:
    numbers = torch.tensor([2, 0, 1])
    task = find_task(["cross_entropy"], numbers, PETS, has_own_predict=True)
    assert (task.name, task.classes, task.has_probabilities) == (
        "classification", tuple(PETS), False,
    )  # fmt: skip
    assert task.probabilities(numbers).argmax(1).equal(numbers)
    assert task.chosen(numbers).equal(numbers)
    masks = torch.randint(3, (2, 4, 5))
    task = find_task(["cross_entropy"], masks, PETS)
    assert task.name == "segmentation"
    assert task.probabilities(masks).argmax(1).equal(masks)
    assert find_task(["cross_entropy"], numbers).name == "other"  # of unknown classes
    assert find_task(["cross_entropy"], torch.rand(3), PETS).name == "other"  # a maximum


@pytest.mark.parametrize(
    ("loss", "activate", "own"),
    [
        ("cross_entropy", lambda x: x.softmax(1), True),
        ("cross_entropy", lambda x: x.softmax(1), False),  # a model that ends in a softmax
        ("nll_loss", lambda x: x.softmax(1), True),
        ("BCEWithLogitsLoss", torch.sigmoid, True),
    ],
)
def test_probabilities_are_not_activated_again(loss, activate, own) -> None:
    scores = torch.randn(6, 3)
    probabilities = activate(scores)
    task = find_task([loss], probabilities, PETS, has_own_predict=own)
    assert task.has_probabilities
    assert torch.equal(task.probabilities(probabilities), probabilities)


def test_scores_between_0_and_1_by_chance_are_activated() -> None:
    scores = torch.full((4, 3), 0.5)
    task = find_task(["BCEWithLogitsLoss"], scores, PETS)
    assert torch.allclose(task.probabilities(scores), scores.sigmoid())


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (PETS, ("cat", "dog", "fox", "3")),
        (["1", "3", "5"], ("1", "3", "5", "output 3")),
        ([*PETS, "owl", "pig"], ("0", "1", "2", "3")),
    ],
)
@pytest.mark.parametrize("losses", [["cross_entropy"], ["BCELoss"]])
def test_outputs_beyond_the_known_classes_are_numbered(losses, classes, names) -> None:
    assert find_task(losses, (8, 4), classes).classes == names


def test_a_regression_onto_classes_has_scores_but_no_probabilities() -> None:
    scores = torch.randn(8, 3)
    task = find_task(["mse_loss"], scores, PETS)
    assert (task.name, task.classes, task.has_probabilities) == (
        "classification", tuple(PETS), False,
    )  # fmt: skip
    assert torch.equal(task.probabilities(scores), scores)
    assert find_task(["mse_loss"], torch.randn(2, 3, 8, 8), PETS).name == "regression"  # images
