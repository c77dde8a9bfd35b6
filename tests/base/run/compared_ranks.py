"""Builds an experiment on each of two ranks and compares them, once for each case.

Started by test_rank_checks.py: ``torchrun compared_ranks.py FOLDER``. Each rank writes what it
found to ``FOLDER/rankN.json``.
"""

import json
import logging
import os
import sys
from pathlib import Path

import torch

from base.config import load_config
from base.distributed.comparison import hash_of_tensor
from base.distributed.group import join_processes
from base.errors import KindlingError
from base.names.registry import set_project_root
from base.run.build import build_experiment
from base.run.rank_checks import check_ranks, weights_of

DIGITS = "config/digits.yaml"


def compare(case: str, number: int, folder: Path) -> dict[str, object]:
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)  # keys of its own in the same store
    world = join_processes(20)
    other = world.rank == 1
    overrides = ["optimizer.args.lr=0.5", "threads=1"] if case == "config" and other else []
    set_project_root(folder / str(world.rank if case == "code" else 0))
    torch.manual_seed(world.rank if case == "weights" else 0)
    found: dict[str, object] = {}
    try:
        with world.reports_errors():
            config = load_config(Path(DIGITS), overrides)
            experiment = build_experiment(config, torch.device("cpu"))
            check_ranks(experiment, world)
            weights = weights_of(experiment).items()
            found["weights"] = {name: hash_of_tensor(each) for name, each in weights}
    except KindlingError as error:
        found["error"], found["exit_code"] = str(error), error.exit_code
    world.close()
    return found


def main(folder: Path) -> None:
    rank = os.environ["RANK"]
    logging.getLogger("kindling").addHandler(logging.FileHandler(folder / f"log{rank}.txt"))
    cases = ("same", "weights", "config", "code")
    found = {case: compare(case, number, folder) for number, case in enumerate(cases)}
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


main(Path(sys.argv[1]))
