"""What the processes of a training must have in common, compared by hashes.

Each process describes itself by values and hashes, which all exchange. What differs is exchanged
a second time in whole, to name it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Facts = Mapping[str, Any]

MAX_SHOWN = 3  # keys or files in a message


def hash_of(value: Any) -> str:
    """Return a hash of plain data; the order of a mapping does not count."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def hash_of_tensor(tensor: Tensor) -> str:
    """Return a hash of the values of a tensor on any device."""
    values = tensor.detach().to_dense().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(values.numpy().data).hexdigest()[:32]


def other_rank(rows: Sequence[Facts], key: str) -> int | None:
    """Return the first rank with another value than rank 0; None if all ranks have the same."""
    first = rows[0].get(key)
    return next((rank for rank, row in enumerate(rows) if row.get(key) != first), None)


def name_of(rows: Sequence[Facts], rank: int) -> str:
    """Return the name of a rank in messages, with its machine if that is not rank 0's."""
    host = rows[rank].get("host")
    return f"rank {rank}" if host == rows[0].get("host") else f"rank {rank} ({host})"


def differing(ours: Facts, theirs: Facts) -> list[str]:
    """Return the keys with different values, in order; a key that one lacks is among them."""
    keys = [*ours, *(key for key in theirs if key not in ours)]
    return [key for key in keys if ours.get(key) != theirs.get(key)]


def config_difference(ours: Facts, theirs: Facts, other: str) -> str:
    """Name the keys of a config that differ, with the values on both ranks.

    Args:
        ours: the values as text by dotted key on rank 0.
        theirs: those on the other rank.
        other: the name of the other rank.
    """
    texts = (
        f"{key} is {_shown(ours, key)} on rank 0 and {_shown(theirs, key)} on {other}"
        for key in differing(ours, theirs)
    )
    text = f"config differs between ranks: {_first_few(list(texts), '; ')}"
    return f"{text}: start all processes with the same config"


def code_difference(ours: Facts, theirs: Facts, other: str, whole: Sequence[str] = ()) -> str:
    """Name the files of a project that differ; empty if none does.

    Args:
        ours: the hashes of files on rank 0 by their paths.
        theirs: those on the other rank.
        whole: the folders whose files must be the same ones. A file elsewhere is compared if both
            ranks use it.
    """
    texts = []
    for file in sorted(differing(ours, theirs)):
        if file in ours and file in theirs:
            texts.append(f"{file} is another file on {other} than on rank 0")
        elif file.partition("/")[0] in whole:
            texts.append(f"{file} is on {'rank 0' if file in ours else other} only")
    if not texts:
        return ""
    text = f"code differs between ranks: {_first_few(texts, '; ')}"
    return f"{text}: start all processes from the same copy of the project"


def data_difference(ours: Facts, theirs: Facts, part: str, other: str) -> str:
    """Name what differs in a part of the data: the number of samples, or else what they hold.

    Args:
        ours: the ``classes`` and the `Samples.digests` of rank 0; empty for no such part, and
            without digests for a stream.
        theirs: those on the other rank.
        part: ``training`` or ``validation``.
    """
    where = "all processes need the same files and arguments"
    if bool(ours) != bool(theirs):
        return f"{'rank 0' if ours else other} alone has {part} data: {where}"
    if ours.get("n_samples") != theirs.get("n_samples"):
        mine, its = (_count(each, part) for each in (ours, theirs))
        return f"data differ between ranks: {mine} on rank 0 and {its} on {other}: {where}"
    what = {"ids": "ids or the order", "targets": "targets", "contents": "inputs"}
    what |= {"classes": "class names"}
    names = " and the ".join(what[key] for key in differing(ours, theirs))
    text = f"the {names} of the {part} samples are not the same on rank 0 and {other}"
    return f"data differ between ranks: {text}: {where}"


def _count(facts: Facts, part: str) -> str:
    n_samples = facts.get("n_samples")
    return f"a stream of {part} samples" if n_samples is None else f"{n_samples:,} {part} samples"


def _shown(values: Facts, key: str) -> str:
    return str(values[key])[:80] if key in values else "not set"


def _first_few(texts: Sequence[str], separator: str) -> str:
    more = len(texts) - MAX_SHOWN
    return separator.join(texts[:MAX_SHOWN]) + (f"{separator}{more} more" if more > 0 else "")
