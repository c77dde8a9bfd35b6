"""Which connections a group of processes uses, and what a lost rank leaves of them."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from groups import start_group

JOINED = """
import os, socket, threading, time
import torch
from base.distributed import Kind, RankLostError, join_processes, links
{before}
world = join_processes(20.0)
numbers = torch.full((3,), 1.0 + world.rank)
world.begin_sum(numbers).wait()
message = world.agree(Kind.UPDATE, 3, found=world.rank)
print(world.links is not None, numbers.tolist(), list(message["found"]), flush=True)
"""
TWO_MACHINES = "links._machine = lambda: int(os.environ['RANK'])"
NO_PORT = "links._listen = lambda n: None if os.environ['RANK'] == '1' else listen(n)"
NO_CONNECTION = """
def refuse(*_):
    raise ConnectionRefusedError
if os.environ['RANK'] == '1':
    links._dial = refuse
"""
STRANGER = """
def listen_to_stranger(n):
    server = listen(n)
    stranger = socket.create_connection(server.getsockname())
    stranger.sendall(bytes(24))
    return server
links._listen = listen_to_stranger
"""


@pytest.mark.parametrize(
    ("before", "is_linked"),
    [("", True), (STRANGER, True), (TWO_MACHINES, False), (NO_PORT, False), (NO_CONNECTION, False)],
    ids=["one_machine", "stranger", "two_machines", "no_port", "no_connection"],
)
def test_all_ranks_use_the_same_connections(before: str, is_linked: bool, tmp_path: Path) -> None:
    """Where one rank cannot be reached directly, all use gloo; the numbers are the same."""
    code = textwrap.dedent(JOINED.format(before="listen = links._listen\n" + before))
    for script in start_group(["-c", code], tmp_path, 3):
        done = script.wait(60)
        assert done.stdout == f"{is_linked} [6.0, 6.0, 6.0] [0.0, 1.0, 2.0]\n", done.stderr


KILLED = """
import os, time
from base.distributed import Kind, RankLostError, join_processes
world = join_processes(50.0)
if world.rank == 1:
    if os.fork() == 0:  # as a worker that reads samples, which outlives a killed rank for a while
        time.sleep(20)
        os._exit(0)
    os._exit(9)
began = time.monotonic()
try:
    world.agree(Kind.UPDATE, 3)
except RankLostError as error:
    print(error, time.monotonic() - began < 15, flush=True)
    os._exit(1)
"""


def test_workers_that_outlive_a_rank_do_not_hide_its_end(tmp_path: Path) -> None:
    witness, dead = start_group(["-c", textwrap.dedent(KILLED)], tmp_path, 2)
    text = witness.wait(60).stdout
    assert "rank 1" in text
    assert "is gone at step 3" in text
    assert text.endswith("True\n")
    assert dead.wait(60).returncode == 9
