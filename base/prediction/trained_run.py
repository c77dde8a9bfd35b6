"""Loads a trained run from its folder alone: the model, its task, and what prepares its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base.base_trainer import BaseTrainer
from base.checkpoint.data_record import data_of
from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.store import find_manifest, read_with_manifest
from base.config import Config
from base.config.loading import load_config
from base.data.batch import given_part, ids_of, is_sequence, to_device
from base.errors import CheckpointError
from base.names.check import check_names
from base.names.object_references import References
from base.run.build import Data, build_experiment, build_trainer
from base.run.loaders import defer_loaders
from base.run.model_example import example_tensors
from base.run.testing import choose_checkpoint, tested_state
from base.system.run_folder import run_folder_of
from base.system.seeding import seed_everything
from base.training.task import Task, find_task

NOT_NEEDED = ("memory.compile=false", "trainer.test=false", "distributed.strategy=auto")


@dataclass
class TrainedRun:
    """A run's model with the weights of a checkpoint, in evaluation mode; averages if it has them.

    Use it in `evaluating`, which takes care of gradients and precision.
    """

    folder: Path
    checkpoint: Path
    config: Config
    trainer: BaseTrainer
    manifest: Mapping[str, Any]
    weights: str = "trained"
    """``averaged`` or ``trained``."""
    held: ExitStack = field(default_factory=ExitStack)
    """Restores the model of training if it is closed, or no longer used."""

    @property
    def model(self) -> nn.Module:
        """The model, on the device of the run."""
        return self.trainer.model

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.trainer.device

    @property
    def record(self) -> dict[str, Any]:
        """The data record (see `base/checkpoint/data_record.py`).

        It has ``classes``, ``mean``, ``std``, ``white``, ``mode``, ``size`` and ``table``, as far
        as the data have them.
        """
        return dict(data_of(self.manifest).get("record", {}))

    @property
    def example(self) -> dict[str, Any]:
        """The shapes and dtypes of the model's inputs and outputs; empty if they are unknown.

        See `base/run/model_example.py`.
        """
        return dict(data_of(self.manifest).get("example", {}))

    @property
    def input_shape(self) -> list[int]:
        """The shape of a sample's first input, such as (channel, height, width); [] if unknown."""
        found = (self.example or _from_record(self.record)).get("args") or [{}]
        shape: list[int] = found[0].get("shape", []) if isinstance(found[0], Mapping) else []
        return shape

    def example_inputs(self, n_samples: int = 2) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments for the model, of zeros, on its device.

        Raises:
            CheckpointError: they are unknown, or not only tensors.
        """
        example = self.example or _from_record(self.record)
        try:
            args = example_tensors(example["args"], n_samples)
            kwargs = example_tensors(example["kwargs"], n_samples)
        except KeyError:
            text = "the shape of the model's inputs is not known, as an earlier version trained it"
            text = f"{self.checkpoint}: {text}, or its parts are called one by one by the trainer"
            raise CheckpointError(text) from None
        except ValueError as error:
            raise CheckpointError(f"{self.checkpoint}: the model takes {error}") from error
        return to_device(args, self.device), to_device(kwargs, self.device)

    def task(self, predictions: Any) -> Task:
        """Return the task of the model, whose predictions for a batch are given."""
        shape = predictions.shape if isinstance(predictions, Tensor) else None
        return find_task(
            [section["type"] for section in self.config["loss"]],
            shape,
            self.record.get("classes"),
            [section["type"] for section in self.config["metrics"]],
        )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Return the context of the model's calls: no gradients, and the precision of the run."""
        self.model.eval()
        with torch.inference_mode(), self.trainer.precision.autocast():
            yield

    def predictions(self, loader: Any) -> Iterator[tuple[Tensor, Any]]:
        """Yield for each batch the indices of its samples, int64 (sample,), and the predictions.

        They are what the metrics see: the result of the trainer's ``predict``, in the targets' own
        unit, as (sample, ...) on the CPU.

        Args:
            loader: of `image_loader` and the like, whose batches have the indices added.
        """
        rules = {**self.config["batch"], "ids": True}
        own_ids = self.config["batch"]["ids"]
        self.trainer._phase_loader = loader
        with self.evaluating():
            for batch in self.trainer._copy_to_device(loader.batches(0, len(loader))):
                ids = ids_of(batch, rules).cpu()
                if not own_ids:
                    batch = given_part(batch, rules) if is_sequence(batch) else _without_ids(batch)
                outputs = self.trainer.forward(batch)
                more = (batch,) if self.trainer._predict_takes_batch else ()
                found, _ = self.trainer.in_own_unit(self.trainer.predict(outputs, *more), batch)
                yield ids, to_device(found, torch.device("cpu"))


