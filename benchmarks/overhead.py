"""What the framework costs: microseconds a step above a bare loop (start.py has the start).

    python benchmarks/overhead.py [--rounds 7] [--steps 2000]
    python benchmarks/overhead.py --count [--rows 40]

Both loops train the same small network (64-64-10) on the same 32,000 samples in memory, 32 a batch,
with Adam. They take turns, A B C A B C ..., and medians are given, because machines are shared.

``--count`` measures nothing: it counts the Python opcodes and frames of a step, which do not depend
on the machine. All Python of the main thread counts. What torch runs itself (files in torch/) and
what the bare loop takes are shown beside it; the redraws of the bar, ten a second, are left out.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import platform
import pty
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

from base.base_data_loader import BaseDataLoader
from base.config import RunLength, load_config
from base.data.bad_samples import BadSamples
from base.network.freezing import Freezing
from base.run.session import open_run_in
from base.training.experiment import Experiment
from base.training.losses import build_losses
from base.training.metrics import build_metrics
from logger import progress
from trainer.trainer import Trainer

BATCH_SIZE, N_BATCHES = 32, 1000
SETTINGS = """
name: overhead
model: {type: MLP, args: {n_inputs: 64, hidden: [64], n_outputs: 10}}
data_loader: {type: DigitsDataLoader}
optimizer: {type: Adam, args: {lr: 1e-3}}
loss: cross_entropy
metrics: METRICS
trainer: {steps: STEPS, tensorboard: ON, progress: ON, verbosity: VERBOSITY}
"""


def make_data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (sample, 64) and labels, from a seed."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH_SIZE * N_BATCHES, 64, generator=generator)
    return inputs, torch.randint(10, (BATCH_SIZE * N_BATCHES,), generator=generator)


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)
    )  # fmt: skip


def bare(n_steps: int) -> float:
    """Return the seconds of a loop without anything around it."""
    inputs, labels = make_data()
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    order = torch.randperm(len(inputs))
    start = time.perf_counter()
    for step in range(n_steps):
        first = step % N_BATCHES * BATCH_SIZE
        indices = order[first : first + BATCH_SIZE]
        loss = F.cross_entropy(model(inputs[indices]), labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - start


def framework(n_steps: int, folder: Path, is_on: bool, metrics: str = "[]") -> float:
    """Return the seconds of the framework's epochs; bar, curves and rows on or off."""
    text = SETTINGS.replace("STEPS", str(n_steps)).replace("ON", str(is_on).lower())
    text = text.replace("VERBOSITY", "2" if is_on else "0").replace("METRICS", metrics)
    config = load_config(None, text=text)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    length = RunLength(N_BATCHES, n_steps)
    loader = BaseDataLoader(TensorDataset(*make_data()), BATCH_SIZE, True, 0, 0)
    trainer = Trainer(
        Experiment(
            config=config, device=torch.device("cpu"), model=model,
            losses=build_losses(config["loss"]), metrics=build_metrics(config["metrics"]),
            optimizers={"main": optimizer}, schedules={}, train_loader=loader, valid_loader=None,
            callbacks={}, batches_per_epoch=N_BATCHES, length=length,
            freezing=Freezing(model, [], length), bad_samples=BadSamples(config),
        )
    )  # fmt: skip
    start = time.perf_counter()
    seconds = 0.0
    epochs: list[float] = []
    train_epoch = trainer.train_epoch

    def timed() -> dict:
        begin = time.perf_counter()
        values = train_epoch()
        epochs.append(time.perf_counter() - begin)
        return values

    trainer.train_epoch = timed  # type: ignore
    with open_run_in(trainer, folder if is_on else None) as run:
        trainer.train(run)
    seconds = sum(epochs)
    assert seconds <= time.perf_counter() - start
    return seconds


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Let sys.stdout be a pseudo terminal whose screen is thrown away."""
    master, slave = pty.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(master, 65536):
                pass

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    real, sys.stdout = sys.stdout, os.fdopen(slave, "w")
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = real
        thread.join(timeout=1)
        os.close(master)


def measure_steps(rounds: int, n_steps: int) -> None:
    """Print the cost of a step, bare and with the framework around it."""

    def on(metrics: str = "[]") -> float:
        with tempfile.TemporaryDirectory() as folder, terminal():
            return framework(n_steps, Path(folder), is_on=True, metrics=metrics)

    variants: dict[str, Callable[[], float]] = {
        "bare loop": lambda: bare(n_steps),
        "framework, nothing on": lambda: framework(n_steps, Path(), is_on=False),
        "framework, bar + meters + TensorBoard": on,
        "the same + accuracy of each batch": lambda: on("[accuracy]"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, variant in variants.items():
            taken = variant()
            if number:  # the first round warms up
                seconds[name].append(taken / n_steps * 1e6)
    print(f"{'':40}{'us a step':>12}{'range':>16}{'above bare, median of rounds':>32}")
    base = seconds["bare loop"]
    for name, values in seconds.items():
        above = statistics.median(v - b for v, b in zip(values, base, strict=True))
        spread = f"{min(values):.0f}-{max(values):.0f}"
        print(f"{name:40}{statistics.median(values):12.0f}{spread:>16}{above:32.0f}")


class Counts(NamedTuple):
    """What each function (file, name) runs in a step: opcodes and frames."""

    opcodes: dict[tuple[str, str], float]
    frames: dict[tuple[str, str], float]

    def above(self, other: Counts) -> dict[tuple[str, str], tuple[float, float]]:
        """Return opcodes and frames of each function above those of another loop."""
        names = {**self.opcodes, **other.opcodes}
        return {
            name: (
                self.opcodes.get(name, 0) - other.opcodes.get(name, 0),
                self.frames.get(name, 0) - other.frames.get(name, 0),
            )
            for name in names
        }

    def total(self, in_torch: bool) -> tuple[float, float]:
        """Return all opcodes and frames, those of torch's own files or all others."""
        names = [name for name in self.opcodes if name[0].startswith("torch/") == in_torch]
        return sum(self.opcodes[n] for n in names), sum(self.frames[n] for n in names)


