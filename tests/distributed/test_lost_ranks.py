"""A rank that is lost does not take the others with it before they have finished their work."""

from __future__ import annotations

import textwrap
from pathlib import Path

from groups import start_group

CODE = """
import os, time
from base.distributed import Kind, RankLostError, join_processes
world = join_processes(20.0)
if world.rank == 0:
    time.sleep(8)
    print("rank 0 has saved", flush=True)
    os._exit(0)
if world.rank == 1:
    time.sleep(2)  # until rank 2 has joined too
    os._exit(9)
try:
    world.agree(Kind.UPDATE, 3)
except RankLostError as error:
    print(error, error.reporter, flush=True)
    os._exit(1)
"""


def test_a_rank_at_work_is_neither_ended_nor_named_for_one_that_died(tmp_path: Path) -> None:
    code = textwrap.dedent(CODE)
    busy, dead, witness = start_group(["-c", code], tmp_path, 3)
    assert dead.wait(60).returncode == 9
    done = witness.wait(60)
    text = done.stdout
    assert "rank 1" in text, done.stderr
    assert "is gone at step 3" in text
    assert text.endswith(" 2\n")  # it reports this: rank 0 may be at work for long
    assert "rank 0" not in text
    assert busy.wait(60).stdout == "rank 0 has saved\n"
