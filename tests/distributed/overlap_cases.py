"""Cases of `GradientSums`, run by two processes: ``torchrun --nproc-per-node 2 overlap_cases.py``.

``overlap_cases.py gloo`` takes gloo in place of the connections between ranks of one machine.

Each case is a step of a trainer: backward passes and updates. It runs on a model, whose gradients
are summed beside the backward pass, and on its copy, whose gradients are those of one rank and are
then gathered and added. Rank 0 prints the name of each case that gave the same bits.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from base.distributed import Kind, join_processes, reduction
from base.distributed.links import Pending
from base.distributed.reduction import GradientSums
from base.errors import TrainingError
from base.system import exit_now

WORLD = join_processes(30.0)
IS_BESIDE = sys.argv[1:] == ["gloo"]
"""Whether sums run beside the backward pass; others have nothing to gain from beginning early."""
assert WORLD.agreement is not None
assert WORLD.links is not None
if IS_BESIDE:
    WORLD.links.close()
    WORLD.links = WORLD.agreement.links = None
N_STEPS = 5
FAILED = 3  # the exit code of rank 0 after all cases

begun: list[bool] = []  # for each sum, whether it began inside a backward pass


def begin_sum(tensor: Tensor) -> Pending:
    begun.append(torch._C._current_graph_task_id() != -1)
    return original(tensor)


original = WORLD.begin_sum
WORLD.begin_sum = begin_sum  # type: ignore[method-assign]


class Network(nn.Module):
    """Two branches behind one stem; a layer may be left out of a call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.one, self.other = nn.Linear(8 * 16, 16), nn.Linear(8 * 16, 16)
        self.unused, self.head = nn.Linear(3, 3), nn.Linear(16, 4)
        self.bare = nn.Linear(16, 4)

    def forward(self, images: Tensor, uses_one: bool = True, is_bare: bool = False) -> Tensor:
        hidden = self.stem(images).relu().flatten(1)
        hidden = self.other(hidden) + (self.one(hidden) if uses_one else 0)
        return (self.bare if is_bare else self.head)(hidden.tanh())


