"""`--dry-run` and its kin, and a run that ends in its checks, leave every folder as it was."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ROOT
from workplace import TINY

from base.datasets.shards import writer as shard_writer

pytestmark = pytest.mark.end_to_end
Snapshot = dict[str, tuple[int, int, bytes]]

IMAGES = """
name: images
model: {type: ResNet, args: {width: 4, blocks: [1, 1]}}
data_loader:
  type: DatasetLoader
  args: {dataset: DATASET, batch_size: 8, split: 0.2, normalize: auto, num_workers: 1MORE}
optimizer: {type: SGD, args: {lr: 0.01}}
loss: cross_entropy
trainer: {epochs: 1, on_bad_sample: skip, max_bad_samples: 3}
"""
FOLDER = "{type: ImageFolderDataset, args: {root: images}}"
SHARDS = "{type: ShardDataset, args: {shards: 'shards/*.tar'}}"
CONFIGS = {
    "tiny": TINY,
    "plain": IMAGES.replace("DATASET", FOLDER).replace("MORE", ""),
    "disk": IMAGES.replace("DATASET", FOLDER).replace("MORE", ", cache: disk, cache_dir: kept"),
    "memory": IMAGES.replace("DATASET", FOLDER).replace("MORE", ", cache: memory"),
    "shards": IMAGES.replace("DATASET", SHARDS).replace("MORE", ", workers: processes"),
}
NO_ROOT = "data_loader.args.dataset.args.root=no"
NOT_LOGGED = ("--set", "trainer.monitor=max valid/nope")


def slowly(*values: object) -> object:
    """Start a process of its own only where slow tests are asked for: torch takes its seconds."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of configs and data, and in it a home and a folder for temporary files.

    Its name is short: workers send batches through sockets in the folder for temporary files, and
    the path of a socket has at most 107 characters.
    """
    tmp_path = tmp_path_factory.mktemp("w")
    for name, text in CONFIGS.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    draw = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    words = ["write", str(tmp_path / "images"), str(tmp_path / "shards" / "s"), "--count", "12"]
    assert shard_writer.main(words) == 0
    for index in (tmp_path / "shards").glob("*.index"):
        index.unlink()
    for folder in ("home", "tmp"):
        (tmp_path / folder).mkdir()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    # Python's own bytecode beside the code is all that may be written.
    return {"HOME": str(place / "home"), "TMPDIR": str(place / "tmp"), "XDG_CACHE_HOME": ""}


def snapshot(place: Path) -> Snapshot:
    """Return time, size and content of all that is there."""
    found: Snapshot = {}
    for path in place.rglob("*"):
        facts = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(facts.st_mode) else b""
        if path.name not in ("tmp", "stdout"):  # a temporary file comes and goes
            found[str(path.relative_to(place))] = (facts.st_mtime_ns, facts.st_size, content)
    return found


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("-c", "disk.yaml", "--dry-run"), 0),
        (("-c", "shards.yaml", *NOT_LOGGED), 2),
        (("--list", "callback"), 0),
        *[slowly(("-c", f"{name}.yaml", "--dry-run"), 0) for name in CONFIGS if name != "disk"],
        slowly(("-c", "disk.yaml", *NOT_LOGGED), 2),
        slowly(("-c", "disk.yaml", "--print-config"), 0),
        slowly(("--list",), 0),
        slowly(("--schema",), 0),
        slowly(("-c", "tiny.yaml", "--dry-run", "--set", "memory.micro_batch=auto"), 0),
        slowly(("-c", "tiny.yaml", "--set", "memory.compile=true", NOT_LOGGED[1]), 2),
        slowly(("-c", "tiny.yaml", "--set", "loss=mse_loss"), 1),
        slowly(("-c", "disk.yaml", "--dry-run", "--set", NO_ROOT), 1),
        slowly(("-c", str(ROOT / "config/mnist.yaml"), "--dry-run", "--set",
                "data_loader.args.download=false"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)  # fmt: skip
def test_nothing_is_written(
    place: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]], words: tuple, code: int
) -> None:
    if "plain.yaml" in words:  # which skips it; a cache holds every image
        (place / "images/1/1.png").write_bytes(b"no image")
    before = snapshot(place)
    done = run_cli(["train.py", *words], cwd=place, env=environment(place))
    assert done.returncode == code, done.stderr
    after = snapshot(place)
    assert after == before, sorted(after.keys() ^ before.keys())


@pytest.mark.parametrize("number", [signal.SIGINT, slowly(signal.SIGTERM)])
def test_a_signal_during_the_checks_leaves_nothing(place: Path, number: int) -> None:
    before = snapshot(place)
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import time; "
    code += "import base.run.checks; base.run.checks.check_batches = lambda _: (print('checking', "
    code += "flush=True), time.sleep(60)); import sys, runpy; sys.argv[:] = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    env = {**environment(place), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(ROOT / "train.py"), "-c", "disk.yaml"]
    with subprocess.Popen(command, cwd=place, env=env, stdout=subprocess.PIPE) as script:
        assert script.stdout is not None
        while b"checking" not in script.stdout.readline():
            assert script.poll() is None, "it ended before the checks"
        script.send_signal(number)
        assert script.wait(30) == 128 + number
    assert snapshot(place) == before


@pytest.mark.slow
def test_a_run_that_begins_keeps_what_later_runs_use(
    place: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The same numbers as without a cache, which is there now; and as a second run from it."""
    losses = []
    for name in ("plain", "disk", "disk", "shards"):
        words = ["train.py", "-c", f"{name}.yaml", "--set", "trainer.on_bad_sample=stop"]
        done = run_cli(words, cwd=place, env=environment(place))
        assert done.returncode == 0, done.stderr
        run = max((place / "saved" / "images").iterdir())
        losses.append((run / "metrics.csv").read_text().splitlines()[1].split(",")[2])
    assert losses[0] == losses[1] == losses[2]
    assert len(list((place / "kept").glob("*.pixels"))) == 1
    assert len(list((place / "kept").glob("statistics-*.json"))) == 1
    assert len(list((place / "shards").glob("*.index"))) == 2
