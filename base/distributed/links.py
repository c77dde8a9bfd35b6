"""Connections between the ranks of one machine, for numbers that are too few to be worth a thread.

gloo hands each operation to threads of its own, which wake others for each part of it: ten to
twenty thread switches for a few numbers. Here the thread that needs the numbers sends and
receives them itself, through the memory of the operating system.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MOST_BYTES = 1 << 20  # that a rank sends for one sum; gloo sends more of them as fast, in parallel
ADDRESS = "127.0.0.1"
PATIENCE_SECONDS = 5.0  # for a connection that the other rank has already made
BOOT = Path("/proc/sys/kernel/random/boot_id")  # tells machines of the same name apart, on Linux


class Pending(Protocol):
    """An operation that has begun: one of `Links`, or a work of torch."""

    def wait(self, timeout: timedelta = ...) -> Any:
        """Wait until it is complete."""

    def is_completed(self) -> bool:
        """Whether nothing is left to be sent."""


class Stream:
    """Bytes to and from each other rank, which receives them in the order of `send`.

    Args:
        connections: the connected sockets, by the rank at the other end.
    """

    def __init__(self, connections: Mapping[int, socket.socket]) -> None:
        self._connections = dict(sorted(connections.items()))
        self._unsent: dict[int, deque[memoryview]] = {peer: deque() for peer in self._connections}
        for connection in self._connections.values():
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, content: memoryview) -> None:
        """Begin to send bytes, which must not change until `receive` returns.

        A rank that is gone is no error: what it sent before can still be received.
        """
        for peer, unsent in self._unsent.items():
            unsent.append(content)
            self._push(peer)

    def receive(self, places: Mapping[int, memoryview], seconds: float) -> None:
        """Fill these bytes by those of the other ranks, and wait until all bytes are sent.

        Raises:
            RuntimeError: a rank is gone, or did not answer in time.
        """
        ends = time.monotonic() + seconds
        missing = dict(places)
        while True:
            missing = {peer: left for peer in missing if (left := self._pull(peer, missing[peer]))}
            unsent = [peer for peer, left in self._unsent.items() if left]
            if not missing and not unsent:
                return
            poll = select.poll()
            for peer in {*missing, *unsent}:
                events = select.POLLIN * (peer in missing) | select.POLLOUT * (peer in unsent)
                poll.register(self._connections[peer], events)
            if not poll.poll(1000 * max(0.0, ends - time.monotonic())):
                late = ", ".join(f"rank {peer}" for peer in {*missing, *unsent})
                raise RuntimeError(f"timed out after {seconds:g} s waiting for {late}")
            for peer in unsent:
                self._push(peer)

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections.values():
            connection.close()

    def _push(self, peer: int) -> None:
        """Send as much as the operating system takes."""
        unsent = self._unsent[peer]
        try:
            while unsent:
                n_sent = self._connections[peer].send(unsent[0])
                if n_sent < len(unsent[0]):
                    unsent[0] = unsent[0][n_sent:]
                else:
                    unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            unsent.clear()  # `receive` reports that the rank is gone, if it needs more of it

    def _pull(self, peer: int, place: memoryview) -> memoryview:
        """Receive what has arrived; return the place of what is missing."""
        try:
            while place:
                n_bytes = self._connections[peer].recv_into(place)
                if not n_bytes:
                    raise RuntimeError(f"connection closed by rank {peer}")
                place = place[n_bytes:]
        except BlockingIOError:
            pass
        except OSError as error:
            raise RuntimeError(f"connection to rank {peer} lost: {error}") from error
        return place


class Links:
    """Gathers and sums small tensors on the CPU, like torch.distributed, in the calling thread.

    Operations of one kind are waited for in the order in which they began, which is the same on
    all ranks; those of two kinds may begin in any order.
    """

    def __init__(self, rank: int, rows: Stream, sums: Stream, seconds: float) -> None:
        self.rank, self._rows, self._sums, self._seconds = rank, rows, sums, seconds
        self.peers = [*rows._connections]
        # Workers that outlive a killed rank must not keep its connections.
        os.register_at_fork(after_in_child=self.close)

    def all_gather(self, received: array[Any], sent: array[Any], seconds: float) -> Pending:
        """Begin to fill `received` by the numbers that each rank has `sent`, in their order.

        Args:
            seconds: how long to wait for the others.
        """
        content, whole = memoryview(sent).cast("B"), memoryview(received).cast("B")
        n_bytes = len(content)
        places = [whole[first : first + n_bytes] for first in range(0, len(whole), n_bytes)]
        places[self.rank][:] = content
        self._rows.send(content)
        others = {peer: places[peer] for peer in self.peers}
        return Exchange(partial(self._rows.receive, others), seconds)

    def takes(self, tensor: Tensor) -> bool:
        """Whether `all_reduce` is as fast as gloo's for a tensor of this size."""
        is_small = tensor.nbytes * len(self.peers) <= MOST_BYTES
        return is_small and tensor.device.type == "cpu"

    def all_reduce(self, tensor: Tensor) -> Pending:
        """Begin to replace a contiguous tensor by its sum over all ranks, added in their order."""
        self._sums.send(_bytes_of(tensor))
        return Exchange(partial(self._add_others, tensor), self._seconds)

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._rows.close()
        self._sums.close()

    def _add_others(self, tensor: Tensor, seconds: float) -> None:
        others = {peer: torch.empty_like(tensor) for peer in self.peers}
        self._sums.receive({peer: _bytes_of(other) for peer, other in others.items()}, seconds)
        before = [other for peer, other in others.items() if peer < self.rank]
        after = [other for peer, other in others.items() if peer > self.rank]
        for other in before[1:]:
            before[0].add_(other)
        for other in [*before[:1], *after]:  # the sum of those before, in their order, is one
            tensor.add_(other)


