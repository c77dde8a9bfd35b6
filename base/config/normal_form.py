"""Converts sections to a normal form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from base.config.config import Config
from base.config.fields import Validation
from base.config.schema import WEIGHTS
from base.config.tree import as_tree
from base.errors import Problem

MAIN = "main"
"""The name of the optimizer in the section ``optimizer:``."""


def optimizer_sections(config: Config) -> dict[str, Mapping[str, Any]]:
    """Return the optimizer sections by name, each with its ``lr_scheduler``.

    A config defines one as ``optimizer:`` with ``lr_scheduler:`` beside it, or several as
    ``optimizers:``. `optimizer_keys` returns the keys of each.
    """
    if config["optimizers"] is not None:
        return dict(config["optimizers"])
    beside = {"lr_scheduler": config["lr_scheduler"], "every": "1 step"}
    return {MAIN: {**config["optimizer"], **beside}}


def optimizer_keys(config: Config, name: str, key: str = "optimizer") -> tuple[str, ...]:
    """Return the keys of an optimizer in the config, or of its ``lr_scheduler``."""
    if config["optimizers"] is None:
        return (key,)
    return ("optimizers", name) if key == "optimizer" else ("optimizers", name, key)


def weights_section(section: Any) -> tuple[dict[str, Any], list[str]]:
    """Return a ``weights`` section with all its keys, and its faults."""
    if not isinstance(section, str | Mapping):
        return {}, ["expected a file, or {file, strip, rename, only, skip, on_shape_mismatch}"]
    problems: list[Problem] = []
    tree = WEIGHTS.check(as_tree(section), (), Validation(problems))
    return tree.plain(), [problem.message for problem in problems]
