"""How time, memory and files grow with the size of the data, of the model and of a training.

    python benchmarks/growth.py [--only samples,columns] [--quick | --full] [--rounds 2]

Each measurement is a fresh process: an entry script as a user starts it, or a real class of the
engine. The data are made by the script in a temporary folder, which is removed. The cost of the
smallest size is subtracted, and the exponent of the rest is fitted (log-log least squares over the
upper half of the sizes): 1 is linear, 2 quadratic. An increase within the noise counts as flat.
All axes take about a quarter of an hour. A measurement that takes longer than `--limit` seconds
ends its row, and is named. `--full` adds the sizes that take many minutes each, such as 1e6 steps.
"""

from __future__ import annotations

import argparse
import csv
import io
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
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).resolve()
ROOT = FILE.parent.parent
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
    full: Sequence[int] = ()
    """Further sizes, with ``--full``."""

    def sizes_of(self, kind: str) -> Sequence[int]:
        """Return the sizes that are measured: ``quick``, ``usual`` or ``full``."""
        if kind == "quick":
            return self.quick
        return [*self.sizes, *self.full] if kind == "full" else self.sizes


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


def make_balanced(folder: Path, n: int) -> None:
    config(
        folder,
        "",
        data_loader=loader(
            arrays(folder, n),
            "batch_size: 64, split: {valid: 0.1, stratify: true}, sampling: balanced",
        ),
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


def make_other_metrics(folder: Path, n: int) -> None:
    """Write a config with metrics of each class, and two that rank samples."""
    make_classes(folder, n)
    text = (folder / "g.yaml").read_text()
    metrics = "[{type: top_k_accuracy, args: {k: 3}}, IoU, Dice, AUROC, AveragePrecision]"
    (folder / "g.yaml").write_text(text.replace("[accuracy, F1, Precision, Recall]", metrics))


def make_outputs(folder: Path, n: int) -> None:
    """Train a model with n outputs, and write a few samples to predict."""
    import numpy as np

    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.random((256, 4), dtype=np.float32))
    np.save(folder / "y.npy", rng.random((256, n), dtype=np.float32))
    config(
        folder,
        "{type: ArrayFileDataset, args: {inputs: x.npy, targets: y.npy}}",
        model=f"{{type: MLP, args: {{n_inputs: 4, hidden: [8], n_outputs: {n}}}}}",
        loss="mse_loss",
        metrics="[]",
    )
    run_now(folder, train())
    np.save(folder / "new.npy", rng.random((20, 4), dtype=np.float32))


