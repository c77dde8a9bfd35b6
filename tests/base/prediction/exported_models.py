"""A project with the kinds of models that are exported, and what trains one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import export
import train

FILES = {
    "model/metric.py": """
        def accuracy(output, target):
            return (output.argmax(dim=1) == target).float().mean()
    """,
    "trainer/trainer.py": """
        from base import BaseTrainer


        class Trainer(BaseTrainer):
            pass
    """,
    "model/model.py": """
        import torch
        from torch import nn
        from base import BaseModel


        class Net(BaseModel):
            def __init__(self, n_outputs=3):
                super().__init__()
                self.conv = nn.Conv2d(1, 4, 3, padding=1)
                self.norm = nn.BatchNorm2d(4)
                self.drop = nn.Dropout(0.5)
                self.head = nn.Linear(4, n_outputs)

            def forward(self, images):
                features = self.norm(self.conv(images)).relu().mean(dim=(2, 3))
                return self.head(self.drop(features))


        class DictOutput(Net):
            def forward(self, images):
                scores = super().forward(images)
                return {"scores": scores, "parts": (scores.exp(), scores[:, 0])}


        class Lazy(BaseModel):
            def __init__(self):
                super().__init__()
                layers = nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.LazyLinear(3)
                self.layers = nn.Sequential(*layers)

            def forward(self, images):
                return self.layers(images)


        class Tied(BaseModel):
            def __init__(self):
                super().__init__()
                self.first = nn.Linear(64, 64)
                self.second = nn.Linear(64, 64)
                self.second.weight = self.first.weight
                self.head = nn.Linear(64, 3)

            def forward(self, images):
                return self.head(self.second(self.first(images.flatten(1)).relu()).relu())


        class TwoInputs(Net):
            def forward(self, image, age):
                return super().forward(image) * age[:, None]


        class Words(BaseModel):
            def __init__(self):
                super().__init__()
                self.words = nn.Embedding(7, 4)
                self.head = nn.Linear(4, 3)

            def forward(self, words):
                return self.head(self.words(words).mean(dim=1))


        class Branch(Net):
            def forward(self, images):
                scores = super().forward(images)
                if scores.sum() > 0:
                    scores = scores + 1
                return scores


        class Inverse(Net):
            def forward(self, images):
                scores = super().forward(images)
                return torch.linalg.svd(scores[:, :, None] * scores[:, None])[1]


        class Pair(Net):
            def forward(self, images):
                scores = super().forward(images)
                return scores + (images.sum() if len(images) == 2 else 0)


        class Sampled(Net):
            def forward(self, images):
                scores = super().forward(images)
                return scores + torch.randn_like(scores)


        class Mask(BaseModel):
            def __init__(self):
                super().__init__()
                self.conv = nn.Conv2d(1, 3, 3, padding=1)

            def forward(self, images):
                return self.conv(images)
    """,
    "data_loader/own.py": """
        import torch
        from torch.utils.data import Dataset
        from base import BaseDataLoader


        class Ages(Dataset):
            def __len__(self):
                return 24

            def __getitem__(self, index):
                generator = torch.Generator().manual_seed(index)
                image = torch.rand(1, 8, 8, generator=generator)
                return image, torch.tensor(index / 24), index % 3


        class Named(Ages):
            def __getitem__(self, index):
                image, age, target = super().__getitem__(index)
                return {"image": image, "age": age, "target": target}


        class Texts(Dataset):
            def __len__(self):
                return 24

            def __getitem__(self, index):
                return torch.arange(5) % 7, index % 3


        class Loader(BaseDataLoader):
            def __init__(self, kind, batch_size=8):
                kinds = {"ages": Ages, "named": Named, "texts": Texts}
                super().__init__(kinds[kind](), batch_size, False, 0.25, 0)
    """,
}

OWN = {name: {"type": "Loader", "args": {"kind": name}} for name in ("ages", "named", "texts")}


def write_images(folder: Path, n_samples: int = 24) -> None:
    """Write images.npz: digits' sizes, three classes, masks and two numbers as targets."""
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (n_samples, 8, 8), dtype=np.uint8)
    np.savez(
        folder / "images.npz",
        images=images,
        labels=np.arange(n_samples) % 3,
        masks=(images // 86).astype(np.uint8),
        yes=(np.arange(n_samples) % 2).astype(np.float32)[:, None],
        pairs=draws.normal(size=(n_samples, 2)).astype(np.float32),
    )


def arrays(targets: str = "labels", **args: Any) -> dict[str, Any]:
    """Return the section of a loader of images.npz."""
    given = {"file": "images.npz", "inputs": "images", "targets": targets, "layout": "NHW"}
    dataset = {"type": "ArrayFileDataset", "args": given}
    settings = {"batch_size": 8, "split": 0.25, "normalize": "auto", "num_workers": 0, **args}
    return {"type": "DatasetLoader", "args": {"dataset": dataset, **settings}}


def train_model(folder: Path, monkeypatch: pytest.MonkeyPatch, **sections: Any) -> Path:
    """Train a config for two epochs in a folder, in this process; return the run's folder."""
    monkeypatch.chdir(folder)
    if not (folder / "images.npz").exists():
        write_images(folder)
    config = {
        "name": "tiny",
        "threads": 1,
        "model": {"type": "Net"},
        "data_loader": arrays(),
        "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
        "loss": "cross_entropy",
        "trainer": {"epochs": 2},
        **sections,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    former = {*folder.glob("saved/*/*")}
    assert train.main(["-c", "tiny.yaml", "-d", "cpu"]) == 0
    (run,) = {*folder.glob("saved/*/*")} - former
    return run


def call_export(*words: str | Path) -> int:
    """Call export.py in this process."""
    return export.main([*map(str, words)])


def loaded_model(run: Path, module: str | None = None) -> torch.nn.Module:
    """Build the model of a run and load its best weights, in evaluation mode."""
    from base.prediction import load_trained

    trained = load_trained(run, torch.device("cpu"))
    return trained.model if module is None else trained.model.get_submodule(module)