class Part:
    """The parameters of one optimizer."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters

    @property
    def trainable(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters if parameter.requires_grad]


class Step:
    """What a case may do: ``backward`` and ``update``, and a model to do it with."""

    def __init__(self, model: Network, number: int, parts: dict[str, Part]) -> None:
        self.model, self.number, self.parts = model, number, parts
        self.generator = torch.Generator().manual_seed(100 * number + WORLD.rank)

    def images(self) -> Tensor:
        kind = next(self.model.parameters()).dtype
        return torch.randn(4, 3, 6, 6, generator=self.generator).to(kind)

    def backward(self, loss: Tensor, name: str = "main", retain_graph: bool = False) -> None:
        inputs = self.parts[name].trainable
        with self.last_pass(name):
            loss.backward(inputs=inputs, retain_graph=retain_graph)

    @contextmanager
    def last_pass(self, name: str = "main") -> Iterator[None]:
        yield

    def update(self, name: str = "main", is_scaled: bool = False) -> None:
        raise NotImplementedError


class LocalStep(Step):
    """Records the gradients of this rank."""

    def __init__(self, model: Network, number: int, parts: dict[str, Part]) -> None:
        super().__init__(model, number, parts)
        self.found: list[list[Tensor | None]] = []

    def update(self, name: str = "main", is_scaled: bool = False) -> None:
        parameters = self.parts[name].parameters
        if is_scaled:
            scale(parameters)
        self.found.append([None if p.grad is None else p.grad.clone() for p in parameters])
        clear(parameters, keeps=False)


class SummedStep(Step):
    """Sums gradients, and compares them with the sum of what the ranks recorded."""

    sums: GradientSums
    keeps: bool
    expected: Iterator[list[Tensor | None]]

    @contextmanager
    def last_pass(self, name: str = "main") -> Iterator[None]:
        with self.sums.overlapped(name):
            yield

    def update(self, name: str = "main", is_scaled: bool = False) -> None:
        self.sums.begin(name)
        fields = self.sums.fields(name, is_scaled)
        message = WORLD.agree(Kind.UPDATE, self.number, **fields)
        if is_scaled:
            scale(self.parts[name].parameters)
        self.sums.finish(name, message)
        for parameter, number in zip(self.parts[name].parameters, next(self.expected), strict=True):
            assert (parameter.grad is None) == (number is None)
            if number is not None:
                assert torch.equal(parameter.grad, number), (self.number, name, parameter.shape)
                assert parameter.grad.stride() == torch.empty_like(parameter).stride()
        clear(self.parts[name].parameters, self.keeps)


def scale(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(3 + WORLD.rank)


def clear(parameters: list[nn.Parameter], keeps: bool) -> None:
    for parameter in parameters:
        if keeps and parameter.grad is not None:
            parameter.grad.zero_()
        else:
            parameter.grad = None


Case = Callable[[Step], None]


def one_part(model: Network) -> dict[str, Part]:
    return {"main": Part([*model.parameters()])}


def compare(
    case: Case,
    model: Network | None = None,
    parts: Callable[[Network], dict[str, Part]] = one_part,
    keeps: bool = False,
    overlaps: bool = True,
) -> list[list[bool]]:
    """Run a case for some steps; return, for each step, which sums began inside of a pass."""
    torch.manual_seed(0)
    model = model or Network()
    twin = copy.deepcopy(model)
    sums = GradientSums(WORLD, parts(model), model.parameters(), overlaps, keeps)
    inside = []
    for number in range(N_STEPS):
        local = LocalStep(twin, number, parts(twin))
        case(local)
        ranks = WORLD.all_gather(local.found)
        summed = SummedStep(model, number, parts(model))
        summed.sums, summed.keeps = sums, keeps
        updates = zip(*ranks, strict=True)
        summed.expected = iter([[add(each) for each in zip(*one, strict=True)] for one in updates])
        begun.clear()
        case(summed)
        inside.append(begun.copy())
    return inside


def add(gradients: Iterable[Tensor | None]) -> Tensor | None:
    found = [gradient for gradient in gradients if gradient is not None]
    return sum(found[1:], start=found[0]) if found else None


# --- The cases --------------------------------------------------------------------------------


def plain() -> None:
    """Most sums begin in the pass; each bucket is summed once."""

    def step(this: Step) -> None:
        this.backward(this.model(this.images()).square().sum())
        this.update()

    for inside in compare(step):
        # 4 of 6 layers are reached; those that are not end the sums that begin in the pass.
        assert len(inside) == N_BUCKETS
    assert not any(map(any, compare(step, overlaps=False)))


def all_reached() -> None:
    """With gradients for all parameters, all sums begin in the pass."""

    def step(this: Step) -> None:
        loss = this.model(this.images()).sum() + this.model(this.images(), is_bare=True).sum()
        this.backward(loss + this.model.unused(torch.ones(1, 3)).sum())
        this.update()

    assert compare(step) == [[IS_BESIDE] * N_BUCKETS] * N_STEPS
    compare(step, keeps=True)


def two_passes() -> None:
    """The first step discards its early sums; from then on they begin in the second pass."""

    def step(this: Step) -> None:
        this.backward(this.model(this.images()).square().sum())
        this.backward(this.model(this.images(), is_bare=True).sum() + bare(this))
        this.update()

    def bare(this: Step) -> Tensor:
        return sum((p.sum() for p in this.model.parameters()), start=torch.zeros(()))

    first, *later = compare(step)
    assert len(first) == (2 if IS_BESIDE else 1) * N_BUCKETS
    assert later == [[IS_BESIDE] * N_BUCKETS] * (N_STEPS - 1)


def sometimes_two_passes() -> None:
    """As with a penalty every other step."""

    def step(this: Step) -> None:
        this.backward(this.model(this.images()).square().sum())
        if this.number % 2:
            this.backward(this.model(this.images()).exp().sum())
        this.update()

    compare(step)


def penalty() -> None:
    """A gradient penalty: double backward, in a pass of its own over the retained graph."""

    def step(this: Step) -> None:
        images = this.images().requires_grad_()
        outputs = this.model(images).sum()
        (slope,) = torch.autograd.grad(outputs, images, create_graph=True)
        this.backward(outputs, retain_graph=True)
        this.backward(slope.square().sum())
        this.update()

    compare(step)


def gan() -> None:
    """Two optimizers, one graph, passes of both before the updates of both."""

    def parts(model: Network) -> dict[str, Part]:
        layers = model.stem, model.one, model.other
        generator = Part([p for layer in layers for p in layer.parameters()])
        return {"generator": generator, "critic": Part([*model.head.parameters()])}

    def step(this: Step) -> None:
        outputs = this.model(this.images(), uses_one=this.number % 2 == WORLD.rank)
        this.backward(outputs.square().sum(), "critic", retain_graph=True)
        this.backward(outputs.sum(), "generator")
        for name in ("generator", "critic") if this.number % 3 else ("critic", "generator"):
            this.update(name)

    compare(step, parts=parts)


def unused_on_one_rank() -> None:
    """A layer that only one rank reaches, and now and then none."""

    def step(this: Step) -> None:
        uses_one = WORLD.rank == this.number % 2 and this.number != 3
        this.backward(this.model(this.images(), uses_one).square().sum())
        this.update()

    for inside in compare(step):
        assert len(inside) == N_BUCKETS


def thawed() -> None:
    """Layers that are frozen at first, and one that is frozen later."""

    def step(this: Step) -> None:
        this.model.stem.requires_grad_(this.number >= 2)
        this.model.head.requires_grad_(this.number < 4)
        this.backward(this.model(this.images()).square().sum())
        this.update()

    compare(step)


def thawed_between_passes() -> None:
    """A pass trains the head alone, a second one everything."""

    def step(this: Step) -> None:
        this.model.stem.requires_grad_(False)
        this.backward(this.model(this.images()).square().sum())
        this.model.stem.requires_grad_(True)
        this.backward(this.model(this.images()).exp().sum())
        this.update()

    compare(step)


def accumulated() -> None:
    """Passes before the last part of a window sum nothing."""

    def step(this: Step) -> None:
        for _ in range(2):
            this.model(this.images()).square().sum().backward()
        this.backward(this.model(this.images()).exp().sum())
        this.update()

    for inside in compare(step):
        assert len(inside) == N_BUCKETS


def in_bf16() -> None:
    def step(this: Step) -> None:
        this.backward(this.model(this.images()).square().sum())
        this.update()

    compare(step, Network().bfloat16())


def in_two_dtypes() -> None:
    def step(this: Step) -> None:
        hidden = this.model.stem(this.images()).flatten(1).double()
        this.backward(this.model.one(hidden).square().sum())
        this.update()

    model = Network()
    model.one.double()
    compare(step, model)


def channels_last() -> None:
    def step(this: Step) -> None:
        images = this.images().to(memory_format=torch.channels_last)
        this.backward(this.model(images).square().sum())
        this.update()

    compare(step, Network().to(memory_format=torch.channels_last))


def changed_by_hand() -> None:
    """A trainer that scales gradients between the pass and `update`: sums begin later and later."""

    def step(this: Step) -> None:
        this.backward(this.model(this.images()).square().sum())
        scale([*this.model.parameters()])
        this.update()

    first, *later = compare(step)
    assert len(first) == (2 if IS_BESIDE else 1) * N_BUCKETS
    assert later == [[False] * N_BUCKETS] * (N_STEPS - 1)


def by_hand_on_one_rank() -> None:
    """A gradient is replaced on one rank; on the other it is as its sum began."""

    def step(this: Step) -> None:
        this.backward(this.model(this.images()).square().sum())
        if WORLD.rank == 1 and this.number == 2:
            this.model.head.weight.grad = this.model.head.weight.grad * 2
        this.update()

    compare(step)


def scaled_before() -> None:
    """Denominators that only some ranks learn in the step: see `Window.correct`."""

    def step(this: Step) -> None:
        this.backward(this.model(this.images()).square().sum())
        this.update(is_scaled=this.number > 1 and WORLD.rank == 1)

    compare(step)


def without_a_pass() -> None:
    """A trainer that calls `loss.backward` itself."""

    def step(this: Step) -> None:
        this.model(this.images()).square().sum().backward()
        this.update()

    for inside in compare(step):
        assert inside == [False] * N_BUCKETS


def sparse() -> None:
    """Sparse gradients are refused on all ranks."""
    embedding = nn.Embedding(4, 2, sparse=True)
    sums = GradientSums(WORLD, {"main": Part([*embedding.parameters()])})

    def step() -> None:
        with sums.overlapped("main"):
            embedding(torch.tensor([1])).sum().backward()
        sums.begin("main")

    with pytest.raises(TrainingError, match="sparse=False"):
        step()


class LostError(Exception):
    """Stands for running out of memory."""


def lose(*_: object) -> None:
    raise LostError


class LossyStep:
    """A step that one rank may leave before, in or after its backward pass."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = Network()
        other = {"other": Part([*self.model.unused.parameters()])}
        self.sums = GradientSums(WORLD, {**other, **one_part(self.model)}, self.model.parameters())

    def run(self, where: str) -> None:
        if where == "before":
            lose()
        with self.sums.overlapped("main"):
            if where == "in":
                hook = self.model.stem.register_forward_hook(lose_inside)
            loss = self.model(torch.randn(4, 3, 6, 6), is_bare=True).square().sum()
            if where == "in":
                hook.remove()
            loss.backward()
        if where == "after":
            lose()
        self.sums.begin("main")


