"""JPEG files to batches for training: the loaders of the field and ours, images a second.

    python benchmarks/jpeg.py [--images 2000] [--rounds 3] [--workers 2] [--batch-size 64]

Makes a folder of pictures, 500 x 375: gradients, shapes and noise at several scales, quality 90.
Every loader gives the same: a random resized crop of 224, flipped half of the time, float32 and
normalized by ImageNet's mean and std, in batches, in a new random order each epoch. Peers read in
worker processes, which stay alive from epoch to epoch; ours in as many threads. All take turns,
A B C A B C ..., and medians are given, because machines are shared. What is not installed (timm,
webdataset) is left out with a line. With `--profile` only the CPU time of each stage is given.

Before, one of our batches is compared with the same boxes and flips cut by torchvision from pixels
that Pillow decoded: the numbers must be equal, but for the rounding of a decoder.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import DataLoader

from base.data.random_draws import Draws
from base.datasets.dataset_loader import IMAGENET
from base.datasets.images import decoder_name, jpeg_decoder, read_header
from base.datasets.shards.writer import main as write_shards
from base.datasets.transforms import RandomFlip, batched_transform
from base.names.construction import build
from base.system.torch_compat import keep_freed_memory
from logger.files import read_file

WIDTH, HEIGHT, SIZE, N_CLASSES = 500, 375, 224, 10
REFERENCE = "torchvision ImageFolder"
GOALS = {"Kindling, folder": 1.8, "Kindling, cache: memory": 4.0}

Variant = Callable[[], Iterable[Any]]  # an epoch: batches, images (b, 3, 224, 224) first


def picture(seed: int) -> Image.Image:
    """Draw shapes on a gradient, under noise that is fainter the finer, as photographs have it."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 256, (2, 2, 3), dtype=np.uint8)
    image = Image.fromarray(corners).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for left, top, width, height in random.integers(0, (WIDTH, HEIGHT, 200, 200), (12, 4)).tolist():
        draw = (pen.ellipse, pen.rectangle)[random.integers(2)]
        colour = tuple(random.integers(0, 256, 3).tolist())
        draw((left, top, left + width, top + height), fill=colour)
    pixels = np.asarray(image, np.float32)
    for scale, amplitude in ((1, 6), (2, 12), (4, 20), (16, 40)):
        shape = (HEIGHT // scale + 2, WIDTH // scale + 2, 3)
        noise = Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8))
        smooth = noise.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
        pixels = pixels + (np.asarray(smooth, np.float32) - 128) * (amplitude / 128)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save_picture(folder: Path, number: int) -> int:
    """Save one picture in the folder of its class; return the size of the file in bytes."""
    path = folder / f"class{number % N_CLASSES}" / f"{number:05}.jpg"
    picture(number).save(path, quality=90)
    return path.stat().st_size


def make_folder(folder: Path, n_images: int) -> list[int]:
    """Save the pictures, divided among classes; return the sizes of the files in bytes."""
    for number in range(N_CLASSES):
        (folder / f"class{number}").mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        return list(pool.map(partial(save_picture, folder), range(n_images), chunksize=50))


class Peers:
    """The loaders of other libraries, each as its documentation recommends."""

    def __init__(self, folder: Path, shards: list[str], n_workers: int, batch_size: int) -> None:
        self.folder, self.shards = folder, shards
        self.n_workers, self.batch_size = n_workers, batch_size

    def torchvision_pil(self) -> Variant:
        from torchvision import datasets

        return self._loader(datasets.ImageFolder(str(self.folder), self._pil_transforms()))

    def torchvision_io(self) -> Variant:
        """Tensors from the start, by torchvision's own decoder and its second transforms."""
        from torchvision import datasets
        from torchvision.io import ImageReadMode, decode_image, read_file
        from torchvision.transforms import v2

        steps = [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(**IMAGENET),
        ]

        def load(path: str) -> Tensor:
            return decode_image(read_file(path), ImageReadMode.RGB)

        dataset = datasets.ImageFolder(str(self.folder), v2.Compose(steps), loader=load)
        return self._loader(dataset)

    def timm(self) -> Variant:
        from timm.data import create_dataset, create_loader

        dataset = create_dataset("", str(self.folder))
        loader = create_loader(
            dataset,
            (3, SIZE, SIZE),
            self.batch_size,
            is_training=True,
            color_jitter=0.0,
            num_workers=self.n_workers,
            device=torch.device("cpu"),
        )
        return lambda: loader

    def webdataset(self) -> Variant:
        import webdataset

        dataset = webdataset.WebDataset(self.shards, shardshuffle=len(self.shards))
        dataset = dataset.shuffle(1000).decode("pil").to_tuple("jpg", "cls")
        dataset = dataset.map_tuple(self._pil_transforms()).batched(self.batch_size)
        loader = webdataset.WebLoader(
            dataset, batch_size=None, num_workers=self.n_workers, persistent_workers=True
        )
        return lambda: loader

    def _pil_transforms(self) -> Callable[[Any], Tensor]:
        from torchvision import transforms

        return transforms.Compose([
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(**IMAGENET),
        ])  # fmt: skip

    def _loader(self, dataset: Any) -> Variant:
        loader = DataLoader(
            dataset, self.batch_size, True, num_workers=self.n_workers, persistent_workers=True
        )
        return lambda: loader


