"""The exponential moving average of the weights: ``trainer.ema``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """The exponential moving average of the trained weights.

    Each step ``average = decay * average + (1 - decay) * weight`` (Polyak and Juditsky, 1992). In
    the first steps the decay is at most ``(1 + step) / (10 + step)``, so that the initial weights
    do not dominate. Buffers (the statistics of BatchNorm) are not averaged.

    Args:
        weights: the parameters that are trained now or later, by name.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self.weights = list(weights.values())
        self.averages = {name: copy.deepcopy(weight.detach()) for name, weight in weights.items()}

    def is_due(self, step: int) -> bool:
        """Return whether the average changes after this step: after each."""
        return True

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the weights after a step."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        weights: list[Tensor] = [weight.detach() for weight in self.weights]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Swap the averages into the model inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the averages and the weights of the model."""
        for weight, average in zip(self.weights, self.averages.values(), strict=True):
            kept = weight.detach().clone()
            weight.data.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        return {"n_updates": self.n_updates, "averages": dict(self.averages)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "n_updates" not in state_dict:
            raise ValueError("these are the averages of trainer.swa; use trainer.swa, not ema")
        saved = state_dict["averages"]
        shapes = {name: average.shape for name, average in self.averages.items()}
        if shapes != {name: average.shape for name, average in saved.items()}:
            raise ValueError("the saved averages do not match the trained weights")
        self.n_updates = state_dict["n_updates"]
        for name, average in self.averages.items():
            average.copy_(saved[name])
