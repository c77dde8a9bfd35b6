"""Checks this machine: ``python -m base.doctor`` prints a line for each check.

It needs no network and no GPU, uses one thread, and removes all files that it writes.
"""

from __future__ import annotations

import io
import os
import re
import runpy
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from base.system.places import PROJECT
from base.system.run_folder import installed_version
from base.system.signals import InterruptedRunError

OPTIONAL = ("tensorboardX", "wandb", "trackio", "mlflow")  # and requirements-extra.txt
GIGABYTE = 2**30

CONFIG = """
name: doctor
threads: 1
model:
  type: Sequential
  args: {layers: [{type: Linear, args: {in_features: 8, out_features: 16}}, ReLU, Dropout,
                  {type: Linear, args: {in_features: 16, out_features: 2}}]}
data_loader: {type: BaseDataLoader, args: {dataset: {type: points}, batch_size: 8, shuffle: true,
                                           validation_split: 0.0, num_workers: 0}}
optimizer: {type: Adam, args: {lr: 0.01}}
loss: cross_entropy
trainer: {epochs: 40, save_every: 20 steps, monitor: off, verbosity: 0, tensorboard: false}
"""
DATA = """
import torch

from base.names.registry import DATASETS


@DATASETS.register("points")
def points():
    inputs = torch.randn(80, 8, generator=torch.Generator().manual_seed(1))
    return torch.utils.data.TensorDataset(inputs, (inputs.sum(dim=1) > 0).long())
"""
TRAINER = "from base import BaseTrainer\n\n\nclass Trainer(BaseTrainer):\n    pass\n"


class Finding(NamedTuple):
    """The result of a check: ``ok``, ``warning`` or ``failed``, and a text with advice."""

    state: str
    text: str


def main(saved: Path) -> int:
    """Run all checks and print a line for each; return 1 if one failed."""
    checks = (python, packages, optional, cores, memory, disk, training, devices)
    has_failed = False
    for check in checks:
        try:
            finding = check(saved)
        except InterruptedRunError as error:
            sys.exit(error.exit_code)
        except Exception as error:  # a check that raises an error has failed
            text = (str(error).strip().splitlines() or [""])[0]
            finding = Finding("failed", f"{type(error).__name__}: {text}")
        print(f"{check.__name__:<10}{finding.state:<9}{finding.text}", flush=True)
        has_failed |= finding.state == "failed"
    return int(has_failed)


def python(_: Path) -> Finding:
    text = (PROJECT / "pyproject.toml").read_text("utf-8")
    (wanted,) = re.findall(r'^requires-python = ">=([\d.]+)"', text, re.MULTILINE)
    found = ".".join(map(str, sys.version_info[:3]))
    if version_numbers(found) < version_numbers(wanted):
        return Finding("failed", f"{found}; recreate .venv with {wanted} or newer")
    return Finding("ok", found)


def packages(_: Path) -> Finding:
    """Compare the installed packages with requirements.txt."""
    found, unmet = [], []
    for name, limits in _requirements("requirements.txt"):
        version = installed_version(name)
        found.append(f"{name} {version or 'missing'}")
        if version is None or not satisfies(version, limits):
            unmet.append(f"{found[-1]}, wanted {limits}")
    if unmet:
        advice = f"{Path(sys.executable).name} -m pip install -r requirements.txt"
        return Finding("failed", f"{'; '.join(unmet)}: {advice}")
    return Finding("ok", ", ".join(found))


def _requirements(file: str) -> list[tuple[str, str]]:
    """Return the name and the limits of each package of a requirements file."""
    path = PROJECT / file
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    found = [re.findall(r"^([\w.-]*)([^#;]*)", line)[0] for line in lines]
    return [(name, limits.strip()) for name, limits in found if name]


def optional(_: Path) -> Finding:
    extra = [name for name, _ in _requirements("requirements-extra.txt")]
    versions = {name: installed_version(name) for name in (*extra, *OPTIONAL)}
    installed = [f"{name} {version}" for name, version in versions.items() if version]
    absent = [name for name, version in versions.items() if not version]
    missing = f"not installed: {', '.join(absent) or 'none'} (requirements-extra.txt)"
    return Finding("ok", f"{', '.join(installed) or 'none'}; {missing}")


def disk(saved: Path) -> Finding:
    """Write to the folder of runs and check its free space."""
    place = _nearest_existing(saved)
    free = shutil.disk_usage(place).free / GIGABYTE
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(2**20))
            os.fsync(file.fileno())
    except OSError as error:
        text = f"{place}: cannot be written ({error.strerror}); fix this, or set trainer.save_dir"
        return Finding("failed", text)
    text = f"{free:.1f} GB free in {place}"
    if free < 1:
        advice = "checkpoints may not fit: free disk space, or set trainer.save_dir"
        return Finding("warning", f"{text}; {advice}")
    return Finding("ok", text)


