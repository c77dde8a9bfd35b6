"""Connections between ranks: what is sent arrives in order, whatever else is under way."""

from __future__ import annotations

import socket
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import pytest
import torch

from base.distributed.links import Links, Stream

Group = list[Links]


def connected(size: int) -> Group:
    """Return the links of each rank, in one process."""
    ends: dict[tuple[int, int], dict[int, socket.socket]] = {
        (kind, rank): {} for kind in range(2) for rank in range(size)
    }
    for kind in range(2):
        for one, other in combinations(range(size), 2):
            ends[kind, one][other], ends[kind, other][one] = _pair()
    return [Links(rank, Stream(ends[0, rank]), Stream(ends[1, rank]), 10.0) for rank in range(size)]


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


@pytest.fixture(params=[2, 3])
def group(request: pytest.FixtureRequest) -> Iterator[Group]:
    links = connected(request.param)
    yield links
    for each in links:
        each.close()


def on_all(group: Group, run: Callable[[Links], Any]) -> list[Any]:
    """Run a function as each rank, at the same time."""
    with ThreadPoolExecutor(len(group)) as pool:
        return list(pool.map(run, group, timeout=30))


def rows(links: Links, number: float) -> tuple[array[float], Any]:
    received = array("d", bytes(8 * 2 * (len(links.peers) + 1)))
    return received, links.all_gather(received, array("d", [links.rank, number]), 10.0)


@pytest.mark.parametrize("n", [1, 1000, 2_000_000], ids=["one", "small", "beyond_buffers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_sum_is_that_of_all_ranks_in_their_order(
    group: Group, n: int, dtype: torch.dtype
) -> None:
    """Also if no rank can send all before another one reads."""
    parts = [torch.randn(n, generator=torch.Generator().manual_seed(r)) for r in range(len(group))]
    parts = [part.to(dtype) for part in parts]
    expected = parts[0].clone()
    for part in parts[1:]:
        expected = expected + part

    def add(links: Links) -> torch.Tensor:
        tensor = parts[links.rank].clone()
        links.all_reduce(tensor).wait()
        return tensor

    for found in on_all(group, add):
        assert torch.equal(found, expected)


def test_rows_and_sums_may_begin_in_any_order(group: Group) -> None:
    """A rank that ran out of memory sends its row first, the others their sums."""
    size = len(group)

    def exchange(links: Links) -> tuple[list[float], list[float]]:
        sums = [torch.full((3,), float(links.rank + number)) for number in range(2)]
        if links.rank:
            begun = [links.all_reduce(each) for each in sums]
            first, second = rows(links, 1), rows(links, 2)  # read ahead
        else:
            first, second = rows(links, 1), rows(links, 2)
            begun = [links.all_reduce(each) for each in sums]
        first[1].wait()
        for each in begun:
            each.wait()
        second[1].wait()
        return [*first[0], *second[0]], [float(each[0]) for each in sums]

    total = sum(range(size))
    for numbers, added in on_all(group, exchange):
        assert numbers == [n for k in (1, 2) for rank in range(size) for n in (rank, k)]
        assert added == [total, total + size]


def test_what_a_rank_sent_before_it_ended_arrives(group: Group) -> None:
    *others, last = group
    rows(last, 7)
    last.close()

    def read(links: Links) -> tuple[list[float], str]:
        received, work = rows(links, 8)
        work.wait()
        with pytest.raises(RuntimeError) as caught:
            rows(links, 9)[1].wait()
        return list(received), str(caught.value)

    for numbers, text in on_all(others, read):
        assert numbers[-2:] == [last.rank, 7]
        assert f"rank {last.rank}" in text


def test_a_rank_that_does_not_answer_is_waited_for_as_long_as_asked(group: Group) -> None:
    received = array("d", bytes(8 * len(group)))
    work = group[0].all_gather(received, array("d", [0.0]), 0.2)
    others = ", ".join(f"rank {rank}" for rank in range(1, len(group)))
    with pytest.raises(RuntimeError, match=f"timed out after 0.2 s waiting for {others}"):
        work.wait()


def test_one_rank_at_work_does_not_hide_that_another_is_gone() -> None:
    _, busy, gone = group = connected(3)
    gone.close()
    with pytest.raises(RuntimeError, match="rank 2"):
        rows(group[0], 1)[1].wait()
    for each in (group[0], busy):
        each.close()
