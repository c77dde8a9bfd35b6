"""Sums gradients over all ranks, beside the backward pass that computes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from base.distributed.agreement import Kind, Message
from base.distributed.group import World
from base.errors import TrainingError
from base.system.contexts import NO_CONTEXT

if TYPE_CHECKING:
    from base.distributed.links import Pending

BUCKET_BYTES = 25 << 20
FIRST_BYTES = 1 << 20  # of the first bucket, so that its sum begins early
ALIGNED = 16  # each part of a bucket begins at a multiple of so many entries: for vector loads


class Trained(Protocol):
    """What trains parameters, such as the stepper of an optimizer."""

    @property
    def trainable(self) -> list[Tensor]:
        """The parameters that require a gradient now."""


class GradientSums:
    """Replaces the gradients of each optimizer by their sums over all ranks.

    A trainer calls::

        with sums.overlapped(name): ...  # around a backward pass of a window's last part
        sums.begin(name)                 # before the message; sums that have not begun
        message = agree(**sums.fields(name))
        sums.finish(name, message)       # the gradients are the sums now
        sums.discard(message)            # instead, if a rank cannot make the step

    Gradients are copied into buckets. In a backward pass, the sum of a bucket begins as soon as the
    bucket and those before it are complete; the rest begins at the end of the pass, whichever
    parameters the pass has reached on this rank. So the same sums have begun, in the same order, on
    all ranks that send a message, and a rank that failed can join them.

    Gradients remain those of this rank until `finish`. If they change after their sum has begun, on
    any rank, the sums are discarded and computed again. Which pass is the last one before `update`
    is learned from the step before; all ranks learn the same. The sums of one optimizer at a time
    are on their way.

    Args:
        trained: the optimizers, by name.
        order: all parameters, in the order of the forward pass.
        overlaps: whether sums begin in the backward pass.
        keeps_gradients: whether the tensors of gradients are kept from step to step.
    """

    def __init__(
        self,
        world: World,
        trained: Mapping[str, Trained],
        order: Iterable[Tensor] = (),
        overlaps: bool = True,
        keeps_gradients: bool = False,
    ) -> None:
        self._world, self._trained, self._overlaps = world, trained, overlaps
        self._keeps_gradients = keeps_gradients
        self._place = {parameter: place for place, parameter in enumerate(order)}
        self._rounds = {name: Round(world) for name in trained}
        self._on_way: str | None = None

    def overlapped(self, name: str) -> AbstractContextManager[None]:
        """Return the context of a backward pass in which the sums of an optimizer may begin.

        They begin in the last pass, if a sum can run beside it.
        """
        this = self._prepared(name)
        this.n_passes += 1
        is_last = this.n_passes == this.last_pass and this.lead == Round.IN_PASS
        if not (self._overlaps and this.overlaps and is_last and self._on_way is None):
            return NO_CONTEXT
        return self._begun_in_pass(name, this)

    @contextmanager
    def _begun_in_pass(self, name: str, this: Round) -> Iterator[None]:
        self._on_way, this.begun_in = name, this.n_passes
        this.is_in_pass = True
        try:
            yield
        finally:
            this.is_in_pass = False
        this.begin()

    def begin(self, name: str) -> None:
        """Begin the sums of an optimizer before the message about its step."""
        this = self._prepared(name)
        if self._on_way is None and this.lead >= Round.BEFORE_MESSAGE:
            self._on_way, this.begun_in = name, this.n_passes
            this.begin()

    def fields(self, name: str | None, is_scaled: bool = False) -> dict[str, float]:
        """Return what the other ranks have to know before an optimizer steps.

        Args:
            name: the optimizer; None if none is about to step.
            is_scaled: whether the gradients will be scaled before they are summed.
        """
        if self._on_way is None:
            return {}
        this, number = self._rounds[self._on_way], [*self._rounds].index(self._on_way)
        is_stale = self._on_way == name and (is_scaled or this.is_stale)
        return {"begun": number + 1, "stale": is_stale}

    def finish(self, name: str, message: Message) -> None:
        """Replace the gradients of an optimizer by their sums over all ranks.

        A parameter without a gradient on any rank keeps none. One that some ranks lack counts as 0
        there. The sums are equal to the bit on all ranks.
        """
        this = self._rounds[name]
        is_begun, is_stale = self._on_way == name, any(message["stale"])
        step = int(max(message["step"]))
        if is_begun:
            self._on_way = None
            this.wait(self._world, step)
            this.learn(is_stale)
        if is_stale or not is_begun:
            self._prepared(name).begin()
            this.wait(self._world, step)
        this.use(self._keeps_gradients)
        this.last_pass, this.n_passes = this.n_passes, 0

    def discard(self, message: Message) -> None:
        """Join the sums that any rank has begun, and use none of them."""
        number = int(max(message["begun"]))
        if number:
            this = self._prepared(list(self._rounds)[number - 1])
            this.begin()
            this.wait(self._world, int(max(message["step"])))
            this.drop()
        self._on_way = None
        for each in self._rounds.values():
            each.n_passes = 0

    def _prepared(self, name: str) -> Round:
        """Return the round of an optimizer with buckets for the parameters that are trained now."""
        this = self._rounds[name]
        # Of a model in parts, the backward pass sums the gradients.
        this.expect([] if self._world.is_sharded else self._trained[name].trainable)
        if self._on_way != name:
            this.divide(self._place)
        return this


class Round:
    """The sums of one optimizer's gradients in one step."""

    AFTER_MESSAGE, BEFORE_MESSAGE, IN_PASS = range(3)

    def __init__(self, world: World) -> None:
        self._world = world
        self.buckets: list[Bucket] = []
        self.overlaps = False  # whether a sum can run beside the backward pass
        self.n_passes, self.last_pass = 0, 1  # since the last update; before it
        self.begun_in = 0  # the pass
        self.lead = self.IN_PASS  # how early sums begin
        self.is_in_pass = False
        self._n_begun = 0  # buckets
        self._expected: list[Tensor] = []
        self._divided: list[int] = []  # the parameters in buckets, by `id`
        self._hooks: list[Any] = []

    def expect(self, parameters: list[Tensor]) -> None:
        """Note which parameters are trained; those of earlier passes of a step are kept."""
        if self.n_passes and self._expected:
            known = set(map(id, self._expected))
            parameters = self._expected + [one for one in parameters if id(one) not in known]
        self._expected = parameters

    def divide(self, place: Mapping[Tensor, int]) -> None:
        """Divide the parameters into buckets, unless they are those of the last step."""
        now = [*map(id, self._expected)]
        if now == self._divided:
            return
        for hook in self._hooks:
            hook.remove()
        # Gradients become ready from the last layer to the first.
        order = sorted(self._expected, key=lambda one: place.get(one, -1), reverse=True)
        self.buckets = [Bucket(parameters) for parameters in buckets(order)]
        self.overlaps = not all(self._world.sums_when_waited_for(b.flat) for b in self.buckets)
        self._divided, self._hooks = now, []
        if not self.overlaps:
            return
        for bucket in self.buckets:
            for number, parameter in enumerate(bucket.parameters):
                note = partial(self._note_ready, bucket, number)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(note))

    def begin(self) -> None:
        """Begin the sums that have not begun."""
        while self._n_begun < len(self.buckets):
            self._begin_next()

    @property
    def is_stale(self) -> bool:
        """Whether a gradient has changed since its sum began."""
        is_other = [*map(id, self._expected)] != self._divided
        return is_other or any(bucket.is_stale for bucket in self.buckets)

    def wait(self, world: World, step: int) -> None:
        """Wait for all sums; on a GPU, only the kernels after this call wait."""
        assert world.agreement is not None
        with world.watched(Kind.UPDATE, step):
            for bucket in self.buckets:
                bucket.wait(world.agreement.timeout)
        self._n_begun = 0

    def learn(self, is_stale: bool) -> None:
        """Begin later from now on if the gradients changed though there was no other pass."""
        if is_stale and self.begun_in == self.n_passes:
            self.lead -= 1

    def use(self, keeps_gradients: bool) -> None:
        """Replace the gradients by the sums."""
        for bucket in self.buckets:
            bucket.use(keeps_gradients)

    def drop(self) -> None:
        """Forget the gradients whose sums were discarded."""
        for bucket in self.buckets:
            bucket.gradients = []

    def _begin_next(self) -> None:
        self.buckets[self._n_begun].begin(self._world)
        self._n_begun += 1

    def _note_ready(self, bucket: Bucket, number: int, _: Tensor) -> None:
        if not self.is_in_pass:
            return
        bucket.ready.add(number)
        if bucket.is_ready:
            while self._n_begun < len(self.buckets) and self.buckets[self._n_begun].is_ready:
                self._begin_next()


