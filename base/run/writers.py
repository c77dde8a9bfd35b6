"""Which writers a run has, by ``trainer.tensorboard`` and ``trainer.writers``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from base.config import Config
from base.config.schema import WRITERS
from base.errors import ConfigError, Problem, nearest
from base.names.signatures import value_fault
from base.system.left_out import left_out_note
from base.training.epoch_rows import EpochRows, repair_rows
from base.training.progress import Progress
from logger.csv_writer import CsvWriter
from logger.writers import TensorBoardWriter, Writer

try:
    from logger.services import SERVICES
except ModuleNotFoundError:  # a project may leave them out
    SERVICES = {}
SERVICE_NAMES = set(WRITERS) - {"tensorboard", "csv"}


def make_writers(
    folder: Path,
    config: Mapping[str, Any],
    resumed_at: Progress | None,
    rows: EpochRows | None = None,
    is_finished: bool = False,
) -> list[Writer]:
    """Make the writers of a run; metrics.csv is always among them, and tells what was cut.

    Args:
        rows: those of the checkpoint that a run is resumed from.
        is_finished: whether nothing is left to train, so that no row will come again.

    Raises:
        FileError: metrics.csv cannot be repaired.
    """
    csv = CsvWriter(folder / "metrics.csv")
    purge_step = None
    if resumed_at is not None:
        n_epochs = resumed_at.n_logged if is_finished else resumed_at.epoch
        dropped = repair_rows(csv, rows or EpochRows(), n_epochs, keep_later=is_finished)
    if resumed_at is not None and not is_finished:
        # Where this very step ended an epoch, the epoch's values come once more.
        comes_again = any(row.get("step") == str(resumed_at.step) for row in dropped)
        purge_step = resumed_at.step + (not comes_again)
    writers: list[Writer] = [csv]
    if writes_tensorboard(config):
        writers.append(TensorBoardWriter(folder, purge_step=purge_step))
    for section in config["trainer"]["writers"]:
        if section["type"] in SERVICES:
            writers.append(SERVICES[section["type"]](folder, config, **section["args"]))
    return writers


def writes_tensorboard(config: Mapping[str, Any]) -> bool:
    """Tell whether TensorBoard is switched on, or named."""
    named = any(each["type"] == "tensorboard" for each in config["trainer"]["writers"])
    return named or config["trainer"]["tensorboard"]


def check_writers(config: Config) -> None:
    """Compare the arguments of writers with what they take; no service is imported.

    Raises:
        ConfigError: with all faults together, also where nothing would take what is captured.
    """
    problems: list[Problem] = []
    for number, section in enumerate(config["trainer"]["writers"]):
        if section["type"] in SERVICE_NAMES - SERVICES.keys():
            text = f"{section['type']} cannot be used{left_out_note('services')}"
            problems.append(config.problem(("trainer", "writers", number, "type"), text))
            continue
        takes = _takes(section["type"])
        for name, value in section["args"].items():
            if name in takes:
                text = value_fault(takes[name], value)
            else:
                known = nearest(str(name), takes) or f" (it takes {', '.join(takes) or 'none'})"
                text = f"unknown argument for {section['type']}{known}"
            if text:
                keys = ("trainer", "writers", number, "args", name)
                problems.append(config.problem(keys, text))
    has_service = any(each["type"] in SERVICES for each in config["trainer"]["writers"])
    if config["capture"] and not (has_service or writes_tensorboard(config)):
        text = "what is captured goes to TensorBoard, which `trainer.tensorboard` switches off"
        problems.append(config.problem(("capture",), text))
    if problems:
        raise ConfigError(problems)


def _takes(name: str) -> dict[str, inspect.Parameter]:
    """Return the arguments that a config may give: those by name alone."""
    parameters = inspect.signature(SERVICES[name]).parameters if name in SERVICES else {}
    keyword = inspect.Parameter.KEYWORD_ONLY
    return {each.name: each for each in parameters.values() if each.kind is keyword}
