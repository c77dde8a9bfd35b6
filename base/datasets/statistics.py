"""Computes and stores the mean and standard deviation of a data set's channels."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from base.data.protocols import HasImages, HasPlaces
from base.data.reading import SKIP_INSTEAD, BadSample, Failure, NoteBad, find_get_batch
from base.data.threads import read_ahead
from base.errors import DataError
from base.system.deferred_files import write_when_running
from logger.files import read_file

log = logging.getLogger("kindling")

Note = NoteBad | None


class _Images(HasImages, HasPlaces, Protocol): ...


CHUNK = 4096  # in-memory samples to sum at once


def channel_statistics(
    source: Any, indices: Tensor, white: float, n_threads: int, folder: Path, note_bad: Note = None
) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel (or column) over some samples.

    Integer images are scaled to 0 to 1. All pixels have equal weight, as in
    ``images.mean(dim=(0, 2, 3))``. Statistics of files are stored in ``folder``, under a name
    derived from the data set's fingerprint and the samples.

    Args:
        note_bad: called with samples that cannot be read, which are skipped; None raises instead.
    """
    kept: Path | None = None
    if hasattr(source, "fingerprint"):
        content = f"{source.fingerprint()} {white}".encode() + indices.numpy().tobytes()
        kept = folder / f"statistics-{hashlib.blake2b(content, digest_size=12).hexdigest()}.json"
        with contextlib.suppress(OSError, ValueError, KeyError):
            found = json.loads(read_file(kept))
            return found["mean"], found["std"]
    mean, std = _compute(source, indices, white, n_threads, note_bad)
    if kept is not None:
        write_when_running(functools.partial(_keep, kept, mean, std))
    return mean, std


def _keep(path: Path, mean: list[float], std: list[float]) -> None:
    with contextlib.suppress(OSError):  # if not stored, they are computed again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.partial")
        part.write_text(json.dumps({"mean": mean, "std": std}))
        part.replace(path)


def _compute(
    source: Any, indices: Tensor, white: float, n_threads: int, note_bad: Note
) -> tuple[list[float], list[float]]:
    # Sum differences from the first value: sums of large numbers would lose small differences,
    # and the differences of a constant are exactly 0.
    count, shift, total, squares = 0, None, torch.zeros(()), torch.zeros(())
    for images in _read(source, indices, n_threads, note_bad):
        scale = 1.0 if images.is_floating_point() else white
        values = images.to(torch.float64).div_(scale)
        if values.dim() < 2:
            text = "normalize: auto: samples are scalars, without columns or channels"
            raise DataError(f"{text}: give inputs of shape (N, 1)")
        rows = values.flatten(2).transpose(0, 1).flatten(1) if values.dim() > 2 else values.T
        shift = rows[:, :1].clone() if shift is None else shift
        rows = rows - shift
        count += rows.shape[1]
        total = total + rows.sum(1)
        squares = squares + rows.square().sum(1)
    mean = total / count
    std = (squares / count - mean.square()).clamp_(min=0).sqrt()
    mean = mean if shift is None else mean + shift[:, 0]
    if not std.isfinite().all():
        raise DataError("normalize: auto: the data contain NaN or infinite values")
    std[std == 0] = 1.0  # constants are not scaled
    log.info(f"normalize  mean {_few(mean)}, std {_few(std)}, of {len(indices):,} samples")
    return mean.tolist(), std.tolist()


def _read(source: Any, indices: Tensor, n_threads: int, note_bad: Note) -> Iterator[Tensor]:
    """Yield images: batches from memory, or single images decoded in threads."""
    get_batch = find_get_batch(source)
    if get_batch is not None:
        for part in indices.split(CHUNK):
            yield get_batch(part)[0]
    else:
        n_threads, read = max(1, n_threads), functools.partial(_image, source, note_bad is not None)
        for image in read_ahead(read, iter(indices.tolist()), n_threads, 4 * n_threads, 0):
            if note_bad is not None and isinstance(image, BadSample):
                note_bad([image])
            else:
                yield image


def _image(source: _Images, may_skip: bool, index: int) -> Tensor | BadSample:
    try:
        return source.image(index)[None]
    except Exception as error:
        failure = Failure("", error)
        if not may_skip and failure.may_be_skipped and isinstance(error, DataError):
            raise DataError(f"{error}{SKIP_INSTEAD}") from error
        if not may_skip or not failure.may_be_skipped:
            raise
        return failure.bad_sample(index, source.place(index))


def _few(numbers: Tensor) -> str:
    text = ", ".join(f"{x:.4f}" for x in numbers[:4].tolist())
    return f"{text}, ..." if len(numbers) > 4 else text
