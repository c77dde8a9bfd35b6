"""Kindling's data loaders: the digits in data/, torchvision's data sets and synthetic images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from base import (
    BaseDataLoader,
    DataError,
    InMemoryDataset,
    Pipeline,
    RandomShift,
    TransformedDataset,
    left_out_note,
    read_npz,
    synthetic_images,
)


class DigitsDataLoader(BaseDataLoader):
    """The 1,797 digits of data/digits.npz: 1,437 for training and validation, 360 for testing.

    Images are (1, 8, 8) with values from 0 to 1. `augment` shifts each by up to one pixel.
    """

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: int = 128,
        shuffle: bool = True,
        validation_split: float = 0.1,
        num_workers: int | str = 0,
        training: bool = True,
        augment: bool = False,
        workers: str = "auto",
    ) -> None:
        arrays = read_npz(Path(data_dir) / "digits.npz")
        is_test = torch.zeros(len(arrays["labels"]), dtype=torch.bool)
        is_test[arrays["test_ids"]] = True
        chosen = ~is_test if training else is_test
        images = InMemoryDataset(arrays["images"][chosen, None], arrays["labels"][chosen])
        changes = [RandomShift(1)] if augment and training else []
        super().__init__(
            TransformedDataset(images, Pipeline(changes, white=16)),
            batch_size,
            shuffle and training,
            validation_split if training else 0,
            num_workers,
            valid_dataset=TransformedDataset(images, Pipeline(white=16)),
            workers=workers,
        )


class TorchvisionDataLoader(BaseDataLoader):
    """A public image data set, normalized: MNIST, FashionMNIST, KMNIST, CIFAR10 or CIFAR100.

    `in_memory` decodes it once and normalizes whole batches. Otherwise torchvision decodes each
    sample, optionally in workers. `augment` shifts images by a few pixels and, where it makes
    sense, flips them. Files are read from `data_dir`, or downloaded there if missing.
    """

    def __init__(  # noqa: PLR0913
        self,
        dataset: str,
        data_dir: str = "data",
        batch_size: int = 128,
        shuffle: bool = True,
        validation_split: float = 0.1,
        num_workers: int | str = 0,
        training: bool = True,
        download: bool = True,
        in_memory: bool = True,
        augment: bool = False,
    ) -> None:
        try:
            from base import load_in_memory, load_one_by_one
        except ModuleNotFoundError as error:
            raise DataError(f"{dataset} cannot be loaded{left_out_note('public-sets')}") from error

        load = load_in_memory if in_memory else load_one_by_one
        images, valid_images = load(
            dataset,
            Path(data_dir),
            training=training,
            download=download,
            augment=augment and training,
        )
        super().__init__(
            images,
            batch_size,
            shuffle and training,
            validation_split if training else 0,
            num_workers,
            valid_dataset=valid_images,
        )


class MnistDataLoader(TorchvisionDataLoader):
    """MNIST, with pytorch-template's name and arguments."""

    def __init__(
        self,
        data_dir: str,
        batch_size: int,
        shuffle: bool = True,
        validation_split: float = 0.0,
        num_workers: int | str = 1,
        training: bool = True,
    ) -> None:
        super().__init__(
            "MNIST", data_dir, batch_size, shuffle, validation_split, num_workers, training
        )


class SyntheticDataLoader(BaseDataLoader):
    """Images generated from a seed, without files: one pattern per class, plus noise.

    `training=False` generates `n_samples` images with other noise and the same patterns.
    """

    def __init__(  # noqa: PLR0913
        self,
        n_samples: int = 512,
        shape: Sequence[int] = (3, 32, 32),
        n_classes: int = 10,
        batch_size: int = 32,
        shuffle: bool = True,
        validation_split: float = 0.1,
        num_workers: int | str = 0,
        training: bool = True,
        noise: float = 1.0,
        data_seed: int = 0,
    ) -> None:
        part = "train" if training else "test"
        super().__init__(
            InMemoryDataset(*synthetic_images(n_samples, shape, n_classes, noise, data_seed, part)),
            batch_size,
            shuffle and training,
            validation_split if training else 0,
            num_workers,
        )
