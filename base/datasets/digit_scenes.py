"""Synthetic segmentation images: digits from digits.npz on a textured background."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from base.datasets.array_files import read_npz
from base.datasets.in_memory import InMemoryDataset
from base.errors import DataError
from base.system.seeding import derive_generator

SIDE = 12  # pixels of a digit, enlarged from 8 x 8
N_TRIES = 12  # attempts to place a digit in an image
INK, PAPER = 9, 3  # of 16: at least INK is part of the digit, at most PAPER is not
UNCLEAR = 255


class DigitScenesDataset(InMemoryDataset):
    """Images (3, size, size) that contain a few digits, and the class of each pixel.

    Class 0 is the background, and classes 1 to 10 are the digits 0 to 9. Pixels at the edge of a
    stroke, half covered, have no class: 255. `part: test` uses the digits of the test split.

    Args:
        data_seed: the seed of the images.
    """

    def __init__(
        self,
        n_samples: int = 600,
        size: int = 32,
        part: str = "train",
        data_seed: int = 0,
        file: str = "data/digits.npz",
    ) -> None:
        if part not in ("train", "test"):
            raise DataError(f"DigitScenesDataset: part is {part!r}; give train or test")
        if n_samples < 1 or size < SIDE:
            text = f"n_samples must be at least 1 and size at least {SIDE}"
            raise DataError(f"DigitScenesDataset: {text}, not {n_samples} and {size}")
        digits, labels = _digits(file, part)
        generator = derive_generator(data_seed, "scenes", part)
        scenes = [_scene(digits, labels, size, generator) for _ in range(n_samples)]
        images, masks = (torch.stack(each) for each in zip(*scenes, strict=True))
        names = ["background", *map(str, range(10))]
        super().__init__(images, masks, names, ignore_index=UNCLEAR)


def _digits(file: str, part: str) -> tuple[Tensor, Tensor]:
    """Return the digits of one part, enlarged: ink from 0 to 16 (digit, height, width)."""
    arrays = read_npz(Path(file))
    is_test = torch.zeros(len(arrays["labels"]), dtype=torch.bool)
    is_test[arrays["test_ids"]] = True
    chosen = is_test if part == "test" else ~is_test
    ink = F.interpolate(arrays["images"][chosen, None].float(), (SIDE, SIDE), mode="bilinear")
    return ink[:, 0], arrays["labels"][chosen].long()


def _scene(
    digits: Tensor, labels: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return an image (3, size, size) of bytes and its mask (size, size)."""

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    coarse = torch.rand((1, 3, 5, 5), generator=generator)
    image = F.interpolate(coarse, (size, size), mode="bilinear")[0].mul_(0.4)
    image += torch.rand((3, size, size), generator=generator) * 0.2
    mask, is_taken = torch.zeros(size, size, dtype=torch.int64), torch.zeros(size, size)
    for _ in range(N_TRIES):
        number, top, left = draw(len(digits)), draw(size - SIDE + 1), draw(size - SIDE + 1)
        rows, columns = slice(top, top + SIDE), slice(left, left + SIDE)
        if is_taken[rows, columns].any():
            continue
        is_taken[rows, columns] = 1
        ink = digits[number]
        colour = 0.6 + 0.4 * torch.rand((3, 1, 1), generator=generator)
        part = image[:, rows, columns]
        part += (colour - part) * (ink / 16)
        edge = torch.where(ink > PAPER, UNCLEAR, 0)
        mask[rows, columns] = torch.where(ink >= INK, labels[number] + 1, edge)
    return image.mul(255).round_().clamp_(0, 255).to(torch.uint8), mask
