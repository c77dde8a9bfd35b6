"""What the ranks of a test do with a sharded model; each program runs in a process of its own."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from processes import CONTEXT, start_server
from torch import Tensor, nn

from base.checkpoint.background import Snapshot
from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.store import CheckpointStore, read_from
from base.distributed.agreement import Agreement
from base.distributed.group import ALONE, World
from base.distributed.shard import Division, is_sharded, local_part, shard_model, whole
from base.errors import CheckpointError
from base.training.ema import ExponentialMovingAverage
from base.training.nonfinite import first_nonfinite

Program = Callable[[World, Path], Any]


def in_processes(size: int, program: Program, folder: Path) -> list[Any]:
    """Run a program on each rank of a gloo world; return the results in the order of ranks."""
    start_server()
    place = folder / f"{program.__name__}-{size}-{time.monotonic_ns()}"
    place.mkdir()
    processes = [
        CONTEXT.Process(target=_run, args=(rank, size, place, program, folder))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        if process.is_alive():
            process.kill()
    results = [torch.load(place / f"{rank}.pt", weights_only=True) for rank in range(size)]
    assert not any(isinstance(result, str) for result in results), results
    return results


def _run(rank: int, size: int, place: Path, program: Program, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(place / "store"), size)
    limit = timedelta(seconds=30)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=limit)
    world = World(rank, size, rank)
    group: Any = dist.new_group(backend="gloo", timeout=limit)
    world.agreement = Agreement(rank, size, group, dist.PrefixStore("agree", store), 30.0)
    result: Any
    try:
        result = program(world, folder)
    except Exception as error:
        traceback.print_exc()
        result = f"rank {rank}: {type(error).__name__}: {error}"
    torch.save(result, place / f"{rank}.pt")


class Block(nn.Module):
    """A layer of the model below, which has five of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(self.norm(x)))


def build(width: int = 5) -> nn.Module:
    """Return a model whose tensors have 3 and 5 rows, which no number of ranks divides evenly."""
    torch.manual_seed(0)
    blocks = [Block(width) for _ in range(3)]
    model = nn.Sequential(nn.Linear(4, width), *blocks, nn.Linear(width, 3, bias=False))
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    return model.double()  # Adam would amplify the rounding of small gradients


