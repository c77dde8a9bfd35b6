"""Loads a trained run from its folder alone: the model, its task, and what prepares its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from base.base_trainer import BaseTrainer
from base.checkpoint.data_record import data_of
from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.store import find_manifest, read_with_manifest
from base.config.loading import load_config
from base.datasets.images import use_decoder
from base.errors import CheckpointError
from base.names.check import check_names
from base.names.object_references import References
from base.prediction.predictions import Predictions
from base.prediction.samples import open_samples
from base.prediction.trained_model import TrainedModel, input_from_record
from base.run.build import Data, build_experiment, build_trainer, choose_device
from base.run.loaders import defer_loaders
from base.run.model_example import example_tensors
from base.run.testing import choose_checkpoint, tested_state
from base.system.determinism import use_deterministic_algorithms
from base.system.run_folder import find_run, run_folder_of
from base.system.seeding import seed_everything

NOT_NEEDED = ("memory.compile=false", "trainer.test=false", "distributed.strategy=auto")


@final
class TrainedRun(TrainedModel):
    """A trained model that predicts files."""

    def predict(
        self,
        files: str | Path | Sequence[str | Path],
        batch_size: int | None = None,
        **how: Any,
    ) -> Predictions:
        """Predict files: images, folders of them, patterns, a table, or arrays.

        The result has the rows of ``predict.py``, as dicts: ``[{"file": ..., "class": ...}, ...]``.

        Args:
            files: one or several, as `open_samples` takes them.
            batch_size: samples at a time; by default the run's.
            how: ``top_k``, ``threshold``, ``tta`` and ``masks`` of `Predictions`.

        Raises:
            UsageError: there is nothing to predict, or the run has no use for these files.
        """
        words = [files] if isinstance(files, str | Path) else list(files)
        found = Predictions(self, open_samples(self, words, batch_size), **how)
        found.predict_all()
        return found


def load_trained(
    path: Path | str,
    device: torch.device | None = None,
    overrides: list[str] | None = None,
    ema: bool = True,
) -> TrainedRun:
    """Build the model of a run and load the weights of its best checkpoint, without any data.

    Args:
        path: the run's folder, or one of its checkpoints; for a folder of runs, its newest run.
        device: of the model; by default a GPU if there is one.
        overrides: changes of the run's config, such as ``memory.precision=fp32``.
        ema: whether to take the averaged weights if the run has them.

    Raises:
        CheckpointError: the run has no complete checkpoint, or it is damaged.
        ConfigError: the code no longer has what the config names.
        UsageError: the path is not a run.
    """
    path = find_run(path)
    device = choose_device("auto") if device is None else device
    folder = run_folder_of(path)
    checkpoint = choose_checkpoint(path)
    config = load_config(folder / "config.yaml", [*NOT_NEEDED, *(overrides or [])])
    with config.placed():
        check_names(config)
        use_deterministic_algorithms(config["deterministic"])
        seed_everything(config["seed"])
        if not (found := find_manifest(checkpoint)):
            raise CheckpointError(f"{path}: this run holds no complete checkpoint")
        if not (known := data_of(found)):
            text = "an earlier version wrote it, without the record of its data: resume the run"
            raise CheckpointError(f"{checkpoint}: {text} for one epoch, or train it again")
        use_decoder(known["record"].get("decoder"))
        references = References(config, known.get("references"))
        train_loader, valid_loader = defer_loaders(config, known["n_batches"], references)
        references.add("data_loader", train_loader)
        references.add("valid_data_loader", valid_loader)
        example = _Example(known.get("example") or input_from_record(known["record"]), train_loader)
        data = Data(train_loader, valid_loader, known["batches_per_epoch"], example)
        experiment = build_experiment(config, device, False, data=data, references=references)
        trainer: BaseTrainer = build_trainer(config, experiment)
        state, manifest = read_with_manifest(checkpoint)
        parts = tested_state(trainer)
        load_state_dicts(parts, {name: value for name, value in state.items() if name in parts})
    trainer.epoch_start.begin_as_saved()
    is_averaged = trainer.ema is not None and ema
    if trainer.ema is not None and ema:
        trainer.ema.swap()
    trainer.ema = trainer.training_state.ema = None  # an evaluation would swap them again
    trainer.model.eval()
    weights = "averaged" if is_averaged else "trained"
    return TrainedRun(folder, checkpoint, config, trainer, manifest, weights)


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
