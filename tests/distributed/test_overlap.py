"""Sums of gradients that begin in the backward pass equal, to the bit, those after it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "overlap_cases.py"


def cases() -> list[str]:
    """Return the names in ``CASES``; to import the script would join a process group."""
    for node in ast.parse(SCRIPT.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CASES":
            return ast.unparse(node.value).strip("[]").split(", ")
    raise AssertionError("no CASES")


@pytest.fixture(scope="module")
def output() -> str:
    """Run all cases in two processes, since to start them takes seconds."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*launch, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("case", cases())
def test_sums_beside_the_backward_pass_are_exact(case: str, output: str) -> None:
    assert f"equal: {case}\n" in output, output
