"""The plain script and the framework compute the same: proof that the loop adds nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from base.config import load_config
from base.config.durations import RunLength
from base.run.build import build_experiment
from base.system.seeding import seed_everything
from logger.csv_writer import read_rows
from tests.base.toy import train_in
from trainer.trainer import Trainer


def test_plain_script_and_framework_reach_the_same_losses(
    tmp_path: Path, project_root: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(project_root)
    path = project_root / "examples" / "plain_train.py"
    spec = importlib.util.spec_from_file_location("plain_train", path)
    plain_train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain_train)
    plain = plain_train.main(epochs=3)

    # The schedule of all 20 epochs, stopped after 3 of them.
    plainly = ["trainer.tensorboard=false", "memory={channels_last: false, fused: false}"]
    config = load_config(project_root / "config" / "digits.yaml", plainly)
    seed_everything(config["seed"])
    experiment = build_experiment(config, torch.device("cpu"))
    n_batches = experiment.batches_per_epoch
    experiment.length = RunLength(n_batches, 3 * n_batches)
    train_in(Trainer(experiment), tmp_path)

    rows = read_rows(tmp_path / "metrics.csv")
    assert [float(row["train/loss"]) for row in rows] == [epoch["train"] for epoch in plain]
    assert [float(row["valid/loss"]) for row in rows] == [epoch["valid"] for epoch in plain]
    accuracies = [float(row["valid/accuracy"]) for row in rows]  # means of float32, batch by batch
    assert accuracies == pytest.approx([epoch["accuracy"] for epoch in plain], rel=1e-6)
