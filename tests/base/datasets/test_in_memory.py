"""Data sets in memory."""

import pytest
import torch
from torch.utils.data import default_collate

from base.datasets.in_memory import InMemoryDataset
from base.errors import DataError

IMAGES = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).to(torch.uint8)


def test_a_batch_is_the_samples_collated():
    dataset = InMemoryDataset(IMAGES, torch.tensor([1, 0]))
    batch = dataset.get_batch(torch.tensor([1, 0, 1]))
    expected = default_collate([dataset[1], dataset[0], dataset[1]])
    assert type(batch) is type(expected)
    assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_images_and_labels_must_be_equally_many():
    with pytest.raises(DataError, match="2 inputs, but 3 targets"):
        InMemoryDataset(IMAGES, torch.zeros(3))
