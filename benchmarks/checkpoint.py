"""How long training waits for a checkpoint, how long until it is on the disk, and what it delays.

    python benchmarks/checkpoint.py [--rounds 7] [--steps 10] [--model resnet50] [--folder FOLDER]

The state is that of a torchvision model and its Adam after one step: 307 MB for ResNet-50. All ways
of saving take turns, A B C A B C ..., each on a disk that has nothing left to write; the first
round, in which buffers are allocated, is left out. Ours are the saves of the trainer, with its look
whether the weights are finite: hashed, synced and renamed. DCP is torch.distributed.checkpoint, in
one process; it syncs its files too. A save in the background competes with the training for the
cores, so the last table compares steps of training (two threads, eight images of 64 x 64) after a
save with the same steps without one: the delay is what a save costs in all. The steps have to take
longer than the write. What is in the folder's file system is what is measured: give `--folder`
where your runs lie.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from base.checkpoint.background import Snapshot
from base.checkpoint.state_file import plain_copy, sync_folder
from base.checkpoint.store import CheckpointStore
from base.training.nonfinite import first_nonfinite

PLAIN, SAFE = "torch.save", "torch.save, fsync, rename"
OURS, BESIDE = "Kindling", "Kindling, async_save: true"
GOALS = {OURS: (SAFE, 1.0), BESIDE: (PLAIN, 0.05)}  # waits at most this share of that one's wait

Way = Callable[[], Callable[[], object] | None]  # saves; returns what waits for its end, if it must


class Training:
    """A model and its Adam after a step on random gradients."""

    def __init__(self, name: str) -> None:
        from torchvision import models

        torch.manual_seed(0)
        self.model = models.get_model(name, weights=None)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.images = torch.randn(8, 3, 64, 64)

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def step(self) -> None:
        self.model(self.images).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def look(self) -> None:
        assert first_nonfinite(self.model.named_parameters()) is None


def tensors_in(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a nested state with their places in it."""
    if isinstance(value, torch.Tensor):
        yield name, value
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from tensors_in(item, f"{name}.{key}")


