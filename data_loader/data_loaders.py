"""The loaders that ship: digits from data/, torchvision's sets, and synthetic images."""

from __future__ import annotations

from pathlib import Path

import torch

from base.base_data_loader import BaseDataLoader
from data_loader.datasets import ArrayDataset, AugmentedDataset, read_npz
from data_loader.transforms import RandomShift


class DigitsDataLoader(BaseDataLoader):
    """The 1,797 digits of data/digits.npz: 1,437 for training and validation, 360 for the test.

    Images (1, 8, 8) from 0 to 1; `augment` shifts each by up to one pixel.
    """

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: int = 128,
        shuffle: bool = True,
        validation_split: float = 0.1,
        num_workers: int = 0,
        training: bool = True,
        augment: bool = False,
    ) -> None:
        arrays = read_npz(Path(data_dir) / "digits.npz")
        is_test = torch.zeros(len(arrays["labels"]), dtype=torch.bool)
        is_test[arrays["test_ids"]] = True
        chosen = ~is_test if training else is_test
        images = ArrayDataset(arrays["images"][chosen, None], arrays["labels"][chosen], white=16)
        super().__init__(
            AugmentedDataset(images, RandomShift(1)) if augment and training else images,
            batch_size,
            shuffle and training,
            validation_split if training else 0,
            num_workers,
            valid_dataset=images,
        )
