"""JPEG files to training input: PIL and DataLoader against the decoders behind one function.

    python benchmarks/jpeg.py [--images 400] [--rounds 5] [--threads 2]

Makes a folder of photographs, 500 x 375, of noise at many scales (quality 90), and reads it to
uint8 (3, 224, 224) with a random resized crop. All take turns, A B C A B C ..., and medians are
given, because machines are shared. The first row of the pixels is their difference to PIL's.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from base.datasets.image_files import ImageFolderDataset
from base.datasets.images import DECODERS, Decoder, decode_image
from base.names.construction import build

WIDTH, HEIGHT, SIZE, N_CLASSES, BATCH_SIZE = 500, 375, 224, 4, 50

Variant = Callable[[], Iterator[Tensor]]  # an epoch: batches (b, 3, 224, 224)


def photograph(seed: int) -> Image.Image:
    """Make noise at scales from 1 to 128 pixels, fainter the finer, as photographs have it."""
    random = np.random.RandomState(seed)
    total = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for scale in (1, 2, 4, 8, 16, 32, 64, 128):
        shape = (HEIGHT // scale + 2, WIDTH // scale + 2, 3)
        noise = Image.fromarray(random.randint(0, 256, shape, dtype=np.uint8))
        smooth = noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        total += (np.asarray(smooth, np.float32) - 128) * scale**0.5
    return Image.fromarray((128 + total * 50 / total.std()).clip(0, 255).astype(np.uint8))


def make_folder(folder: Path, n_images: int) -> float:
    """Save the photographs, divided among classes; return the mean size of a file in bytes."""
    for number in range(n_images):
        path = folder / f"class{number % N_CLASSES}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number).save(path, quality=90)
    return statistics.mean(path.stat().st_size for path in folder.rglob("*.jpg"))


class PilFolder:
    """The plain recipe: torchvision's ImageFolder, its transforms, torch's DataLoader."""

    def __init__(self, folder: Path, n_workers: int) -> None:
        from torch.utils.data import DataLoader
        from torchvision import datasets, transforms

        steps = [transforms.RandomResizedCrop(SIZE), transforms.PILToTensor()]
        dataset = datasets.ImageFolder(str(folder), transforms.Compose(steps))
        self.loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=n_workers)

    def __call__(self) -> Iterator[Tensor]:
        for images, _ in self.loader:
            yield images


class Threaded:
    """One of our decoders in threads, torchvision's random resized crop on its tensors."""

    def __init__(self, folder: Path, decode: Decoder, n_threads: int) -> None:
        from torchvision.transforms import v2

        self.dataset, self.decode = ImageFolderDataset(str(folder)), decode
        self.crop = v2.RandomResizedCrop(SIZE, antialias=True)
        self.pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.dataset))
        for indices in order.split(BATCH_SIZE):
            yield torch.stack(list(self.pool.map(self._read, indices.tolist())))

    def _read(self, index: int) -> Tensor:
        data = Path(self.dataset.place(index)).read_bytes()
        return self.crop(self.decode(data, "RGB"))


class FromConfig:
    """What a config gives: keyed crops in threads, float32 from 0 to 1 in the end."""

    def __init__(self, folder: Path, cache: str, n_threads: int) -> None:
        section = {
            "type": "DatasetLoader",
            "args": {
                "dataset": {"type": "ImageFolderDataset", "args": {"root": str(folder)}},
                "batch_size": BATCH_SIZE,
                "transforms": [{"type": "RandomResizedCrop", "args": {"size": SIZE}}],
                "cache": cache,
                "num_workers": n_threads,
            },
        }
        self.loader = build("data_loader", section)
        self.n_epochs = 0

    def __call__(self) -> Iterator[Tensor]:
        self.n_epochs += 1
        for images, _ in self.loader.batches(self.n_epochs * len(self.loader), len(self.loader)):
            yield images


def installed_decoders() -> dict[str, Decoder]:
    """Return those decoders that can be imported here."""
    found = {}
    for name, make in DECODERS.items():
        try:
            found[name] = make()
        except ImportError:
            print(f"{name} is not installed")
    return found


def differences(folder: Path, decode: Decoder) -> tuple[int, float]:
    """Return by how many levels a decoder differs from PIL, at most and in the mean."""
    errors = []
    for path in sorted(folder.rglob("*.jpg"))[:20]:
        with Image.open(path) as image:
            expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        errors.append((decode(path.read_bytes(), "RGB").int() - expected.int()).abs())
    return int(torch.stack(errors).max()), float(torch.stack(errors).float().mean())


def images_per_second(variant: Variant) -> float:
    """Read one epoch."""
    start, count = time.perf_counter(), 0
    for images in variant():
        count += len(images)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, n_threads = Path(temporary), options.threads
        n_bytes = make_folder(folder, options.images)
        decoders = installed_decoders()
        print(f"torch {torch.__version__}, Python {platform.python_version()}, {options.rounds} "
              f"rounds, {options.images} files of {n_bytes:.0f} bytes (mean)")  # fmt: skip
        for name, decode in decoders.items():
            highest, mean = differences(folder, decode)
            print(f"{name:12} differs from PIL by {highest} levels at most, {mean:.4f} in the mean")
        whole = decode_image(next(folder.rglob("*.jpg")))
        assert whole.shape == (3, HEIGHT, WIDTH)

        variants: dict[str, Variant] = {
            "PIL ImageFolder, 0 workers": PilFolder(folder, 0),
            "PIL ImageFolder, 2 workers": PilFolder(folder, 2),
        }
        for name, decode in decoders.items():
            variants[f"{name}, {n_threads} threads"] = Threaded(folder, decode, n_threads)
        for cache in ("none", "memory"):
            name = f"DatasetLoader, {n_threads} threads, cache: {cache}"
            variants[name] = FromConfig(folder, cache, n_threads)
        report(variants, options.rounds, base="PIL ImageFolder, 2 workers")


def report(variants: dict[str, Variant], n_rounds: int, base: str) -> None:
    """Time all variants in turn and print medians, and ratios to one of them."""
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(n_rounds + 1):
        for name, variant in variants.items():
            rate = images_per_second(variant)
            if number:  # the first round warms up
                rates[name].append(rate)
    print(f"{'':44}{'images/s':>9}{'range':>14}{'/ PIL, 2 workers':>18}")
    for name, values in rates.items():
        ratio = statistics.median(map(lambda a, b: a / b, values, rates[base]))
        spread = f"{min(values):.0f}-{max(values):.0f}"
        print(f"{name:44}{statistics.median(values):9.0f}{spread:>14}{ratio:18.2f}")


if __name__ == "__main__":
    main()
