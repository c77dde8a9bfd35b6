"""The commands ``python -m base.shards write`` and ``check``."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import io
import itertools
import math
import os
import random
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from base.checkpoint.state_file import sync_folder, write_bytes
from base.config.command_line import Parser
from base.data.threads import read_each
from base.datasets.image_files import (
    ImageFiles,
    ImageFolderDataset,
    ImageListDataset,
    image_suffixes,
    suffix_of,
)
from base.datasets.images import decode_image
from base.datasets.shards.index import (
    BLOCK,
    ShardIndex,
    find_faults,
    find_shards,
    read_classes,
    scan,
    write_index,
)
from base.errors import DataError, UsageError
from base.system.cores import usable_cores
from logger.files import open_file, read_file

NAME = "python -m base.shards"
EPILOG = """SOURCE is a folder with a subfolder of images per class, or a file with a line
`path label` per image. OUT data/train writes data/train-000000.tar and so on, the index of
each, and data/classes.txt.

exit codes: 0 success; 1 failure (full disk, errors found); 2 an error in the command or SOURCE"""


def main(arguments: Sequence[str]) -> int:
    """Write or check shards."""
    parser = Parser(NAME, description="Write images into tar files, or check such files.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="write|check")
    layout = argparse.RawDescriptionHelpFormatter
    write = commands.add_parser("write", epilog=EPILOG, formatter_class=layout, allow_abbrev=False)
    write.add_argument("source", type=Path, metavar="SOURCE")
    write.add_argument("out", type=Path, metavar="OUT")
    limit = write.add_mutually_exclusive_group()
    limit.add_argument(
        "--size", type=_n_bytes, default="500MB", help="maximum size of a shard, by default 500MB"
    )
    limit.add_argument("--count", type=_count, help="images per shard, instead of a size")
    write.add_argument("--shuffle", action="store_true", help="mix the classes: for training")
    write.add_argument("--seed", type=int, default=0, help="seed of the shuffling")
    write.add_argument("--label", type=_count, help="label column of a list, from 1 after the path")
    write.add_argument("--overwrite", action="store_true", help="replace existing shards")
    check = commands.add_parser("check", allow_abbrev=False)
    check.add_argument("shards", nargs="+", metavar="SHARDS", help="files, or a quoted pattern")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        commands.choices[options.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    return check_shards(options.shards) if options.command == "check" else write_shards(options)


def _n_bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.upper())
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500MB or 1.5GB")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " "))


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of images")
    return int(text)


def write_shards(options: argparse.Namespace) -> int:
    """Write all shards to a temporary folder beside their destination, then move them."""
    out: Path = options.out
    if out.is_dir():
        raise UsageError(f"{out} is a folder; OUT is the prefix of the shards: {out / 'train'}")
    name = re.compile(rf"{re.escape(out.name)}-\d{{6,}}\.tar")
    old = {path for path in out.parent.glob("*.tar") if name.fullmatch(path.name)}
    if old and not options.overwrite:
        raise UsageError(
            f"{min(old)}: {len(old)} shards of this name exist; --overwrite replaces them"
        )
    images = _read_source(options.source, options.label)
    classes = _common_classes(images.classes, out.parent, options.overwrite)
    order = list(range(len(images)))
    if options.shuffle:
        random.Random(options.seed).shuffle(order)
    sizes = [images.facts(image)[0] for image in order]
    limits = (math.inf, options.count) if options.count else (options.size, math.inf)
    shards = list(_divide(order, sizes, *limits))

    stage, was_there = out.with_name(f".tmp-{out.name}"), out.parent.exists()
    try:
        shutil.rmtree(stage, ignore_errors=True)  # left by a killed process
        stage.mkdir(parents=True)
        if shutil.disk_usage(stage).free < sum(sizes) + 3 * BLOCK * len(sizes):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(
            stage / "classes.txt",
            "".join(f"{name}\n" for name in classes).encode(errors="backslashreplace"),
        )
        try:
            _fill(stage / out.name, images, shards)
        except DataError as error:
            raise UsageError(f"{error}; nothing was written") from error
        new = {path.replace(out.with_name(path.name)) for path in sorted(stage.iterdir())}
        for path in old - new:
            path.unlink()
            path.with_name(f"{path.name}.index").unlink(missing_ok=True)
        sync_folder(out.parent)
    except OSError as error:
        raise DataError(f"{out}: not written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):  # it contains the shards
                out.parent.rmdir()
    print(f"{out}: {len(images)} images of {len(classes)} classes in {len(shards)} shards")
    return 0


def _read_source(source: Path, label: int | None) -> ImageFiles:
    try:
        if source.is_dir():
            return ImageFolderDataset(str(source))
        return ImageListDataset(str(source), label=label)
    except DataError as error:
        raise UsageError(str(error)) from error


def _common_classes(classes: list[str], folder: Path, overwrite: bool) -> list[str]:
    """Return the class names of all shards in a folder. A set may lack the last classes."""
    present = read_classes(folder)
    n_common = min(len(classes), len(present))
    if classes[:n_common] == present[:n_common]:
        return max(classes, present, key=len)
    if not overwrite:
        raise UsageError(f"{folder}: the shards there have other classes; choose another folder")
    return classes


def _divide(
    order: list[int], sizes: list[int], max_bytes: float, max_count: float
) -> Iterator[list[int]]:
    """Divide the ordered images, given their sizes, into shards."""
    shard: list[int] = []
    filled = tarfile.RECORDSIZE  # the end of a tar
    for image, size in zip(order, sizes, strict=True):
        needed = (3 + math.ceil(size / BLOCK)) * BLOCK  # two headers and the label
        if shard and (len(shard) >= max_count or filled + needed > max_bytes):
            yield shard
            shard, filled = [], tarfile.RECORDSIZE
        shard.append(image)
        filled += needed
    yield shard


def _fill(start: Path, images: ImageFiles, shards: Sequence[Sequence[int]]) -> None:
    """Write shards and their indexes. Equal images give equal tars."""
    keys = (f"{number:06d}" for number in itertools.count())
    order = [image for shard in shards for image in shard]
    read = functools.partial(_read, images)
    with contextlib.closing(read_each(read, order, usable_cores(), "writing shards")) as contents:
        for number, shard in enumerate(shards):
            path = start.with_name(f"{start.name}-{number:06d}.tar")
            with path.open("xb") as file:
                with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                    for image, key in zip(shard, keys, strict=False):
                        content = next(contents)
                        _add(tar, f"{key}{_suffix(images.ids[image], content)}", content)
                        _add(tar, f"{key}.cls", str(int(images.targets[image])).encode())
                file.flush()
                os.fsync(file.fileno())
            index, faults = scan(path)
            assert not faults, faults
            write_index(path.with_name(f"{path.name}.index"), index)


def _suffix(name: str, content: bytes) -> str:
    """Return the suffix of an image's name or, if it has none, of its format."""
    suffix = Path(name).suffix.lower()
    if suffix in image_suffixes():
        return suffix
    with Image.open(io.BytesIO(content)) as image:
        return suffix_of(image)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # with constant owner, time and mode
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _read(images: ImageFiles, index: int) -> bytes:
    """Return the bytes of an image file after checking its header."""
    path = images.encoded(index)
    try:
        content = path if isinstance(path, bytes) else read_file(path)
    except OSError as error:
        raise DataError(f"{images.place(index)}: cannot be read: {error.strerror}") from error
    decode_image(content, where=images.place(index))
    return content


