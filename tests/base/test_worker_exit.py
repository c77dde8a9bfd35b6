"""A run that fails while workers read ahead ends, with its traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from base.base_data_loader import BaseDataLoader

loader = BaseDataLoader(list(range(1000)), 2, True, 0.0, num_workers=2)
iterator = loader.batches(0, 500)
next(iterator)
1 / 0
"""


@pytest.mark.end_to_end
def test_an_error_that_nobody_catches_ends_the_process_though_workers_live(
    project_root: Path,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=project_root,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("ZeroDivisionError: division by zero")
