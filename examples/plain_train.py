"""What `python train.py -c config/digits.yaml` computes, as one plain script.

Same network, data, order, rates and random numbers, so both reach the same losses, bit for bit;
a test holds them to it. What the script lacks is all that the framework is for: a config, checks,
checkpoints, resume, curves, signals. Run it from the project's root: python examples/plain_train.py
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
    """Return the images (sample, 1, 8, 8) and labels that are not set aside for the test."""
    arrays = np.load("data/digits.npz")
    is_train = np.ones(len(arrays["labels"]), dtype=bool)
    is_train[arrays["test_ids"]] = False
    images = torch.from_numpy(arrays["images"][is_train]).float() * (1 / 16)
    return images.unsqueeze(1), torch.from_numpy(arrays["labels"][is_train]).long()


def initialise(model: nn.Module) -> None:
    """Kaiming for the layers before a ReLU, a small normal for the head, no bias."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer is model.head:
            nn.init.normal_(layer.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def groups(model: nn.Module) -> list[dict]:
    """Weight decay for the weights of layers, none for biases and norms."""
    decayed: list[Tensor] = []
    spared: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_spared = name.endswith(".bias") or "norm" in name
        (spared if is_spared else decayed).append(parameter)
    return [{"params": decayed}, {"params": spared, "weight_decay": 0}]


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
