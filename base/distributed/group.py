"""The processes of a training and what they exchange."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from base.distributed.agreement import LONG_WAIT, Agreement, Kind, Message, text_of
from base.distributed.links import Links, Pending, link
from base.errors import UsageError
from base.system.resources import is_out_of_memory

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store
    from torch.distributed.device_mesh import DeviceMesh

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets for each process."""


class World:
    """The processes that train one model, one for each device; this one has the number ``rank``.

    Everything here works for a single process too: it is rank 0 of 1, sums are its own values,
    and nothing is sent. All ranks must make the same calls in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.agreement: Agreement | None = None
        self.links: Links | None = None
        self.launch_store: Store | None = None
        """The launcher's store, which remains when the launcher restarts the processes."""
        self.is_active = size > 1
        """Whether there are other ranks, and this block is not a check by each rank alone."""
        self.is_sharded = False
        """Whether the parameters are divided over the ranks, so that each forward pass is joint."""

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes files and logs."""
        return self.rank == 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let each rank work alone inside the block, as in the checks before training."""
        before, self.is_active = self.is_active, False
        try:
            yield
        finally:
            self.is_active = before

    def agree(self, kind: Kind, step: int = 0, **values: Any) -> Message:
        """Send a message and wait for those of the other ranks."""
        assert self.agreement is not None
        return self.agreement.finish(self.agreement.begin(kind, step, **values))

    def all_gather(self, value: Any) -> list[Any]:
        """Return the value of each rank, in the order of ranks: plain data and tensors."""
        values = self._gathered(value, Kind.ALL_GATHER)
        assert values is not None
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """Return the value of each rank on rank 0, and None on the others."""
        return self._gathered(value, Kind.GATHER)

    def _gathered(self, value: Any, kind: Kind) -> list[Any] | None:
        """Return the value of each rank, with `Kind.GATHER` on rank 0 only."""
        if not self.is_active:
            return [value]
        import torch.distributed as dist

        content = _to_bytes(value)  # an error here must not leave others waiting
        self.agree(kind)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        is_here = self.is_main or kind is Kind.ALL_GATHER
        with self.watched(kind):
            dist.all_gather(sizes, torch.tensor([len(content)]), group=self._group)
            padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
            padded[: len(content)] = content
            parts = [torch.empty_like(padded) for _ in range(self.size)] if is_here else []
            if kind is Kind.ALL_GATHER:
                dist.all_gather(parts, padded, group=self._group)
            else:
                dist.gather(padded, parts or None, dst=0, group=self._group)
        if not is_here:
            return None
        return [_from_bytes(part[: int(n)]) for part, n in zip(parts, sizes, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on all ranks: plain data and tensors."""
        if not self.is_active:
            return value
        import torch.distributed as dist

        content = _to_bytes(value) if self.is_main else torch.zeros(0, dtype=torch.uint8)
        self.agree(Kind.BROADCAST)
        n_bytes = torch.tensor([len(content)])
        with self.watched(Kind.BROADCAST):
            dist.broadcast(n_bytes, src=0, group=self._group)
            if not self.is_main:
                content = torch.empty(int(n_bytes), dtype=torch.uint8)
            dist.broadcast(content, src=0, group=self._group)
        return value if self.is_main else _from_bytes(content)

    def broadcast_tensors(self, tensors: list[Tensor]) -> None:
        """Copy rank 0's tensors into those of the other ranks, in place."""
        if not self.is_active:
            return
        import torch.distributed as dist

        self.agree(Kind.COPY)
        with self.watched(Kind.COPY), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def begin_sum(self, tensor: Tensor) -> Pending:
        """Begin to replace a contiguous tensor by its sum over all ranks.

        All ranks wait for such sums in the order in which they begin.
        """
        if self.links is not None and self.links.takes(tensor):
            return self.links.all_reduce(tensor)
        import torch.distributed as dist

        work: Pending = dist.all_reduce(tensor, async_op=True)
        return work

    def sums_when_waited_for(self, tensor: Tensor) -> bool:
        """Return whether a sum of such a tensor does nothing until its `wait`."""
        return self.links is not None and self.links.takes(tensor)

    def refuse_lost_ranks(self, error: BaseException, step: int) -> None:
        """Translate an error of this rank that another one caused, whose weights are missing.

        Raises:
            PeerError: another rank has failed.
            RankLostError: a rank ended, or does not answer.
        """
        import torch.distributed as dist

        is_of_group = isinstance(error, dist.DistError) or "gloo" in str(error)
        if is_of_group and isinstance(error, RuntimeError) and self.agreement is not None:
            raise self.agreement.lost(error, "the weights of all ranks", step) from error

    def mesh(self, device_type: str) -> DeviceMesh:
        """Return all ranks as a mesh, for operations that must end within the timeout of a step."""
        import torch.distributed as dist
        from torch.distributed.device_mesh import DeviceMesh

        assert self.agreement is not None
        group: Any = dist.new_group(timeout=_seconds(self.agreement.timeout))
        return DeviceMesh.from_group(group, device_type)

    @contextmanager
    def reports_errors(self) -> Iterator[None]:
        """Report an error in this block to the other ranks, and end them with it.

        Rank 0 prints the error of any rank; the other ranks exit in silence with its exit code.
        """
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            if self.agreement is not None and self.is_sharded:
                # The others may wait for the weights of this rank, until it exits.
                self.agreement.note_failure(error, text_of(error))
            elif self.agreement is not None:
                self.agreement.fail(error, text_of(error))
            raise

    def close(self) -> None:
        """Leave the process group."""
        if self.agreement is not None:
            import torch.distributed as dist

            self.agreement = None
            if self.links is not None:
                self.links.close()
            dist.destroy_process_group()

    @property
    def _group(self) -> ProcessGroup:
        assert self.agreement is not None
        return self.agreement.group

    @contextmanager
    def watched(self, kind: Kind, step: int = 0) -> Iterator[None]:
        """Translate the error of a collective operation into one that names the lost rank."""
        assert self.agreement is not None
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise self.agreement.lost(error, kind.value, step) from error


ALONE = World()
"""The world of a single process."""


def join_processes(timeout: float, device_type: str = "cpu") -> World:
    """Join the processes that torchrun started; without torchrun, return a world of one.

    Args:
        timeout: the seconds to wait for a rank in a step; longer waits are ten times as long.
        device_type: the kind of device that tensors are reduced on.

    Raises:
        UsageError: the environment is not as torchrun sets it.
    """
    size = world_size()
    if size == 1:
        return World()
    import torch.distributed as dist

    rank = _number("RANK")
    store = next(iter(dist.rendezvous("env://", rank, size, timeout=_seconds(10 * timeout))))[0]
    world = World(rank, size, _number("LOCAL_RANK"))
    world.launch_store = store
    # The store outlives a restart by torchrun, with the addresses of the processes that ended.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt-{attempt}", store)
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=_seconds(LONG_WAIT * timeout)
        )
        group: Any = dist.new_group(backend="gloo", timeout=_seconds(LONG_WAIT * timeout))
        if backend == "gloo":
            # Only messages wait for a rank that is at work; what follows them is a transfer.
            c10d: Any = dist.distributed_c10d
            shorten = getattr(c10d, "set_timeout", None) or c10d._set_pg_timeout  # torch < 2.14
            shorten(_seconds(timeout))
        world.links = link(rank, size, group, timeout)
    except (RuntimeError, ValueError) as error:
        text = f"rank {rank} cannot reach the other {size - 1} processes"
        raise UsageError(f"{text}: {str(error).splitlines()[0][:200]}") from error
    world.agreement = Agreement(rank, size, group, store, timeout, world.links)
    return world


def world_size() -> int:
    """Return the number of processes that torchrun started, 1 without torchrun.

    Raises:
        UsageError: its variables are incomplete, or are not numbers.
    """
    if "WORLD_SIZE" not in os.environ and "RANK" not in os.environ:
        return 1
    if missing := [name for name in NEEDED if name not in os.environ]:
        given = next(name for name in ("WORLD_SIZE", "RANK") if name in os.environ)
        verb = "are" if len(missing) > 1 else "is"
        text = f"{given}={os.environ[given]} is set, but {', '.join(missing)} {verb} not: start"
        text += " the processes with torchrun, which sets them all, or unset it for one process"
        raise UsageError(text)
    size, rank = _number("WORLD_SIZE"), _number("RANK")
    if not 0 <= rank < size:
        raise UsageError(f"RANK={rank} is not between 0 and WORLD_SIZE - 1 = {size - 1}")
    return size


def _number(name: str) -> int:
    value = os.environ[name]
    if not value.strip().isdigit():
        raise UsageError(f"{name}={value!r} is not a whole number; torchrun sets it")
    return int(value)


def _seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def _to_bytes(value: Any) -> Tensor:
    stream = io.BytesIO()
    torch.save(value, stream)
    return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)


def _from_bytes(content: Tensor) -> Any:
    stream = io.BytesIO(content.numpy().tobytes())
    return torch.load(stream, map_location="cpu", weights_only=True)
