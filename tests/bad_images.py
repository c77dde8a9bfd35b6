"""A folder of images, ways to damage one of them, and a config that trains on it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from base.datasets.image_files import ImageFolderDataset

N = 60
CONFIG = """
name: images
seed: 3
model: {{type: MLP, args: {{n_inputs: 144, hidden: [6], n_outputs: 3}}}}
data_loader:
  type: DatasetLoader
  args:
    dataset: {{type: ImageFolderDataset, args: {{root: "{root}"}}}}
    batch_size: 8
    split: 0.2
    num_workers: 0
    transforms: [RandomFlip]
optimizer: {{type: SGD, args: {{lr: 0.1}}}}
loss: cross_entropy
metrics: [accuracy]
trainer: {{epochs: 2, tensorboard: false, progress: false, verbosity: 0,
          on_bad_sample: skip, max_bad_samples: 50%}}
"""


def cut_short(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: 2 * len(content) // 3])


def bomb(path: Path) -> None:
    """A PNG of a hundred bytes that says it has 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": cut_short,
    "an empty file": lambda path: path.write_bytes(b""),
    "not an image": lambda path: path.write_text("a text under another name\n"),
    "bomb": bomb,
    "no such file": Path.unlink,
}


def make_images(root: Path, n: int = N, seed: int = 0) -> list[Path]:
    """Write JPEGs and PNGs, 8 x 6, by turns; return their paths in the data set's order."""
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 8, 6, 3)).astype(np.uint8)
    for index in range(n):
        path = root / f"class{index % 3}" / f"{index:03}.{('jpg', 'png')[index // 3 % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[index]).save(path)
    return [root / name for name in ImageFolderDataset(str(root)).ids]
