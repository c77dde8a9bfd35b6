"""Random numbers that depend only on (seed, epoch, index), drawn for a whole batch at once.

A sample gets the same numbers whether it is read alone, in a batch, in a worker or after a resume.
They are hashes of counters, as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(2011). The hash is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.data.batch import send
from base.system.seeding import derive_seed


def _signed(number: int) -> int:
    """Return the signed integer with the same 64 bits, as torch's integers are signed."""
    return number - 2**64 if number >= 2**63 else number


Words = np.ndarray[Any, np.dtype[np.uint64]]
GOLDEN = 0x9E3779B97F4A7C15
STEP = _signed(GOLDEN)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Draws:
    """The random numbers of a batch: one key per sample, any number of draws.

    They are computed on the CPU, which is cheap, and copied to the images' device.

    keys  (sample,) int64, on the CPU
    """

    def __init__(self, keys: Tensor, device: torch.device | None = None) -> None:
        self.keys, self.device = keys, device
        self.n_drawn = 0

    @classmethod
    def for_samples(
        cls,
        seed: int,
        epoch: int,
        indices: Tensor | Sequence[int],
        device: torch.device | None = None,
    ) -> Draws:
        """Return the draws for these samples in this epoch."""
        start = derive_seed(seed, "sample", epoch)
        return cls(mix(torch.as_tensor(indices, dtype=torch.int64) * STEP + start), device)

    @classmethod
    def from_torch(cls, n_samples: int) -> Draws:
        """Return draws with keys from torch's global generator, for use outside of a loader."""
        return cls(torch.randint(-(2**63), 2**63 - 1, (n_samples,)))

    def sample(self, number: int) -> Draws:
        """Return the remaining draws of one sample of the batch."""
        part = Draws(self.keys[number : number + 1], self.device)
        part.n_drawn = self.n_drawn
        return part

    def copy(self) -> Draws:
        """Return an independent copy: drawing from one does not advance the other."""
        part = Draws(self.keys, self.device)
        part.n_drawn = self.n_drawn
        return part

    def uniform(self, n: int = 1) -> Tensor:
        """Draw ``n`` numbers in [0, 1) per sample: (sample, n) float32, on the device."""
        numbers = self.on_cpu(n)
        return numbers if self.device is None else send(numbers, self.device)

    def numbers(self, n: int) -> list[list[float]]:
        """Draw the same as Python numbers, for decisions made on the CPU."""
        drawn: list[list[float]] = self.on_cpu(n).tolist()
        return drawn

    def integers(self, high: int, n: int = 1) -> Tensor:
        """Draw ``n`` integers from 0 to high - 1 per sample: (sample, n) int64."""
        return as_integers(self.uniform(n), high)

    def on_cpu(self, n: int = 1) -> Tensor:
        """Draw the numbers of `uniform` on the CPU, where reading them does not wait for a GPU."""
        counters = np.arange(self.n_drawn + 1, self.n_drawn + n + 1, dtype=np.uint64)
        self.n_drawn += n
        words = _mixed(self.keys.numpy().view(np.uint64)[:, None] + counters * np.uint64(GOLDEN))
        return torch.from_numpy((words >> 40).astype(np.float32) * np.float32(2**-24))


def as_integers(drawn: Tensor, high: int) -> Tensor:
    """Return numbers in [0, 1) as integers from 0 to high - 1."""
    return (drawn * high).to(torch.int64).clamp_(max=high - 1)


def mix(words: Tensor) -> Tensor:
    """Return the hash of each integer of an int64 tensor on the CPU."""
    mixed = _mixed(words.flatten().numpy().view(np.uint64))
    return torch.from_numpy(mixed.view(np.int64)).view(words.shape)


def _mixed(words: Words) -> Words:
    """Return the hashes. numpy's unsigned integers shift zeros in, and take less time a call."""
    words = np.bitwise_xor(words, words >> 30)
    words *= FIRST  # in place from here on, for large fingerprints
    words ^= words >> 27
    words *= SECOND
    words ^= words >> 31
    return words