def load_trained(
    path: Path, device: torch.device, overrides: list[str] | None = None, ema: bool = True
) -> TrainedRun:
    """Build the model of a run and load the weights of its best checkpoint, without any data.

    Args:
        path: the run's folder, or one of its checkpoints.
        ema: whether to take the averaged weights if the run has them.

    Raises:
        CheckpointError: the run has no complete checkpoint, or it is damaged.
        ConfigError: the code no longer has what the config names.
        UsageError: the path is not a run.
    """
    folder = run_folder_of(path)
    checkpoint = choose_checkpoint(path)
    config = load_config(folder / "config.yaml", [*NOT_NEEDED, *(overrides or [])])
    with config.placed():
        check_names(config)
        seed_everything(config["seed"])
        if not (found := find_manifest(checkpoint)):
            raise CheckpointError(f"{path}: this run holds no complete checkpoint")
        if not (known := data_of(found)):
            text = "an earlier version wrote it, without the record of its data: resume the run"
            raise CheckpointError(f"{checkpoint}: {text} for one epoch, or train it again")
        references = References(config, known.get("references"))
        train_loader, valid_loader = defer_loaders(config, known["n_batches"], references)
        references.add("data_loader", train_loader)
        references.add("valid_data_loader", valid_loader)
        example = _Example(known.get("example") or _from_record(known["record"]), train_loader)
        data = Data(train_loader, valid_loader, known["batches_per_epoch"], example)
        experiment = build_experiment(config, device, False, data=data, references=references)
        trainer: BaseTrainer = build_trainer(config, experiment)
        state, manifest = read_with_manifest(checkpoint)
        parts = tested_state(trainer)
        load_state_dicts(parts, {name: value for name, value in state.items() if name in parts})
    held = ExitStack()  # the averaged weights stay in the model as long as the run lives
    held.enter_context(trainer.epoch_start.as_saved())
    if trainer.ema is not None and ema:
        held.enter_context(trainer.ema.swapped_in())
    trainer.model.eval()
    weights = "averaged" if trainer.ema is not None and ema else "trained"
    return TrainedRun(folder, checkpoint, config, trainer, manifest, weights, held)


class _Example:
    """Stands for a loader where the first batch of one is asked for: zeros of the noted shapes."""

    def __init__(self, example: Mapping[str, Any], loader: Any) -> None:
        self._example, self._loader = example, loader

    def batches(self, first: int, count: int) -> Iterator[Any]:
        """Yield one batch: as a pair with a target, or as a dict."""
        if not self._example:
            yield from self._loader.batches(first, count)
            return
        args, kwargs = (example_tensors(self._example[name]) for name in ("args", "kwargs"))
        target = torch.zeros(2, dtype=torch.int64)
        yield {**kwargs, "target": target} if kwargs else [*args, target]


def _from_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shape of the input that a record implies: images of one size, or a table."""
    if "size" in record and ("mode" in record or len(record.get("mean", ())) in (1, 3)):
        n_channels = {"grey": 1, "RGB": 3}.get(record.get("mode", ""), len(record.get("mean", ())))
        shape = [n_channels, *record["size"]]
    elif "table" in record and record["table"]["encode"] == "one_hot":
        from base.datasets.table_encoding import TableEncoding  # a project may leave tables out

        shape = [len(TableEncoding.from_record(record["table"]).input_names)]
    else:
        return {}
    return {"args": [{"shape": shape, "dtype": "float32"}], "kwargs": {}, "outputs": {}}


def _without_ids(batch: Any) -> Any:
    return {key: value for key, value in batch.items() if key != "ids"}
