"""Randomness as a value: seeds derived from names, the random state as plain data."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def derive_seed(seed: int, *parts: int | str) -> int:
    """Return a seed of 63 bits for one purpose: ``derive_seed(42, "order", epoch)``."""
    name = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def derive_generator(seed: int, *parts: int | str) -> torch.Generator:
    """Return a generator that no other stream of random numbers can disturb."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))


def seed_everything(seed: int) -> None:
    """Seed torch on every device, numpy and python."""
    torch.manual_seed(seed)
    seed_cpu_streams(seed)


def seed_cpu_streams(seed: int) -> None:
    """Seed torch's CPU generator, numpy and python (10 us; `torch.manual_seed` may take 700)."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def cpu_streams() -> tuple[Any, ...]:
    """Return the state of the three CPU streams for this process: quick, not for a checkpoint."""
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()


def set_cpu_streams(streams: tuple[Any, ...]) -> None:
    """Put back what `cpu_streams` found."""
    torch_state, numpy_state, python_state = streams
    torch.default_generator.set_state(torch_state)
    np.random.set_state(numpy_state)
    random.setstate(python_state)


def capture_random_state() -> RandomState:
    """Return the state of all streams (torch on CPU and CUDA, numpy, python) as plain data."""
    torch_state, (name, keys, position, has_gauss, gauss), python_state = cpu_streams()
    return {
        "torch": torch_state,
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [str(name), keys.tolist(), int(position), int(has_gauss), float(gauss)],
        "python": python_state,
    }


def restore_random_state(state: RandomState) -> None:
    """Put every stream back where `capture_random_state` found it; GPUs not here are left out."""
    name, keys, *rest = state["numpy"]
    version, words, gauss = state["python"]
    numpy_state = (name, np.array(keys, dtype=np.uint32), *rest)
    set_cpu_streams((state["torch"], numpy_state, (version, tuple(words), gauss)))
    for device, cuda_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda_state, device)


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Seed all streams for the block; afterwards they stand where they stood before it."""
    state = capture_random_state()
    try:
        seed_cpu_streams(seed)
        if torch.cuda.is_initialized():  # else the seed would wait for CUDA's start and outlive us
            torch.cuda.manual_seed_all(seed)
        yield
    finally:
        restore_random_state(state)
