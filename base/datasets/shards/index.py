"""Shards (tar files of samples) and their indexes, which locate each sample.

A sample consists of adjacent members with the same base name, as in webdataset: ``000123.jpg``,
the class number as text in ``000123.cls`` and, optionally, ``000123.json``. The index of
``train-000003.tar`` is ``train-000003.tar.index`` beside it, or in the user's cache folder if
the tar's folder is not writable. It is created once, from the headers of the tar.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from base.datasets.image_files import image_suffixes
from base.errors import DataError, nearest
from base.system.deferred_files import write_when_running
from logger.files import NotAFileError, open_file, read_file

LOG = logging.getLogger("kindling")
FORMAT = 1  # version of the index format
BLOCK = 512  # bytes in a block of a tar
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardIndex(NamedTuple):
    """The samples of one shard, in the order of the tar."""

    stamp: np.ndarray  # size and mtime_ns of the tar, and the FORMAT of the index
    names: np.ndarray  # (sample,) bytes: the image's name in the tar
    labels: np.ndarray  # (sample,) int64
    places: np.ndarray  # (sample, 4) int64: offset and size of the image, then of the json or 0, 0

    def name(self, sample: int) -> str:
        """Return the image name of a sample."""
        return str(self.names[sample].decode())


def find_shards(shards: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files of a pattern such as ``train-{000..012}.tar``, a glob, or a list of these.

    Raises:
        DataError: a file is missing or listed twice, or a glob matches no file.
    """
    patterns = [shards] if isinstance(shards, (str, Path)) else shards
    paths = [path for pattern in patterns for path in _expand(str(pattern))]
    if not paths:
        raise DataError("no shards: give a pattern such as data/train-{000..012}.tar")
    if len(set(paths)) < len(paths):
        raise DataError(f"{next(path for path in paths if paths.count(path) > 1)}: named twice")
    return paths


def _expand(pattern: str) -> Iterator[Path]:
    if found := RANGE.search(pattern):
        first, last = found.groups()
        for number in range(int(first), int(last) + 1):
            yield from _expand(
                pattern[: found.start()] + f"{number:0{len(first)}}" + pattern[found.end() :]
            )
        return
    is_glob = glob.has_magic(pattern) and not Path(pattern).exists()
    found_names = sorted(glob.glob(pattern)) if is_glob else [pattern]  # noqa: PTH207  (absolute)
    paths = [Path(name) for name in found_names]
    missing = [path for path in paths if not path.exists()]
    if missing or not paths:
        path = missing[0] if missing else Path(pattern)
        known = [tar.name for tar in path.parent.glob("*.tar")]
        hint = nearest(path.name, known) or f"; {path.parent} has {len(known)} other tar files"
        raise DataError(f"{path}: no such shard{hint}")
    for path in paths:
        try:
            open_file(path).close()
        except NotAFileError as error:
            raise DataError(f"{path}: this is {error}") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    yield from paths


def open_index(shard: Path) -> ShardIndex:
    """Return the index of a shard: the stored one if it matches the tar, else a new one.

    Raises:
        DataError: the tar is damaged, or a sample in it is incomplete.
    """
    paths = (shard.with_name(f"{shard.name}.index"), _cache_path(shard))
    for path in paths:
        index = _read_index(path)
        if index is not None and np.array_equal(index.stamp, _stamp(shard)):
            return index
    index, faults = scan(shard)
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        command = f"python -m base.shards check {shlex.quote(str(shard))}"
        advice = f"`{command}` lists all; write or download it again"
        raise DataError(f"{faults[0]}{more}; {advice}")
    write_when_running(functools.partial(_keep, index, shard, paths))
    return index


