"""The small networks that docs/from-pytorch-template.md trains, with the losses of its examples."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseModel


class Classifier(BaseModel):
    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        self.head = nn.Linear(16, n_classes)

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(self.body(signal))


class ClassifierWithFeatures(Classifier):
    def forward(self, signal: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(signal)
        return self.head(features), features


class PairNet(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return scale * (self.embed(left) * self.embed(right)).sum(1)


class StepNet(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, sequence: Tensor) -> Tensor:  # (batch, time) -> (batch, time)
        return self.head(self.gru(sequence.unsqueeze(-1))[0]).squeeze(-1)


class Gan(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        self.critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, noise: Tensor) -> Tensor:
        return self.generator(noise)


def masked_l1(output: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    """The mean over the steps that are there; the rest is padding."""
    is_there = torch.arange(target.size(1), device=lengths.device) < lengths.unsqueeze(1)
    return (F.l1_loss(output, target, reduction="none") * is_there).sum() / is_there.sum()


def balanced_accuracy(output: Tensor, target: Tensor) -> Tensor:
    """The mean of the classes' recalls, which no mean over batches can give."""
    hits = output.argmax(1) == target
    return torch.stack([hits[target == label].float().mean() for label in target.unique()]).mean()


def share_right(predictions: Tensor, target: Tensor) -> Tensor:
    return (predictions == target).float().mean()
