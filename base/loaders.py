"""The loaders of a config: for training, validation and test."""

from __future__ import annotations

import inspect
import math
from typing import Any

from base.base_data_loader import as_batches
from base.config import Config
from base.errors import ConfigError
from base.names import build
from base.registry import find
from base.signatures import signature

# Losses of torch that take no shares of classes.
OF_CLASS_NUMBERS = frozenset((
    "nll_loss", "NLLLoss", "NLLLoss2d", "multi_margin_loss",
    "MultiMarginLoss", "multilabel_margin_loss", "MultiLabelMarginLoss", "ctc_loss", "CTCLoss",
    "AdaptiveLogSoftmaxWithLoss",
))  # fmt: skip


def build_loaders(config: Config) -> tuple[Any, Any]:
    """Build the training loader and, from it or from its own section, the one for validation."""
    seed = config["seed"]
    loader = build("data_loader", config["data_loader"], where=config.where("data_loader"))
    if hasattr(loader, "set_seed"):
        loader.set_seed(seed)
    if config["valid_data_loader"] is not None:
        section = config["valid_data_loader"]
        valid_loader = build("data_loader", section, where=config.where("valid_data_loader"))
        _tell_ignored(valid_loader, config)
    else:
        valid_loader = loader.split_validation() if hasattr(loader, "split_validation") else None
    if valid_loader is not None:
        valid_loader = as_batches(valid_loader, seed)
    _tell_ignored(loader, config)
    if hasattr(loader, "set_training_length"):
        n_batches = batches_in_epoch(config, loader)
        steps_per_epoch = math.ceil(n_batches / config["memory"]["accumulate"])
        n_steps = config["trainer"]["steps"] or config["trainer"]["epochs"] * steps_per_epoch
        loader.set_training_length(n_steps, steps_per_epoch, n_batches)
    if mixers := getattr(loader, "mixes", ""):
        _refuse_class_numbers(config, mixers)
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
    _tell_ignored(loader, config)
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


def ignored_by_losses(config: Config) -> int | None:
    """Return the first ``ignore_index`` that a loss has, given or by default; None: none has."""
    for section in config["loss"]:
        named = find("loss", section["type"])
        takes = signature("loss", named).parameters
        default = takes["ignore_index"].default if "ignore_index" in takes else None
        default = getattr(named, "ignore_index", default)  # of an instance
        value = (section["args"] or {}).get("ignore_index", default)
        if isinstance(value, int):
            return value
    return None


def _tell_ignored(loader: Any, config: Config) -> None:
    """Tell a loader which class number the losses leave out."""
    if hasattr(loader, "set_ignored"):
        loader.set_ignored(ignored_by_losses(config))


def _refuse_class_numbers(config: Config, mixers: str) -> None:
    """Make sure that no loss takes class numbers where samples are mixed.

    Raises:
        ConfigError: one does; all are named.
    """
    problems = []
    for number, section in enumerate(config["loss"]):
        name, ignored = section["type"], (section["args"] or {}).get("ignore_index", -100)
        if name in OF_CLASS_NUMBERS:
            text = (
                f"{name} takes class numbers, but targets mixed by {mixers} are shares of classes"
            )
            problems.append(config.problem(("loss", number), f"{text}: use cross_entropy"))
        elif name in ("cross_entropy", "CrossEntropyLoss") and ignored >= 0:
            text = f"targets mixed by {mixers} are shares of classes, which know no ignore_index"
            problems.append(config.problem(("loss", number), f"{text}: leave one of them out"))
    if problems:
        raise ConfigError(problems)
