"""Which samples train and validate: parts, classes, folds, weights, and what is kept of it."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from base.base_data_loader import BaseDataLoader
from base.data.splits import divide, draw_weighted, number_repeats, sample_weights
from base.errors import DataError

CLASSES = torch.tensor([0] * 61 + [1] * 25 + [2] * 14)[torch.randperm(100)]


@given(
    n=st.integers(5, 200), seed=st.integers(0, 99), folds=st.integers(2, 5), stratify=st.booleans()
)
def test_folds_are_disjoint_and_together_all_samples(n, seed, folds, stratify):
    targets = torch.arange(n) % 3
    valid = []
    for fold in range(folds):
        split = {"folds": folds, "fold": fold, "stratify": stratify}
        parts = divide(split, n, seed, targets)
        assert sorted(torch.cat(parts).tolist()) == list(range(n))
        valid += parts[1].tolist()
        if stratify:
            for number in range(3):
                share = (targets == number).sum().item() / folds
                assert abs((targets[parts[1]] == number).sum() - share) < 1
    assert sorted(valid) == list(range(n))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.33, 7])
def test_a_stratified_split_has_each_class_in_its_share(share):
    train, valid = divide({"valid": share, "stratify": True}, 100, 3, CLASSES)
    assert len(valid) == len(divide(share, 100, 3)[1])
    for number, count in Counter(CLASSES.tolist()).items():
        exact = count * len(valid) / 100
        assert abs((CLASSES[valid] == number).sum() - exact) < 1
    assert not set(train.tolist()) & set(valid.tolist())


def test_another_seed_is_another_split_of_equal_size():
    for split in (0.2, {"valid": 0.2, "stratify": True}, {"folds": 5, "fold": 1}):
        one, other = (divide(split, 100, seed, CLASSES)[1] for seed in (1, 2))
        assert len(one) == len(other) == 20
        assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"fold": 5, "folds": 5}, "split.fold: a number from 0 to 4, not 5"),
        ({"folds": 1, "fold": 0}, "split.folds: a whole number from 2 to the 100 samples, not 1"),
        ({"folds": 5}, "give"),
        ({"folds": 5, "fold": 0, "valid": 0.1}, "give"),
        ({"stratify": True}, "give"),
        ({"valid": 0.1, "stratifi": True}, "split.stratifi: unknown key; did you mean 'stratify'"),
        ({"valid": 1.5}, "leaves one side empty"),
    ],
)
def test_a_split_that_cannot_be_made_is_told(split, message):
    with pytest.raises(DataError, match=message):
        divide(split, 100, 0, CLASSES)


def test_stratify_needs_class_numbers():
    for targets in (None, torch.rand(100), torch.zeros(100, 2, dtype=torch.int64)):
        with pytest.raises(DataError, match="class"):
            divide({"valid": 0.1, "stratify": True}, 100, 0, targets)


def test_balanced_sampling_draws_each_class_as_often():
    inputs = torch.arange(100)
    dataset = TensorDataset(inputs, CLASSES)
    dataset.targets = CLASSES
    loader = BaseDataLoader(dataset, 10, True, 0, 0, sampling="balanced", seed=1)
    epochs = [torch.cat([labels for _, labels in loader.batches(e * 10, 10)]) for e in range(60)]
    counts = torch.bincount(torch.cat(epochs))
    assert ((counts - 2000).abs() < 5 * (6000 * 2 / 9) ** 0.5).all()
    whole = [inputs for inputs, _ in loader.batches(20, 10)]
    rest = [inputs for inputs, _ in loader.batches(23, 7)]
    assert all(map(torch.equal, whole[3:], rest))


def test_weights_by_class_and_by_sample_are_followed():
    by_class = sample_weights([1, 0, 3], CLASSES, 100)
    by_sample = sample_weights([[1.0, 0.0, 3.0][c] for c in CLASSES.tolist()], None, 100)
    assert torch.equal(by_class, by_sample)
    drawn = draw_weighted(by_class, 50_000, torch.Generator().manual_seed(0))
    counts = torch.bincount(CLASSES[drawn], minlength=3)
    assert counts[1] == 0
    assert abs(counts[2] / counts[0] - 42 / 61) < 0.03


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ("balance", "not 'balance'; did you mean 'balanced'"),
        ([1, 2], "2 weights, for 3 classes and 100 samples"),
        ([1, -2, 3], "at least 0"),
        ([0, 0, 0], "all weights are 0"),
        (["a"], "expected a list of numbers"),
    ],
)
def test_weights_that_do_not_fit_are_told(sampling, message):
    with pytest.raises(DataError, match=message):
        sample_weights(sampling, CLASSES, 100)


@pytest.mark.parametrize("targets", [["cat", "dog", "cat"], [[0], [1, 2], [0]]])
def test_targets_that_are_no_numbers_cannot_be_stratified(targets):
    with pytest.raises(DataError, match=r"its `targets` are not numbers \(.*number of its class"):
        divide({"valid": 1, "stratify": True}, 3, 0, targets)


def test_repeats_are_numbered():
    indices = torch.randint(7, (60,))
    expected = [indices[:i].tolist().count(index) for i, index in enumerate(indices.tolist())]
    assert number_repeats(indices).tolist() == expected
