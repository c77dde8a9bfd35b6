"""Start of each command, from process start, against ``import torch``.

    python benchmarks/start.py [--rounds 7]

Training counts until the end of its first step; the other commands run to their end. All are run
in turns, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
IMPORT = "import torch"
BARE = """
import torch
layers = torch.nn.Conv2d(1, 32, 3), torch.nn.Flatten(), torch.nn.Linear(1152, 10)
model = torch.nn.Sequential(*layers)
optimizer = torch.optim.AdamW(model.parameters())
loss = torch.nn.functional.cross_entropy(model(torch.randn(128, 1, 8, 8)), torch.arange(128) % 10)
loss.backward()
optimizer.step()
"""
FIRST_STEP = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import train, base.config.command_line
from base.training.optimizer_step import Stepper
step = Stepper.step
def first(self, *given):
    step(self, *given)
    os._exit(0)
Stepper.step = first
train.main(sys.argv[1:])
"""
RESNET = """
name: resnet18
model: {type: resnet18, args: {num_classes: 10}}
data_loader:
  type: DatasetLoader
  args: {dataset: {type: SyntheticDataset, args: {n_samples: 8, shape: [3, 32, 32]}}, batch_size: 4}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
trainer: {epochs: 1}
"""
DIGITS = ("-c", "config/digits.yaml")


def commands(folder: Path) -> dict[str, Sequence[str]]:
    """Return the arguments of Python for each measured start; train the run that some need."""
    saved = f"trainer.save_dir={folder / 'saved'}"
    train(*DIGITS, "--set", saved, "trainer.epochs=1", "trainer.report=false")
    trained = str(next((folder / "saved").glob("*/*/run.json")).parent)
    write_images(folder / "images.npz")
    (folder / "resnet18.yaml").write_text(RESNET)
    first, elsewhere = ("-c", FIRST_STEP), ("--set", f"trainer.save_dir={folder / 'first'}")
    resume = (*first, "-r", trained, "--set", "trainer.epochs=2")
    predict = ("predict.py", "-r", trained, str(folder / "images.npz"), "--overwrite")
    return {
        "import torch": ("-c", IMPORT),
        "a bare first step": ("-c", BARE),
        "train.py, first step": (*first, *DIGITS, *elsewhere),
        "train.py, first step of resnet18": (
            *first,
            "-c",
            str(folder / "resnet18.yaml"),
            *elsewhere,
        ),
        "train.py -r, first step": resume,
        "test.py": ("test.py", "-r", trained),
        "predict.py, 5 images": (*predict, "-o", str(folder / "predictions.csv")),
        "train.py --list model": ("train.py", "--list", "model"),
        "train.py, misspelt model.type": ("train.py", *DIGITS, "--set", "model.type=resnet19"),
        "train.py, misspelt key": ("train.py", *DIGITS, "--set", "trainer.epoch=1"),
    }


def train(*arguments: str) -> None:
    """Train a run to its end."""
    command = [sys.executable, "train.py", *arguments]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def write_images(path: Path) -> None:
    """Write five images of digits for predict.py."""
    import numpy as np
    from sklearn.datasets import load_digits

    np.savez(path, images=load_digits().images[:5, None].astype("float32"))


def measure(arguments: Sequence[str]) -> tuple[float, float]:
    """Return the seconds of a process: wall-clock time and CPU time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):  # 2: a config error
        raise RuntimeError(f"{' '.join(arguments)[-200:]}\n{done.stderr.decode()}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, spent


def main() -> None:
    """Print a row for each command: medians, and the ratios to ``import torch`` in its round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{versions}, {os.cpu_count()} cores, {options.rounds} rounds\n")
    with tempfile.TemporaryDirectory() as folder:
        chosen = commands(Path(folder))
        rounds = [
            {name: measure(arguments) for name, arguments in chosen.items()}
            for _ in range(options.rounds + 1)
        ][1:]  # the first one fills the caches
    print(
        "| command | wall, s | CPU, s | CPU / import torch | from | to |\n|---|---|---|---|---|---|"
    )
    for name in chosen:
        wall, cpu = (statistics.median(each[name][k] for each in rounds) for k in (0, 1))
        ratios = sorted(each[name][1] / each["import torch"][1] for each in rounds)
        middle = statistics.median(ratios)
        row = f"{wall:.2f} | {cpu:.2f} | {middle:.2f} | {ratios[0]:.2f} | {ratios[-1]:.2f}"
        print(f"| {name} | {row} |")


if __name__ == "__main__":
    main()
