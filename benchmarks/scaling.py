"""What several processes cost: the time of a step and the bytes sent, against torch's DDP.

    python benchmarks/scaling.py [--sizes 1 2 4] [--rounds 7] [--seconds 1.5]

Each process trains on 32 samples a step, so with an ideal connection and a core for each process
a step takes as long as in one. The loops take turns, A B C A B C ..., within one launch: a bare
loop that sends nothing (all processes run it at once), the same around DistributedDataParallel,
and the framework's (order, shares, messages, sums, meters), with its sums beside the backward pass
and after it. Model, forward pass, loss, optimizer and data are the same. A round gives the median
time of its steps, after the first five; medians over the rounds are printed, and of their ratios.
"ms on cores" is the processor time of a process, with the threads that send; "bytes" are those
handed to collective operations in a step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from base.base_data_loader import BaseDataLoader
from base.callbacks import Callback
from base.config import RunLength, load_config
from base.data.bad_samples import BadSamples
from base.distributed import ALONE, World, join_processes
from base.network.freezing import Freezing
from base.run.session import open_run_in
from base.training.experiment import Experiment
from base.training.losses import build_losses
from trainer.trainer import Trainer

BATCH_SIZE, N_BATCHES, FIRST_STEPS = 32, 50, 5  # samples of a process
SETTINGS = """
name: scaling
model: {type: MLP, args: {n_inputs: 64, hidden: [64], n_outputs: 10}}
data_loader: {type: DigitsDataLoader}
optimizer: {type: SGD, args: {lr: 1e-3}}
loss: cross_entropy
distributed: {overlap: OVERLAP}
trainer: {steps: STEPS, tensorboard: false, progress: false, verbosity: 0}
"""


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def perceptron(*widths: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for n_inputs, n_outputs in zip((3 * 16 * 16, *widths), (*widths, 10), strict=True):
        layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "small MLP": lambda: perceptron(64),
    "conv net": convolutions,
    "MLP": lambda: perceptron(2048, 2048, 2048),
}


def make_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def make_data(world: World) -> tuple[Tensor, Tensor]:
    """Return images (sample, channel, height, width) and labels of all processes, from a seed."""
    generator = torch.Generator().manual_seed(0)
    n = BATCH_SIZE * N_BATCHES * world.size
    images = torch.randn(n, 3, 16, 16, generator=generator)
    return images, torch.randint(10, (n,), generator=generator)


class Times(Callback):
    """The time at which each step ends, and the time on a core until then."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, trainer: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    @property
    def step(self) -> tuple[float, float]:
        """The milliseconds of a step after the first ones: the median, and the mean on cores."""
        ends = self.ends[FIRST_STEPS:]
        wall = statistics.median(b - a for (a, _), (b, _) in pairwise(ends))
        return 1e3 * wall, 1e3 * (ends[-1][1] - ends[0][1]) / (len(ends) - 1)


