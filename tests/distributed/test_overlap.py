"""Sums of gradients equal, to the bit, those of what the ranks computed, whenever they begin."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "overlap_cases.py"


def cases() -> list[str]:
    """Return the names in ``CASES``; to import the script would join a process group."""
    for node in ast.parse(SCRIPT.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CASES":
            return ast.unparse(node.value).strip("[]").split(", ")
    raise AssertionError("no CASES")


@pytest.fixture(scope="module", params=[[], ["gloo"]], ids=["links", "gloo"])
def launch(request: pytest.FixtureRequest) -> tuple[str, float]:
    """Run all cases in two processes, since to start them takes seconds; return when they ended."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(SCRIPT), *request.param],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    return done.stdout + done.stderr, time.time()


@pytest.mark.parametrize("case", cases())
def test_sums_are_exact_whenever_they_begin(case: str, launch: tuple[str, float]) -> None:
    output, _ = launch
    assert f"equal: {case}\n" in output, output


def test_a_sum_that_no_other_rank_joins_does_not_delay_the_exit(launch: tuple[str, float]) -> None:
    output, ended = launch
    _, _, cause = output.partition("Root Cause")
    assert "rank      : 0 " in cause, output
    assert "exitcode  : 3 " in cause, output
    began = float(output.rpartition("exits: ")[2].split()[0])
    assert ended - began < 15  # a second or two and the launcher's own; the timeout is 300
