"""How long from the start of the process to an accuracy on the test set, with configs that ship.

    python benchmarks/time_to_accuracy.py [config/fashion_mnist_fast.yaml ...] [--seeds 5 3 2]

Each run is `python train.py -c CONFIG --seed N`, as a user starts it, in a process of its own, and
timed from its start to its end: imports, reading, training, checkpoints, the test. The accuracy is
that of report/test.json, of the 10,000 test images, which no training has seen. Without configs,
these are the three below with 5, 3 and 2 seeds.

In turns with them runs `bare`, which trains the same network in a plain loop: it imports torch
alone, reads the same files, takes each batch by its indices from one normalised tensor, makes the
same steps, and tests once. `/ bare` is the median of the ratios of neighbours, and `import torch`
the seconds of this alone. `--no-bare` leaves both out, and halves the time.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GOALS = {"fashion_mnist_fast": 0.90, "fashion_mnist_92": 0.92, "fashion_mnist_93": 0.93}
SEEDS = {"fashion_mnist_fast": 5, "fashion_mnist_92": 3, "fashion_mnist_93": 2}
RAW = Path("data/FashionMNIST/raw")
MEAN, STD = 0.2860, 0.3530  # of FashionMNIST


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    every = [ROOT / "config" / f"{name}.yaml" for name in GOALS]
    parser.add_argument("configs", nargs="*", type=Path, default=every)
    parser.add_argument("--seeds", type=int, nargs="+", help="of each config, or of all")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-bare", action="store_true")
    parser.add_argument("--train-bare", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train_bare:
        print(train_bare(Path(options.train_bare[0]), int(options.train_bare[1])))
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.processor()}")
    for number, config in enumerate(options.configs):
        n_seeds = SEEDS.get(config.stem, 3)
        if options.seeds:
            n_seeds = options.seeds[min(number, len(options.seeds) - 1)]
        seeds = range(options.first_seed, options.first_seed + n_seeds)
        report(config, seeds, options.device, not options.no_bare)


def report(config: Path, seeds: range, device: str, with_bare: bool) -> None:
    """Run a config with each seed, in turns with its bare loop, and print what they reached."""
    runs: dict[str, list[tuple[float, float]]] = {"train.py": [], "bare": []}
    for seed in seeds:
        runs["train.py"].append(run(config.resolve(), seed, device))
        if with_bare:
            runs["bare"].append(run_bare(config.resolve(), seed))
    goal = GOALS.get(config.stem, 0.0)
    print(f"\n{config.stem}, goal {goal:.2f}, seeds {seeds.start} to {seeds.stop - 1}")
    print(f"{'':10}{'reached':>10}{'min':>9}{'mean':>9}{'sd':>9}{'seconds: mean':>16}{'range':>16}")
    for name, results in runs.items():
        if results:
            print(f"{name:10}{summary(results, goal)}")
    if with_bare:
        pairs = zip(runs["train.py"], runs["bare"], strict=True)
        ratio = statistics.median(ours[0] / bare[0] for ours, bare in pairs)
        imports = timed(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True))
        print(f"/ bare {ratio:.2f}, import torch {imports[0]:.1f} s", flush=True)


def summary(results: Sequence[tuple[float, float]], goal: float) -> str:
    """Return how many runs reached the goal, their accuracies and their seconds."""
    seconds, accuracies = zip(*results, strict=True)
    n_reached = sum(accuracy >= goal for accuracy in accuracies)
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    found = f"{min(accuracies):9.4f}{statistics.mean(accuracies):9.4f}{spread:9.4f}"
    span = f"{min(seconds):.1f} to {max(seconds):.1f}"
    return f"{n_reached:>4} of {len(results)}{found}{statistics.mean(seconds):16.2f}{span:>16}"


def run(config: Path, seed: int, device: str) -> tuple[float, float]:
    """Return the seconds of a run and the test accuracy that it reached."""
    with tempfile.TemporaryDirectory() as saved:
        command = [sys.executable, "train.py", "-c", str(config), "-d", device, "--seed", str(seed)]
        command += ["--set", f"trainer.save_dir={saved}"]
        seconds, _ = timed(lambda: started(command))
        report = next(Path(saved).glob("*/*/report/test.json"))
        return seconds, json.loads(report.read_text())["accuracy"]


def run_bare(config: Path, seed: int) -> tuple[float, float]:
    """Return the seconds and the test accuracy of the bare loop of a config."""
    command = [sys.executable, str(Path(__file__).resolve()), "--train-bare", str(config)]
    seconds, printed = timed(lambda: started([*command, str(seed)]))
    return seconds, float(printed)


def started(command: Sequence[str]) -> str:
    """Run a command in the project and return what it printed."""
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


# --- The bare loop --------------------------------------------------------------------------------


def train_bare(config: Path, seed: int) -> float:
    """Train what a config describes in a plain loop; return the test accuracy."""
    import gzip

    import torch
    import torch.nn.functional as F
    import yaml
    from torch import Tensor

    def idx(name: str, offset: int) -> Tensor:
        content = bytearray(gzip.decompress((ROOT / RAW / f"{name}-ubyte.gz").read_bytes()))
        return torch.frombuffer(content, dtype=torch.uint8, offset=offset)

    def images(name: str) -> Tensor:
        whole = idx(f"{name}-images-idx3", 16).view(-1, 1, 28, 28).float()
        return whole.mul_(1 / (255 * STD)).sub_(MEAN / STD)

    def labels(name: str) -> Tensor:
        return idx(f"{name}-labels-idx1", 8).long()

    settings = yaml.safe_load(config.read_text())
    torch.manual_seed(seed)
    model = layer(settings["model"]).to(memory_format=torch.channels_last)
    rate = settings["lr_scheduler"]["args"]
    optimizer = getattr(torch.optim, settings["optimizer"]["type"])(
        model.parameters(), **settings["optimizer"]["args"], fused=True
    )
    n_steps = settings["trainer"]["steps"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, total_steps=n_steps, **rate)
    loss_args, loader = settings["loss"]["args"], settings["data_loader"]["args"]
    flips = "RandomFlip" in loader.get("transforms", ())
    inputs, targets, size = images("train"), labels("train"), loader["batch_size"]

    order = torch.randperm(len(inputs))
    for _ in range(n_steps):
        if not len(order):
            order = torch.randperm(len(inputs))
        chosen, order = order[:size], order[size:]
        batch = inputs[chosen].contiguous(memory_format=torch.channels_last)
        if flips:
            is_flipped = (torch.rand(len(batch)) < 0.5).view(-1, 1, 1, 1)
            batch = torch.where(is_flipped, batch.flip(-1), batch)
        F.cross_entropy(model(batch), targets[chosen], **loss_args).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()

    model.eval()
    with torch.inference_mode():
        parts = [model(batch).argmax(1) for batch in images("t10k").split(500)]
    return (torch.cat(parts) == labels("t10k")).float().mean().item()


def layer(section: Any) -> Any:
    """Build a layer of a config, with those in it."""
    from torch import nn

    sys.path.insert(0, str(ROOT))
    from base.network import layers as ours
    from model import layers as shipped

    if isinstance(section, str):
        section = {"type": section}
    args: Mapping[str, Any] = section.get("args", {})
    built = {
        key: {str(place): layer(each) for place, each in enumerate(value)}
        if key in ("layers", "shortcut")
        else value
        for key, value in args.items()
    }
    places = (ours, shipped, nn)
    kind = next(getattr(x, section["type"]) for x in places if hasattr(x, section["type"]))
    return kind(**built)


if __name__ == "__main__":
    main()