class Saves:
    """The ways to save one state."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        self.state = training.state()
        self.store = CheckpointStore(folder / "ours")
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

    def safetensors(self) -> None:
        """The tensors alone: it stores no other values."""
        save_file(dict(tensors_in(self.state)), self.folder / "tensors.safetensors")

    def dcp(self) -> None:
        dcp.save(self.state, checkpoint_id=self.folder / "dcp", no_dist=True)

    def dcp_async(self) -> Callable[[], object]:
        saved: Any = dcp.async_save(
            self.state,
            checkpoint_id=self.folder / "dcp_async",
            async_checkpointer_type=AsyncCheckpointerType.THREAD,
        )
        return lambda: saved.result()

    def ours(self) -> None:
        self._save(self.store)

    def beside(self) -> Callable[[], object]:
        self._save(self.beside_store)
        return self.beside_store.wait

    def _save(self, store: CheckpointStore) -> None:
        """As `BaseTrainer.save` does."""
        self.n_saved += 1
        self.training.look()
        store.save(
            self.training.state(), step=self.n_saved, epoch=1, metrics={}, is_best=False, facts={}
        )  # fmt: skip


class Parts:
    """The parts of our saves, each by itself."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.path = training, folder / "bytes"
        self.state = training.state()
        tensors = [tensor.detach() for _, tensor in tensors_in(self.state)]
        self.views = [each.reshape(-1).view(torch.uint8).numpy().data for each in tensors]
        self.snapshot = Snapshot()

    def check(self) -> None:
        plain_copy(self.state, "state", {})

    def copy(self) -> None:
        self.snapshot.take(self.state)

    def hash(self) -> None:
        digest = hashlib.sha256()
        for view in self.views:
            digest.update(view)

    def write(self) -> None:
        with self.path.open("wb", buffering=0) as file:
            for view in self.views:
                file.write(view)

    def sync(self) -> None:
        """Called after `write`, whose bytes it waits for."""
        descriptor = os.open(self.path, os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of the files in the newest folder below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def timed(way: Way) -> tuple[float, float]:
    """Return the milliseconds until training goes on, and until the save has ended."""
    begin = time.perf_counter()
    wait = way()
    waited = time.perf_counter()
    if wait is not None:
        wait()
    return (waited - begin) * 1e3, (time.perf_counter() - begin) * 1e3


def measure(ways: dict[str, Way], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the milliseconds of each, round by round, without the first round."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            if name != "fsync" and hasattr(os, "sync"):
                os.sync()
            found = timed(way)
            if number:
                taken[name].append(found)
    return taken


def measure_delays(
    training: Training, ways: dict[str, Way], n_steps: int, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Return how much later training ends with a save, and the CPU time of it, by round (ms)."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        without: tuple[float, float] | None = None
        for name, way in {"": lambda: None, **ways}.items():
            if hasattr(os, "sync"):
                os.sync()
            training.step()  # the caches are those of training
            begin, cpu_begin = time.perf_counter(), time.process_time()
            wait = way()
            for _ in range(n_steps):
                training.step()
            whole = (time.perf_counter() - begin) * 1e3
            if wait is not None:
                wait()
            cpu = (time.process_time() - cpu_begin) * 1e3
            if without is None:
                without = whole, cpu
            elif number:
                taken[name].append((whole - without[0], cpu - without[1]))
    return taken


def report_delays(taken: dict[str, list[tuple[float, float]]]) -> None:
    plain = statistics.median(delay for delay, _ in taken[PLAIN])
    print(f"{'':28}{'delay, ms':>10}{'range':>14}{'/ torch.save':>14}{'CPU, ms':>10}")
    for name, values in taken.items():
        delays = [delay for delay, _ in values]
        delay, cpu = statistics.median(delays), statistics.median(cpu for _, cpu in values)
        spread = f"{min(delays):.0f} to {max(delays):.0f}"
        print(f"{name:28}{delay:10.0f}{spread:>14}{delay / plain:14.2f}{cpu:10.0f}")


def report(taken: dict[str, list[tuple[float, float]]], sizes: dict[str, int]) -> None:
    """Print how long each makes training wait, and how long it takes."""
    print(f"{'':28}{'waits, ms':>10}{'range':>14}{'/ torch.save':>14}{'/ with fsync':>14}"
          f"{'written, ms':>13}{'range':>14}{'MB':>8}")  # fmt: skip
    waits = {name: [wait for wait, _ in values] for name, values in taken.items()}

    def ratio(name: str, base: str) -> float:
        return statistics.median(a / b for a, b in zip(waits[name], waits[base], strict=True))

    for name, values in taken.items():
        whole = [total for _, total in values]
        spread, whole_spread = (f"{min(x):.0f}-{max(x):.0f}" for x in (waits[name], whole))
        print(f"{name:28}{statistics.median(waits[name]):10.0f}{spread:>14}"
              f"{ratio(name, PLAIN):14.2f}{ratio(name, SAFE):14.2f}{statistics.median(whole):13.0f}"
              f"{whole_spread:>14}{sizes[name] / 1e6:8.1f}")  # fmt: skip
    for name, (base, most) in GOALS.items():
        found = ratio(name, base)
        verdict = "met" if found <= most else "not met"
        print(f"goal: {name} waits at most {most:.2f} of {base}: {found:.3f}, {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="of training after each save")
    parser.add_argument("--model", default="resnet50", help="one of torchvision's")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; by default /tmp")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # of DCP: one process, files replaced
    logging.getLogger("torch").setLevel(logging.ERROR)
    training = Training(options.model)
    n_bytes = sum(tensor.nbytes for _, tensor in tensors_in(training.state()))
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, "
          f"{options.threads} threads; {options.model} and Adam, {n_bytes / 1e6:.1f} MB, "
          f"{options.rounds} rounds")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        rendezvous = f"file://{folder}/rendezvous"  # async_save needs a process group
        torch.distributed.init_process_group("gloo", rendezvous, rank=0, world_size=1)
        saves, parts = Saves(training, folder), Parts(training, folder)
        ways: dict[str, tuple[Way, str]] = {
            PLAIN: (saves.plain, "plain.pt"),
            SAFE: (saves.safe, "safe.pt"),
            "safetensors save_file": (saves.safetensors, "tensors.safetensors"),
            "DCP save": (saves.dcp, "dcp"),
            "DCP async_save": (saves.dcp_async, "dcp_async"),
            OURS: (saves.ours, "ours/step-00000001"),
            BESIDE: (saves.beside, "beside/step-00000002"),
        }
        for way, _ in ways.values():
            wait = way()
            if wait is not None:
                wait()
        sizes = {name: size_of(folder / path) for name, (_, path) in ways.items()}
        report(measure({name: way for name, (way, _) in ways.items()}, options.rounds), sizes)
        print("parts of ours, each alone")
        alone: dict[str, Way] = {
            "look: weights are finite": training.look, "check: state is plain": parts.check,
            "copy into kept buffers": parts.copy, "sha256": parts.hash, "write": parts.write,
            "fsync": parts.sync,
        }  # fmt: skip
        for name, values in measure(alone, options.rounds).items():
            taken = [wait for wait, _ in values]
            spread = f"{min(taken):.0f}-{max(taken):.0f}"
            print(f"{name:28}{statistics.median(taken):10.1f}{spread:>14}")
        if options.steps:
            print(f"{options.steps} steps of training after a save, above those without one")
            delaying = {name: ways[name][0] for name in (PLAIN, SAFE, OURS, BESIDE)}
            report_delays(measure_delays(training, delaying, options.steps, options.rounds))
        torch.distributed.destroy_process_group()
        shutil.rmtree(folder / "dcp", ignore_errors=True)


if __name__ == "__main__":
    main()
