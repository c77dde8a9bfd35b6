"""Ranks that make different calls end at once, with an error that names both."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from groups import start_group

CODE = """
from base.distributed import Kind, RankLostError, join_processes
world = join_processes(20.0)
from torch import nn
from base.distributed.buffers import BufferMeans
means = BufferMeans([nn.BatchNorm1d(3)])
try:
    {call}
except RankLostError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("call", "places"),
    [
        (
            "world.gather(1) if world.rank else world.all_gather(1)",
            "rank 0 at step 0, the values of all ranks; rank 1 at step 0, the values of the other",
        ),
        (
            "world.agree(Kind.UPDATE, 3, optimizer=world.rank)",
            "rank 0 at step 3, the gradients of optimizer 0; rank 1 at step 3, the gradients of",
        ),
        (
            "world.all_gather(1) if world.rank else means.average(world, 0.5, 4)",
            "rank 0 at step 4, the buffers after a step; rank 1 at step 0, the values of all ranks",
        ),
    ],
)
def test_the_error_names_the_calls_of_both(call: str, places: str, tmp_path: Path) -> None:
    code = textwrap.dedent(CODE.format(call=call))
    for script in start_group(["-c", code], tmp_path, 2):
        assert places in script.wait(60).stdout
