"""A project with runs of every kind, whose validation predictions are known."""

from __future__ import annotations

import csv
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import train
from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.store import read_with_manifest
from base.config.loading import load_config
from base.run.build import build_experiment, build_trainer
from base.run.testing import choose_checkpoint, tested_state

ROOT = Path(__file__).resolve().parent.parent.parent.parent
CPU = torch.device("cpu")

OWN = {
    "data_loader/own.py": '''
"""Loaders and data sets of a project's own."""
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from base import BaseDataLoader, ImageFolderDataset, decode_image


class VectorsLoader(BaseDataLoader):
    """40 vectors of 6 numbers and their class."""

    def __init__(self, batch_size=8, validation_split=0.25):
        x, y = vectors()
        super().__init__(TensorDataset(x, y), batch_size, True, validation_split, 0)
        self.n_classes = 2


class FilesLoader(VectorsLoader):
    """The same, and a way to read one from a file of numbers."""

    def __init__(self, batch_size=8, validation_split=0.25, scale=1.0):
        super().__init__(batch_size, validation_split)

    @staticmethod
    def prepare_file(path, scale):
        return torch.tensor([float(x) for x in Path(path).read_text().split()]) * scale


def vectors():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


class PairsDataset(Dataset):
    """Two inputs by name, and two targets."""

    def __init__(self):
        self.x, self.y = vectors()

    def __len__(self):
        return 40

    def __getitem__(self, index):
        x = self.x[index]
        return {"left": x[:4], "right": x[4:], "kind": self.y[index]}


class PairsLoader(BaseDataLoader):
    def __init__(self, batch_size=8, validation_split=0.25):
        super().__init__(PairsDataset(), batch_size, True, validation_split, 0)


class NumpyImages(Dataset):
    """Images of a file type that Pillow does not know: npy arrays."""

    def __init__(self, root):
        self.files = sorted(Path(root).glob("*.npy"))
        self.targets = [number % 2 for number in range(len(self.files))]

    def __len__(self):
        return len(self.files)

    @staticmethod
    def prepare_file(path):
        return np.load(path)

    def __getitem__(self, index):
        return self.prepare_file(self.files[index]), self.targets[index]


class WeighedFolder(ImageFolderDataset):
    """Images with a weight of each."""

    def sample_numbers(self, name):
        return torch.ones(len(self)) if name == "sizes" else None


class OwnImages(ImageFolderDataset):
    """Images that a function of the project reads for predictions."""

    @staticmethod
    def prepare_file(path, resize):
        return decode_image(Path(path), resize=resize)


class TextDataset(Dataset):
    """Token numbers."""

    def __init__(self):
        generator = torch.Generator().manual_seed(2)
        self.x = torch.randint(9, (40, 5), generator=generator)
        self.targets = (self.x[:, 0] > 4).long()

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return self.x[index], self.targets[index]


class TextLoader(BaseDataLoader):
    def __init__(self, batch_size=8, validation_split=0.25):
        super().__init__(TextDataset(), batch_size, True, validation_split, 0)
''',
    "model/own.py": '''
"""Models of a project's own."""
import torch
from torch import nn


class PairNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, left, right):
        return self.left(left) + self.right(right)


class TokenNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.embed(x).mean(dim=1))


class TableNet(nn.Module):
    """Numbers and codes."""

    def __init__(self, n_numbers, n_codes, n_outputs):
        super().__init__()
        self.embed = nn.ModuleList(nn.Embedding(n, 3) for n in n_codes)
        self.head = nn.Linear(n_numbers + 3 * len(n_codes), n_outputs)

    def forward(self, numbers, codes):
        parts = [each(codes[:, n]) for n, each in enumerate(self.embed)]
        return self.head(torch.cat([numbers, *parts], dim=1))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.kind, self.size = nn.LazyLinear(8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x):
        x = self.body(x.flatten(1))
        return {"kind": self.kind(x), "size": self.size(x)[:, 0]}


class Flat(nn.Module):
    """A linear layer on pixels, whose width is found with the first batch."""

    def __init__(self, n_outputs=3):
        super().__init__()
        self.head = nn.LazyLinear(n_outputs)

    def forward(self, x):
        return self.head(x.flatten(1))


class OneScore(Flat):
    def __init__(self):
        super().__init__(1)

    def forward(self, x):
        return super().forward(x)[:, 0]
''',
    "model/own_losses.py": '''
"""A loss of a project's own."""
import torch.nn.functional as F


def bce_of_class(output, target):
    return F.binary_cross_entropy_with_logits(output, target.float())


def kind_loss(output, target):
    return F.cross_entropy(output["kind"], target) + output["size"].square().mean()
''',
    "trainer/own.py": '''
"""Trainers of a project's own."""
from base import BaseTrainer


class TwiceTrainer(BaseTrainer):
    """Calls the model itself, and adds what it returns for the mirrored image."""

    def forward(self, batch):
        images, labels = batch
        return {"scores": self.model(images) + self.model(images.flip(-1)), "n": len(labels)}

    def compute_losses(self, outputs, batch):
        return {"loss": self.losses["cross_entropy"](outputs["scores"], batch[1])}

    def predict(self, outputs):
        return outputs["scores"]
''',
}