@contextlib.contextmanager
def traced(opcodes: collections.Counter[CodeType], frames: collections.Counter[CodeType]) -> Any:
    """Count the opcodes and calls of each function that begins in the block."""

    def enter(frame: FrameType, event: str, _: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        code = frame.f_code
        frames[code] += 1

        def count(_: FrameType, event: str, __: Any) -> Any:
            opcodes[code] += event == "opcode"
            return count

        return count

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


def count_step(run: Callable[[int], object], n_steps: int = 200) -> Counts:
    """Count a step: the difference of two runs, so that the start and end of one are left out.

    Args:
        run: makes a number of steps.
        n_steps: the steps to average over, a multiple of the steps between two logs.
    """
    redraw, progress.REDRAW_SECONDS = progress.REDRAW_SECONDS, float("inf")
    try:
        run(60)  # imports, and what is done once
        found = []
        for n in (50, 50 + n_steps):
            opcodes: collections.Counter[CodeType] = collections.Counter()
            frames: collections.Counter[CodeType] = collections.Counter()
            with traced(opcodes, frames):
                run(n)
            found.append((opcodes, frames))
    finally:
        progress.REDRAW_SECONDS = redraw
    by_function: list[dict[tuple[str, str], float]] = []
    for less, more in zip(*found, strict=True):
        sums: dict[tuple[str, str], float] = collections.defaultdict(float)
        for code, sign in [*((each, 1) for each in more), *((each, -1) for each in less)]:
            path = code.co_filename.removeprefix(f"{ROOT}/").rpartition("site-packages/")[2]
            path = path.rpartition("/lib/python")[2]
            counter = more if sign > 0 else less
            sums[path, code.co_qualname] += sign * counter[code] / n_steps
        by_function.append(sums)
    return Counts(*by_function)


def count_bare(n_steps: int = 200) -> Counts:
    """Count a step of the bare loop."""
    return count_step(bare, n_steps)


def count_framework(metrics: str = "[]", n_steps: int = 200) -> Counts:
    """Count a step of the framework with bar, meters and TensorBoard."""

    def run(n: int) -> None:
        with tempfile.TemporaryDirectory() as folder, terminal():
            framework(n, Path(folder), is_on=True, metrics=metrics)

    return count_step(run, n_steps)


def print_counts(rows: int, n_steps: int) -> None:
    """Print the opcodes and frames of a step, and the functions that run most of them."""
    base = count_bare(n_steps)
    variants = {
        "bare loop": base,
        "framework, bar + meters + TensorBoard": count_framework(n_steps=n_steps),
        "the same + accuracy of each batch": count_framework("[accuracy]", n_steps),
    }
    print(f"{'opcodes (frames) a step':40}{'in torch/':>16}{'elsewhere':>16}{'above bare':>16}")
    for name, counts in variants.items():
        sums = tuple(map(sum, zip(*counts.above(base).values(), strict=True)))
        cells = (*map(counts.total, (True, False)), sums)
        print(f"{name:40}" + "".join(f"{f'{o:.0f} ({f:.0f})':>16}" for o, f in cells))
    for name, counts in list(variants.items())[1:]:
        print(f"\n{name}: above the bare loop, by function")
        above = counts.above(base)
        for file, function in sorted(above, key=lambda each: -abs(above[each][0]))[:rows]:
            opcodes, frames = above[file, function]
            print(f"{opcodes:8.1f} {frames:6.1f}  {file}: {function}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="default: 2000, or 200 to count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", action="store_true", help="count opcodes and frames only")
    parser.add_argument("--rows", type=int, default=40, help="functions that --count prints")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.count:
        print(f"torch {torch.__version__}, Python {platform.python_version()}")
        print_counts(options.rows, options.steps or 200)
        return
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{versions}, {os.cpu_count()} cores, {options.threads} threads, {options.rounds} rounds")
    measure_steps(options.rounds, options.steps or 2000)


if __name__ == "__main__":
    main()
