"""JPEG files: the decoders that may be installed, and what the header says."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Decoder = Callable[[bytes, str], Tensor]  # a file's bytes, "RGB" or "L" -> uint8 (c, h, w)


class Header(NamedTuple):
    """The size of an image as its file holds it, and the EXIF orientation: how to turn it."""

    height: int
    width: int
    orientation: int = 1

    @property
    def is_on_its_side(self) -> bool:
        return self.orientation >= 5


def read_header(file: BinaryIO) -> Header | None:
    """Read the header of an ordinary JPEG, grey or of three colours of 8 bits; None of others."""
    orientation = 1
    if file.read(2) != b"\xff\xd8":
        return None
    while True:
        marker = file.read(4)  # two bytes of name, two of length
        length = int.from_bytes(marker[2:], "big") - 2
        if length < 0 or marker[0] != 0xFF or not 0xC0 <= marker[1] < 0xFF:
            return None
        if marker[1] in (0xC0, 0xC1, 0xC2):
            frame = file.read(6)
            if len(frame) < 6 or frame[0] != 8 or frame[5] not in (1, 3):
                return None
            height, width = (int.from_bytes(frame[at : at + 2], "big") for at in (1, 3))
            return Header(height, width, orientation) if height and width else None
        segment = file.read(length)
        if marker[1] == 0xE1 and segment.startswith(b"Exif\0\0"):
            orientation = _orientation_in(segment)
        elif marker[1] == 0xE1 and b"tiff:Orientation" in segment:
            return None


def orientation_in(exif: Any) -> int:
    """Return the orientation, 1 to 8, that PIL's EXIF data hold; 1 where they hold none."""
    orientation = exif.get(0x0112, 1)
    return orientation if orientation in range(1, 9) else 1


def _orientation_in(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return orientation_in(exif)
    except Exception:  # damaged in one of many ways: as if there were none
        return 1


@functools.cache
def fastest_decoder() -> Decoder:
    """Return the fastest decoder that is installed; each lets other threads run meanwhile."""
    for make in DECODERS.values():
        try:
            return make()
        except ImportError:
            continue
    raise AssertionError("PIL is always there")


def _simplejpeg() -> Decoder:
    import simplejpeg

    spaces = {"RGB": "RGB", "L": "GRAY"}
    return lambda data, mode: from_hwc(simplejpeg.decode_jpeg(data, spaces[mode]))


def _opencv() -> Decoder:
    import cv2

    if not hasattr(cv2, "IMREAD_COLOR_RGB"):
        raise ImportError("opencv before 4.11 gives blue first")
    colours = {"RGB": cv2.IMREAD_COLOR_RGB, "L": cv2.IMREAD_GRAYSCALE}

    def decode(data: bytes, mode: str) -> Tensor:
        kind = colours[mode] | cv2.IMREAD_IGNORE_ORIENTATION
        return from_hwc(cv2.imdecode(np.frombuffer(data, np.uint8), kind))

    return decode


def _torchvision() -> Decoder:
    from torchvision.io import ImageReadMode  # takes seconds, and brings the operator

    if not hasattr(torch.ops.image, "decode_jpeg"):
        raise ImportError("this torchvision decodes no images")
    modes = {"RGB": ImageReadMode.RGB.value, "L": ImageReadMode.GRAY.value}

    def decode(data: bytes, mode: str) -> Tensor:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        # The function around it warns at each call that it will move to another package.
        image: Tensor = torch.ops.image.decode_jpeg(content, modes[mode], False)
        return image

    return decode


def _pil() -> Decoder:
    def decode(data: bytes, mode: str) -> Tensor:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(mode, image.size)
            return from_hwc(np.array(image.convert(mode)))

    return decode


DECODERS = {  # from the fastest on
    "simplejpeg": _simplejpeg,
    "opencv": _opencv,
    "torchvision": _torchvision,
    "PIL": _pil,
}


def from_hwc(pixels: Any) -> Tensor:
    """Turn an array (height, width[, channel]) into a tensor (channel, height, width)."""
    image = torch.from_numpy(pixels)
    return image[None] if image.dim() == 2 else image.permute(2, 0, 1)
