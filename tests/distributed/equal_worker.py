"""Trains cases, one after another, in one group of processes: ``equal_worker.py OUT NAME ...``.

Each process writes its results to ``OUT/<number of processes>.<rank>``.
"""

import sys
import traceback
from pathlib import Path

import torch
from equal_cases import CASES, registered, train_case

from base.distributed import join_processes


def main(out: str, *names: str) -> None:
    torch.set_num_threads(1)
    world = join_processes(10.0)
    found = {}
    with registered():
        for name in names or CASES:
            try:
                found[name] = train_case(CASES[name], world)
            except Exception:
                found[name] = {"error": traceback.format_exc()}
                if world.agreement is not None and world.agreement._has_failed:
                    break  # the other ranks are elsewhere
    torch.save(found, Path(out) / f"{world.size}.{world.rank}")
    world.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
