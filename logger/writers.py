"""Where the numbers of a run go: TensorBoard, a CSV file, or a writer of your own."""

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Writer:
    """Do nothing with everything; override what your writer can keep."""

    name = "writer"

    def open(self) -> None:
        """Raise an error if this writer cannot work here, before the training begins."""

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keep named numbers as points of their curves."""

    def add_row(self, row: Mapping[str, object]) -> None:
        """Keep the row of one epoch."""

    def add_images(self, tag: str, images: Tensor, step: int) -> None:
        """Keep images  # (batch, channel, height, width), 0 to 1."""

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Keep a text."""

    def flush(self) -> None:
        """Put everything on disk."""

    def close(self) -> None:
        """Finish; nothing is written after."""


class Writers(Writer):
    """Hand everything on to several writers; one that fails warns once, and training goes on."""

    def __init__(self, writers: Iterable[Writer]) -> None:
        self.writers = list(writers)
        self._each("open")

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._each("add_scalars", values, step)

    def add_row(self, row: Mapping[str, object]) -> None:
        self._each("add_row", row)

    def add_images(self, tag: str, images: Tensor, step: int) -> None:
        if images.dim() != 4:
            shape = tuple(images.shape)
            raise ValueError(f"{tag}: (batch, channel, height, width) was expected, found {shape}")
        self._each("add_images", tag, images, step)

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
            except Exception as error:
                self.writers.remove(writer)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                text = "%s is off, training goes on without it: %s"
                logging.getLogger("kindling").warning(text, writer.name, reason)


class TensorBoardWriter(Writer):
    """Write event files; TensorBoard is imported when the first value comes, not before."""

    name = "TensorBoard"

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """On resume, points from `purge_step` on that the interrupted run left are void."""
        self.folder = folder
        self.purge_step = purge_step
        self._summary_writer: SummaryWriter | None = None

    def open(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError("tensorboard is not installed (pip install tensorboard)")

    @property
    def summary_writer(self) -> "SummaryWriter":
        """Torch's own writer, for what this interface has no method for."""
        if self._summary_writer is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from torch.utils.tensorboard import SummaryWriter
            self._summary_writer = SummaryWriter(str(self.folder), purge_step=self.purge_step)
        return self._summary_writer

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self.summary_writer.add_scalar(tag, value, step)

    def add_images(self, tag: str, images: Tensor, step: int) -> None:
        self.summary_writer.add_images(tag, images.detach().float().cpu().clamp(0, 1), step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.summary_writer.add_text(tag, text, step)

    def flush(self) -> None:
        if self._summary_writer is not None:
            self._summary_writer.flush()

    def close(self) -> None:
        if self._summary_writer is not None:
            self._summary_writer.close()