class Ours:
    """What a config gives: an epoch after the other of a `DatasetLoader`."""

    def __init__(
        self, dataset: dict[str, Any], n_threads: int, batch_size: int, cache: str = "none"
    ) -> None:
        section = {
            "type": "DatasetLoader",
            "args": {
                "dataset": dataset,
                "batch_size": batch_size,
                "transforms": [
                    {"type": "RandomResizedCrop", "args": {"size": SIZE}},
                    "RandomHorizontalFlip",
                ],
                "normalize": "imagenet",
                "cache": cache,
                "num_workers": n_threads,
            },
        }
        self.loader: Any = build("data_loader", section)
        self.n_epochs = 0

    def __call__(self) -> Iterator[Any]:
        self.n_epochs += 1
        n_batches: int = len(self.loader)
        yield from self.loader.batches(self.n_epochs * n_batches, n_batches)


def variants(
    folder: Path, shards: list[str], options: argparse.Namespace
) -> dict[str, Callable[[], Variant]]:
    """Return what makes each loader, which may not be installed."""
    peers = Peers(folder, shards, options.workers, options.batch_size)
    of_files = {"type": "ImageFolderDataset", "args": {"root": str(folder)}}
    of_shards = {"type": "ShardDataset", "args": {"shards": shards}}
    size = (options.workers, options.batch_size)
    return {
        REFERENCE: peers.torchvision_pil,
        "torchvision.io, transforms.v2": peers.torchvision_io,
        "timm create_loader": peers.timm,
        "webdataset": peers.webdataset,
        "Kindling, folder": partial(Ours, of_files, *size),
        "Kindling, shards": partial(Ours, of_shards, *size),
        "Kindling, cache: memory": partial(Ours, of_files, *size, cache="memory"),
    }


def check_pixels(ours: Ours) -> None:
    """Compare a batch with the same crops and flips of pixels that Pillow decoded."""
    from torchvision.transforms import v2

    dataset, indices, epoch = ours.loader.dataset, torch.arange(0, 64), 3
    images = dataset.get_random_batch(indices, 0, epoch)[0]
    draws = Draws.for_samples(0, epoch, indices)
    crop: Any = batched_transform(v2.RandomResizedCrop(SIZE, antialias=True))
    numbers = draws.numbers(4 * crop.N_TRIES)
    are_flipped = (draws.uniform()[:, 0] < RandomFlip().p).tolist()
    finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(**IMAGENET)])
    std = torch.tensor(IMAGENET["std"]).view(3, 1, 1)
    errors: list[Tensor] = []
    pil_errors: list[Tensor] = []
    for index, (drawn, is_flipped) in enumerate(zip(numbers, are_flipped, strict=True)):
        image = Image.open(dataset.reads_from.encoded(index)).convert("RGB")
        tries = [drawn[at : at + 4] for at in range(0, len(drawn), 4)]
        top, left, height, width = box = crop._box(tries, image.height, image.width)
        whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        part = v2.functional.resized_crop(whole, *box, [SIZE, SIZE], antialias=True)
        by_pil = image.crop((left, top, left + width, top + height))
        by_pil = by_pil.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        small = torch.from_numpy(np.array(by_pil)).permute(2, 0, 1)
        for pixels, into in ((part, errors), (small, pil_errors)):
            expected = finish(pixels.flip(-1) if is_flipped else pixels)
            into.append(((images[index] - expected) * std * 255).abs())
    for name, found in (("torchvision's resized_crop", errors), ("Pillow's resize", pil_errors)):
        levels = torch.stack(found)
        print(f"pixels, against {name}: {levels.max():.3f} of 255 levels at most, "
              f"{levels.mean():.4f} in the mean")  # fmt: skip
    assert torch.stack(errors).max() < 1.01, "the pixels are not those of the reference"


