"""Writes ``split.npz``, which records a split that is too large to list, and compares it.

For each part of the data, ``train`` and ``valid``, it has the steps between the indices of
successive samples, so ``numpy.load("split.npz")["valid"].cumsum()`` lists them. For each BLOCK of
samples of a data set it has two sums of hashes of their targets and of their contents, which also
name a sample that changed alone in its block, and a hash of their ids.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.data.fingerprint import Samples
from base.data.protocols import ids_at
from base.errors import DataError, listed
from logger.files import read_file

BLOCK = 1024  # samples
BLOCKS_AT_ONCE = 32  # which the processor's cache holds
PART_NAMES = {"train": "training", "valid": "validation"}
MAX_SHOWN = 3  # samples in a message
SPLIT = "samples"  # the name of a data set that is divided into both parts
KINDS = {"targets": "targets", "contents": "inputs", "ids": "ids"}

Array = np.ndarray[Any, Any]


def large_split_bytes(samples: Mapping[str, Samples]) -> bytes:
    """Return the content of ``split.npz``."""
    buffer = io.BytesIO()
    # numpy's `savez_compressed` takes four times as long for a tenth less.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, values in _arrays(samples).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
    return buffer.getvalue()


def changes_of_large_split(path: Path, samples: Mapping[str, Samples]) -> list[str]:
    """Describe how samples differ from those that a ``split.npz`` records; [] if they do not.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as archive:
            then = {name: archive[name] for name in archive.files}
    except Exception as error:  # numpy and zipfile raise many types
        raise DataError(f"{path}: damaged: {error}") from error
    now = _arrays(samples)
    changed: list[str] = []
    for name, of_set in _by_data_set(samples).items():
        changed += _changed_samples(name, then, now, of_set[0])
    count = f"{SPLIT}_count"
    if count in then and count in now and then[count] != now[count]:
        return changed  # with another size, the split is another one throughout
    lines = []
    for part, found in samples.items():
        if part in then:
            lines += _changed_indices(PART_NAMES[part], then[part], now[part], found)
    return lines + changed


def _arrays(samples: Mapping[str, Samples]) -> dict[str, Array]:
    arrays = {part: _steps(found.indices) for part, found in samples.items()}
    for name, of_set in _by_data_set(samples).items():
        sizes = [int(found.indices.max()) + 1 for found in of_set if len(found)]
        n_samples = max(sizes, default=0)
        arrays[f"{name}_count"] = np.array(n_samples)
        for kind, hashes in (
            ("targets", [found.target_hashes for found in of_set]),
            ("contents", [found.contents for found in of_set]),
        ):
            known = [each for each in hashes if each is not None]
            if len(known) == len(of_set):
                whole = torch.zeros(n_samples, dtype=torch.int64)
                for found, each in zip(of_set, known, strict=True):
                    whole.scatter_(0, found.indices, each)
                arrays[f"{name}_{kind}"] = _sums(whole).numpy()
        if of_set[0].has_names:
            arrays[f"{name}_ids"] = np.array(list(_hashes_of_ids(of_set[0].ids, n_samples)))
    return arrays


def _by_data_set(samples: Mapping[str, Samples]) -> dict[str, list[Samples]]:
    """Return the parts of each data set: `SPLIT` for one that is split, else by part."""
    parts = list(samples.values())
    if len({id(found.dataset) for found in parts}) == 1:
        return {SPLIT: parts}
    return {f"{part}_samples": [found] for part, found in samples.items()}


def _steps(indices: Tensor) -> Array:
    """Return the steps between successive indices, from 0, in the smallest fitting dtype."""
    steps = np.diff(indices.numpy(), prepend=0)
    kinds = [np.min_scalar_type(limit) for limit in (steps.min(initial=0), steps.max(initial=0))]
    return steps.astype(np.result_type(*kinds))


def _indices(steps: Array) -> Array:
    return steps.cumsum(dtype=np.int64)


def _sums(hashes: Tensor) -> Tensor:
    """Return the sum of the hashes of each block, and that of ``hash * (place + 1)``."""
    n_whole, places = len(hashes) // BLOCK, torch.arange(1, BLOCK + 1)
    rows = hashes[: n_whole * BLOCK].view(n_whole, BLOCK)
    last = hashes[n_whole * BLOCK :][None]
    sums = [*rows.split(BLOCKS_AT_ONCE), *([last] if last.numel() else [])]
    return torch.cat(
        [torch.stack([b.sum(1), (b * places[: b.shape[1]]).sum(1)], dim=1) for b in sums]
        or [torch.zeros(0, 2, dtype=torch.int64)]
    )


def _hashes_of_ids(ids: Any, n_samples: int) -> Iterator[int]:
    for first in range(0, n_samples, BLOCK):
        text = "\0".join(ids_at(ids, torch.arange(first, min(first + BLOCK, n_samples))))
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
        yield int.from_bytes(digest[:8], "big", signed=True)


def _changed_indices(part: str, then: Array, now: Array, found: Samples) -> list[str]:
    """Describe which samples a part lost or gained, or that their order changed."""
    before, after = _indices(then), _indices(now)
    if np.array_equal(before, after):
        return []
    lost, gained = np.setdiff1d(before, after), np.setdiff1d(after, before)
    lines = [
        f"{len(rows)} {part} samples are {state} ({listed(list(map(found.place, rows[:4])), 3)})"
        for rows, state in ((lost, "missing"), (gained, "new"))
        if len(rows)
    ]
    return lines or [f"the {part} samples are in another order"]


def _changed_samples(
    name: str, then: Mapping[str, Array], now: Mapping[str, Array], found: Samples
) -> list[str]:
    """Describe which samples of a data set have other targets, contents or ids."""
    if f"{name}_count" not in then:
        return []
    n_then, n_now = int(then[f"{name}_count"]), int(now[f"{name}_count"])
    lines = [f"{n_then} samples then, {n_now} now"] if n_then != n_now else []
    for kind, what in KINDS.items():
        one, other = then.get(f"{name}_{kind}"), now.get(f"{name}_{kind}")
        if one is None or other is None:
            continue
        n_blocks = min(n_then, n_now) // BLOCK if n_then != n_now else len(one)
        places = np.unique((one[:n_blocks] != other[:n_blocks]).nonzero()[0]).tolist()
        if not places:
            continue
        if n_then != n_now:  # what follows has moved
            lines.append(f"the {what} differ from {_range(places[0], n_now, found)} on")
            continue
        shown = [_located(b, one[b], other[b], n_now, found) for b in places[: MAX_SHOWN + 1]]
        lines.append(f"{what} differ ({listed(shown, MAX_SHOWN)})")
    return lines


def _located(block: int, then: Array, now: Array, n_samples: int, found: Samples) -> str:
    """Return the sample that changed alone in a block, or the range of the block."""
    if np.ndim(then):
        # Unsigned, whose products wrap around without a warning.
        (plain, weighted) = now.astype(np.uint64) - then.astype(np.uint64)
        factors = np.arange(1, BLOCK + 1, dtype=np.uint64)
        places = (factors * plain == weighted).nonzero()[0]
        if len(places) == 1 and block * BLOCK + places[0] < n_samples:
            return found.place(int(block * BLOCK + places[0]))
    return _range(block, n_samples, found)


def _range(block: int, n_samples: int, found: Samples) -> str:
    first, last = block * BLOCK, min(n_samples, (block + 1) * BLOCK) - 1
    return f"{found.place(first)} to {found.place(last)}"