class Project:
    """A folder with a project, in which runs are trained and their validation data predicted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("model", "data_loader", "trainer"):
            shutil.copytree(ROOT / part, folder / part)
        for name, text in OWN.items():
            (folder / name).write_text(text, encoding="utf-8")
        shutil.copytree(ROOT / "data", folder / "data")
        make_images(folder / "images")
        make_table(folder / "cars.csv")
        self.runs: dict[tuple[str, ...], Path] = {}

    def train(self, text: str, *words: str) -> Path:
        """Train a config for one epoch, once; return the run's folder."""
        key = (text, *words)
        if key not in self.runs:
            self.runs[key] = self._train(text, *words)
        return self.runs[key]

    def _train(self, text: str, *words: str) -> Path:
        name = f"run{len(self.runs) + 1}"
        config = self.folder / f"{name}.yaml"
        tail = "trainer: {epochs: 1, tensorboard: false, progress: false, verbosity: 0}\n"
        config.write_text(f"name: {name}\nseed: 3\n{text}\n{tail}", encoding="utf-8")
        assert train.main(["-c", str(config), "-d", "cpu", *words]) == 0
        (run,) = (self.folder / "saved" / name).iterdir()
        return run


class Recorder:
    """Stands for a metric, and keeps what it receives."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.predictions: list[Tensor] = []

    def update(self, predictions: Any, target: Any, batch: Any, n_samples: int | None) -> None:
        self.predictions.append(predictions.detach().float())


def validation(run: Path) -> tuple[list[int], list[str], Tensor]:
    """Return indices, ids and predictions of the validation samples, from the trainer's loop."""
    config = load_config(run / "config.yaml", ["memory.compile=false"])
    checkpoint = choose_checkpoint(run)
    state, _ = read_with_manifest(checkpoint)
    trainer = build_trainer(config, build_experiment(config, CPU, weights=False))
    parts = tested_state(trainer)
    load_state_dicts(parts, {name: value for name, value in state.items() if name in parts})
    recorder = Recorder()
    trainer.training_state.valid_metrics = {}
    trainer.measure = _recording(trainer, recorder)  # type: ignore[method-assign]
    loader = trainer.valid_loader
    with trainer.epoch_start.as_saved():
        trainer.evaluate(loader, "valid")
    indices = loader.sample_indices().tolist()
    return indices, loader.sample_ids(), torch.cat(recorder.predictions)


def _recording(trainer: Any, recorder: Recorder) -> Any:
    def measure(outputs: Any, batch: Any) -> None:
        more = (batch,) if trainer._predict_takes_batch else ()
        found, batch = trainer.in_own_unit(trainer.predict(outputs, *more), batch)
        recorder.update(found, None, batch, None)

    return measure


def make_images(folder: Path) -> None:
    """Make image folders of three classes, of unequal sizes and of every kind; and equal ones."""
    numbers = np.random.default_rng(0)
    for kind in ("any", "equal", "grey"):
        for label in ("a", "b with space", "ü"):
            place = folder / kind / label
            place.mkdir(parents=True)
            for n in range(8):
                shape = (20 + n, 24 + 2 * n, 3) if kind == "any" else (12, 10, 3)
                pixels = numbers.integers(0, 256, shape, dtype=np.uint8)
                save_as(kind, n if kind == "any" else 9, pixels, place / f"{n}.png")
    scenes, arrays = folder / "scenes", folder / "arrays"
    for part in (scenes / "images" / "deep", scenes / "masks" / "deep", arrays):
        part.mkdir(parents=True)
    for n in range(8):
        pixels = numbers.integers(0, 256, (16 + n, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(scenes / "images" / "deep" / f"{n}.png")
        classes = (pixels[..., 0] > 128).astype(np.uint8)
        Image.fromarray(classes).save(scenes / "masks" / "deep" / f"{n}.png")
    for n in range(12):
        np.save(arrays / f"{n:02}.npy", numbers.integers(0, 256, (6, 6, 3), dtype=np.uint8))


def save_as(kind: str, n: int, pixels: np.ndarray, path: Path) -> None:
    """Write an image: a JPEG, with transparency, on its side, with 16 bits, or plain."""
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind == "grey":
        image.convert("L").save(path)
    elif n == 0:
        image.save(path.with_suffix(".jpg"), quality=95)
    elif n == 1:
        image.convert("RGBA").save(path)
    elif n == 2:
        image.save(path.with_suffix(".jpg"), exif=exif)
    elif n == 3:
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
    else:
        image.save(path)


def make_table(path: Path) -> None:
    """Make a table with text, gaps and dates, and two numbers to predict."""
    draw = random.Random(0)
    rows = [["id", "maker", "fuel", "sold", "mileage", "doors", "price", "age", "kind", "warm"]]
    for number in range(60):
        mileage = draw.randrange(200_000)
        rows.append([
            f"c{number}", draw.choice(["Fiat", "Škoda", "BMW"]),
            draw.choice(["petrol", "diesel", ""]),
            f"2024-{draw.randint(1, 12):02}-01", mileage if draw.random() > 0.2 else "",
            draw.choice([2, 4, 5]), round(20_000 - mileage / 20, 2), round(mileage / 10_000, 1),
            draw.choice(["small", "large"]), draw.choice([0, 1]),
        ])  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
