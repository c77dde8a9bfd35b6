"""Two processes with a GPU each. They are skipped on machines with fewer GPUs."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
LINEAR = """
name: linear
model:
  type: Sequential
  args: {layers: [Flatten, {type: Linear, args: {in_features: 64, out_features: 10}}]}
data_loader: {type: DigitsDataLoader, args: {batch_size: 101, validation_split: 0.1}}
optimizer: {type: SGD, args: {lr: 0.1}, clip_norm: 1.0}
loss: cross_entropy
metrics: [accuracy]
trainer: {epochs: 2, progress: false}
"""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


def train(folder: Path, device: str, *settings: str, config: str = LINEAR) -> dict[str, float]:
    """Train as a user would; return the last row of metrics.csv."""
    (folder / "config.yaml").write_text(config)
    save_dir = folder / device.replace(",", "-")
    command = [sys.executable, "train.py", "-c", str(folder / "config.yaml"), "-d", device]
    command += ["--set", f"trainer.save_dir={save_dir}", *settings]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (table,) = save_dir.glob("*/*/metrics.csv")
    *_, row = csv.DictReader(table.open())
    return {name: float(value) for name, value in row.items() if "/" in name}


@pytest.mark.parametrize("settings", [(), ("memory.accumulate=3",), ("distributed.overlap=false",)])
def test_two_gpus_train_as_one(tmp_path: Path, settings: tuple[str, ...]) -> None:
    one, two = (train(tmp_path, device, *settings) for device in ("0", "0,1"))
    for name in ("train/loss", "valid/loss", "train/accuracy", "valid/accuracy"):
        assert two[name] == pytest.approx(one[name], rel=1e-5)


def test_synchronized_batch_norm_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    config = LINEAR.replace(
        "[Flatten, ", "[Flatten, {type: BatchNorm1d, args: {num_features: 64}}, "
    )
    one = train(tmp_path, "0", config=config)
    two = train(tmp_path, "0,1", "distributed.sync_batch_norm=true", config=config)
    assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)


def test_fsdp_trains_as_one_gpu(tmp_path: Path) -> None:
    one, two = train(tmp_path, "0"), train(tmp_path, "0,1", "distributed.strategy=fsdp")
    assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)


def test_bf16_on_two_gpus(tmp_path: Path) -> None:
    one, two = (train(tmp_path, device, "memory.precision=bf16") for device in ("0", "0,1"))
    assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-2)
