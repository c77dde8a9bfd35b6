"""Destinations of logged values: the base class `Writer`, and TensorBoard.

`metrics.csv` is written by `csv_writer.py`, and services such as wandb by `services.py`.
"""

import importlib.util
import json
import logging
import os
import re
import socket
import sys
import time
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


WATCHED = re.compile(
    r"^(lr|time|capture)(/|$)|^(seconds|samples_per_second|memory_mb|wait)$|grad_(norm|cosine)"
)
"""Logged values that are no losses or metrics."""


class Histogram(NamedTuple):
    """Number of values in each bucket: ``counts[k]`` from ``limits[k]`` to ``limits[k + 1]``."""

    limits: Sequence[float]
    counts: Sequence[float]


class Writer:
    """Base class of all writers, which ignores every value: override the methods you support."""

    name = "writer"

    def open(self) -> None:
        """Raise an error before training if this writer cannot work."""

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write named scalars, each a point of its curve."""

    def add_row(self, row: Mapping[str, object]) -> None:
        """Write the row of one epoch."""

    def add_images(self, tag: str, images: "Tensor", step: int) -> None:
        """Write images  # (batch, channel, height, width), 0 to 1."""

    def add_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        """Write named histograms."""

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Write a text."""

    def flush(self) -> None:
        """Write all pending values to the disk."""

    def close(self) -> None:
        """Close the writer after the last value."""


class Writers(Writer):
    """Passes values to several writers; removes one that fails, with a warning."""

    def __init__(self, writers: Iterable[Writer]) -> None:
        self.writers = list(writers)
        self._each("open")

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._each("add_scalars", values, step)

    def add_row(self, row: Mapping[str, object]) -> None:
        self._each("add_row", row)

    def add_images(self, tag: str, images: "Tensor", step: int) -> None:
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            shape = tuple(images.shape)
            raise ValueError(f"{tag}: expected (batch, 1 or 3, height, width), found {shape}")
        self._each("add_images", tag, images, step)

    def add_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        self._each("add_histograms", histograms, step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        self._each("add_text", tag, text, step)

    def flush(self) -> None:
        self._each("flush")

    def close(self) -> None:
        self._each("close")

    def _each(self, method: str, *arguments: object) -> None:
        for writer in list(self.writers):
            try:
                getattr(writer, method)(*arguments)
            except Exception as error:  # any error: no writer may end a run
                self.writers.remove(writer)
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                text = "%s is off, training continues without it: %s"
                logging.getLogger("kindling").warning(text, writer.name, reason)


class TensorBoardWriter(Writer):
    """Writes one event file for each start of a run; imports TensorBoard for the first value.

    All scalars of a step are one event, written at once. torch's `SummaryWriter` queues an event
    for each scalar (14 times as slow), and reports a full disk from another thread.

    TensorBoard opens the first two groups of tags in alphabetical order: these are ``train`` and
    ``valid``, as `tag_of` puts all others behind them.
    """

    name = "TensorBoard"

    def __init__(
        self,
        folder: Path,
        purge_step: int | None = None,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        """Write to a folder.

        Args:
            purge_step: of a resumed run; TensorBoard discards points of earlier files from it on.
            settings: the hyperparameters that HParams shows of this run, by name.
        """
        self.folder = folder
        self.purge_step = purge_step
        self.settings = dict(settings or {})
        self._records: Any = None

    def open(self) -> None:
        if not _is_installed("tensorboard") and not _is_installed("tensorboardX"):
            raise ImportError("tensorboard is not installed (pip install tensorboard)")

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        points = [{"tag": tag_of(name), "simple_value": each} for name, each in values.items()]
        self._write(step=step, summary={"value": points})

    def add_images(self, tag: str, images: "Tensor", step: int) -> None:
        images = images.detach().float().clamp(0, 1).cpu()
        image = self._functions().image
        self._write(step=step, summary=image(tag_of(tag), images, dataformats="NCHW"))

    def add_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        points = [{"tag": tag_of(tag), "histo": _message(one)} for tag, one in histograms.items()]
        self._write(step=step, summary={"value": points})

    def add_text(self, tag: str, text: str, step: int) -> None:
        self._write(step=step, summary=self._functions().text(tag, text))

    def close(self) -> None:
        if self._records is not None:
            self._records.close()

    def _functions(self) -> SimpleNamespace:
        """Import torch's functions for events, or those of tensorboardX if that fails."""
        try:
            return _torch_functions()
        except Exception:
            if not _is_installed("tensorboardX"):
                raise
            return _tensorboardx_functions()

    def _write(self, **fields: Any) -> None:
        if self._records is None:
            self._start()
        event = self._new_event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())
        self._records.flush()

    def _start(self) -> None:
        functions = self._functions()
        self._new_event = functions.event
        # TensorBoard reads files in the order of their names, and a purge is for earlier ones.
        self.folder.mkdir(parents=True, exist_ok=True)
        stamps = [p.name.split(".")[3] for p in self.folder.glob("events.out.tfevents.*")]
        stamp = max([int(time.time()), *(int(s) + 1 for s in stamps if s.isdigit())])
        name = f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        self._records = functions.open(self.folder / name)
        self._write(file_version="brain.Event:2")
        if self.purge_step is not None:
            self._write(step=self.purge_step, session_log={"status": "START"})
        # HParams takes the settings from here, and as metrics the last value of each scalar. An
        # event about the experiment would hide the settings that other runs have.
        values = {name: _as_setting(value) for name, value in self.settings.items()}
        self._write(summary=functions.hparams(values, {})[1])


def tag_of(name: str) -> str:
    """Return the tag under which TensorBoard shows a value: losses and metrics come first.

    Learning rates, times, memory, norms of gradients and captured values are in the group
    ``watch``, images of the engine in ``visuals``. Tags of your own stay.
    """
    if name in ("inputs", "samples"):
        return f"visuals/{name}"
    if WATCHED.search(name):
        return f"watch/{name}"
    return f"train/{name}" if name.startswith("step/") else name


def _as_setting(value: object) -> object:
    """Return a value that HParams can hold: a number or a text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number or isinstance(value, str) else json.dumps(value)


def trim(histogram: Histogram) -> Histogram:
    """Remove the empty buckets at both ends."""
    filled = [k for k, count in enumerate(histogram.counts) if count] or [0]
    first, last = filled[0], filled[-1] + 1
    return Histogram(histogram.limits[first : last + 1], histogram.counts[first:last])


def _message(histogram: Histogram) -> dict[str, Any]:
    """Return the fields of TensorBoard's histogram message."""
    limits, counts = trim(histogram)
    ends = {"min": limits[0], "max": limits[-1], "num": sum(counts)}
    return {**ends, "bucket_limit": limits[1:], "bucket": counts}


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _torch_functions() -> SimpleNamespace:
    # With a module of this name tensorboard does not import TensorFlow, which takes seconds.
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.utils.tensorboard as tensorboard
        from tensorboard.compat.proto.event_pb2 import Event
    summary, records = tensorboard.summary, tensorboard.RecordWriter
    return SimpleNamespace(
        event=Event,
        image=summary.image,
        text=summary.text,
        hparams=summary.hparams,
        open=lambda path: records(path.open("xb")),
    )


def _tensorboardx_functions() -> SimpleNamespace:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import hparams, image, text

    return SimpleNamespace(
        event=Event,
        image=image,
        text=text,
        hparams=hparams,
        open=lambda path: RecordWriter(str(path)),
    )
