"""What a step frees on the CPU is there for the next one: no page is made twice."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from base.system.allocator import keep_freed_memory

ROOT = Path(__file__).resolve().parents[3]
STEPS = """
import resource, sys
import torch
from base.system.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory(torch.device("cpu"))

def step():
    parts = [torch.zeros(n) for n in (4_000_000, 10_000_000, 2_000_000)]
    return sum(float(part[-1]) for part in parts)

for _ in range(4):  # until the pieces have found their places, whatever was imported before
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_pages_of_a_step_are_made_once():
    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", STEPS, how], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("kept") < faults("given back") / 10


def test_other_devices_keep_their_memory_themselves():
    assert not keep_freed_memory(torch.device("cuda"))
