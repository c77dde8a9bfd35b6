"""The model of a run with the weights of a checkpoint, and what the run knows about its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base.base_trainer import BaseTrainer
from base.checkpoint.data_record import data_of
from base.config import Config
from base.data.batch import IDS, WEIGHT, Rules, given_part, ids_of, to_device
from base.errors import CheckpointError
from base.run.model_example import example_tensors
from base.training.task import Task, find_task


@dataclass
class TrainedModel:
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
        found = (self.example or input_from_record(self.record)).get("args") or [{}]
        shape: list[int] = found[0].get("shape", []) if isinstance(found[0], Mapping) else []
        return shape

    def example_inputs(self, n_samples: int = 2) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments for the model, of zeros, on its device.

        Raises:
            CheckpointError: they are unknown, or not only tensors.
        """
        example = self.example or input_from_record(self.record)
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
        return find_task(
            [section["type"] for section in self.config["loss"]],
            predictions if isinstance(predictions, Tensor) else None,
            self.record.get("classes"),
            [section["type"] for section in self.config["metrics"]],
            has_own_predict=type(self.trainer).predict is not BaseTrainer.predict,
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
        for ids, batch in self.batches(loader):
            yield ids, self.predict_batch(batch)

    def batches(self, loader: Any) -> Iterator[tuple[Tensor, Any]]:
        """Yield the indices of the samples of each batch, and the batch on the model's device.

        The batch is as the trainer's methods receive it. Predict it before the next one is read.
        """
        rules = {**self.config["batch"], "ids": True}
        self.trainer._phase_loader = loader
        completed = (_with_weights(batch, rules) for batch in loader.batches(0, len(loader)))
        for batch in self.trainer._copy_to_device(completed):
            yield ids_of(batch, rules).cpu(), self._as_trained(batch, rules)

    def predict_batch(self, batch: Any) -> Any:
        """Return the predictions for a batch of `batches`."""
        with self.evaluating():
            outputs = self.trainer.forward(batch)
            more = (batch,) if self.trainer._predict_takes_batch else ()
            found, _ = self.trainer.in_own_unit(self.trainer.predict(outputs, *more), batch)
            return to_device(found, torch.device("cpu"))

    def _as_trained(self, batch: Any, rules: Rules) -> Any:
        """Return a batch without the ids that predictions need, unless the run's have them."""
        if self.config["batch"]["ids"]:
            return batch
        if isinstance(batch, Mapping):
            return {key: value for key, value in batch.items() if key != IDS}
        given = given_part(batch, rules)
        n_weights = len(batch) - len(given) - 1
        return [*given, *batch[len(batch) - n_weights :]]


def input_from_record(record: Mapping[str, Any]) -> dict[str, Any]:
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


def _with_weights(batch: Any, rules: Rules) -> Any:
    """Add the sample weights, ones, that the run's batches have."""
    name = rules["weight"]
    if name is None:
        return batch
    ones = torch.ones(len(ids_of(batch, {**rules, "weight": None})))
    if isinstance(batch, Mapping):
        return {**batch, WEIGHT: ones}
    return [*batch, ones] if isinstance(name, str) else [*batch[:-1], ones, batch[-1]]