class Bucket:
    """The gradients of parameters of one dtype and device, which are summed in one operation.

    Args:
        parameters: the parameters; the memory of the bucket is about as large.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        places, end = [], 0
        for parameter in parameters:
            places.append(end)
            end += -(-parameter.numel() // ALIGNED) * ALIGNED
        self.flat = parameters[0].new_zeros(end + len(parameters), requires_grad=False)
        # As the gradients lie in memory, such as in channels_last.
        layouts = (torch.empty_like(parameter, device="meta") for parameter in parameters)
        self._parts = [
            self.flat.as_strided(layout.shape, layout.stride(), place)
            for layout, place in zip(layouts, places, strict=True)
        ]
        self._reached = self.flat[end:]  # the number of ranks on which there is a gradient
        self._work: Pending | None = None
        self.gradients: list[Tensor | None] = []  # whose sum has begun
        self._versions: list[int] = []
        self.ready: set[int] = set()  # in this pass

    @property
    def is_ready(self) -> bool:
        """Whether the backward pass has completed all gradients."""
        return len(self.ready) == len(self.parameters)

    @property
    def is_stale(self) -> bool:
        """Whether a gradient has changed since the sum began."""
        return any(
            parameter.grad is not gradient
            or (gradient is not None and gradient._version != version)
            for parameter, gradient, version in zip(
                self.parameters, self.gradients, self._versions, strict=True
            )
        )

    def begin(self, world: World) -> None:
        """Copy the gradients and begin their sum."""
        self.ready.clear()
        gradients = self.gradients = [parameter.grad for parameter in self.parameters]
        found = [gradient for gradient in gradients if gradient is not None]
        self._versions = [0 if gradient is None else gradient._version for gradient in gradients]
        if any(gradient.layout is not torch.strided for gradient in found):
            text = "sparse gradients cannot be summed over several processes: set sparse=False in"
            raise TrainingError(f"{text} the embedding")
        with torch.no_grad():
            self._reached.fill_(1)
            if len(found) == len(gradients):
                torch._foreach_copy_(self._parts, found)
            else:
                self.flat.zero_()
                for number, gradient in enumerate(gradients):
                    if gradient is not None:
                        self._parts[number].copy_(gradient)
                        self._reached[number] = 1
            self._work = world.begin_sum(self.flat)

    def wait(self, seconds: float) -> None:
        """Wait for the sum."""
        work, self._work = self._work, None
        assert work is not None
        if self.flat.device.type == "cpu":
            work.wait(timedelta(seconds=seconds))
        else:  # with a timeout, this would wait for the device
            work.wait()

    def use(self, keeps_gradients: bool) -> None:
        """Replace the gradients by the sums."""
        is_whole = all(gradient is not None for gradient in self.gradients)
        reached = [1] * len(self.parameters) if is_whole else self._reached.tolist()
        self.gradients = []
        for parameter, part, n_ranks in zip(self.parameters, self._parts, reached, strict=True):
            if not n_ranks:
                continue
            if not keeps_gradients:
                parameter.grad = part
            elif parameter.grad is None:
                parameter.grad = part.clone()
            else:
                parameter.grad.copy_(part)


def buckets(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Divide parameters into groups of one dtype and device, of about `BUCKET_BYTES` each."""
    full: list[list[Tensor]] = []
    begun: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    for parameter in parameters:
        kind = (parameter.dtype, parameter.device)
        begun[kind].append(parameter)
        if sum(one.nbytes for one in begun[kind]) >= (BUCKET_BYTES if full else FIRST_BYTES):
            full.append(begun.pop(kind))
    return [*full, *begun.values()]
