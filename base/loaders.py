"""The loaders of a config: for training, validation and test."""

from __future__ import annotations

import inspect
from typing import Any

from base.base_data_loader import as_batches
from base.config import Config
from base.errors import ConfigError
from base.names import build
from base.registry import find


def build_loaders(config: Config) -> tuple[Any, Any]:
    """Build the training loader and, from it or from its own section, the one for validation."""
    seed = config["seed"]
    loader = build("data_loader", config["data_loader"], where=config.where("data_loader"))
    if hasattr(loader, "set_seed"):
        loader.set_seed(seed)
    if config["valid_data_loader"] is not None:
        section = config["valid_data_loader"]
        valid_loader = build("data_loader", section, where=config.where("valid_data_loader"))
        if hasattr(valid_loader, "set_seed"):
            valid_loader.set_seed(seed)
    else:
        valid_loader = loader.split_validation() if hasattr(loader, "split_validation") else None
    if valid_loader is not None:
        valid_loader = as_batches(valid_loader, seed)
    return as_batches(loader, seed), valid_loader


def build_test_loader(config: Config) -> Any:
    """Build the loader of the test data: its own section, or the training one with training=False.

    Raises:
        ConfigError: the config names no test data and its loader has no ``training`` argument.
    """
    section = config["test_data_loader"]
    if section is None:
        section = config["data_loader"]
        accepted = inspect.signature(find("data_loader", section["type"])).parameters
        if "training" not in accepted:
            text = f"{section['type']} has no `training` argument that would give its test data"
            problem = config.problem(("data_loader",), f"{text}; add a test_data_loader section")
            raise ConfigError([problem])
        plain = {"training": False, "shuffle": False, "validation_split": 0.0, "augment": False}
        given = {key: value for key, value in plain.items() if key in accepted}
        section = {"type": section["type"], "args": {**section["args"], **given}}
    loader = build("data_loader", section, where=config.where("data_loader"))
    return as_batches(loader, config["seed"])


def batches_in_epoch(config: Config, loader: Any) -> int:
    """Return how many batches make an epoch.

    Raises:
        ConfigError: the loader does not know its length and the config does not say it.
    """
    if config["trainer"]["epoch_steps"] is not None:
        return int(config["trainer"]["epoch_steps"] * config["memory"]["accumulate"])
    try:
        n_batches = len(loader)
    except TypeError as error:
        text = f"{error}; say how many steps make an epoch: `trainer: {{epoch_steps: 500}}`"
        raise ConfigError([config.problem(("data_loader",), text)]) from error
    if n_batches == 0:
        raise ConfigError([config.problem(("data_loader",), "the loader gives no batch")])
    return n_batches
