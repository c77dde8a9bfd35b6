"""Groups of processes, forked from one that has imported torch (see tests/processes.py)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from processes import Script

STORES: list[dist.TCPStore] = []  # they answer as long as this process lives


def start_group(args: Sequence[str | Path], folder: Path, size: int) -> list[Script]:
    """Start a script in several processes; a store in this process connects them.

    It takes the place of torchrun, which does the same but imports torch in each process.
    """
    if size == 1:
        return [Script(args, folder)]
    STORES.append(
        dist.TCPStore(
            "localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
        )
    )
    env = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(STORES[-1].port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    ranks = [{**env, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    return [Script(args, folder, env=rank) for rank in ranks]
