"""The Python that a step runs: opcodes, whose number does not depend on the machine."""

import re
import subprocess
import sys

import pytest
from processes import ROOT

# Above the bare loop. Some 40 come and go with what torch has cached.
MOST_OPCODES = 1_300  # 1,212 to 1,276 on 30 November, 3,254 before
MOST_WITH_ACCURACY = 1_650  # 1,575 to 1,601 on 30 November, 3,790 before


# The number of opcodes for the same code differs between minor versions of Python.
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="counted with Python 3.11")
def test_a_step_runs_little_python_beside_the_bare_loop() -> None:
    """With bar, meters and TensorBoard, from a config, in a process of its own."""
    command = [sys.executable, "benchmarks/overhead.py", "--count", "--rows", "12", "--steps", "50"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # The last column of a row such as: framework, ...   2687 (111)   2274 (96)   1774 (67)
    above = [int(each) for each in re.findall(r"(\d+) \(\d+\)$", found, re.MULTILINE)]
    bare, plain, with_accuracy = above[:3]
    assert bare == 0
    assert plain < MOST_OPCODES, found
    assert with_accuracy < MOST_WITH_ACCURACY, found
