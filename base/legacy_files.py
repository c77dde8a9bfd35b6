"""Files of torch.save, new and old, read without torch's unpickler: weights, never objects.

Those of pytorch-template hold its config object beside the weights, which torch's own safe loader
refuses; here that is a name and no more. Those from before torch 1.6 are no archives.
"""

from __future__ import annotations

import logging
import os
import sys
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from base.errors import CheckpointError
from base.files import open_file
from base.plain_pickle import read_pickle
from base.restore import shape_in_words
from base.state_file import check_members

LOG = logging.getLogger("kindling")
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and DistributedDataParallel; of compile
COUNTER = "num_batches_tracked"


def read_torch_file(path: Path) -> Any:
    """Return the tensors and plain data in a file; what else it names is an `Opaque`.

    Raises:
        CheckpointError: it is damaged, or asks for more than it holds.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise EOFError("it is empty")
            is_archive = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _read_archive(file, size) if is_archive else _read_before_1_6(file, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not a readable file of weights: {error}") from error


def _read_archive(file: BinaryIO, size: int) -> Any:
    """Read what torch 1.6 and later write; each byte is held against the archive's checksums."""
    with zipfile.ZipFile(file) as archive:
        check_members(archive, size)
        (folder, *others) = {name.partition("/")[0] for name in archive.namelist()}
        if others or f"{folder}/data.pkl" not in archive.namelist():
            raise CheckpointError("it is an archive, but none of torch.save")
        if f"{folder}/constants.pkl" in archive.namelist():
            raise CheckpointError("it is a program of TorchScript: save the `state_dict()` alone")
        with_order = f"{folder}/byteorder" in archive.namelist()
        if with_order and archive.read(f"{folder}/byteorder").decode() != sys.byteorder:
            raise CheckpointError("its numbers have the byte order of another machine")
        opened: dict[str, Tensor] = {}

        def open_storage(key: str, n_bytes: int) -> Tensor:
            member = archive.getinfo(f"{folder}/data/{key}")
            if member.file_size != n_bytes:
                text = f"{member.filename} has {member.file_size} bytes, not {n_bytes}"
                raise CheckpointError(f"refused: {text}")
            if key not in opened:
                opened[key] = torch.empty(n_bytes, dtype=torch.uint8)
                with archive.open(member) as data:
                    _fill(opened[key], data)  # type: ignore[arg-type]
                    data.read(1)  # at the end the checksum is compared
            return opened[key]

        with archive.open(f"{folder}/data.pkl") as pickled:
            return read_pickle(pickled, open_storage)  # type: ignore[arg-type]


def _read_before_1_6(file: BinaryIO, size: int) -> Any:
    """Read five pickles, one of them the state, and behind them the numbers."""
    opened: dict[str, Tensor] = {}
    left = size

    def open_storage(key: str, n_bytes: int) -> Tensor:
        nonlocal left
        if key not in opened:
            left -= n_bytes
            if left < 0:
                raise CheckpointError(f"refused: its tensors need more than its {size} bytes")
            opened[key] = torch.empty(n_bytes, dtype=torch.uint8)
        if len(opened[key]) != n_bytes:
            raise CheckpointError(f"refused: a storage has two sizes, one of {n_bytes} bytes")
        return opened[key]

    read = partial(read_pickle, file, open_storage)
    if read() != MAGIC or read() != PROTOCOL:
        raise CheckpointError("it was not written by torch.save")
    about = read()
    if not isinstance(about, dict) or about.get("little_endian") != (sys.byteorder == "little"):
        raise CheckpointError("its numbers have the byte order of another machine")
    state, keys = read(), read()
    are_names = type(keys) is list and {type(key) for key in keys} <= {str}
    if not are_names or sorted(keys) != sorted(opened):
        raise CheckpointError("damaged: its list of storages is not that of its tensors")
    for key in keys:
        count, n_bytes = int.from_bytes(file.read(8), sys.byteorder), len(opened[key])
        if n_bytes % max(count, 1) or bool(count) != bool(n_bytes):
            raise CheckpointError(f"damaged: storage {key} has {count} numbers in {n_bytes} bytes")
        _fill(opened[key], file)
    return state


def _fill(storage: Tensor, file: BinaryIO) -> None:
    view = memoryview(storage.numpy())  # type: ignore[arg-type]
    while view:
        n_read = file.readinto(view)  # type: ignore[attr-defined]
        if not n_read:
            raise CheckpointError("damaged: it ends too soon")
        view = view[n_read:]


def fitted(saved: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return weights under a model's names where only a wrapper or a counter is in the way; told.

    A wrapper's prefix goes only if then everything fits. A BatchNorm from before torch 0.4.1 lacks
    a counter, which is set to 0, as torch does.
    """
    fitting = dict(saved)
    for prefix in WRAPPERS:
        bare = {name.removeprefix(prefix): value for name, value in fitting.items()}
        if all(name.startswith(prefix) for name in fitting) and _fits(bare, own):
            LOG.warning("%s: %r was taken off its names, as then all of them fit", path, prefix)
            fitting = bare
    lacking = [name for name in _lacking_counters(fitting, own) if name not in fitting]
    if lacking:
        LOG.warning("%s: set to 0, as it is older than them: %s", path, ", ".join(lacking))
    return {**fitting, **{name: torch.zeros_like(own[name]) for name in lacking}}


def _fits(saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    all_of_it = {**dict.fromkeys(_lacking_counters(saved, own)), **saved}
    is_same = all_of_it.keys() == own.keys()
    return is_same and all(
        shape_in_words(value) == shape_in_words(own[name]) for name, value in saved.items()
    )


def _lacking_counters(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the counters of those BatchNorms whose averages are in the file."""
    counters = [name for name in own if name.rpartition(".")[2] == COUNTER]
    averages = {name: f"{name.removesuffix(COUNTER)}running_mean" for name in counters}
    return [name for name in counters if name not in saved and averages[name] in saved]