def _undecodable(shard: Path, index: ShardIndex) -> list[str]:
    """Return the errors of images in a shard that cannot be decoded."""

    def fault(sample: int) -> str:
        offset, size = index.places[sample, :2].tolist()
        try:
            content = os.pread(file.fileno(), size, offset)
            decode_image(content, where=f"{shard}: {index.name(sample)}")
        except DataError as error:
            return str(error)
        return ""

    with open_file(shard) as file:
        faults = read_each(fault, range(len(index.labels)), usable_cores(), "checking images")
        with contextlib.closing(faults):
            return [each for each in faults if each]


def check_shards(patterns: Sequence[str]) -> int:
    """Print the contents and the errors of shards."""
    try:
        shards = find_shards(patterns)
        classes = read_classes(shards[0].parent)
    except DataError as error:
        raise UsageError(str(error)) from error
    indexes, faults = [], []
    for shard in shards:
        index, found = scan(shard)
        found += _undecodable(shard, index) if not found else []
        print(f"{shard}: {len(index.labels)} samples{f', {len(found)} faults' if found else ''}")
        indexes.append(index)
        faults += found
    faults += find_faults(shards, indexes, len(classes))
    labels = np.concatenate([index.labels for index in indexes])
    counts = Counter(labels.tolist())
    for label in sorted({*counts, *range(len(classes))}):
        name = f" {classes[label]}" if label < len(classes) else ""
        print(f"class {label}{name}: {counts[label]}")
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(shards)} shards, {len(labels)} samples, {len(faults) or 'no'} faults")
    return 1 if faults else 0
