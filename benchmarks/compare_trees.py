"""Step and start time of this tree against another one, side by side.

    python benchmarks/compare_trees.py ../kindling-before

Each pair runs both trees, one after the other, in processes of their own. CPU time is compared, as
it depends little on what else the machine does.
"""

from __future__ import annotations

import compileall
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
STEPS = 20  # of an epoch
# The trainings of the tests: a network of 57 numbers, so that nearly all time is the engine's.
EPOCHS = f"""
import sys, time
sys.path[:0] = [".", "tests", "tests/base"]
import toy
trainer = toy.make("trainer.epochs=400", "data_loader.args.n_samples={4 * STEPS + 4}")
train_epoch, seconds = trainer.train_epoch, []
def timed():
    begin = time.process_time()
    values = train_epoch()
    seconds.append(time.process_time() - begin)
    return values
trainer.train_epoch = timed
toy.train_in(trainer) if hasattr(toy, "train_in") else trainer.train()
print(sorted(seconds)[200] / {STEPS} * 1e6)
"""


def main(other: Path, n_pairs: int = 7) -> None:
    """Print a line for each measure: both medians, the median ratio and its range."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for tree in (other, HERE):  # else the start of a fresh tree would compile its files each time
        for folder in ("base", "logger", "model", "data_loader", "trainer"):
            compileall.compile_dir(tree / folder, quiet=2)

    def run(tree: Path, *words: str) -> str:
        command = [sys.executable, *words]
        return subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, check=False
        ).stdout

    def cpu_seconds(tree: Path, *words: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(tree, "train.py", "-c", "config/digits.yaml", *words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    measures: dict[str, Callable[[Path], float]] = {
        "a step, microseconds": lambda tree: float(run(tree, "-c", EPOCHS)),
        "a config error, seconds": lambda tree: cpu_seconds(tree, "--set", "trainer.tset=1"),
        "a dry run, seconds": lambda tree: cpu_seconds(tree, "--dry-run"),
    }
    for name, measure in measures.items():
        pairs = [(measure(other), measure(HERE)) for _ in range(n_pairs)]
        medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
        ratios = sorted(ours / theirs for theirs, ours in pairs)
        print(
            f"{name}: {medians[0]:.4g} there, {medians[1]:.4g} here; ratio "
            f"{statistics.median(ratios):.3f} (from {ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
