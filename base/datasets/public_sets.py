"""Public image data sets by name, loaded from files if these exist, else with torchvision."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import Dataset

from base.datasets.array_files import read_idx
from base.datasets.in_memory import InMemoryDataset, in_memory_arrays
from base.datasets.pipeline import Pipeline, TransformedDataset
from base.datasets.transforms import RandomFlip, RandomShift
from base.errors import DataError, nearest
from base.system.deferred_files import waiting_files, write_when_running

SECONDS_TO_CONNECT = 20
IDX_FILES = (  # (images, labels) of the training set, then of the test set
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


class PublicSet(NamedTuple):
    """Information on a set: statistics of its pixels (0 to 1) per channel, and its augmentation."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift: int  # pixels, when augmented
    flip: bool
    archive: str | None  # the downloaded file; None: four gzipped IDX files


PUBLIC_SETS = {
    "MNIST": PublicSet((0.1307,), (0.3081,), 2, flip=False, archive=None),
    "FashionMNIST": PublicSet((0.2860,), (0.3530,), 2, flip=True, archive=None),
    "KMNIST": PublicSet((0.1918,), (0.3483,), 2, flip=False, archive=None),
    "CIFAR10": PublicSet(
        (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 4, True, "cifar-10-python.tar.gz"
    ),
    "CIFAR100": PublicSet(
        (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 4, True, "cifar-100-python.tar.gz"
    ),
}


def find_public_set(name: str) -> PublicSet:
    """Return the public set with this name."""
    if name not in PUBLIC_SETS:
        known = ", ".join(PUBLIC_SETS)
        raise DataError(f"no public set {name!r}{nearest(name, PUBLIC_SETS)} ({known})")
    return PUBLIC_SETS[name]


def load_in_memory(
    name: str, data_dir: Path, *, training: bool, download: bool, augment: bool
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Return the set for training and for validation, decoded once."""
    facts = find_public_set(name)
    files = _idx_files(name, data_dir, training)
    if facts.archive is None and all(file.exists() for file in files):
        images, labels = read_idx(files[0])[:, None], read_idx(files[1])
    else:
        held = in_memory_arrays(open_with_torchvision(name, data_dir, training, download))
        assert held is not None, "each of PUBLIC_SETS is in memory"
        images, labels = held
    arrays, changes = InMemoryDataset(images, labels, source=name), []
    if augment:
        changes = [RandomShift(facts.shift), *([RandomFlip()] if facts.flip else [])]
    pipelines = [Pipeline(each, mean=facts.mean, std=facts.std) for each in (changes, [])]
    return TransformedDataset(arrays, pipelines[0]), TransformedDataset(arrays, pipelines[1])


def load_one_by_one(
    name: str, data_dir: Path, *, training: bool, download: bool, augment: bool
) -> tuple[Dataset[Any], Dataset[Any]]:
    """Return the set for training and for validation as torchvision reads it: PIL images."""
    from torchvision import transforms

    facts = find_public_set(name)
    plain = [transforms.ToTensor(), transforms.Normalize(facts.mean, facts.std)]
    size = 32 if facts.archive else 28
    flips = [transforms.RandomHorizontalFlip()] if facts.flip else []
    changes = [transforms.RandomCrop(size, facts.shift), *flips] if augment else []
    dataset = open_with_torchvision(name, data_dir, training, download)
    valid_dataset = copy.copy(dataset)
    dataset.transform = transforms.Compose([*changes, *plain])
    valid_dataset.transform = transforms.Compose(plain)
    return dataset, valid_dataset


def open_with_torchvision(name: str, data_dir: Path, training: bool, download: bool) -> Any:
    """Return torchvision's data set, downloaded if needed. A dry run does not keep the download."""
    from torchvision import datasets  # takes seconds

    named = getattr(datasets, name)
    try:
        with contextlib.suppress(RuntimeError):
            return named(data_dir, train=training, download=False)
        if not download:
            raise RuntimeError
        with _socket_timeout(SECONDS_TO_CONNECT), contextlib.redirect_stdout(io.StringIO()):
            return _downloaded(name, data_dir, training)
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[-1] if download else "download is false"
        raise DataError(
            f"{name} is not in {data_dir} and cannot be downloaded ({reason}); with download: "
            f"true, put {_expected_files(name, data_dir)} or run once with network access"
        ) from error


def _downloaded(name: str, data_dir: Path, training: bool) -> Any:
    """Download a set into a temporary folder, which is copied to `data_dir` when the run starts.

    Existing files, such as an archive that is not unpacked yet, are not downloaded again.
    """
    from torchvision import datasets

    files = waiting_files()
    with contextlib.ExitStack() as stack:
        if files is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kindling-")))
        else:
            folder = files.temporary_folder()
        archive = find_public_set(name).archive
        for there in [data_dir / archive] if archive else (data_dir / name / "raw").glob("*.gz"):
            if there.is_file():
                copied = folder / there.relative_to(data_dir)
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(there, copied)
        dataset = getattr(datasets, name)(folder, train=training, download=True)
        write_when_running(functools.partial(_move, folder, data_dir))
    dataset.root = data_dir
    return dataset


def _move(folder: Path, data_dir: Path) -> None:
    try:
        shutil.copytree(folder, data_dir, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        raise DataError(f"{data_dir}: the download cannot be stored there: {error}") from error


def _idx_files(name: str, data_dir: Path, training: bool) -> list[Path]:
    """Return torchvision's files of images and labels: unpacked, or else gzipped."""
    files = [data_dir / name / "raw" / file for file in IDX_FILES[0 if training else 1]]
    return [file if file.exists() else file.with_name(f"{file.name}.gz") for file in files]


def _expected_files(name: str, data_dir: Path) -> str:
    """Return the names and the folder of the expected files."""
    archive = find_public_set(name).archive
    if archive is not None:
        return f"{archive} into {data_dir}/"
    files = ", ".join(f"{file}.gz" for pair in IDX_FILES for file in pair)
    return f"{files} into {data_dir / name / 'raw'}/"


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Limit the time that network operations wait for an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
