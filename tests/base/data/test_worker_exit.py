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


STOPPED = """
import psutil
import torch.utils.data._utils as utils
from base.base_data_loader import BaseDataLoader

utils.MP_STATUS_CHECK_INTERVAL = 0.2  # seconds that torch waits for a worker to end
loader = BaseDataLoader(list(range(16)), 2, True, 0.0, num_workers=2, workers="processes")
list(loader.batches(0, 8))
for worker in psutil.Process().children():
    worker.suspend()
loader.close()
print("closed")
"""


@pytest.mark.end_to_end
def test_a_worker_that_was_stopped_after_its_last_batch_keeps_no_process_from_ending(
    project_root: Path,
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED],
        cwd=project_root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout.strip()) == (0, "closed"), ended.stderr