class Training:
    """A model, its optimizer and its averages, of one process or of a world."""

    def __init__(self, world: World = ALONE, fused: bool | None = None) -> None:
        self.world, self.model = world, build()
        self.model[0].bias.requires_grad_(False)  # type: ignore[union-attr]
        if world.size > 1:
            shard_model(self.model, None, world, "cpu")
        named = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(named.values(), lr=1e-2, fused=fused)
        self.ema = ExponentialMovingAverage(named, 0.9)
        self.norms: list[float] = []

    @property
    def stateful(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer.main": self.optimizer, "ema": self.ema}

    def step(self, number: int, n_samples: int = 7, parts: int = 1) -> None:
        """Train on this rank's samples of a batch, in parts."""
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(n_samples, 4, generator=generator, dtype=torch.float64)
        mine = images[self.world.rank :: self.world.size]
        for part in range(parts):
            # A rank without samples computes a borrowed one with a share of 0.
            inputs = mine[part::parts] if len(mine[part::parts]) else images[:1]
            share = 1.0 if len(mine[part::parts]) else 0.0
            loss = self.model(inputs).square().sum() / n_samples * share
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.norms.append(float(whole(norm)))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def save(self, folder: Path, step: int) -> Path:
        state = {name: one.state_dict() for name, one in self.stateful.items()}
        return CheckpointStore(folder, world=self.world).save(
            state, step=step, epoch=0, metrics={}, is_best=False, facts={}
        )

    def load(self, path: Path) -> None:
        share = Division(self.world.rank, self.world.size) if self.world.size > 1 else None
        load_state_dicts(self.stateful, read_from(path, share)[1])

    def weights(self) -> dict[str, Tensor]:
        """Return everything that is trained, whole, on each rank."""
        kept = self.optimizer.state_dict()["state"].items()
        named = {
            **self.model.state_dict(),
            **{f"average of {name}": value for name, value in self.ema.averages.items()},
            **{f"{key} {n}": value for n, each in kept for key, value in each.items()},
        }
        return {name: whole(value).detach().clone() for name, value in named.items()}


def train(world: World, folder: Path) -> Any:
    """Make six steps, with accumulation in one of them; evaluate between steps."""
    training = Training(world)
    for number in range(6):
        training.step(number, n_samples=1 if number == 4 else 7, parts=2 if number == 3 else 1)
        with torch.no_grad():
            training.model(torch.ones(2, 4, dtype=torch.float64))
    assert world.size == 1 or all(map(is_sharded, training.model.parameters()))
    return training.norms, training.weights()


def save(world: World, folder: Path) -> Any:
    """Save after three steps, make three more."""
    training = Training(world)
    for number in range(3):
        training.step(number)
    saved = training.weights()
    training.save(folder, 3)
    for number in range(3, 6):
        training.step(number)
    return saved, training.weights()


def load(world: World, folder: Path) -> Any:
    """Load the checkpoint into a new training, and make the last three steps."""
    torch.manual_seed(7)
    training = Training(world)
    training.load(folder)
    loaded = training.weights()
    for number in range(3, 6):
        training.step(number)
    return loaded, training.weights()


class Language(nn.Module):
    """A transformer whose first and last layer share a weight, which belongs to no unit."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(2))
        self.embedding, self.blocks = nn.Embedding(11, 8), nn.ModuleList(layers)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.embedding(words)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def share_weight(world: World, folder: Path) -> Any:
    """Train a model with a shared weight for two steps, save, load and train for two more."""
    words = torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(1))
    mine = words[world.rank :: world.size]
    for number in range(2):
        torch.manual_seed(0)
        model = Language().double()
        if world.size > 1:
            assert shard_model(model, None, world, "cpu") == ["blocks.0", "blocks.1"]
        stateful = {"model": model, "optimizer.main": torch.optim.SGD(model.parameters(), 0.1, 0.9)}
        if number:
            division = Division(world.rank, world.size) if world.size > 1 else None
            load_state_dicts(stateful, read_from(folder, division)[1])
        for _ in range(2):
            outputs = model(mine).flatten(0, 1)
            loss = nn.functional.cross_entropy(outputs, mine.flatten(), reduction="sum")
            (loss / words.numel()).backward()
            stateful["optimizer.main"].step()
            stateful["optimizer.main"].zero_grad()
        if not number:
            state = {name: one.state_dict() for name, one in stateful.items()}
            about = {"epoch": 0, "metrics": {}, "is_best": False, "facts": {}}
            CheckpointStore(folder, world=world).save(state, step=2, **about)
            world.broadcast(None)  # rank 0 has written the manifest
    assert model.head.weight is model.embedding.weight
    return {name: whole(value).detach() for name, value in model.state_dict().items()}


def find_nonfinite(world: World, folder: Path) -> Any:
    """Look for a value that is not finite, in the rows of rank 1."""
    training = Training(world)
    named = list(training.model.named_parameters())
    before = first_nonfinite(named)
    if world.rank == 1:
        local_part(training.model.get_parameter("3.linear.weight").detach())[0, 0] = math.nan
    return before, first_nonfinite(named)


def keep_copy(world: World, folder: Path) -> Any:
    """Change everything after a copy was taken, and load the copy."""
    training = Training(world)
    training.step(0)
    before = training.weights()
    state = {name: one.state_dict() for name, one in training.stateful.items()}
    copied = Snapshot().take(state)
    for number in range(1, 3):
        training.step(number)
    load_state_dicts(training.stateful, copied)
    return before, training.weights()


def refuse_others(world: World, folder: Path) -> Any:
    """Load a checkpoint of another model, and one with a missing part."""
    training = Training(world)
    texts = []
    state = {name: one.state_dict() for name, one in training.stateful.items()}
    other = {**state, "model": {**state["model"], "4.weight": torch.zeros(3, 6)}}
    for wrong in (other, {name: part for name, part in state.items() if name != "ema"}):
        try:
            load_state_dicts(training.stateful, Snapshot().take(wrong))
        except CheckpointError as error:
            texts.append(str(error))
    return texts