def training(saved: Path) -> Finding:
    """Train, resume from an earlier checkpoint, and compare the final states."""
    start = time.perf_counter()
    from base.checkpoint.store import read

    place = _nearest_existing(saved)
    place = place if os.access(place, os.W_OK) else Path(tempfile.gettempdir())
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as temporary:
        folder = Path(temporary)
        files = {"doctor.yaml": CONFIG, "data_loader/doctor.py": DATA, "trainer/doctor.py": TRAINER}
        parts = ("model", "data_loader", "trainer")
        files |= dict.fromkeys((f"{part}/__init__.py" for part in parts), "")
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, "utf-8")
        config, save_dir = folder / "doctor.yaml", folder / "saved"
        _train(folder, "-c", str(config), "-d", "cpu", "--set", f"trainer.save_dir={save_dir}")
        (run,) = save_dir.glob("doctor/*")
        end = read(run)
        first, *later = sorted((run / "checkpoints").glob("step-????????"))
        for checkpoint in later:
            shutil.rmtree(checkpoint)
        _train(folder, "-r", str(run), "-d", "cpu")
        is_equal_state = states_equal(read(run), end)
    if not is_equal_state:
        text = "the resumed run ended with other weights: report this with the `env.txt` of a run"
        return Finding("failed", text)
    seconds = f"{time.perf_counter() - start:.0f} s"
    text = f"400 steps; resumed after step {int(first.name[5:])}, bit-equal; {seconds}"
    return Finding("ok", text)


def devices(_: Path) -> Finding:
    """Compare a matrix product on each device with the one on the CPU."""
    import torch

    table = torch.arange(64.0).reshape(8, 8) / 64
    found = []
    for index in range(torch.accelerator.device_count() if torch.accelerator.is_available() else 0):
        device = torch.device(str(torch.accelerator.current_accelerator()), index)
        if not torch.allclose((table.to(device) @ table.to(device)).cpu(), table @ table):
            return Finding("failed", f"{device} computes wrong results: use another device")
        name = torch.cuda.get_device_name(index) if device.type == "cuda" else ""
        found.append(f"{device} {name}".strip())
    if not found and shutil.which("nvidia-smi"):
        text = f"an NVIDIA driver, but torch {torch.__version__} finds no GPU; see pytorch.org"
        return Finding("warning", f"cpu; {text} for the right build, or update the driver")
    return Finding("ok", ", ".join(found) or "cpu only")


def cores(_: Path) -> Finding:
    import torch

    from base.system.cores import usable_cores

    return Finding("ok", f"{usable_cores()} usable, torch uses {torch.get_num_threads()} threads")


def memory(_: Path) -> Finding:
    from base.system.resources import UNLIMITED, free_memory

    free = free_memory()
    if free == UNLIMITED:
        return Finding("ok", "unknown on this system")
    text = f"{free / GIGABYTE:.1f} GB free"
    if free <= 2 * GIGABYTE:
        advice = "close other programs, or use a smaller batch and num_workers: 0"
        return Finding("warning", f"{text}; {advice}")
    return Finding("ok", text)


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version without trailing zeros: ``2.10.0+cpu`` is ``(2, 10)``."""
    text = re.match(r"\d+(\.\d+)*", version)
    found = [int(word) for word in text[0].split(".")] if text else []
    while found and found[-1] == 0:
        found.pop()
    return tuple(found)


def satisfies(version: str, limits: str) -> bool:
    """Return whether a version satisfies all limits, such as ``>=0.17,<0.18``."""
    compare: dict[str, Callable[[Any, Any], bool]] = {
        ">=": lambda a, b: a >= b,
        "<": lambda a, b: a < b,
        "==": lambda a, b: a == b,
    }
    found = re.findall(r"(>=|==|<)\s*([\d.]+)", limits)
    return all(
        compare[sign](version_numbers(version), version_numbers(limit)) for sign, limit in found
    )


def states_equal(one: Any, other: Any) -> bool:
    """Return whether two states are equal bit for bit."""
    from base.checkpoint.comparison import is_equal
    from base.config.tree import leaves

    ours, theirs = dict(leaves(one)), dict(leaves(other))
    return ours.keys() == theirs.keys() and all(is_equal(ours[key], theirs[key]) for key in ours)


def _train(folder: Path, *words: str) -> None:
    """Run train.py in the project of the check, without its output."""
    from base.names.registry import project_root, set_project_root

    main = runpy.run_path(str(PROJECT / "train.py"), run_name="train")["main"]
    root = project_root()
    sys.path.insert(0, str(folder))  # for its model, data_loader and trainer
    set_project_root(folder)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            main(words)
    finally:
        sys.path.remove(str(folder))
        set_project_root(root)


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
