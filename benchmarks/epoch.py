"""What an epoch costs from a config file: this framework, the limit, and the plain torchvision way.

    python benchmarks/epoch.py [--rounds 5] [--data data]

Fashion-MNIST, unpacked under DATA/FashionMNIST/raw (54,000 to train on, 6,000 to validate on), the
network of pytorch-template, Adam, 128 a batch. LIMIT is a bare loop over one preloaded, normalised
tensor, batches by index, no `.item()`.
All take turns in one process, A B C A B C ..., and medians are given, because machines are shared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.config import load_config
from base.datasets.array_files import read_idx
from base.names.construction import build
from base.run.build import build_experiment, choose_device
from base.run.session import open_run_in
from model.model import MnistModel

N_TRAIN, BATCH_SIZE = 54_000, 128
MEAN, STD = 0.2860, 0.3530
CONFIG = """
name: epoch
inherit: {root}/config/fashion_mnist.yaml
model: {{type: MnistModel}}
loss: nll_loss
lr_scheduler: null
data_loader: {{args: {{data_dir: "{data}", augment: {augment}, in_memory: true}}}}
optimizer: {{args: {{amsgrad: false}}}}
trainer: {{epochs: 1, tensorboard: true, progress: true, verbosity: 0, early_stop: null}}
"""


def read_data(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the images as normalised float (60000, 1, 28, 28) and the labels (60000,)."""
    raw = folder / "FashionMNIST" / "raw"
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    files = [next(f for f in (raw / name, raw / f"{name}.gz") if f.exists()) for name in names]
    images = read_idx(files[0])[:, None].to(torch.float32)
    return images.div_(255).sub_(MEAN).div_(STD), read_idx(files[1]).long()


def run_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Iterator[tuple[Tensor, Tensor]],
    valid: Iterator[tuple[Tensor, Tensor]],
) -> float:
    """Return the seconds of one epoch of the loop that people write by hand."""
    start = time.perf_counter()
    model.train()
    for images, labels in train:
        loss = F.nll_loss(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        for images, labels in valid:
            F.nll_loss(model(images), labels)
    return time.perf_counter() - start


class Bare:
    """LIMIT, with and without channels_last and the fused optimizer."""

    def __init__(self, images: Tensor, labels: Tensor, is_tuned: bool) -> None:
        torch.manual_seed(0)
        self.images, self.labels = images, labels
        self.model = MnistModel()
        if is_tuned:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=is_tuned)

    def __call__(self) -> float:
        order = torch.randperm(N_TRAIN)
        held_out = torch.arange(N_TRAIN, len(self.images))
        return run_epoch(self.model, self.optimizer, self._batches(order), self._batches(held_out))

    def _batches(self, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in order.split(BATCH_SIZE):
            yield self.images[indices], self.labels[indices]


class PlainTorchvision:
    """torchvision's data set with ToTensor and Normalize for each sample, and torch's loader."""

    def __init__(self, folder: Path, n_workers: int) -> None:
        from torch.utils.data import DataLoader, random_split
        from torchvision import datasets, transforms

        torch.manual_seed(0)
        steps = [transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))]
        whole = datasets.FashionMNIST(folder, transform=transforms.Compose(steps))
        train, valid = random_split(whole, [N_TRAIN, len(whole) - N_TRAIN])
        self.train = DataLoader(train, BATCH_SIZE, shuffle=True, num_workers=n_workers)
        self.valid = DataLoader(valid, BATCH_SIZE, num_workers=n_workers)
        self.model = MnistModel()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def __call__(self) -> float:
        return run_epoch(self.model, self.optimizer, iter(self.train), iter(self.valid))


class Kindling:
    """The trainer of a config: meters, accuracy, checkpoint, curves and all."""

    def __init__(self, folder: Path, augment: bool = False, memory: str = "{}") -> None:
        text = CONFIG.format(root=ROOT, data=folder.resolve(), augment=str(augment).lower())
        self.text = text + f"memory: {memory}\n"

    def __call__(self) -> float:
        config = load_config(None, text=self.text)
        experiment = build_experiment(config, choose_device("cpu"))
        trainer = build("trainer", config["trainer"], experiment=experiment)
        seconds = [0.0]
        for name in ("train_epoch", "validate", "end_epoch"):
            setattr(trainer, name, self._timed(getattr(trainer, name), seconds))
        with tempfile.TemporaryDirectory() as saved, open_run_in(trainer, Path(saved)) as run:
            trainer.train(run)
        return seconds[0]

    @staticmethod
    def _timed(method: Callable, seconds: list[float]) -> Callable:
        def timed(*args: object) -> object:
            start = time.perf_counter()
            try:
                return method(*args)
            finally:
                seconds[0] += time.perf_counter() - start

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    options = parser.parse_args()
    images, labels = read_data(options.data)
    variants: dict[str, Callable[[], float]] = {
        "LIMIT + channels_last + fused": Bare(images, labels, is_tuned=True),
        "LIMIT": Bare(images, labels, is_tuned=False),
        "Kindling": Kindling(options.data),
        "Kindling, shifted and mirrored": Kindling(options.data, augment=True),
        "torchvision, DataLoader, 0 workers": PlainTorchvision(options.data, 0),
        "torchvision, DataLoader, 2 workers": PlainTorchvision(options.data, 2),
    }
    print(f"torch {torch.__version__}, Python {platform.python_version()}, "
          f"{torch.get_num_threads()} threads, {options.rounds} rounds")  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(options.rounds + 1):
        for name, variant in variants.items():
            taken = variant()
            if number:  # the first round warms up
                seconds[name].append(taken)
    best, limit = seconds["LIMIT + channels_last + fused"], seconds["LIMIT"]
    print(f"{'one epoch':36}{'seconds':>9}{'range':>14}{'/ LIMIT':>9}{'/ best LIMIT':>14}")
    for name, values in seconds.items():
        ratios = [statistics.median(map(lambda a, b: a / b, values, to)) for to in (limit, best)]
        spread = f"{min(values):.1f}-{max(values):.1f}"
        print(
            f"{name:36}{statistics.median(values):9.2f}{spread:>14}{ratios[0]:9.2f}{ratios[1]:14.2f}"
        )


if __name__ == "__main__":
    main()
