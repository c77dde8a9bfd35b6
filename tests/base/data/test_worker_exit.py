"""A process whose workers live, or were stopped, ends all the same."""

import subprocess
import sys
from pathlib import Path

import pytest

FAILING = """
from base.base_data_loader import BaseDataLoader

loader = BaseDataLoader(list(range(1000)), 2, True, 0.0, num_workers=2)
iterator = loader.batches(0, 500)
next(iterator)
1 / 0
"""


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
@pytest.mark.parametrize(
    ("script", "code", "printed", "last_line"),
    [(FAILING, 1, "", "ZeroDivisionError: division by zero"), (STOPPED, 0, "closed", "")],
    ids=["an error that nobody catches", "workers stopped after their last batch"],
)
def test_a_process_ends_though_workers_live(
    project_root: Path, script: str, code: int, printed: str, last_line: str
) -> None:
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=project_root, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (code, printed), done.stderr
    assert done.stderr.strip().endswith(last_line)
