"""Trains and uses runs from Python or a notebook::

    from base import load_run, train

    run = train("config/digits.yaml", {"trainer.epochs": 3})
    run.metrics["valid/accuracy"], run.best["epoch"]
    run.model                        # with the weights of the best checkpoint
    run.predict(["three.png", "seven.png"])
    run = load_run("saved/digits")   # the newest run of that name

A run is the same as one of ``train.py``: it has a folder of its own, and ``-r`` resumes it. Data
paths of a config are relative to the current folder, as there. Several processes need ``torchrun``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.checkpoint.store import find_manifest
from base.config.config import Config
from base.config.loading import load_config
from base.errors import KindlingError, UsageError
from base.names.check import check_names
from base.run import (
    build_experiment,
    build_trainer,
    check,
    choose_checkpoint,
    choose_device,
    make_repeatable,
    open_run,
    record_to_resume,
    references_to_resume,
    refuse_changed_data,
)
from base.system.run_folder import find_run, run_folder_of
from base.system.seeding import seed_everything
from logger.console import setup_logging
from logger.csv_writer import number, read_rows

if TYPE_CHECKING:
    from torch import nn

    from base.prediction import TrainedRun

Values = dict[str, float]
PHASES = ("train", "valid", "test")


class FinishedRun:
    """A run in its folder: its values, and its model with the weights of the best checkpoint."""

    def __init__(self, folder: Path, device: str = "auto") -> None:
        self.folder, self._device = folder, device

    @property
    def history(self) -> list[Values]:
        """The values of each epoch, as in ``metrics.csv``: ``pandas.DataFrame(run.history)``."""
        rows = read_rows(self.folder / "metrics.csv")
        return [{name: number(text) for name, text in row.items()} for row in rows]

    @property
    def metrics(self) -> Values:
        """The values of the last epoch, and those of the test phase as ``test/accuracy``."""
        last = self.history[-1] if self.history else {}
        return {**{k: v for k, v in last.items() if not math.isnan(v)}, **self._tested()}

    @property
    def best(self) -> Values:
        """The values of the best epoch, or of the newest one where no epoch is chosen as best.

        Raises:
            CheckpointError: the run has no checkpoint.
        """
        manifest = find_manifest(choose_checkpoint(self.folder))
        return {"epoch": manifest["epoch"], "step": manifest["step"], **manifest["metrics"]}

    @cached_property
    def trained(self) -> TrainedRun:
        """The model with what prepares its inputs; it is built on first use, without any data."""
        from base.prediction import load_trained

        return load_trained(self.folder, choose_device(self._device))

    @property
    def model(self) -> nn.Module:
        """The model in evaluation mode; its averaged weights if the run has them."""
        return self.trained.model

    def predict(self, files: Any, **options: Any) -> Any:
        """Return predictions for files; see `TrainedRun.predict`."""
        trained: Any = self.trained
        return trained.predict(files, **options)

    def __repr__(self) -> str:
        kept = ((k, v) for k, v in self.metrics.items() if k.partition("/")[0] in PHASES)
        values = ", ".join(f"{name} {value:.4g}" for name, value in kept)
        return f"<run {self.folder}: {values or 'no epoch is finished'}>"

    def _tested(self) -> Values:
        path = self.folder / "report" / "test.json"
        if not path.is_file():
            return {}
        values = json.loads(path.read_text(encoding="utf-8"))
        return {f"test/{name}": each for name, each in values.items() if isinstance(each, float)}


def train(
    config: str | Path | Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
    *,
    resume: str | Path | None = None,
    device: str | None = None,
) -> FinishedRun:
    """Train the experiment of a config; return its run.

    Args:
        config: a file, or its content as a dict.
        changes: values to change, by dotted keys: ``{"trainer.epochs": 3}``, as by ``--set``.
        resume: the run, or the checkpoint, to resume.
        device: as ``-d`` has it; by default the config's.

    Raises:
        ConfigError: lists all faults of the config.
        InterruptedRunError: the run was interrupted; its state is saved.
        KindlingError: training failed; the last checkpoint stays valid.
    """
    try:
        return _train(_loaded(config, changes or {}), resume, device)
    except KindlingError as error:
        raise _shortened(error) from None


def load_run(path: str | Path, device: str = "auto") -> FinishedRun:
    """Return a run of the past.

    Args:
        path: its folder; the folder of a name means its newest run, as after ``-r``.

    Raises:
        UsageError: there is no such run.
    """
    try:
        return FinishedRun(run_folder_of(find_run(str(path))), device)
    except KindlingError as error:
        raise _shortened(error) from None


def _shortened(error: KindlingError) -> KindlingError:
    """Return an error without the engine's own calls, which do not help, and with its advice."""
    if error.advice and hasattr(error, "add_note"):  # Python 3.11
        error.add_note(error.advice)
    return error.with_traceback(None)


def _loaded(config: str | Path | Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    try:
        overrides = [f"{key}={json.dumps(_plain(value))}" for key, value in changes.items()]
        if isinstance(config, Mapping):
            return load_config(None, overrides, json.dumps(_plain(config)))
    except TypeError as error:
        raise UsageError(f"a config holds plain data, as a YAML file does: {error}") from error
    return load_config(Path(config), overrides)


def _plain(value: Any) -> Any:
    """Return plain data with paths as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _train(config: Config, resume: str | Path | None, device: str | None) -> FinishedRun:
    """Build and train, as train.py does in one process."""
    resume_from = None if resume is None else find_run(str(resume))
    setup_logging(None, config["trainer"]["verbosity"])
    with config.placed():
        check_names(config)
        make_repeatable(config)
        name = device or config["device"]
        chosen = choose_device(name)
        seed_everything(config["seed"])
        experiment = build_experiment(
            config,
            chosen,
            weights=resume_from is None,
            record=record_to_resume(config, resume_from),
            references=references_to_resume(config, resume_from),
        )
        trainer = build_trainer(config, experiment)
        if resume_from is not None:
            refuse_changed_data(experiment, resume_from, False)
        check(trainer)
        with open_run(trainer, config, resume_from) as run:
            trainer.train(run)
            assert run.folder is not None
            return FinishedRun(run.folder, name)
