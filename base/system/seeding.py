"""Derives seeds from names, and saves the state of all random number generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]
KINDS_OF_GPU = ("cuda", "xpu")  # with a generator for each device, and the same functions


def derive_seed(seed: int, *parts: int | str) -> int:
    """Return a 63-bit seed for one purpose: ``derive_seed(42, "order", epoch)``."""
    name = "/".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def derive_generator(seed: int, *parts: int | str) -> torch.Generator:
    """Return a separate generator for one purpose, seeded by `derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(seed, *parts))


def seed_everything(seed: int) -> None:
    """Seed torch on all devices, NumPy and Python."""
    torch.manual_seed(seed)
    seed_cpu_streams(seed)


def seed_cpu_streams(seed: int) -> None:
    """Seed torch's CPU generator, NumPy and Python (10 us; `torch.manual_seed` may take 700)."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def cpu_streams() -> tuple[Any, ...]:
    """Return the state of the three CPU generators: fast, but not plain data for a checkpoint."""
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()


def set_cpu_streams(streams: tuple[Any, ...]) -> None:
    """Restore the state that `cpu_streams` returned."""
    torch_state, numpy_state, python_state = streams
    torch.default_generator.set_state(torch_state)
    np.random.set_state(numpy_state)
    random.setstate(python_state)


def capture_random_state() -> RandomState:
    """Return the state of all generators (torch on all devices, NumPy, Python) as plain data.

    ``cuda`` lists the states of all GPUs, and ``cuda_device`` is the one that this process uses.
    """
    torch_state, (name, keys, position, has_gauss, gauss), python_state = cpu_streams()
    return {
        "torch": torch_state,
        "cuda": [],
        **_device_states(),
        "numpy": [str(name), keys.tolist(), int(position), int(has_gauss), float(gauss)],
        "python": python_state,
    }


def restore_random_state(state: RandomState) -> None:
    """Restore the state that `capture_random_state` returned; missing GPUs are skipped.

    The GPU that this process uses takes the state of the one that was used, whatever its number.
    """
    name, keys, *rest = state["numpy"]
    version, words, gauss = state["python"]
    numpy_state = (name, np.array(keys, dtype=np.uint32), *rest)
    set_cpu_streams((state["torch"], numpy_state, (version, tuple(words), gauss)))
    for kind in KINDS_OF_GPU:
        states, gpu = state.get(kind), getattr(torch, kind)
        if not states:
            continue
        for device, device_state in zip(range(gpu.device_count()), states, strict=False):
            gpu.set_rng_state(device_state, device)
        used = state.get(f"{kind}_device")  # missing in checkpoints of earlier versions
        if used is not None and gpu.is_initialized() and gpu.current_device() != used:
            gpu.set_rng_state(states[used], gpu.current_device())
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def _device_states() -> RandomState:
    """Return the state of the generators of GPUs in use."""
    states: RandomState = {}
    for kind in KINDS_OF_GPU:
        gpu = getattr(torch, kind)
        if gpu.is_initialized():
            states |= {kind: gpu.get_rng_state_all(), f"{kind}_device": gpu.current_device()}
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


@contextmanager
def isolated_random_state(seed: int) -> Iterator[None]:
    """Seed all generators for the block, and restore their state afterwards."""
    state = capture_random_state()
    try:
        seed_cpu_streams(seed)
        # Before a GPU is initialized, a seed would be queued and take effect after the block.
        for kind in KINDS_OF_GPU:
            if (gpu := getattr(torch, kind)).is_initialized():
                gpu.manual_seed_all(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
        yield
    finally:
        restore_random_state(state)
