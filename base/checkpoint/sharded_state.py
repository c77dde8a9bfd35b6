"""Checkpoints in several files, in each of which a process wrote the rows that it holds.

In the state of a process, `Rows` stand in place of each sharded tensor. ``state.pt`` has a marker
there, ``{"kindling:rows": NAME}``. The files of the processes hold the rows by that name, and the
manifest's ``shards`` says which rows of which shape are in which file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.checkpoint.state_file import read_state, verify_file, write_state
from base.distributed.shard import Division, Rows
from base.errors import CheckpointError, why

MARK = "kindling:rows"
FILE = re.compile(r"shard-\d{5,}-of-\d{5,}\.pt")


def take_out(state: Any, found: dict[str, Rows], path: str = "") -> Any:
    """Return a state with markers in place of its rows, which are added to ``found`` by name.

    Rows that share memory, as those of a shared weight do, are added once.
    """
    names = {_memory_key(rows): name for name, rows in found.items()}
    return _take_out(state, found, names, path)


def _take_out(value: Any, found: dict[str, Rows], names: dict[Any, str], path: str) -> Any:
    if isinstance(value, Rows):
        name = names.setdefault(_memory_key(value), path)
        found[name] = value
        return {MARK: name}
    if isinstance(value, dict):
        taken: Any = type(value)()
        for key, item in value.items():
            taken[key] = _take_out(item, found, names, f"{path}/{key}" if path else str(key))
        if hasattr(value, "_metadata"):
            taken._metadata = value._metadata
        return taken
    if type(value) in (list, tuple):
        items = enumerate(value)
        return type(value)(_take_out(item, found, names, f"{path}/{n}") for n, item in items)
    return value


def _memory_key(rows: Rows) -> Any:
    """Return a key that is equal for the same rows of one tensor, as far as there are any."""
    tensor = rows.tensor
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else id(rows)


def write_rows(folder: Path, division: Division, found: Mapping[str, Rows]) -> dict[str, Any]:
    """Write the rows of one process into a file; return what `shards_entry` needs of all.

    Without any rows, as in one process, nothing is written and the result is empty.

    Raises:
        OSError: the file cannot be written.
    """
    if not found:
        return {}
    name = f"shard-{division.rank + 1:05d}-of-{division.size:05d}.pt"
    content = {name: _whole(rows.tensor) for name, rows in found.items() if rows.tensor.numel()}
    tensors = {
        name: [rows.first, len(rows.tensor), [*rows.shape], str(rows.tensor.dtype)[6:]]
        for name, rows in found.items()
    }
    return {"name": name, "file": write_state(folder / name, content), "tensors": tensors}


def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor with a storage of its own size, as a view would be saved with all of it."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def shards_entry(written: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the manifest's entries of the files, and of the tensors in them.

    Args:
        written: the results of `write_rows` in the order of the processes.

    Raises:
        CheckpointError: the rows of a tensor are not complete.
    """
    files = {each["name"]: each["file"] for each in written}
    tensors: dict[str, Any] = {}
    for name, (_, _, shape, dtype) in written[0]["tensors"].items():
        ends, starts = 0, []
        for each in written:
            # A process without a row of a shared weight has it under each of its names.
            first, n_rows, *kind = each["tensors"].get(name, (ends, 0, shape, dtype))
            if (first != ends and n_rows) or kind != [shape, dtype]:
                text = f"{name}: rows {first} to {first + n_rows} of {kind[0]} {kind[1]} follow"
                raise CheckpointError(f"{text} the first {ends} of {shape} {dtype}")
            starts.append(ends)
            ends += n_rows
        if ends != shape[0]:
            raise CheckpointError(f"{name}: the processes have {ends} of its {shape[0]} rows")
        tensors[name] = {"shape": shape, "dtype": dtype, "starts": starts}
    return files, {"files": [*files], "tensors": tensors}


