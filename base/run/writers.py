"""Builds the writers of a run from ``trainer.tensorboard`` and ``trainer.writers``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from base.config import Config
from base.config.schema import WRITERS
from base.config.short_settings import SAME_RESULT
from base.errors import ConfigError, Problem, nearest
from base.names.signatures import value_fault
from base.system.left_out import left_out_note
from base.training.epoch_rows import EpochRows, repair_rows
from base.training.progress import Progress
from logger.csv_writer import CsvWriter
from logger.writers import TensorBoardWriter, Writer

try:
    from logger.services import SERVICES
except ModuleNotFoundError:  # a project may omit logger/services.py
    SERVICES = {}
SERVICE_NAMES = set(WRITERS) - {"tensorboard", "csv"}


def build_writers(
    folder: Path,
    config: Mapping[str, Any],
    resumed_at: Progress | None,
    rows: EpochRows | None = None,
    is_finished: bool = False,
    changed: Mapping[str, Any] | None = None,
) -> list[Writer]:
    """Build the writers of a run; metrics.csv is always among them, and is repaired on resume.

    Args:
        resumed_at: the progress of a resumed run.
        rows: the rows of metrics.csv in the checkpoint of a resumed run.
        is_finished: whether training is complete, so that no row is written again.
        changed: the settings that the command line changed, which TensorBoard's HParams shows.

    Raises:
        FileError: metrics.csv cannot be repaired.
    """
    csv = CsvWriter(folder / "metrics.csv")
    purge_step = None
    if resumed_at is not None:
        n_epochs = resumed_at.n_logged if is_finished else resumed_at.epoch
        dropped = repair_rows(csv, rows or EpochRows(), n_epochs, keep_later=is_finished)
    if resumed_at is not None and not is_finished:
        # If this step ended an epoch, the values of the epoch are logged again.
        is_repeated = any(row.get("step") == str(resumed_at.step) for row in dropped)
        purge_step = resumed_at.step + (not is_repeated)
    writers: list[Writer] = [csv]
    if writes_tensorboard(config):
        shown = {k: v for k, v in (changed or {}).items() if not SAME_RESULT.search(k)}
        writers.append(TensorBoardWriter(folder, purge_step, shown))
    for section in config["trainer"]["writers"]:
        if section["type"] in SERVICES:
            writers.append(SERVICES[section["type"]](folder, config, **section["args"]))
    return writers


def writes_tensorboard(config: Mapping[str, Any]) -> bool:
    """Return whether the config switches TensorBoard on, or names it as a writer."""
    is_named = any(each["type"] == "tensorboard" for each in config["trainer"]["writers"])
    return is_named or config["trainer"]["tensorboard"]


def check_writers(config: Config) -> None:
    """Check the arguments of the writers without importing a service.

    Raises:
        ConfigError: names all errors; also raised if no writer takes what ``capture:`` collects.
    """
    problems: list[Problem] = []
    for number, section in enumerate(config["trainer"]["writers"]):
        if section["type"] in SERVICE_NAMES - SERVICES.keys():
            text = f"{section['type']} cannot be used{left_out_note('services')}"
            problems.append(config.problem(("trainer", "writers", number, "type"), text))
            continue
        parameters = _config_parameters(section["type"])
        for name, value in section["args"].items():
            if name in parameters:
                text = value_fault(parameters[name], value)
            else:
                names = ", ".join(parameters) or "none"
                known = nearest(str(name), parameters) or f" (it takes {names})"
                text = f"unknown argument for {section['type']}{known}"
            if text:
                keys = ("trainer", "writers", number, "args", name)
                problems.append(config.problem(keys, text))
    has_service = any(each["type"] in SERVICES for each in config["trainer"]["writers"])
    if config["capture"] and not (has_service or writes_tensorboard(config)):
        text = "captured values are written to TensorBoard, which `trainer.tensorboard` disables"
        problems.append(config.problem(("capture",), text))
    if problems:
        raise ConfigError(problems)


def _config_parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a writer: those that a config sets."""
    parameters = inspect.signature(SERVICES[name]).parameters if name in SERVICES else {}
    keyword = inspect.Parameter.KEYWORD_ONLY
    return {each.name: each for each in parameters.values() if each.kind is keyword}
