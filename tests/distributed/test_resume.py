"""Checkpoints of several processes: the same number resumes to the bit, another loses no sample.

The processes are started by torchrun, and their data and models are those of a user.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from base.checkpoint.store import read
from tests.base.toy import assert_same

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
name: ranks
seed: 7
model: {type: DigitsNet, args: {width: 4, dropout: 0.3}}
data_loader: {type: DigitsDataLoader, args: {batch_size: 96, validation_split: 960, augment: true}}
optimizer: {type: AdamW, args: {lr: 0.003}, clip_norm: 1.0}
lr_scheduler: {type: OneCycleLR, args: {max_lr: 0.01}, every: step}
loss:
  - {type: cross_entropy, weight: 0.5, name: main}
  - {type: cross_entropy, args: {label_smoothing: 0.1}, name: smooth}
metrics: [accuracy, {type: accuracy, name: whole, over: epoch}]
trainer: {epochs: 2, ema: {decay: 0.9}, tensorboard: false, log_every: 2 steps}
"""
# train.py with three faults: a signal, a kill, a log of the samples that a step was trained on.
SCRIPT = """
import os, signal, sys
sys.path.insert(0, {root!r})
from base.base_trainer import BaseTrainer
from base.config.command_line import run
from trainer.trainer import Trainer
import train

step, end_step = Trainer.train_step, BaseTrainer.end_step
given = {{name: int(os.environ.get(name, -1)) for name in ("STOP_AT", "KILL_AT", "KILL_RANK")}}
attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")

def train_step(self, batch):
    place = f"{{self.progress.epoch}} {{self.progress.batch}}"
    if self._n_samples and self._has_started:
        with open(f"seen-{{self.world.rank}}", "a") as file:
            for image in batch[0]:
                print(place, hash(image.numpy().tobytes()), file=file)
    return step(self, batch)

def end(self, values):
    at, is_last = self.progress.step + 1, self.world.rank == self.world.size - 1
    if at == given["STOP_AT"] - (self.world.size > 1) and is_last:
        os.kill(os.getpid(), signal.SIGTERM)  # to one rank: all stop at the end of the next step
    if at == given["KILL_AT"] and self.world.rank == given["KILL_RANK"] and attempt == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    end_step(self, values)

Trainer.train_step, BaseTrainer.end_step = train_step, end
run(train.main)
"""

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.slow,
]


class Place:
    """A folder with a config, in which processes train."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").symlink_to(ROOT / "data")
        (folder / "c.yaml").write_text(CONFIG)
        (folder / "run.py").write_text(SCRIPT.format(root=str(ROOT)))

    def train(self, size: int, *words: str, restarts: int = 0, **env: Any) -> Any:
        """Train with ``size`` processes; return the ended process."""
        command = [sys.executable, "run.py"]
        if size > 1:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            command = [sys.executable, *torchrun, str(size), f"--max-restarts={restarts}", "run.py"]
        changed = {name: str(value) for name, value in env.items()}
        return subprocess.run(
            [*command, *words, "-d", "cpu"],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", **changed},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def runs(self) -> list[Path]:
        return sorted((self.folder / "saved" / "ranks").iterdir())

    def seen(self) -> dict[int, Counter[str]]:
        """Return how often each sample was trained on, by epoch."""
        found: dict[int, Counter[str]] = {}
        for path in self.folder.glob("seen-*"):
            for line in path.read_text().splitlines():
                epoch, _, sample = line.split()
                found.setdefault(int(epoch), Counter())[sample] += 1
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def newest(run: Path) -> int:
    return max(int(path.name[5:]) for path in (run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("stop_at", [3, 7])
def test_two_processes_stop_together_and_resume_to_the_bit(place: Place, stop_at: int) -> None:
    done = place.train(2, "-c", "c.yaml")
    assert done.returncode == 0, done.stderr
    (whole,) = place.runs()
    cut_short = place.train(2, "-c", "c.yaml", STOP_AT=stop_at)
    cut = next(run for run in place.runs() if run != whole)
    assert newest(cut) == stop_at, cut_short.stderr
    done = place.train(2, "-r", str(cut))
    assert done.returncode == 0, done.stderr
    ours, theirs = read(cut), read(whole)
    assert ours["ranks"]["size"] == 2
    assert_same(ours, theirs)
    assert len({path.name for path in cut.iterdir() if path.name.startswith("log")}) == 1
    lines = (cut / "log.txt").read_text().splitlines()
    assert sum(line.startswith("resume by") for line in lines) == 2  # rank 0 alone logs


def test_each_sample_is_seen_once_an_epoch_by_1_2_4_and_1_processes(place: Place) -> None:
    words = ["data_loader.args.augment=false", "trainer.epochs=2"]
    done = place.train(1, "-c", "c.yaml", "--set", *words)
    assert done.returncode == 0, done.stderr
    (whole,) = place.runs()
    expected = place.seen()
    for path in place.folder.glob("seen-*"):
        path.unlink()
    texts = []
    resume = ["-c", "c.yaml", "--set", *words]
    for size, stop_at in ((1, 2), (2, 4), (4, 7), (1, None)):
        env = {} if stop_at is None else {"STOP_AT": stop_at}
        done = place.train(size, *resume, **env)
        texts.append(done.stderr)
        cut = next(run for run in place.runs() if run != whole)
        assert newest(cut) == (stop_at or 10), done.stderr
        resume = ["-r", str(cut)]
    assert place.seen() == expected
    for text, (before, after) in zip(texts[1:], [(1, 2), (2, 4), (4, 1)], strict=True):
        assert text.count("equal to the bit") == 1
        assert f"is of {before} process" in text
        assert f"continues with {after} process" in text
    rows = [(run / "metrics.csv").read_text().splitlines() for run in (whole, cut)]
    assert len(rows[0]) == len(rows[1])


@pytest.mark.parametrize("rank", [0, 1])
def test_restarted_processes_continue_the_run_to_the_bit(place: Place, rank: int) -> None:
    done = place.train(2, "-c", "c.yaml")
    (whole,) = place.runs()
    done = place.train(2, "-c", "c.yaml", restarts=2, KILL_AT=7, KILL_RANK=rank)
    assert done.returncode == 0, done.stderr
    (cut,) = (run for run in place.runs() if run != whole)
    assert done.stdout.count("restarted by torchrun") == 1
    assert_same(read(cut), read(whole))


def test_a_run_killed_before_it_saved_begins_again_and_leaves_no_folder(place: Place) -> None:
    done = place.train(2, "-c", "c.yaml", restarts=2, KILL_AT=3, KILL_RANK=1)
    assert done.returncode == 0, done.stderr
    (run,) = place.runs()
    assert newest(run) == 10
