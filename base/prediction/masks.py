"""Writes predicted masks as PNG files: class numbers, with a palette to look at them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from base.errors import UsageError, disk_error, why
from base.prediction.found_files import FoundFile
from base.report.pictures import palette
from logger.csv_writer import csv_text
from logger.files import write_whole

LEGEND = "classes.csv"


class MaskFolder:
    """A folder of masks, each named as its image within the folder of images.

    ``classes.csv`` has the number, the name and the colour of each class.

    Args:
        files: the images, some of which get a mask.
        overwrite: whether masks that exist are replaced.

    Raises:
        UsageError: a mask exists, two images have the same name, or the folder cannot be made.
    """

    def __init__(self, folder: Path, files: Sequence[FoundFile], overwrite: bool = False) -> None:
        self.folder = folder
        self.names = [Path(file.within).with_suffix(".png") for file in files]
        first: dict[Path, FoundFile] = {}
        for name, file in zip(self.names, files, strict=True):
            if (other := first.setdefault(name, file)) is not file:
                text = f"{other.path} and {file.path} would have the same mask, {name}"
                raise UsageError(f"{folder}: {text}: predict them one after the other")
        there = next((name for name in self.names if (folder / name).exists()), None)
        if there is not None and not overwrite:
            raise UsageError(f"{folder / there}: the mask exists already; add --overwrite")
        self._overwrites = overwrite
        self._make(folder)

    def begin(self, classes: Sequence[str], colors: Sequence[Sequence[int]] | None) -> None:
        """Write the legend: number, class and colour."""
        self.palette = [*(colors or ()), *palette()[len(colors or ()) :]]
        rows = [(n, name, *self.palette[n]) for n, name in enumerate(classes)]
        header = [("number", "class", "red", "green", "blue")]
        path, content = self.folder / LEGEND, csv_text([*header, *rows]).encode()
        if path.exists() and path.read_bytes() != content and not self._overwrites:
            text = "the file exists already and is no legend of these classes"
            raise UsageError(f"{path}: {text}: choose another folder, or add --overwrite")
        write_whole(path, content)

    def write(self, index: int, classes: Tensor, size: tuple[int, int] | None) -> Path:
        """Write the mask of a sample.

        Args:
            classes: the class of each pixel, (height, width).
            size: the height and width of the image, if the mask is to have the same.
        """
        mask = Image.fromarray(classes.numpy().astype(np.uint8))
        if size is not None and size != mask.size[::-1]:
            mask = mask.resize(size[::-1], Image.Resampling.NEAREST)
        mask.putpalette(  # which turns grey levels into the palette's numbers
            [value for color in self.palette for value in color]
        )
        content = io.BytesIO()
        mask.save(content, format="PNG")
        path = self.folder / self.names[index]
        self._make(path.parent)
        write_whole(path, content.getvalue())
        return path

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = f"{folder}: the folder of masks cannot be made: {why(error)}"
            raise disk_error(error, text, UsageError) from error