class Exchange:
    """An operation that this rank has begun by sending its part; `wait` receives the others'."""

    def __init__(self, end: Callable[[float], None], seconds: float) -> None:
        self._end, self._seconds = end, seconds

    def wait(self, timeout: timedelta | None = None) -> None:
        """Receive the parts of the other ranks.

        Raises:
            RuntimeError: a rank is gone, or did not answer in time.
        """
        self._end(self._seconds if timeout is None else timeout.total_seconds())

    def is_completed(self) -> bool:
        """Whether nothing is left to be sent."""
        return True


def link(rank: int, size: int, group: ProcessGroup, seconds: float) -> Links | None:
    """Connect the ranks if all are on one machine; return None on all of them otherwise.

    Args:
        group: the process group on the CPU through which they agree.
        seconds: how long to wait for a rank in a sum.
    """
    import torch.distributed as dist

    def all_succeeded(is_done: bool) -> bool:
        flag = torch.tensor([int(is_done)])
        dist.all_reduce(flag, dist.ReduceOp.MIN, group=group)
        return bool(flag)

    token = secrets.randbits(62)  # known to the ranks alone
    server = _listen(2 * size)
    port = 0 if server is None else server.getsockname()[1]
    rows = [torch.zeros(3, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(rows, torch.tensor([_machine(), port, token]), group=group)
    hosts, ports, tokens = zip(*(row.tolist() for row in rows), strict=True)
    found: dict[tuple[int, int], socket.socket] = {}  # by kind of stream and rank
    try:
        if len({*hosts}) > 1 or not all(ports) or server is None:
            return None
        with suppress(OSError):
            for peer in range(rank):
                for kind in range(2):
                    hello = torch.tensor([tokens[peer], rank, kind])
                    found[kind, peer] = _dial(ports[peer], _bytes_of(hello))
        if all_succeeded(len(found) == 2 * rank):
            with suppress(OSError):
                while len(found) < 2 * (size - 1):
                    connection, peer, kind = _answer(server, token)
                    found[kind, peer] = connection
            if all_succeeded(len(found) == 2 * (size - 1)):
                kinds = [
                    {peer: found.pop((kind, peer)) for peer in range(size) if peer != rank}
                    for kind in range(2)
                ]
                return Links(rank, Stream(kinds[0]), Stream(kinds[1]), seconds)
        return None
    finally:
        for connection in found.values():
            connection.close()
        if server is not None:
            server.close()


def _machine() -> int:
    """Return a number that tells this machine from others."""
    boot = BOOT.read_text() if BOOT.exists() else ""
    return int(hashlib.sha256(f"{socket.gethostname()} {boot}".encode()).hexdigest()[:15], 16)


def _listen(n_connections: int) -> socket.socket | None:
    if hasattr(select, "poll"):  # not on Windows
        with suppress(OSError):
            return socket.create_server((ADDRESS, 0), backlog=n_connections)
    return None


def _dial(port: int, hello: memoryview) -> socket.socket:
    connection = socket.create_connection((ADDRESS, port), PATIENCE_SECONDS)
    connection.sendall(hello)
    return connection


def _answer(server: socket.socket, token: int) -> tuple[socket.socket, int, int]:
    """Return a connection of a rank that knows the token, its rank, and the kind of stream."""
    server.settimeout(PATIENCE_SECONDS)
    while True:
        connection, _ = server.accept()
        connection.settimeout(PATIENCE_SECONDS)
        hello = torch.zeros(3, dtype=torch.int64)
        with suppress(OSError):
            connection.recv_into(_bytes_of(hello), 0, socket.MSG_WAITALL)
        found, peer, kind = hello.tolist()
        if found == token:
            return connection, peer, kind
        connection.close()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data
