"""Layers with their fans, and what an initialisation reports."""

import copy

import pytest
from torch import nn

from base.errors import ConfigError
from base.names.registry import find
from base.network.initialization import initialise

# Fans as the layers compute: inputs that make an output, outputs (of all groups) that one input
# of the kernel's size makes. The weight of a transposed convolution is (in, out / groups, k, k).
LAYERS = {
    "conv": (nn.Conv2d(32, 64, 3), 32 * 9, 64 * 9),
    "grouped": (nn.Conv2d(64, 128, 3, groups=4), 16 * 9, 128 * 9),
    "transposed": (nn.ConvTranspose2d(64, 32, 3), 64 * 9, 32 * 9),
    "transposed and grouped": (nn.ConvTranspose1d(128, 32, 9, groups=2), 64 * 9, 32 * 9),
    "linear": (nn.Linear(200, 100), 200, 100),
}


def schemes(records) -> dict[str, str]:
    return {record.name: record.scheme for record in records}


def problems(model: nn.Module, rules) -> list[tuple[str, str]]:
    """Return what is wrong with rules, each with its place; the model stays as it was."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError) as raised:
        initialise(model, rules, find)
    for name, value in model.state_dict().items():
        assert value.equal(before[name]), "nothing may change where a rule is at fault"
    return [(problem.where, problem.message) for problem in raised.value.problems]
