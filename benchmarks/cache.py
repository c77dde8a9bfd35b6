"""What a cache of decoded images saves: images a second without one, in memory, and on disk.

    python benchmarks/cache.py [--images 2000] [--size 500 375] [--resize 256 256] [--rounds 5]

JPEGs that the script makes are read one by one, in one thread and in random order. The three take
turns, A B C A B C ..., and medians are given, because machines are shared. What is warm is read
from the memory of the machine: a set larger than that is read from the disk, at the disk's pace.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from PIL import Image

from base.datasets.cache.decoded import cached
from base.datasets.image_files import ImageFiles
from base.datasets.images import decoder_name
from base.system.seeding import derive_generator


def make_images(folder: Path, n_images: int, width: int, height: int) -> list[str]:
    """Write JPEGs as large as photographs are: smooth, with some noise; return their names."""
    random = np.random.default_rng(0)
    names = [f"{number}.jpg" for number in range(n_images)]
    for name in names:
        coarse = random.integers(0, 256, (height // 25, width // 25, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height)), dtype=np.int16)
        pixels = smooth + random.integers(-8, 9, smooth.shape, dtype=np.int16)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
    return names


def read(dataset: Any, number: int) -> float:
    """Return how many images a second are read and copied, in a random order."""
    order = torch.randperm(len(dataset), generator=derive_generator(number, "order")).tolist()
    start = time.perf_counter()
    for index in order:
        dataset[index][0].clone()  # what is only looked at is not read
    return len(order) / (time.perf_counter() - start)


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Print the time to fill each cache, and the pace of reading."""
    (folder / "images").mkdir()
    names = make_images(folder / "images", options.images, *options.size)
    source = ImageFiles(
        folder / "images", names, torch.zeros(len(names), dtype=torch.int64), resize=options.resize
    )
    datasets: dict[str, Any] = {"none": source}
    read(source, -1)  # imports, and the files into memory
    for where in ("memory", "disk"):
        start = time.perf_counter()
        datasets[where] = cached(source, where, folder / "cache")
        seconds = time.perf_counter() - start
        print(f"filling, {where:8}{seconds:10.2f} s{len(names) / seconds:10.0f} images/s")
    start = time.perf_counter()
    cached(source, "disk", folder / "cache")
    print(f"opening, disk    {time.perf_counter() - start:10.3f} s")

    paces: dict[str, list[float]] = {name: [] for name in datasets}
    for number in range(options.rounds + 1):
        for name, dataset in datasets.items():
            pace = read(dataset, number)
            if number:  # the first round warms up
                paces[name].append(pace)
    print(f"{'cache':12}{'images/s':>12}{'range':>20}{'of none, median of rounds':>28}")
    for name, values in paces.items():
        times = statistics.median(v / n for v, n in zip(values, paces["none"], strict=True))
        spread = f"{min(values):,.0f}-{max(values):,.0f}"
        print(f"{name:12}{statistics.median(values):12,.0f}{spread:>20}{times:28.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), help="width and height")
    parser.add_argument("--resize", type=int, nargs="*", default=(256, 256), help="none: as it is")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="where to write; by default for temporary files"
    )
    options = parser.parse_args()
    options.resize = list(options.resize) or None
    torch.set_num_threads(1)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    decoder = decoder_name()
    print(f"{versions}, {os.cpu_count()} cores, {decoder}; {options.images} images, "
          f"{'x'.join(map(str, options.size))}, resized to {options.resize}")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
