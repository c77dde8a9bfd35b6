"""How long training waits for a checkpoint: milliseconds, and where they go.

    python benchmarks/checkpoint.py [--rounds 7] [--model resnet50] [--folder FOLDER]

The state is that of a torchvision model and its Adam after one step: 307 MB for ResNet-50. All ways
of saving take turns, A B C A B C ..., each on a disk that has nothing left to write; the first
round is left out. Our saves are those of the trainer, with its look at the weights. Of a save
beside the training it is the time until that goes on.
What is in the folder's file system is what is measured: give `--folder` where your runs lie.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from base.checkpoint.state_file import CHUNK, plain_copy, sync_folder
from base.checkpoint.store import CheckpointStore
from base.training.nonfinite import first_nonfinite

GOAL = 1 / 3  # of the time of torch.save into a file
GOAL_BESIDE = 0.1  # of the time of our own save that training waits for to the end
PLAIN, SAFE, OURS = "torch.save", "torch.save + fsync + rename", "CheckpointStore.save"
BESIDE = "the same, async_save: true"
STEP, STEP_BESIDE = "forward and backward, alone", "the same, beside that save"
PARTS = (
    "looking whether weights are finite", "checking that the state is plain",
    "torch.save into /dev/null", "the same without CRC-32",
    "sha256 of the tensors", "writing their bytes", "fsync of the file", "copy into kept buffers",
)  # fmt: skip
FINITE, CHECK, PICKLE, NO_CRC, HASH, WRITE, SYNC, COPY = PARTS


class Training:
    """A model, its Adam after a step on random gradients, and a batch of 64 pixels square."""

    def __init__(self, name: str, batch_size: int) -> None:
        from torchvision import models

        torch.manual_seed(0)
        self.model = models.get_model(name, weights=None)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.images = torch.randn(batch_size, 3, 64, 64)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def look(self) -> None:
        assert first_nonfinite(self.model.named_parameters()) is None

    def forward_backward(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.images).logsumexp(1).mean().backward()


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Give the tensors of a nested state."""
    if isinstance(value, torch.Tensor):
        yield value
    for item in value.values() if isinstance(value, dict) else ():
        yield from tensors_in(item)


def as_bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


class Saves:
    """The ways to save one state, and the parts of them, each by itself."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        self.state = training.state()
        self.tensors = list(tensors_in(self.state))
        self.buffers = [tensor.clone() for tensor in self.tensors]
        self.store = CheckpointStore(folder / "checkpoints")
        self.beside_store = CheckpointStore(folder / "beside", in_background=True)
        self.n_saved = 0

    def plain(self) -> None:
        torch.save(self.state, self.folder / "plain.pt")

    def safe(self) -> None:
        temporary = self.folder / "safe.tmp"
        with temporary.open("wb") as file:
            torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.folder / "safe.pt")
        sync_folder(self.folder)

    def ours(self) -> None:
        self._save(self.store)

    def beside(self) -> None:
        self._save(self.beside_store)

    def _save(self, store: CheckpointStore) -> None:
        """As `BaseTrainer.save` does."""
        self.n_saved += 1
        self.training.look()
        store.save(
            self.training.state(), step=self.n_saved, epoch=1, metrics={}, is_best=False, facts={},
        )  # fmt: skip

    def make_plain(self) -> None:
        plain_copy(self.state, "state", {})

    def pickle(self) -> None:
        with Path(os.devnull).open("wb") as file:
            torch.save(self.state, file)

    def pickle_without_crc(self) -> None:
        """Leave out the checksum of each part, which a sha256 of the file makes needless."""
        torch.serialization.set_crc32_options(False)
        try:
            self.pickle()
        finally:
            torch.serialization.set_crc32_options(True)

    def hash(self) -> None:
        digest = hashlib.sha256()
        for tensor in self.tensors:
            view = as_bytes(tensor)
            for start in range(0, len(view), CHUNK):
                digest.update(view[start : start + CHUNK])

    def write(self) -> None:
        with (self.folder / "bytes").open("wb", buffering=0) as file:
            for tensor in self.tensors:
                file.write(as_bytes(tensor))

    def sync(self) -> None:
        """Called after `write`, whose bytes it waits for."""
        descriptor = os.open(self.folder / "bytes", os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)

    def copy(self) -> None:
        for buffer, tensor in zip(self.buffers, self.tensors, strict=True):
            buffer.copy_(tensor)


def timed(action: Callable[[], object]) -> float:
    """Return for how many milliseconds it runs."""
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1e3


def measure(saves: Saves, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each way and each part, round by round; the first comes last."""
    training = saves.training
    variants: dict[str, Callable[[], None]] = {
        PLAIN: saves.plain, SAFE: saves.safe, OURS: saves.ours, BESIDE: saves.beside,
        STEP: training.forward_backward, FINITE: training.look,
        CHECK: saves.make_plain, PICKLE: saves.pickle, NO_CRC: saves.pickle_without_crc,
        HASH: saves.hash, WRITE: saves.write, SYNC: saves.sync, COPY: saves.copy,
    }  # fmt: skip
    order = [PLAIN, SAFE, OURS, BESIDE, STEP_BESIDE, STEP, *PARTS]
    taken: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds + 1):
        for name, variant in variants.items():
            if name != SYNC and hasattr(os, "sync"):
                os.sync()
            taken[name].append(timed(variant))
            if name == BESIDE:
                taken[STEP_BESIDE].append(timed(training.forward_backward))
                saves.beside_store.wait()
    return {name: [*values[1:], values[0]] for name, values in taken.items()}


def report(taken: dict[str, list[float]]) -> None:
    """Print the table, and what stands between it and the goal."""
    print(f"{'':34}{'ms, median':>12}{'range':>16}{'/ torch.save, median of rounds':>32}")
    median, ratio = {}, {}
    first = {name: values.pop() for name, values in taken.items()}
    for name, values in taken.items():
        if name == PARTS[0]:
            print("parts of it, each alone")
        median[name] = statistics.median(values)
        ratio[name] = statistics.median(v / b for v, b in zip(values, taken[PLAIN], strict=True))
        spread = f"{min(values):.0f}-{max(values):.0f}"
        print(f"{name:34}{median[name]:12.1f}{spread:>16}{ratio[name]:32.2f}")
    verdict = "met" if ratio[BESIDE] <= GOAL else "not met"
    print(f"goal: at most {GOAL:.2f} of torch.save, hashed, fsynced and renamed: "
          f"{ratio[BESIDE]:.2f}, {verdict}")  # fmt: skip
    share = statistics.median(a / b for a, b in zip(taken[BESIDE], taken[OURS], strict=True))
    verdict = "met" if share <= GOAL_BESIDE else "not met"
    print(f"goal: at most {GOAL_BESIDE:.2f} of {OURS}: {share:.3f}, {verdict}")
    print(f"the first time, into new memory: {first[BESIDE]:.0f} ms; load {os.getloadavg()[0]:.1f}")
    waits = ", ".join(f"{name} {median[name]:.0f} ms" for name in (PICKLE, HASH, WRITE, SYNC))
    print(f"what {OURS} waits for: {waits}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="resnet50", help="one of torchvision's")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; by default /tmp")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--batch-size", type=int, default=8, help="of the step after a save")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    training = Training(options.model, options.batch_size)
    n_bytes = sum(tensor.nbytes for tensor in tensors_in(training.state()))
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"{options.model} + Adam, {n_bytes / 1e6:.0f} MB, {options.rounds} rounds, "
          f"{options.threads} threads")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report(measure(Saves(training, Path(folder)), options.rounds))


if __name__ == "__main__":
    main()
