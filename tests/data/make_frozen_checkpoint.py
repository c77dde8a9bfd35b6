"""Freeze a checkpoint of this format: `python tests/data/make_frozen_checkpoint.py`, once a format.

A real run is stopped at step 7 of 10, within an epoch; beside its checkpoint goes what its state
is (a hash over all bits) and what the run ends with when it is not stopped. Since format 2 it is
saved as two processes do that hold the rows of each tensor; one process saves format 1.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "base")]

from digest import digest_of
from stores import save_divided
from toy import run

from base.checkpoint.store import FORMAT, read, read_manifest

CONFIG = """
name: frozen
seed: 3
model:
  type: Sequential
  args:
    layers:
      - Flatten
      - {type: Linear, args: {in_features: 5, out_features: 6, bias: false}}
      - {type: BatchNorm1d, args: {num_features: 6}}
      - {type: Dropout, args: {p: 0.2}}
      - {type: Linear, args: {in_features: 6, out_features: 3}}
data_loader:
  type: SyntheticDataLoader
  args: {n_samples: 24, shape: [1, 1, 5], n_classes: 3, batch_size: 4, validation_split: 4}
optimizer: {type: AdamW, args: {lr: 0.01}}
lr_scheduler: {type: OneCycleLR, args: {max_lr: 0.05}, every: step}
loss: cross_entropy
threads: 1
trainer: {epochs: 2, ema: {decay: 0.9}, tensorboard: false, progress: false, verbosity: 0}
"""
STOP_AT = 7


def main() -> None:
    logging.disable(logging.CRITICAL)
    target = HERE / f"format_{FORMAT}"
    target.mkdir()  # never over an older one: a frozen checkpoint stays as it is
    with tempfile.TemporaryDirectory() as temporary:
        run(Path(temporary) / "cut", text=CONFIG, stop_at=STOP_AT)
        run(Path(temporary) / "whole", text=CONFIG)
        saved = max(Path(temporary, "cut/checkpoints").glob("step-*"))
        manifest = read_manifest(saved)
        about = {key: manifest[key] for key in ("epoch", "metrics", "is_best", "facts")}
        save_divided(target / "checkpoints", 2, STOP_AT, read(saved), **about)
        final = read(Path(temporary) / "whole")
    expected = {
        "digest": digest_of(read(target)),
        "final_progress": final["progress"],
        "final_model": {name: value.tolist() for name, value in final["model"].items()},
    }
    (target / "config.yaml").write_text(CONFIG.lstrip(), encoding="utf-8")
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
