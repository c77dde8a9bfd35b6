"""The small networks that docs/from-pytorch-template.md trains, with the losses of its examples."""

from typing import Any

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


class Generator(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


class Critic(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))


class SizedClassifier(nn.Sequential):
    def __init__(self, n_inputs: int, n_classes: int) -> None:
        super().__init__(nn.Linear(n_inputs, 16), nn.ReLU(), nn.Linear(16, n_classes))


class ConfiguredClassifier(nn.Sequential):
    """Takes the whole config, and remembers its name."""

    def __init__(self, config: Any) -> None:
        hidden = config["extra"]["hidden"]
        super().__init__(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 3))
        self.of_run = config["name"]


class SignalNet(BaseModel):
    """Of the first generation: takes the config, and reads its `model` section."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.head = nn.Linear(8, config["model"]["n_classes"])

    def forward(self, signal: Tensor) -> Tensor:
        return self.head(signal)


class AutoEncoder(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 4), nn.Linear(4, 8))


class CentreLoss(nn.Module):
    """Features are drawn to the centre of their class, which is trained."""

    def __init__(self, n_classes: int, n_features: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(n_classes, n_features))

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        return (features - self.centres[target]).pow(2).sum(1).mean()


class BalancedLoss(nn.Module):
    """Cross entropy in which each class counts by the inverse of its samples."""

    def __init__(self, class_counts: list[int]) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", 1 / torch.tensor(class_counts).float())

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, self.weight)


class ReweightedLoss(nn.Module):
    """Cross entropy that is doubled from an epoch on."""

    def __init__(self, from_epoch: int) -> None:
        super().__init__()
        self.from_epoch, self.factor = from_epoch, None

    def set_epoch(self, epoch: int) -> None:
        self.factor = 2.0 if epoch >= self.from_epoch else 1.0

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * self.factor


def contrast(left: Tensor, right: Tensor) -> Tensor:
    """Each left output is to be nearest to its own right one."""
    scores = F.normalize(left, dim=1) @ F.normalize(right, dim=1).T
    return F.cross_entropy(scores / 0.2, torch.arange(len(left), device=left.device))


contrast.needs_whole_batches = True  # type: ignore[attr-defined]


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