def make_parameters(folder: Path, n: int) -> None:
    """Write a config whose model has n parameter tensors: n / 2 layers."""
    hidden = ", ".join(["4"] * (n // 2 - 1))
    config(
        folder,
        arrays(folder, 256),
        model=f"{{type: MLP, args: {{n_inputs: 4, hidden: [{hidden}], n_outputs: 2}}}}",
        optimizer="{type: AdamW, args: {lr: 0.01}}",
    )


def make_images(folder: Path, n: int) -> None:
    """Write n names of 64 small images in 10 folders, one for each class, and a list of them."""
    from PIL import Image

    rng = random.Random(0)
    for number in range(64):
        pixels = bytes(rng.randrange(256) for _ in range(8 * 8))
        Image.frombytes("L", (8, 8), pixels).save(folder / f"{number}.png")
    names = [f"{number % 10}/{number:07}.png" for number in range(n)]
    for label in range(10):
        (folder / "images" / str(label)).mkdir(parents=True)
    for number, name in enumerate(names):  # hard links: an image is decoded, a name costs no block
        os.link(folder / f"{number % 64}.png", folder / "images" / name)
    lines = (f"images/{name} {number % 10}\n" for number, name in enumerate(names))
    (folder / "list.txt").write_text("".join(lines))
    layers = "[Flatten, {type: LazyLinear, args: {out_features: 10}}]"
    model = f"{{type: Sequential, args: {{layers: {layers}}}}}"
    config(folder, "{type: ImageFolderDataset, args: {root: images, mode: grey}}", model=model)
    (folder / "g.yaml").rename(folder / "folder.yaml")
    config(folder, "{type: ImageListDataset, args: {list_file: list.txt, mode: grey}}", model=model)


def make_trained_on_images(folder: Path, n: int) -> None:
    """Train on the images, so that they can be predicted."""
    make_images(folder, n)
    run_now(folder, train())


def make_shards(folder: Path, n: int, n_each: int = 100) -> None:
    """Write tar files of n images in all."""
    make_images(folder, 64)
    (folder / "shards").mkdir()
    for shard in range(n // n_each):
        with tarfile.open(folder / "shards" / f"{shard:05}.tar", "w") as tar:
            for number in range(shard * n_each, (shard + 1) * n_each):
                image = (folder / f"{number % 64}.png").read_bytes()
                for suffix, content in (("png", image), ("cls", b"%d" % (number % 10))):
                    member = tarfile.TarInfo(f"{number:07}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    layers = "[Flatten, {type: LazyLinear, args: {out_features: 10}}]"
    config(
        folder,
        '{type: ShardDataset, args: {shards: "shards/*.tar", mode: grey}}',
        model=f"{{type: Sequential, args: {{layers: {layers}}}}}",
    )


def make_rows(folder: Path, n: int) -> None:
    """Write a table of n rows with five columns, and train on it."""
    rng = random.Random(0)
    with (folder / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "b", "c", "colour", "target"])
        for row in range(n):
            numbers = (round(rng.random(), 4) for _ in range(3))
            rows.writerow([*numbers, ("red", "green", "blue")[row % 3], f"class_{row % 2}"])
    config(
        folder,
        "{type: CsvDataset, args: {file: t.csv, target: target, categories: [colour]}}",
        model="{type: MLP, args: {n_inputs: null, hidden: [8], n_outputs: 2}}",
    )


def make_predictions(folder: Path, n: int) -> None:
    """Write a config that validates n samples, with a report on their predictions."""
    config(
        folder,
        "",
        data_loader=loader(arrays(folder, n + 100), f"batch_size: 1000, split: {n}"),
        trainer="{steps: 1}",
    )


def make_steps(folder: Path, n: int) -> None:
    """Write a config that trains n steps, and logs each."""
    config(
        folder,
        arrays(folder, 256),
        metrics="[]",
        trainer=f"{{steps: {n}, epoch_steps: {n}, log_every: 1 step}}",
    )


def make_epochs(folder: Path, n: int) -> None:
    """Write a config that trains n epochs of one step."""
    config(
        folder,
        "",
        data_loader=loader(arrays(folder, 256), "batch_size: 64, split: 64"),
        trainer=f"{{epochs: {n}, epoch_steps: 1}}",
    )


def make_rules(folder: Path, n: int) -> None:
    """Write a config with n rules of parameter groups, and so n learning rates in each log."""
    hidden = ", ".join(["4"] * n)
    rules = ", ".join(
        f"{{match: hidden.{3 * number}.*, lr: 1e-{number % 7}}}" for number in range(n)
    )
    config(
        folder,
        arrays(folder, 256),
        model=f"{{type: MLP, args: {{n_inputs: 4, hidden: [{hidden}], n_outputs: 2}}}}",
        optimizer=f"{{type: SGD, args: {{lr: 0.01}}, param_groups: [{rules}]}}",
        trainer="{steps: 1}",
    )


def make_keys(folder: Path, n: int) -> None:
    """Write a config with n keys that refer to the first one."""
    keys = (f"key_{number}: '${{extra.key_0}}'" for number in range(1, n))
    config(folder, arrays(folder, 256), extra=f"{{key_0: 1, {', '.join(keys)}}}")


def make_trials(folder: Path, n: int) -> None:
    """Write the record of a sweep whose n trials have finished."""
    from base.config.loading import load_config
    from base.sweeps.record import Plan, TrialRecord, create_sweep

    make_samples(folder, 256)
    os.chdir(folder)
    plan = Plan("g.yaml", [], [sweep_of(n)])
    sweep = create_sweep(plan, load_config(Path("g.yaml")))
    sweep.folder.rename(sweep.folder.with_name("done"))
    sweep.folder = sweep.folder.with_name("done")
    rates = sweep_of(n).partition("=")[2].split(",")
    for number, rate in enumerate(rates, start=1):
        settings = {"optimizer.args.lr": rate}
        sweep.trials.append(TrialRecord(number, settings, "finished", None, float(rate), 1, 1.0, 0))
    sweep.save()


def sweep_of(n: int) -> str:
    """Return n learning rates, as ``--sweep`` takes them."""
    return "optimizer.args.lr=" + ",".join(f"{(number + 1) / n:.6f}" for number in range(n))


def make_nothing(folder: Path, n: int) -> None: ...


def make_checkpoints(folder: Path, n: int) -> None:
    """Save a checkpoint, and copy it n times."""
    import torch

    from base.checkpoint.store import CheckpointStore

    store = CheckpointStore(folder / "checkpoints")
    state = {"model": {"weight": torch.ones(8)}}
    saved = store.save(state, step=1, epoch=1, metrics={}, is_best=False, facts={})
    for step in range(2, n + 1):
        copy = saved.with_name(f"step-{step:08}")
        copy.mkdir()
        for name in ("state.pt", "manifest.json"):
            os.link(saved / name, copy / name)


def make_runs(folder: Path, n: int) -> None:
    """Train a run, and copy what it wrote n times."""
    make_samples(folder, 256)
    run_now(folder, train())
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


def train(file: str = "g.yaml", *arguments: str) -> list[str]:
    return [str(ROOT / "train.py"), "-c", file, *arguments]


def resume(*arguments: str) -> list[str]:
    return [str(ROOT / "train.py"), "-r", "saved/g", *arguments]


def predict(*files: str) -> list[str]:
    return [str(ROOT / "predict.py"), "-r", "saved/g", "-o", "out.csv", "--overwrite", *files]


def action(name: str) -> Callable[[Path, int], list[str]]:
    """Return the process that calls a function of this file with the folder and the size."""
    return lambda folder, n: [str(FILE), "--call", name, str(folder), str(n)]


def run_now(folder: Path, arguments: list[str]) -> None:
    """Run a process that makes data."""
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def new_run_folder(folder: Path, n: int) -> None:
    from base.system.run_folder import create_run_folder

    for _ in range(5):
        create_run_folder(folder / "saved", "g")


def newest_of_job(folder: Path, n: int) -> None:
    """Find the run of a job, as ``-r auto`` does, after all runs were listed once."""
    from base.system.run_folder import find_newest_run

    for _ in range(2):
        assert find_newest_run(folder / "saved", "g", "4711") is not None


def record_trials(folder: Path, n: int) -> None:
    """Record the start and the end of n trials, as a sweep does that draws each one."""
    from base.sweeps.record import Plan, Sweep, TrialRecord

    sweep = Sweep(folder, Plan("g.yaml", [], ["optimizer.args.lr=1..2"], samples=n))
    for number in range(1, n + 1):
        trial = TrialRecord(number, {"optimizer.args.lr": f"{number / n:.4f}"}, "running")
        sweep.trials.append(trial)
        sweep.note(trial)
        trial.state, trial.value, trial.epoch = "finished", number / n, 3
        sweep.note(trial)


def save_checkpoint(folder: Path, n: int) -> None:
    """Save one more checkpoint than are kept."""
    import torch

    from base.checkpoint.store import CheckpointStore

    store = CheckpointStore(folder / "checkpoints", keep=n)
    state = {"model": {"weight": torch.ones(8)}}
    store.save(state, step=n + 1, epoch=1, metrics={}, is_best=False, facts={})


def log_steps(folder: Path, n: int) -> None:
    """Write n steps to TensorBoard as the trainer does, and as many lines to the log."""
    import logging

    from logger.console import setup_logging
    from logger.writers import TensorBoardWriter, Writers

    setup_logging(folder, verbosity=0)
    writers = Writers([TensorBoardWriter(folder)])
    for step in range(1, n + 1):
        writers.add_scalars({"step/loss": 1 / step, "lr": 0.1}, step)
        logging.getLogger("kindling").info("step %d", step)
    writers.close()


def log_epochs(folder: Path, n: int) -> None:
    """Write n rows of metrics.csv, as checkpoints keep them, and repair the file."""
    from base.training.epoch_rows import EpochRows, repair_rows
    from logger.csv_writer import CsvWriter

    writer, rows = CsvWriter(folder / "metrics.csv"), EpochRows()
    for epoch in range(1, n + 1):
        row = {"epoch": epoch, "step": epoch, "train/loss": 1 / epoch, "valid/loss": 2 / epoch}
        writer.add_row(row)
        rows.add(row)
    writer.close()
    rows.state_dict()
    repair_rows(CsvWriter(folder / "metrics.csv"), rows, n - 1)


def report_epochs(folder: Path, n: int) -> None:
    """Write the page of a run of n epochs, whose metrics.csv is there."""
    from base.report.page import write_report

    (folder / "config.yaml").write_text("name: g\n")
    write_report(folder)


SAMPLES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
FILES = (1_000, 10_000, 100_000, 300_000, 1_000_000)
CLASSES = (100, 1_000, 3_000, 10_000, 30_000, 100_000)
THOUSANDS = (100, 1_000, 3_000, 10_000)
RUNS = (10, 1_000, 3_000, 10_000)
QUICK = (10, 100, 1_000)


def same(*arguments: str) -> Callable[[Path, int], list[str]]:
    return lambda folder, n: list(arguments)


PARTS = (
    Part("samples", "first step", SAMPLES, (100, 10_000, 100_000), same(*train()), make_samples),
    Part("samples", "resume in the epoch", SAMPLES, (100, 10_000, 100_000),
         same(*resume("--set", "trainer.steps=2")), once=True),
    Part("balanced samples", "first step", SAMPLES, (100, 10_000, 100_000), same(*train()),
         make_balanced),
    Part("predictions", "report", SAMPLES[:4], (100, 1_000, 10_000),
         same(*train()), make_predictions),
    Part("files", "first step, folder", FILES, QUICK, same(*train("folder.yaml")), make_images),
    Part("files", "first step, list", FILES, QUICK, same(*train())),
    Part("predicted files", "predict.py", THOUSANDS, QUICK, same(*predict("images")),
         make_trained_on_images),
    Part("shards", "check, 100 samples each", (1_000, 10_000, 30_000, 100_000), (100, 500, 1_000),
         same("-m", "base.shards", "check", "shards/*.tar"), make_shards),
    Part("shards", "first step", (1_000, 10_000, 30_000, 100_000), (100, 500, 1_000),
         same(*train())),
    Part("rows", "first step", SAMPLES[:4], QUICK, same(*train()), make_rows),
    Part("rows", "predict.py", SAMPLES[:4], QUICK, same(*predict("t.csv"))),
    Part("columns", "first step", (100, 1_000, 10_000, 30_000, 60_000), QUICK,
         same(*train()), make_columns),
    Part("classes", "training, validation, metrics", CLASSES, QUICK,
         same(*train()), make_classes),
    Part("classes", "IoU, Dice, top-k, AUROC", CLASSES[:5], QUICK, same(*train()),
         make_other_metrics),
    Part("outputs", "predict.py", THOUSANDS, QUICK, same(*predict("new.npy")), make_outputs),
    Part("parameters", "first step", THOUSANDS, QUICK, same(*train()), make_parameters),
    Part("parameters", "resume", THOUSANDS, QUICK, same(*resume("--set", "trainer.steps=2")),
         once=True),
    Part("parameters", "inspect", THOUSANDS, QUICK,
         same("-m", "base.checkpoint", "inspect", "saved/g")),
    Part("rules", "first step, report", (10, 100, 300, 1_000), (4, 20, 50),
         same(*train()), make_rules),
    Part("keys", "--print-config", THOUSANDS, QUICK, same(*train("g.yaml", "--print-config")),
         make_keys),
    Part("steps", "training, each logged", (100, 1_000, 10_000, 30_000), QUICK,
         same(*train()), make_steps, full=(100_000, 1_000_000)),
    Part("logged steps", "TensorBoard, log.txt", SAMPLES[:4], QUICK, action("log_steps"),
         make_nothing, once=True),
    Part("epochs", "training", (10, 100, 300, 1_000), (2, 10, 20), same(*train()), make_epochs,
         full=(10_000, 100_000)),
    Part("epochs", "resume", (10, 100, 300, 1_000), (2, 10, 20),
         lambda folder, n: resume("--set", f"trainer.epochs={n + 1}"), once=True,
         full=(10_000, 100_000)),
    Part("logged epochs", "metrics.csv, repair", (100, 1_000, 10_000, 30_000, 100_000), QUICK,
         action("log_epochs"), make_nothing, once=True),
    Part("logged epochs", "report", (100, 1_000, 10_000, 30_000, 100_000), QUICK,
         action("report_epochs")),
    Part("checkpoints", "save, all kept", THOUSANDS, QUICK, action("save_checkpoint"),
         make_checkpoints, once=True),
    Part("runs", "newest run", RUNS, (5, 50, 200), same(*resume("--print-config")), make_runs),
    Part("runs", "newest run of a job", RUNS, (5, 50, 200), action("newest_of_job")),
    Part("runs", "list", RUNS, (5, 50, 200), same("-m", "base.runs", "saved")),
    Part("runs", "new folder, 5 times", RUNS, (5, 50, 200), action("new_run_folder"), once=True),
    Part("recorded trials", "sweep.json", (100, 1_000, 3_000, 10_000), (10, 100, 300),
         action("record_trials"), make_nothing, once=True),
    Part("trials", "plan (--dry-run)", (10, 100, 300, 1_000), (5, 20, 50),
         lambda folder, n: train("g.yaml", "--sweep", sweep_of(n), "--dry-run"), make_trials),
    Part("trials", "table and picture", (10, 100, 300, 1_000), (5, 20, 50),
         same(str(ROOT / "train.py"), "-r", "saved/g/sweeps/done")),
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
    parts: Sequence[Part], where: Path, kind: str, rounds: int, limit: float
) -> dict[Part, dict[int, list[Cost]]]:
    """Return the costs of each part by size. The parts of an axis share the data of a size."""
    costs: dict[Part, dict[int, list[Cost]]] = {part: {} for part in parts}
    for axis in dict.fromkeys(part.axis for part in parts):
        group = [part for part in parts if part.axis == axis]
        ended: set[Part] = set()
        for n in sorted({n for part in group for n in part.sizes_of(kind)}):
            folder = where / "data"
            folder.mkdir()
            for part in group:
                if part.make is not None:
                    call(part.make, folder, n)
                if part in ended or n not in part.sizes_of(kind):
                    continue
                found = several(part, folder, n, rounds, limit)
                if found:
                    costs[part][n] = found
                else:  # what follows may need the files of this one
                    ended.update(group[group.index(part) :])
                print(line_of(part, n, found), flush=True)
            shutil.rmtree(folder)
    return costs


def call(function: Callable[[Path, int], object], folder: Path, n: int) -> None:
    """Call a function of this file in a process of its own, so that this one stays small."""
    arguments = [str(FILE), "--call", function.__name__, str(folder), str(n)]
    subprocess.run([sys.executable, *arguments], check=True)


def several(part: Part, folder: Path, n: int, rounds: int, limit: float) -> list[Cost]:
    """Measure a part: the quick ones in all rounds, the long ones once; [] beyond the limit."""
    found: list[Cost] = []
    while len(found) < (1 if part.once else rounds) and sum(one.seconds for one in found) < 5:
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


def table(costs: dict[Part, dict[int, list[Cost]]], limit: float, kind: str) -> list[str]:
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
        for unit, name, digits in (("seconds", "time", 2), ("MB", "memory", 0), ("kB", "files", 0)):
            values = [getattr(one, unit.lower()) for one in medians]
            found = exponent(sizes, values, NOISE[unit]) if len(sizes) > 1 else None
            cells += [" ".join(f"{value:,.{digits}f}" for value in values)]
            cells += ["flat" if found is None else f"{found:.2f}"]
            above += [f"{name} {found:.2f}"] if found is not None and found > ABOVE else []
        spread = max((max(c.seconds for c in found) / min(c.seconds for c in found)
                      for found in by_size.values()), default=1.0)  # fmt: skip
        cells[3] += f" ({100 * (spread - 1):.0f} %)"
        lines.append(f"| {' | '.join(cells)} |")
        name = f"{part.axis}, {part.name}"
        verdicts += [f"above linear: {name}: {', '.join(above)}"] if above else []
        missing = [n for n in part.sizes_of(kind) if n not in by_size]
        verdicts += [f"beyond {limit:.0f} s: {name}: {short(missing[0])}"] if missing else []
    return [*lines, "", *(verdicts or ["nothing above linear"])]


def short(n: int) -> str:
    """Return a size in few characters: 3000 is 3e3."""
    zeros = len(str(n)) - len(str(n).rstrip("0"))
    return f"{str(n)[:-zeros]}e{zeros}" if zeros > 2 else str(n)


def line_of(part: Part, n: int, found: list[Cost]) -> str:
    """Return the progress of the script: one measurement."""
    name = f"{part.axis:17}{part.name:32}{short(n):>8}"
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
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="small sizes: three minutes in all")
    sizes.add_argument("--full", action="store_true", help="also the sizes that take many minutes")
    parser.add_argument("--rounds", type=int, default=2, help="of measurements under a few seconds")
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
    kind = "quick" if options.quick else "full" if options.full else "usual"
    print(f"{versions()}; load {os.getloadavg()[0]:.1f}", flush=True)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="growth-") as where:
        costs = measure(parts, Path(where), kind, rounds, options.limit)
    print("\n" + "\n".join(table(costs, options.limit, kind)))
    print(f"{time.perf_counter() - begin:.0f} s in all; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
