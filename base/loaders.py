"""The loaders of a config: for training, validation and test."""

from __future__ import annotations

import inspect
from typing import Any

from base.base_data_loader import as_batches
from base.config import Config
from base.errors import ConfigError
from base.names import build
from base.registry import find
from base.streams import sharing_fault


def build_loaders(config: Config) -> tuple[Any, Any]:
    """Build the training loader and, from it or from its own section, the one for validation."""
    seed = config["seed"]
    loader = build("data_loader", config["data_loader"], where=config.where("data_loader"))
    if hasattr(loader, "set_seed"):
        loader.set_seed(seed)
    key = "data_loader" if config["valid_data_loader"] is None else "valid_data_loader"
    if config["valid_data_loader"] is not None:
        section = config["valid_data_loader"]
        valid_loader = build("data_loader", section, where=config.where("valid_data_loader"))
    else:
        valid_loader = loader.split_validation() if hasattr(loader, "split_validation") else None
    if valid_loader is not None:
        valid_loader = _read_once(config, valid_loader, key)
    return _with_positions(config, loader, "data_loader"), valid_loader


def build_test_loader(config: Config) -> Any:
    """Build the loader of the test data: its own section, or the training one with training=False.

    Raises:
        ConfigError: the config names no test data and its loader has no ``training`` argument.
    """
    section, key = config["test_data_loader"], "test_data_loader"
    if section is None:
        key = "data_loader"
        section = config["data_loader"]
        accepted = inspect.signature(find("data_loader", section["type"])).parameters
        if "training" not in accepted:
            text = f"{section['type']} has no `training` argument that would give its test data"
            problem = config.problem(("data_loader",), f"{text}; add a test_data_loader section")
            raise ConfigError([problem])
        plain = {"training": False, "shuffle": False, "validation_split": 0.0, "augment": False}
        given = {key: value for key, value in plain.items() if key in accepted}
        section = {"type": section["type"], "args": {**section["args"], **given}}
    return _read_once(config, build("data_loader", section, where=config.where(key)), key)


def _with_positions(config: Config, loader: Any, key: str) -> Any:
    """Return the loader with positions; refuse a stream that its workers do not share."""
    if fault := sharing_fault(loader):
        is_given = "num_workers" in config[key]["args"]
        keys = (key, "args", "num_workers") if is_given else (key,)
        raise ConfigError([config.problem(keys, fault)])
    return as_batches(loader, config["seed"])


def _read_once(config: Config, loader: Any, key: str) -> Any:
    """Return a loader that is evaluated: one without a length is not begun a second time."""
    loader = _with_positions(config, loader, key)
    if hasattr(loader, "repeats"):
        loader.repeats = False
    try:
        len(loader)
    except TypeError as error:
        if config["trainer"]["valid_batches"] is None:
            text = f"{error}, so it may have no end: say how many batches to evaluate at most,"
            text += " `trainer: {valid_batches: 50}`, or give the data set a `__len__`"
            raise ConfigError([config.problem((key,), text)]) from error
    return loader


def batches_to_evaluate(config: Config, loader: Any, phase: str, most: int | None = None) -> int:
    """Return how many batches of a loader to evaluate; all of a test's.

    Args:
        most: no more than so many.
    """
    limit: int | None = None if phase == "test" else config["trainer"]["valid_batches"]
    try:
        n_batches = len(loader)
    except TypeError:  # which `_read_once` has seen to; for training data `most` is given
        n_batches = config["trainer"]["valid_batches"] or most or 1
    return min(n for n in (n_batches, limit, most) if n is not None)


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
        text = f"{error}: say how many steps make an epoch: `trainer: {{epoch_steps: 500}}`"
        raise ConfigError([config.problem(("data_loader",), text)]) from error
    if n_batches == 0:
        raise ConfigError([config.problem(("data_loader",), "the loader gives no batch")])
    return n_batches