def put_back(
    state: Any, folder: Path, manifest: Mapping[str, Any], division: Division | None
) -> Any:
    """Return a state with tensors in place of its markers.

    Args:
        division: read the rows of this process alone, as `Rows`; None reads whole tensors.
            Process 0 verifies the other files too.

    Raises:
        CheckpointError: a file is damaged, or does not hold what the manifest says.
        KeyError, AttributeError, TypeError: the manifest's entry is not one of `shards_entry`.
    """
    shards, files = manifest["shards"], manifest["files"]
    check_shards(shards, files)
    wanted: dict[str, tuple[int, int]] = {}
    read: dict[str, Tensor] = {}
    for name, about in shards["tensors"].items():
        n_rows, *inner = about["shape"]
        first, end = wanted[name] = (0, n_rows) if division is None else division.of(n_rows)
        read[name] = torch.empty([end - first, *inner], dtype=getattr(torch, about["dtype"]))
    for number, file in enumerate(shards["files"]):
        try:
            parts = [*_parts_in(number, shards["tensors"], wanted)]
            if parts:
                content = read_state(folder / file, files[file]["sha256"])
                for name, shape, start, rows in parts:
                    _check_part(name, content[name], shape, read[name].dtype)
                    part = content[name][rows]
                    read[name][start : start + len(part)] = part
            elif division is None or division.rank == 0:
                verify_file(folder / file, files[file]["sha256"])
        except Exception as error:
            raise CheckpointError(f"{file}: {why(error)}") from error
    if division is None:
        return _put_back(state, read)
    shapes = {name: tuple(about["shape"]) for name, about in shards["tensors"].items()}
    divided = {name: Rows(part, wanted[name][0], shapes[name]) for name, part in read.items()}
    return _put_back(state, divided)


def check_shards(shards: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Check that a manifest names files of its own folder, and what they can hold.

    Raises:
        CheckpointError: a file is elsewhere, tensors do not fit into the files, rows are missing.
        KeyError, AttributeError, TypeError: the entry is not one of `shards_entry`.
    """
    names = shards["files"]
    if odd := [name for name in names if not FILE.fullmatch(name)]:
        raise CheckpointError(f"refused: {odd[0]!r:.99} is not the name of a file of rows")
    if len({*names}) < len(names):
        raise CheckpointError("refused: it lists a file of rows more than once")
    n_bytes = 0
    for name, about in shards["tensors"].items():
        dtype, shape = getattr(torch, about["dtype"], None), about["shape"]
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(f"refused: {name} has the unknown dtype {about['dtype']!r:.99}")
        if not shape or not all(type(length) is int and length >= 0 for length in shape):
            raise CheckpointError(f"refused: {shape!r:.99} is no shape of {name}")
        ends = [*about["starts"], shape[0]]
        if len(ends) != len(names) + 1 or ends[0] != 0 or ends != sorted(ends):
            raise CheckpointError(f"refused: the files do not hold all {shape[0]} rows of {name}")
        n_bytes += math.prod(shape) * dtype.itemsize
    limit = sum(files[name]["bytes"] for name in names)
    if n_bytes > limit:
        raise CheckpointError(f"refused: its tensors need more than the {limit} bytes of its files")


def _parts_in(
    number: int, tensors: Mapping[str, Any], wanted: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, list[int], int, slice]]:
    """Yield what is wanted of a file: name, shape there, first row in what is read, rows there."""
    for name, about in tensors.items():
        n_rows, *inner = about["shape"]
        starts = [*about["starts"], n_rows]
        (first, end), here, after = wanted[name], starts[number], starts[number + 1]
        low, high = max(first, here), min(end, after)
        if low < high and math.prod(about["shape"]):
            yield name, [after - here, *inner], low - first, slice(low - here, high - here)


def _check_part(name: str, part: Tensor, shape: list[int], dtype: torch.dtype) -> None:
    if [*part.shape] != shape or part.dtype != dtype:
        text = f"{name} has the shape {tuple(part.shape)} {part.dtype}"
        raise CheckpointError(f"{text}, not {tuple(shape)} {dtype}")


def _put_back(value: Any, found: Mapping[str, Any]) -> Any:
    """Replace the markers in a state that was loaded, in which each object is our own."""
    if isinstance(value, dict):
        if value.keys() == {MARK}:
            return found[value[MARK]]
        for key, item in value.items():
            value[key] = _put_back(item, found)
    elif type(value) in (list, tuple):
        return type(value)(_put_back(item, found) for item in value)
    return value
