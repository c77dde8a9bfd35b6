"""Samplers, which choose the samples of an epoch. Your own go into ``data_loader/``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from base.data.splits import draw_weighted
from base.errors import DataError


class HardExampleSampler(Sampler[int]):
    """Draws samples with a high loss more often, starting with the epoch after the loss was seen.

    An epoch is as long as the data set. The fraction `share` of it is drawn with replacement, with
    probabilities proportional to the losses; the rest is drawn without replacement. A sample whose
    loss is not known yet counts as the hardest. The first epoch has each sample once.

    Args:
        share: from 0 to 1; 0 draws each sample once per epoch.
        memory: the weight of the previous loss in the moving average of a sample's loss; the rest
            is its mean loss in the last epoch that contained it.
        n_samples: the number of samples; needed with torch's DataLoader, which does not pass it.
    """

    def __init__(
        self, share: float = 0.5, memory: float = 0.5, n_samples: int | None = None
    ) -> None:
        for name, value in {"share": share, "memory": memory}.items():
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise DataError(f"HardExampleSampler: {name} must be from 0 to 1, not {value!r}")
        self.share, self.memory, self.n_samples = share, memory, n_samples
        self.losses = torch.empty(0)  # (id,) NaN if not known

    def draw(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return the samples of an epoch, a selection of `indices`, in reading order."""
        n = len(indices)
        shuffled = indices[torch.randperm(n, generator=generator)]
        losses = self._known_losses(indices)
        known = losses[losses.isfinite()]
        if not len(known) or not known.max() > 0:
            return shuffled
        n_hard = round(self.share * n)
        weights = losses.nan_to_num(nan=float(known.max())).to(torch.float64)
        hard = indices[draw_weighted(weights, n_hard, generator)]
        mixed = torch.cat([shuffled[: n - n_hard], hard])
        return mixed[torch.randperm(n, generator=generator)]

    def update(self, ids: Tensor, losses: Tensor) -> None:
        """Update the losses of an epoch's samples; see `base/data/sampler_state.py`."""
        losses = losses.to(torch.float64).clamp(min=0)
        is_sound = losses.isfinite()
        seen, places = ids[is_sound].unique(return_inverse=True)
        sums = torch.zeros(len(seen), dtype=torch.float64)
        sums.index_add_(0, places, losses[is_sound])
        means = (sums / torch.bincount(places, minlength=len(seen))).float()
        before = self._known_losses(seen)
        means = torch.where(before.isnan(), means, self.memory * before + (1 - self.memory) * means)
        self._grow(int(seen.max()) + 1 if len(seen) else 0)
        self.losses[seen] = means

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        yield from self.draw(torch.arange(len(self)), generator).tolist()

    def __len__(self) -> int:
        if self.n_samples is None:
            raise DataError("HardExampleSampler: give n_samples with torch's DataLoader")
        return self.n_samples

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.losses = state_dict["losses"]

    def _known_losses(self, ids: Tensor) -> Tensor:
        """Return the losses of some samples, NaN if not known."""
        self._grow(int(ids.max()) + 1 if len(ids) else 0)
        return self.losses[ids]

    def _grow(self, n: int) -> None:
        n_more = n - len(self.losses)
        if n_more > 0:
            self.losses = torch.cat([self.losses, torch.full((n_more,), torch.nan)])