def lose_inside(_: nn.Module, __: object, output: Tensor) -> None:
    output.register_hook(lose)


def lost_rank() -> None:
    """A rank that runs out of memory before, in or after its pass joins the sums of the other."""
    this, agreement = LossyStep(), WORLD.agreement
    parameters = [*this.model.parameters()]
    assert agreement is not None
    n_begun = {"before": 0, "in": 1, "after": N_BUCKETS} if IS_BESIDE else Counter[str]()
    for step, where in enumerate(["before", "in", "after", "in", "before"]):
        begun.clear()
        try:
            this.run(where if WORLD.rank == step % 2 else "")
            message = agreement.agree(Kind.UPDATE, step, **this.sums.fields("main"))
        except LostError:
            assert len(begun) == n_begun[where]
            message = agreement.fail_out_of_memory(step, 1, **this.sums.fields(None))
        assert message.is_out_of_memory
        this.sums.discard(message)
        assert len(begun) == N_BUCKETS

        this.model.zero_grad()
        this.run("")
        message = agreement.agree(Kind.UPDATE, step, **this.sums.fields("main"))
        mine = [None if one.grad is None else one.grad.clone() for one in parameters]
        this.sums.finish("main", message)
        for one, ranks in zip(parameters, zip(*WORLD.all_gather(mine), strict=True), strict=True):
            expected = add(ranks)
            assert (one.grad is None) == (expected is None)
            assert expected is None or torch.equal(one.grad, expected)


