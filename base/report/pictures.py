"""Small pictures of samples as PNG, from arrays of values from 0 to 1."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BACKGROUND = 0  # the class that is not coloured
OPACITY = 0.65  # of a mask over an image


def as_png(pixels: Array) -> bytes:
    """Return an image as the bytes of a PNG file.

    Args:
        pixels: uint8 (height, width), or (height, width, 3).
    """
    from PIL import Image  # only needed for runs with images

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def to_bytes(image: Array) -> Array:
    """Return an image with values from 0 to 1 as uint8; NaN is black."""
    whole = np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0)
    return np.asarray((whole.clip(0, 1) * 255).round(), dtype=np.uint8)


def palette() -> list[tuple[int, int, int]]:
    """Return 256 colours, of which the first ones differ most: those of Pascal VOC's masks.

    Source: the bits of a number, from the lowest, are spread over the highest bits of the colours.
    """
    colors = []
    for number in range(256):
        channels = [0, 0, 0]
        for place in range(8):
            for channel in range(3):
                channels[channel] |= (number >> 3 * place + channel & 1) << 7 - place
        colors.append((channels[0], channels[1], channels[2]))
    return colors


def class_color(number: int) -> tuple[int, int, int]:
    """Return the colour of a class of a mask, the same as in a predicted mask."""
    return palette()[number % 256]


def with_mask(image: Array, mask: Array) -> Array:
    """Return a grey image with a mask of classes over it, uint8 (height, width, 3).

    Args:
        image: uint8 (height, width) or (height, width, 3).
        mask: (height, width) class numbers; the background and negative numbers are transparent.
    """
    colored = np.stack([_grey(image)] * 3, axis=-1)
    for number in np.unique(mask):
        if number > BACKGROUND:
            color = np.array(class_color(int(number)))
            place = mask == number
            colored[place] = (1 - OPACITY) * colored[place] + OPACITY * color
    return np.asarray(colored.round(), dtype=np.uint8)


def with_errors(image: Array, target: Array, prediction: Array) -> Array:
    """Return a grey image in which the pixels of a wrong class are red.

    Args:
        image: uint8 (height, width) or (height, width, 3).
        target, prediction: (height, width) class numbers; negative targets are not judged.
    """
    colored = np.stack([0.6 * _grey(image)] * 3, axis=-1)
    colored[(target >= 0) & (target != prediction)] = (235, 40, 40)
    return np.asarray(colored.round(), dtype=np.uint8)


def _grey(image: Array) -> Array:
    grey = image if image.ndim == 2 else image.mean(axis=-1)
    return np.asarray(grey, dtype=np.float64)