def bare(model: nn.Module, world: World, n_steps: int, rank: int) -> tuple[float, float]:
    """Return the time of a step of a loop without anything around it."""
    images, labels = make_data(world)
    optimizer, times = make_optimizer(model), Times()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    size = BATCH_SIZE * world.size
    for step in range(n_steps):
        first = step % N_BATCHES * size
        indices = order[first : first + size][rank :: world.size]
        loss = F.cross_entropy(model(images[indices]), labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.on_step_end(None)
    return times.step


def alone(name: str, world: World, n_steps: int) -> tuple[float, float]:
    return bare(make_model(name), ALONE, n_steps, rank=0)


def ddp(name: str, world: World, n_steps: int) -> tuple[float, float]:
    model: nn.Module = make_model(name)
    if world.size > 1:
        model = nn.parallel.DistributedDataParallel(model)
    return bare(model, world, n_steps, world.rank)


def framework(name: str, world: World, n_steps: int, overlaps: bool) -> tuple[float, float]:
    text = SETTINGS.replace("STEPS", str(n_steps)).replace("OVERLAP", str(overlaps).lower())
    config = load_config(None, text=text)
    model, times = make_model(name), Times()
    length = RunLength(N_BATCHES, n_steps)
    loader = BaseDataLoader(TensorDataset(*make_data(world)), BATCH_SIZE * world.size, True, 0, 0)
    experiment = Experiment(
        config=config, device=torch.device("cpu"), model=model,
        losses=build_losses(config["loss"]), metrics={},
        optimizers={"main": make_optimizer(model)}, schedules={}, train_loader=loader,
        valid_loader=None, callbacks={"times": times}, batches_per_epoch=N_BATCHES, length=length,
        freezing=Freezing(model, [], length), bad_samples=BadSamples(config),
    )  # fmt: skip
    experiment.share_with(world)
    trainer = Trainer(experiment)
    with open_run_in(trainer, None) as run:
        trainer.train(run)
    return times.step


LOOPS: dict[str, Callable[[str, World, int], tuple[float, float]]] = {
    "one process": alone,
    "DDP": ddp,
    "ours": lambda name, world, n_steps: framework(name, world, n_steps, overlaps=True),
    "ours, no overlap": lambda name, world, n_steps: framework(
        name, world, n_steps, overlaps=False
    ),
}


def count_bytes(name: str, world: World, n_steps: int = 10) -> dict[str, float]:
    """Return the bytes that a process hands to collective operations in a step."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    assert world.agreement is not None
    sent = 0
    begin_sum, send = world.begin_sum, world.agreement._send

    def count_sum(tensor: Tensor) -> Any:
        nonlocal sent
        sent += tensor.nbytes
        return begin_sum(tensor)

    def count_message(kind: Any, step: int, row: array[float]) -> Any:
        nonlocal sent
        sent += len(row) * row.itemsize
        return send(kind, step, row)

    def count_bucket(state, bucket):  # DDP refuses annotations that are strings
        nonlocal sent
        sent += bucket.buffer().nbytes
        return allreduce_hook(state, bucket)

    found: dict[str, float] = {}
    world.begin_sum, world.agreement._send = count_sum, count_message  # type: ignore
    try:
        framework(name, world, n_steps, overlaps=True)
        found["ours"] = sent / n_steps
    finally:
        world.begin_sum, world.agreement._send = begin_sum, send  # type: ignore
    sent = 0
    model = nn.parallel.DistributedDataParallel(make_model(name))
    model.register_comm_hook(None, count_bucket)
    bare(model, world, n_steps, world.rank)
    found["DDP"] = sent / n_steps
    return found


def work(options: argparse.Namespace) -> None:
    """Measure in this process of a launch; rank 0 prints the results as JSON."""
    torch.set_num_threads(1)
    world = join_processes(120.0)
    for name in options.models:
        loops = {key: loop for key, loop in LOOPS.items() if world.size > 1 or "DDP" not in key}
        one, _ = world.broadcast(alone(name, world, 20))
        n_steps = FIRST_STEPS + max(12, min(400, int(1e3 * options.seconds / one)))
        taken: dict[str, list[tuple[float, float]]] = {key: [] for key in loops}
        for number in range(options.rounds + 1):
            for key, loop in loops.items():
                world.all_gather(None)  # begin at the same time
                milliseconds = loop(name, world, n_steps)
                if number:  # the first round warms up
                    taken[key].append(milliseconds)
        n_parameters = sum(p.numel() for p in make_model(name).parameters())
        n_bytes = count_bytes(name, world) if world.size > 1 else {}
        if world.is_main:
            found = {"model": name, "n_parameters": n_parameters, "n_steps": n_steps}
            print(json.dumps({**found, "ms": taken, "bytes": n_bytes}), flush=True)
    world.close()


def launch(size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results of as many processes."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(size), __file__, "--worker", "--rounds", str(options.rounds), "--seconds",
        str(options.seconds), "--models", *options.models,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def report(size: int, found: dict[str, Any]) -> None:
    """Print the rows of a model."""
    note = ", more than cores" if size > (os.cpu_count() or 1) else ""
    walls = {key: [wall for wall, _ in values] for key, values in found["ms"].items()}
    for key, values in walls.items():
        on_cores = statistics.median(cpu for _, cpu in found["ms"][key])
        n_bytes = found["bytes"].get(key)
        columns = [
            f"{found['model']}, {found['n_parameters'] / 1e6:.2f} M",
            f"{size}{note}",
            key,
            f"{statistics.median(values):.2f}",
            f"{min(values):.2f}-{max(values):.2f}",
            ratio(values, walls.get("DDP")) if key.startswith("ours") else "",
            ratio(values, walls["one process"]) if key != "one process" else "",
            f"{on_cores:.2f}",
            f"{n_bytes:,.0f}" if n_bytes else "",
        ]
        print("|", " | ".join(columns), "|", flush=True)


def ratio(values: list[float], others: list[float] | None) -> str:
    """Return the median ratio of the rounds, and its range."""
    if others is None:
        return ""
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--seconds", type=float, default=1.5, help="about, for a loop in a round")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, "
          f"1 thread, {options.rounds} rounds{load}\n")  # fmt: skip
    print("| model, parameters | processes | loop | ms a step, median | range | / DDP "
          "| / one process | ms on cores | bytes |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for size in options.sizes:
        for found in launch(size, options):
            report(size, found)


if __name__ == "__main__":
    main()
