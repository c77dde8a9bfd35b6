"""What the checks share: the last row of metrics.csv, the last weights, and `same`."""

import csv
import math
import sys
from pathlib import Path

import torch

RUN = Path(sys.argv[1])
with (RUN / "metrics.csv").open() as file:
    ROWS = list(csv.DictReader(file))
LAST = {name: float(value) for name, value in ROWS[-1].items() if value}
STATE = torch.load(max(RUN.glob("checkpoints/step-*/state.pt")), weights_only=True)
compared = []


def same(name, value, rel=1e-4):
    """Hold a number of the last epoch against one that was computed here."""
    value = float(value)
    assert math.isclose(LAST[name], value, rel_tol=rel, abs_tol=1e-7), (name, LAST[name], value)
    compared.append(name)


def trained(model):
    """Return the model with the run's last weights, for evaluation."""
    model.load_state_dict(STATE["model"])
    return model.eval()


def mean(values_and_counts):
    """Return the mean over samples of values that are means over batches."""
    pairs = [(float(value), n) for value, n in values_and_counts]
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs)


def held_out(loader, seed=42):
    """Return the validation batches of one of our loaders, as its seed splits it."""
    loader.set_seed(seed)
    valid = loader.split_validation()
    return list(valid.batches(0, len(valid)))


def end():
    assert compared
    print(len(compared))