def profile(ours: Ours, n_images: int) -> None:
    """Print the CPU time of each stage of our pipeline, an image, in one thread."""
    dataset: Any = ours.loader.dataset
    source, pipeline, decode = dataset.reads_from, dataset.pipeline, jpeg_decoder()
    indices = torch.arange(min(n_images, 256))
    seconds: dict[str, list[float]] = {}

    def stage(name: str, action: Callable[..., Any], *args: Any) -> Any:
        begin = time.thread_time()
        result = action(*args)
        seconds.setdefault(name, []).append((time.thread_time() - begin) / 64)
        return result

    def each(action: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        return [action(item) for item in items]

    crop, flip = pipeline.stages
    for part in indices.split(64)[: len(indices) // 64] * 3:
        draws = Draws.for_samples(0, 1, part)
        paths = [source.encoded(number) for number in part.tolist()]
        files = stage("read the file", each, read_file, paths)
        stage("read its header", each, lambda data: read_header(io.BytesIO(data)), files)
        images = stage("decode", each, lambda data: decode(data, "RGB"), files)
        small = stage("crop, resize, stack", crop.batch, images, draws)
        small = stage("flip", flip.batch, small, draws)
        stage("to float32, normalize", pipeline.as_input, small)
        stage("all of it", dataset.get_random_batch, part, 0, 1)
    for name, values in seconds.items():
        print(f"{name:30}{statistics.median(values) * 1e6:9.0f} us of CPU an image")


def images_per_second(variant: Variant) -> float:
    """Read one epoch."""
    start, count = time.perf_counter(), 0
    for images, *_ in variant():
        count += len(images)
    return count / (time.perf_counter() - start)


def report(made: dict[str, Variant], n_rounds: int) -> None:
    """Time all loaders in turn and print medians, and ratios to torchvision's."""
    rates: dict[str, list[float]] = {name: [] for name in made}
    for number in range(n_rounds + 1):
        for name, variant in made.items():
            rate = images_per_second(variant)
            if number:  # the first round warms up
                rates[name].append(rate)
    print(f"{'':34}{'images/s':>9}{'range':>14}{'/ ' + REFERENCE:>28}{'goal':>8}")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[REFERENCE], strict=True))
        spread = f"{min(values):.0f}-{max(values):.0f}"
        goal = f"{GOALS[name]:.1f}" if name in GOALS else ""
        print(f"{name:34}{statistics.median(values):9.0f}{spread:>14}{ratio:28.2f}{goal:>8}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes, and our threads")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--profile", action="store_true", help="the stages of our pipeline alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory(torch.device("cpu"))  # as a run does
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        sizes = make_folder(folder, options.images)
        arguments = ["write", str(folder), f"{temporary}/train", "--shuffle"]
        write_shards([*arguments, "--count", str(max(1, options.images // 8))])
        shards = sorted(map(str, Path(temporary).glob("train-*.tar")))
        print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} "
              f"cores, decoder {decoder_name()}, "
              f"{options.images} files of {statistics.mean(sizes):.0f} bytes, "
              f"{options.rounds} rounds")  # fmt: skip
        made = {}
        for name, make in variants(folder, shards, options).items():
            try:
                made[name] = make()
            except ImportError as error:
                print(f"{name}: left out: {error}")
        ours: Any = made["Kindling, folder"]
        check_pixels(ours)
        if options.profile:
            profile(ours, options.images)
        else:
            report(made, options.rounds)
        del made, ours  # ends the workers before the folder is removed


if __name__ == "__main__":
    main()