CASES = [
    plain, all_reached, two_passes, sometimes_two_passes, penalty, gan, unused_on_one_rank, thawed,
    thawed_between_passes, accumulated, in_bf16, in_two_dtypes, channels_last, changed_by_hand,
    by_hand_on_one_rank, scaled_before, without_a_pass, sparse, lost_rank,
]  # fmt: skip
N_BUCKETS = 0


def main() -> None:
    global N_BUCKETS
    torch.set_num_threads(1)
    reduction.BUCKET_BYTES, reduction.FIRST_BYTES = 200, 100
    N_BUCKETS = len(reduction.buckets([*Network().parameters()][::-1]))
    assert N_BUCKETS > 4
    for case in CASES:
        case()
        if WORLD.is_main:
            print("equal:", case.__name__, flush=True)
    WORLD.all_gather(None)
    if not WORLD.is_main:
        time.sleep(60)  # torchrun ends this rank as soon as rank 0 has exited
    unjoined = dist.all_reduce(torch.zeros(1 << 20), async_op=True)
    assert not unjoined.is_completed()
    print("exits:", time.time(), flush=True)
    exit_now(FAILED)  # as a command does after an error, with a sum that no other rank joins


if __name__ == "__main__":
    try:
        main()
    except Exception:
        import traceback

        with suppress(Exception):
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # without waiting for sums that no other rank joins