def _keep(index: ShardIndex, shard: Path, paths: Sequence[Path]) -> None:
    """Write the index of a shard to the first writable path."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_index(path, index)
            return
        except OSError as error:
            problem = error
    LOG.warning("%s: its index cannot be stored and is created again each time: %s", shard, problem)


def write_index(path: Path, index: ShardIndex) -> None:
    """Write an index atomically."""
    temporary = path.with_name(f".tmp-{secrets.token_hex(4)}-{path.name}")
    try:
        with temporary.open("xb") as file:
            np.savez(file, **index._asdict())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_index(path: Path) -> ShardIndex | None:
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
            return ShardIndex(**arrays)
    except Exception:  # missing, truncated or of another format: create a new one
        return None


def _cache_path(shard: Path) -> Path:
    home = os.path.expanduser("~/.cache")  # noqa: PTH111 -- Path's fails without a home
    folder = os.environ.get("XDG_CACHE_HOME") or home
    name = hashlib.sha256(str(shard.resolve()).encode()).hexdigest()[:32]
    return Path(folder) / "kindling" / "shards" / f"{name}.index"


def _stamp(shard: Path) -> np.ndarray:
    facts = shard.stat()
    return np.array([facts.st_size, facts.st_mtime_ns, FORMAT])


def scan(shard: Path) -> tuple[ShardIndex, list[str]]:
    """Read the headers and labels of a tar; return its complete samples and its errors."""
    stamp = _stamp(shard)
    samples: list[tuple[bytes, list[int]]] = []
    faults: list[str] = []
    try:
        with (
            open_file(shard) as file,
            tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar,
        ):
            for key, members in _groups(tar, faults).items():
                try:
                    samples.append(_sample(tar, key, members))
                except DataError as error:
                    faults.append(str(error))
    except (tarfile.TarError, OSError) as error:
        faults.append(f"not a readable uncompressed tar file: {error}")
    names = np.array([name for name, _ in samples] or [], dtype="S" if samples else "S1")
    numbers = np.array([row for _, row in samples], dtype=np.int64).reshape(-1, 5)
    index = ShardIndex(stamp, names, labels=numbers[:, 0], places=numbers[:, 1:])
    return index, [f"{shard}: {fault}" for fault in faults]


def _groups(tar: tarfile.TarFile, faults: list[str]) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return the members of each base name (up to the first dot), by suffix."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    last = ""
    try:
        for member in tar:
            folder, slash, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            if not member.isfile() or not stem:  # `.DS_Store` and its like have no stem
                continue
            key = folder + slash + stem
            group = groups.setdefault(key, {})
            if suffix.lower() in group or (group and key != last):
                faults.append(f"{member.name}: the name {key} occurs twice; names must be unique")
            group[suffix.lower()] = member
            last = key
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(BLOCK) != bytes(BLOCK):  # tarfile treats any other block as the end
            raise tarfile.ReadError("no end mark")
    except tarfile.TarError as error:
        faults.append(f"{last}: damaged or truncated from here on: {error}")
    return groups


def _sample(
    tar: tarfile.TarFile, key: str, members: dict[str, tarfile.TarInfo]
) -> tuple[bytes, list[int]]:
    """Return the image name of a sample, and its numbers in the index."""
    suffixes = [suffix for suffix in members if f".{suffix}" in image_suffixes()]
    if len(suffixes) != 1:
        raise DataError(f"{key}: expected one image, found .{', .'.join(sorted(members))}")
    image, label, extra = members[suffixes[0]], members.get("cls"), members.get("json")
    if label is None:
        raise DataError(f"{image.name}: no label: {key}.cls is missing")
    file = tar.extractfile(label)
    text = file.read(64).strip() if file else b""
    if not text.isdigit() or len(text) > 9:
        raise DataError(f"{label.name}: expected a class number, found {text.decode('latin1')!r}")
    if not image.size:
        raise DataError(f"{image.name}: an empty file")
    places = [(part.offset_data, part.size) if part else (0, 0) for part in (image, extra)]
    return image.name.encode(), [int(text), *places[0], *places[1]]


def read_classes(folder: Path) -> list[str]:
    """Return the class names in a folder's classes.txt (one per line) or classes.json, or []."""
    for path in (folder / "classes.txt", folder / "classes.json"):
        try:
            text = read_file(path).decode()
            names: Any = text.rstrip().splitlines() if path.suffix == ".txt" else json.loads(text)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path}: expected a list of names in the order of their numbers")
        return names
    return []


def find_faults(
    shards: Sequence[Path], indexes: Sequence[ShardIndex], n_classes: int
) -> Iterator[str]:
    """Yield errors across shards: repeated names, and labels beyond the classes."""
    for shard, index in zip(shards, indexes, strict=True):
        for sample in np.flatnonzero(index.labels >= n_classes).tolist() if n_classes else ():
            name, label = index.name(sample), index.labels[sample]
            yield f"{shard}: {name}: label {label} is not one of the folder's {n_classes} classes"
    names = np.concatenate([index.names for index in indexes])
    if (names[1:] > names[:-1]).all():  # in order, as our writer numbers them
        return
    order = np.argsort(names, kind="stable")
    is_doubled = names[order[1:]] == names[order[:-1]]
    shard_of = np.repeat(np.arange(len(shards)), [len(index.names) for index in indexes])
    for pair in zip(order[1:][is_doubled], order[:-1][is_doubled], strict=True):
        number, other = shard_of[list(pair)]
        yield f"{shards[number]}: {names[pair[0]].decode()}: {shards[other]} contains this name too"
