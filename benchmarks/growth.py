"""How time, memory and files grow with the size of the data, of the model and of a training.

    python benchmarks/growth.py [--only samples,columns] [--quick] [--rounds 3]

Each measurement is a fresh process: an entry script as a user starts it, or a real class of the
engine. The data are made by the script in a temporary folder, which is removed. The cost of the
smallest size is subtracted, and the exponent of the rest is fitted (log-log least squares over the
upper half of the sizes): 1 is linear, 2 quadratic. An increase within the noise counts as flat.
A measurement that takes longer than `--limit` seconds ends its row, and is named.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ABOVE = 1.15  # a larger exponent is growth above linear
NOISE = {"seconds": 0.15, "MB": 4.0, "kB": 4.0}  # a smaller increase is no growth
SHARE_OF_NOISE = 0.1  # and one below this share of the smallest size's cost

# This process imports neither torch nor NumPy: on Linux the peak memory of a child is at least that
# of its parent when it was started.


class Part(NamedTuple):
    """One kind of measurement, at several sizes."""

    axis: str
    name: str
    sizes: Sequence[int]
    quick: Sequence[int]
    run: Callable[[Path, int], list[str]]
    """Returns the arguments of the measured Python process, which starts in the folder."""
    make: Callable[[Path, int], object] | None = None
    """Makes the data in the folder, in a process of its own; None uses that of the part before."""
    once: bool = False
    """Whether it changes its folder, so that it is measured once."""


class Cost(NamedTuple):
    """The seconds, the peak memory and the new bytes on disk of one process."""

    seconds: float
    mb: float
    kb: float


# The data.


def config(folder: Path, dataset: str, **sections: str) -> None:
    """Write ``g.yaml``: a small MLP on a data set for one step; sections replace these."""
    text = {
        "name": "g",
        "model": "{type: MLP, args: {n_inputs: 4, hidden: [8], n_outputs: 2}}",
        "data_loader": f"{{type: DatasetLoader, args: {{dataset: {dataset}, batch_size: 64}}}}",
        "optimizer": "{type: SGD, args: {lr: 0.01}}",
        "loss": "cross_entropy",
        "metrics": "[accuracy]",
        "trainer": "{steps: 1, report: false}",
        "threads": "1",
    }
    lines = [f"{name}: {value}\n" for name, value in (text | sections).items() if value]
    (folder / "g.yaml").write_text("".join(lines))


def arrays(folder: Path, n: int, n_inputs: int = 4, n_classes: int = 2) -> str:
    """Write inputs of float32 and targets as npy files; return the data set of a config."""
    import numpy as np

    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.random((n, n_inputs), dtype=np.float32))
    np.save(folder / "y.npy", rng.integers(0, n_classes, n, dtype=np.int32))
    return "{type: ArrayFileDataset, args: {inputs: x.npy, targets: y.npy}}"


def loader(dataset: str, arguments: str = "batch_size: 64") -> str:
    return f"{{type: DatasetLoader, args: {{dataset: {dataset}, {arguments}}}}}"


def make_samples(folder: Path, n: int) -> None:
    config(
        folder,
        "",
        data_loader=loader(arrays(folder, n), "batch_size: 64, split: 0.1"),
        trainer="{steps: 1, valid_batches: 1, report: false}",
    )


def make_columns(folder: Path, n: int) -> None:
    """Write a table of 100 rows with n columns of numbers, and one of classes."""
    rng = random.Random(0)
    with (folder / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(f"gene_{number}" for number in range(n)), "target"])
        for row in range(100):
            rows.writerow([*(round(rng.random(), 3) for _ in range(n)), f"class_{row % 2}"])
    config(
        folder,
        "{type: CsvDataset, args: {file: t.csv, target: target}}",
        model="{type: MLP, args: {n_inputs: null, hidden: [8], n_outputs: 2}}",
    )


def make_classes(folder: Path, n: int) -> None:
    config(
        folder,
        "",
        model=f"{{type: MLP, args: {{n_inputs: 4, hidden: [8], n_outputs: {n}}}}}",
        data_loader=loader(arrays(folder, 256, n_classes=n), "batch_size: 64, split: 64"),
        metrics="[accuracy, F1, Precision, Recall]",
    )


def make_parameters(folder: Path, n: int) -> None:
    """Write a config whose model has n parameter tensors: n / 2 layers."""
    hidden = ", ".join(["4"] * (n // 2 - 1))
    config(
        folder,
        arrays(folder, 256),
        model=f"{{type: MLP, args: {{n_inputs: 4, hidden: [{hidden}], n_outputs: 2}}}}",
        optimizer="{type: AdamW, args: {lr: 0.01}}",
    )


def make_runs(folder: Path, n: int) -> None:
    """Train a run, and copy what it wrote n times."""
    make_samples(folder, 256)
    subprocess.run([sys.executable, *train()], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (run,) = (folder / "saved" / "g").iterdir()
    stamp = json.loads((run / "run.json").read_text())
    for number in range(2, n + 1):
        copy = run.with_name(f"20200101-{number:06d}_lr={number}")
        (copy / "checkpoints" / "step-00000001").mkdir(parents=True)
        settings = {"optimizer.args.lr": number}
        text = json.dumps({**stamp, "number": number, "changed": settings})
        (copy / "run.json").write_text(text)
        for name in ("config.yaml", "metrics.csv", "checkpoints/step-00000001/manifest.json"):
            os.link(run / name, copy / name)


# The processes that are measured.


def script(name: str, *arguments: str) -> list[str]:
    return [str(ROOT / name), *arguments]


def train(*arguments: str) -> list[str]:
    return script("train.py", "-c", "g.yaml", *arguments)


def resume(*arguments: str) -> list[str]:
    return script("train.py", "-r", "saved/g", *arguments)


def action(name: str) -> Callable[[Path, int], list[str]]:
    """Return the process that calls a function of this file with the folder and the size."""
    return lambda folder, n: [__file__, "--call", name, str(folder), str(n)]


def new_run_folder(folder: Path, n: int) -> None:
    from base.system.run_folder import create_run_folder

    for _ in range(5):
        create_run_folder(folder / "saved", "g")


SAMPLES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PARTS = (
    Part("samples", "first step", SAMPLES, (100, 10_000, 30_000, 100_000),
         lambda folder, n: train(), make_samples),
    Part("samples", "resume in the epoch", SAMPLES, (100, 10_000, 30_000, 100_000),
         lambda folder, n: resume("--set", "trainer.steps=2"), once=True),
    Part("columns", "first step", (100, 1_000, 10_000, 30_000, 60_000), (10, 500, 1000, 2000),
         lambda folder, n: train(), make_columns),
    Part("classes", "training, validation, metrics", (100, 1_000, 3_000, 10_000, 30_000, 100_000),
         (10, 300, 1_000, 3_000), lambda folder, n: train(), make_classes),
    Part("parameters", "first step", (100, 1_000, 3_000, 10_000), (10, 100, 300, 1000),
         lambda folder, n: train(), make_parameters),
    Part("runs", "newest run", (10, 1_000, 3_000, 10_000), (5, 50, 100, 200),
         lambda folder, n: resume("--print-config"), make_runs),
    Part("runs", "list", (10, 1_000, 3_000, 10_000), (5, 50, 100, 200),
         lambda folder, n: ["-m", "base.runs", str(folder / "saved")]),
    Part("runs", "new folder, 5 times", (10, 1_000, 3_000, 10_000), (5, 50, 100, 200),
         action("new_run_folder"), once=True),
)  # fmt: skip


# Measuring.


def measured(arguments: list[str], folder: Path, limit: float) -> Cost | None:
    """Run a Python process in the folder; return its cost, or None beyond the limit of seconds.

    Raises:
        RuntimeError: it failed.
    """
    before = bytes_in(folder)
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder, env=variables, stdout=output, stderr=output,
        )  # fmt: skip
        timer = threading.Timer(limit, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == -signal.SIGKILL and seconds >= limit:
            return None
        if process.returncode != 0:
            output.seek(0)
            text = output.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{text}")
    added = max(bytes_in(folder) - before, 0)
    return Cost(seconds, usage.ru_maxrss / 1024, added / 1024)


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        total += sum(Path(parent, name).lstat().st_size for name in names)
    return total


def measure(
    parts: Sequence[Part], where: Path, is_quick: bool, rounds: int, limit: float
) -> dict[Part, dict[int, list[Cost]]]:
    """Return the costs of each part by size. The parts of an axis share the data of a size."""
    costs: dict[Part, dict[int, list[Cost]]] = {part: {} for part in parts}
    for axis in dict.fromkeys(part.axis for part in parts):
        group = [part for part in parts if part.axis == axis]
        ended: set[Part] = set()
        for n in sorted({n for part in group for n in (part.quick if is_quick else part.sizes)}):
            folder = where / "data"
            folder.mkdir()
            for part in group:
                if part.make is not None:
                    call(part.make, folder, n)
                if part in ended or n not in (part.quick if is_quick else part.sizes):
                    continue
                found = several(part, folder, n, rounds, limit)
                if found:
                    costs[part][n] = found
                else:
                    ended.add(part)
                print(line_of(part, n, found), flush=True)
            shutil.rmtree(folder)
    return costs


def call(function: Callable[[Path, int], object], folder: Path, n: int) -> None:
    """Call a function of this file in a process of its own, so that this one stays small."""
    arguments = [__file__, "--call", function.__name__, str(folder), str(n)]
    subprocess.run([sys.executable, *arguments], check=True)


def several(part: Part, folder: Path, n: int, rounds: int, limit: float) -> list[Cost]:
    """Measure a part: the quick ones in all rounds, the long ones once; [] beyond the limit."""
    found: list[Cost] = []
    while len(found) < (1 if part.once else rounds) and sum(one.seconds for one in found) < 10:
        cost = measured(part.run(folder, n), folder, limit)
        if cost is None:
            return []
        found.append(cost)
    return found


# Judging.


def median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))


def exponent(sizes: Sequence[int], values: Sequence[float], noise: float) -> float | None:
    """Return the exponent of the growth beyond the smallest size; None if there is none.

    The cost of the smallest size, of a start without growth, is subtracted from each other one, and
    so is the size: what is linear has the exponent 1 at once.
    """
    noise = max(noise, SHARE_OF_NOISE * values[0])
    upper = range(max(1, len(sizes) // 2), len(sizes))
    points = [(math.log(sizes[i] - sizes[0]), values[i] - values[0]) for i in upper]
    points = [(x, math.log(y)) for x, y in points if y > noise]
    if len(points) < 2:
        return None
    x_mean = statistics.mean(x for x, _ in points)
    return sum((x - x_mean) * y for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


def table(costs: dict[Part, dict[int, list[Cost]]], limit: float, is_quick: bool) -> list[str]:
    """Return the lines of a markdown table, and a verdict for each row."""
    lines = [
        "| axis | what | sizes | seconds (spread) | power | peak MB | power | kB written | power |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    verdicts = []
    for part, by_size in costs.items():
        sizes = list(by_size)
        medians = [median(found) for found in by_size.values()]
        cells, above = [part.axis, part.name, " ".join(map(short, sizes))], []
        for unit, name in (("seconds", "time"), ("MB", "memory"), ("kB", "files")):
            values = [getattr(one, unit.lower()) for one in medians]
            found = exponent(sizes, values, NOISE[unit]) if len(sizes) > 1 else None
            cells += [" ".join(f"{value:,.{unit == 'seconds'}f}" for value in values)]
            cells += ["flat" if found is None else f"{found:.2f}"]
            above += [f"{name} {found:.2f}"] if found is not None and found > ABOVE else []
        spread = max((max(c.seconds for c in found) / min(c.seconds for c in found)
                      for found in by_size.values()), default=1.0)  # fmt: skip
        cells[3] += f" ({100 * (spread - 1):.0f} %)"
        lines.append(f"| {' | '.join(cells)} |")
        name = f"{part.axis}, {part.name}"
        verdicts += [f"above linear: {name}: {', '.join(above)}"] if above else []
        missing = [n for n in (part.quick if is_quick else part.sizes) if n not in by_size]
        verdicts += [f"beyond {limit:.0f} s: {name}: {short(missing[0])}"] if missing else []
    return [*lines, "", *(verdicts or ["nothing above linear"])]


def short(n: int) -> str:
    """Return a size in few characters: 3000 is 3e3."""
    zeros = len(str(n)) - len(str(n).rstrip("0"))
    return f"{str(n)[:-zeros]}e{zeros}" if zeros > 2 else str(n)


def line_of(part: Part, n: int, found: list[Cost]) -> str:
    """Return the progress of the script: one measurement."""
    name = f"{part.axis:12}{part.name:32}{short(n):>8}"
    if not found:
        return f"{name}  beyond the limit"
    seconds, mb, kb = median(found)
    return f"{name}{seconds:10.2f} s{mb:10,.0f} MB{kb:12,.0f} kB"


def versions() -> str:
    """Return what the figures depend on."""
    from importlib import metadata

    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "numpy"))
    machine = f"{os.cpu_count()} cores, {platform.platform()}"
    return f"{packages}, Python {platform.python_version()}, {machine}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    axes = list(dict.fromkeys(part.axis for part in PARTS))
    parser.add_argument("--only", help=f"axes, with commas between: {','.join(axes)}")
    parser.add_argument("--quick", action="store_true", help="small sizes: a minute in all")
    parser.add_argument("--rounds", type=int, default=3, help="of measurements under a few seconds")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of one measurement")
    parser.add_argument(
        "--folder", type=Path, help="where to write; by default for temporary files"
    )
    parser.add_argument("--call", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.call:
        name, folder, n = options.call
        sys.path.insert(0, str(ROOT))
        globals()[name](Path(folder), int(n))
        return
    wanted = options.only.split(",") if options.only else axes
    if unknown := set(wanted) - set(axes):
        parser.error(f"--only: no axis {', '.join(sorted(unknown))}; there are {', '.join(axes)}")
    parts = [part for part in PARTS if part.axis in wanted]
    rounds = 1 if options.quick else options.rounds
    print(f"{versions()}; load {os.getloadavg()[0]:.1f}", flush=True)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="growth-") as where:
        costs = measure(parts, Path(where), options.quick, rounds, options.limit)
    print("\n" + "\n".join(table(costs, options.limit, options.quick)))
    print(f"{time.perf_counter() - begin:.0f} s in all; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
