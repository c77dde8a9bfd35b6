"""How long from the start of the process to an accuracy on the test set, with configs that ship.

    python benchmarks/time_to_accuracy.py [--seeds 5] [config/fashion_mnist_fast.yaml ...]

Each run is `python train.py -c CONFIG --seed N`, as a user starts it, in a process of its own, and
timed from its start to its end: imports, reading, training, checkpoints, curves, the test. The
accuracy is that of report/test.json, of the 10,000 test images, which no training has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"fashion_mnist_fast": 0.90, "fashion_mnist_92": 0.92, "fashion_mnist_93": 0.93}


def run(config: Path, seed: int, device: str) -> tuple[float, float]:
    """Return the seconds of a run and the test accuracy that it reached."""
    with tempfile.TemporaryDirectory() as saved:
        command = [sys.executable, "train.py", "-c", str(config), "-d", device, "--seed", str(seed)]
        start = time.perf_counter()
        subprocess.run(
            [*command, "--set", f"trainer.save_dir={saved}"],
            cwd=ROOT, check=True, capture_output=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        report = next(Path(saved).glob("*/*/report/test.json"))
        return seconds, json.loads(report.read_text())["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [ROOT / "config" / f"{name}.yaml" for name in GOALS]
    parser.add_argument("configs", nargs="*", type=Path, default=every)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    import torch

    print(f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"{'config':24}{'goal':>6}{'reached':>9}{'accuracy, mean (range)':>28}{'seconds':>20}")
    for config in options.configs:
        results = [run(config.resolve(), seed, options.device) for seed in range(options.seeds)]
        seconds, accuracies = zip(*results, strict=True)
        goal = GOALS.get(config.stem, 0.0)
        n_reached = sum(accuracy >= goal for accuracy in accuracies)
        found = f"{statistics.mean(accuracies):.4f} ({min(accuracies):.4f}-{max(accuracies):.4f})"
        taken = f"{statistics.mean(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f})"
        print(
            f"{config.stem:24}{goal:6.2f}{n_reached:>5} of {len(results)}{found:>28}{taken:>20}",
            flush=True,
        )


if __name__ == "__main__":
    main()
