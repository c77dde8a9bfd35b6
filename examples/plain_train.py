"""The computation of `python train.py -c config/digits.yaml` as one plain script.

Network, data, order, rates and random numbers are the same, and so are the losses, bit for bit, as
a test checks. The script has no config, checks, checkpoints, resume, curves or signal handling.
Run it from the root of the project: python examples/plain_train.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from base import derive_generator
from model.model import DigitsNet

SEED, EPOCHS, BATCH_SIZE = 42, 20, 128


def load_digits() -> tuple[Tensor, Tensor]:
    """Return the images (sample, 1, 8, 8) and labels outside the test set."""
    arrays = np.load("data/digits.npz")
    is_train = np.ones(len(arrays["labels"]), dtype=bool)
    is_train[arrays["test_ids"]] = False
    images = torch.from_numpy(arrays["images"][is_train]).float() * (1 / 16)
    return images.unsqueeze(1), torch.from_numpy(arrays["labels"][is_train]).long()


def initialise(model: nn.Module) -> None:
    """Use Kaiming for layers before a ReLU, a small normal for the head, and zero biases."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer is model.head:
            nn.init.normal_(layer.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def groups(model: nn.Module) -> list[dict]:
    """Return parameter groups: weight decay for weights of layers, none for biases and norms."""
    decayed: list[Tensor] = []
    no_decay: list[Tensor] = []
    for name, parameter in model.named_parameters():
        has_no_decay = name.endswith(".bias") or "norm" in name
        (no_decay if has_no_decay else decayed).append(parameter)
    return [{"params": decayed}, {"params": no_decay, "weight_decay": 0}]


@torch.inference_mode()
def validate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean loss and the accuracy."""
    model.eval()
    loss, n_right = 0.0, 0
    for x, y in zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True):
        outputs = model(x)
        loss += F.cross_entropy(outputs, y).item() * len(y)
        n_right += (outputs.argmax(dim=1) == y).sum().item()
    return loss / len(labels), n_right / len(labels)


def main(epochs: int = EPOCHS) -> list[dict[str, float]]:
    """Train and return the losses of each epoch."""
    torch.manual_seed(SEED)
    images, labels = load_digits()
    order = torch.randperm(len(images), generator=derive_generator(SEED, "split"))
    n_valid = int(0.1 * len(images))
    valid, train = order[:n_valid].sort().values, order[n_valid:].sort().values

    model = DigitsNet(width=32)
    initialise(model)
    optimizer = torch.optim.AdamW(groups(model), lr=1e-3, weight_decay=0.05)
    n_batches = -(-len(train) // BATCH_SIZE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=EPOCHS * n_batches
    )

    log = []
    for epoch in range(epochs):
        model.train()
        total = 0.0
        generator = derive_generator(SEED, "order", epoch)
        shuffled = train[torch.randperm(len(train), generator=generator)]
        for indices in shuffled.split(BATCH_SIZE):
            loss = F.cross_entropy(model(images[indices]), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(indices)
        valid_loss, accuracy = validate(model, images[valid], labels[valid])
        log.append({"train": total / len(train), "valid": valid_loss, "accuracy": accuracy})
        print(f"epoch {epoch + 1:2d}  train {log[-1]['train']:.4f}  valid {valid_loss:.4f}  "
              f"accuracy {accuracy:.4f}")  # fmt: skip
    return log


if __name__ == "__main__":
    main()
