"""Images from files, and from what a data set of your own gives, as tensors (channel, h, w).

JPEG files are read by the fastest decoder that is installed.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from base.errors import DataError, nearest
from logger.files import open_file, read_file

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


MODES = {"RGB": "RGB", "grey": "L", "gray": "L", "L": "L"}  # as a config says -> as PIL says
FLIPS = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}  # by EXIF orientation
FLOAT_WHITE = 16  # floats from 0 to more than this are not an image from 0 to 1

Resize = int | Sequence[int] | None


def decode_image(
    source: bytes | Path, mode: str = "RGB", resize: Resize = None, *, where: str = ""
) -> Tensor:
    """Decode an image file, or its bytes: uint8 (channel, height, width).

    A JPEG goes to the fastest decoder that is installed (simplejpeg, opencv, torchvision), all
    else, and a JPEG that is unusual or damaged, to PIL; they agree within one level of 255. A JPEG
    of at least four times the requested size is decoded by PIL at a half to an eighth that leaves
    at least twice that size: resizing would filter out what is lost.

    Args:
        mode: RGB or grey.
        resize: the shorter side in pixels, or [height, width]; antialiased.
        where: what errors call the image; its path if left out.

    Raises:
        DataError: there is no such file, it holds no image, or only a part of one.
    """
    pil_mode, where = find_mode(mode), where or _name(source)
    data = source if isinstance(source, bytes) else _read(source, where)
    header = read_header(io.BytesIO(data))
    is_whole = data.rstrip(b"\0").endswith(b"\xff\xd9")  # opencv does not report it
    if header is None or not is_whole:
        return _decode_with_pil(data, pil_mode, resize, where)
    _refuse_bomb(header, where)
    height, width = _size_before_turn(header, resize)
    if header.height >= 4 * height and header.width >= 4 * width:
        return _decode_with_pil(data, pil_mode, resize, where)
    try:
        image = fastest_decoder()(data, pil_mode)
    except Exception:  # each decoder raises its own; PIL has the last word
        return _decode_with_pil(data, pil_mode, resize, where)
    if image.shape[-2:] != (height, width):
        image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    return _turned(image, header.orientation)


def decode_mask(
    source: bytes | Path, resize: Resize = None, *, as_rgb: bool = False, where: str = ""
) -> Tensor:
    """Decode a mask whose pixels are numbers, none of them mixed: uint8 (1 or 3, height, width).

    Grey levels stay as they are, and of a palette the places in it are taken. Where it is resized,
    each pixel is its nearest neighbour's.

    Args:
        resize: as of the image that the mask belongs to.
        as_rgb: take the colours, where they stand for classes.

    Raises:
        DataError: it cannot be read, or its pixels are not numbers of 8 bits.
    """
    where = where or _name(source)
    data = source if isinstance(source, bytes) else _read(source, where)
    with _open_with_pil(io.BytesIO(data), where) as file:
        if file.format in ("JPEG", "MPO"):
            raise DataError(f"{where}: JPEG changes the numbers of a mask; save it as PNG")
        header = Header(file.height, file.width, _orientation_of(file))
        _refuse_bomb(header, where)
        height, width = _size_before_turn(header, resize)
        try:
            file.load()
            image = file.convert("RGB") if as_rgb else _as_numbers(file)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        except Exception as error:  # PIL's readers raise a dozen kinds
            raise DataError(f"{where}: cut short or damaged: {error}") from error
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.NEAREST)
        return _turned(from_hwc(np.array(image)), header.orientation)


def image_shape(
    source: bytes | Path, mode: str = "RGB", resize: Resize = None, *, where: str = ""
) -> tuple[int, int, int]:
    """Return the shape that `decode_image` will give, read from the header alone."""
    n_channels, where = len(find_mode(mode)), where or _name(source)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_file(source) as file:
            header = read_header(file) or _header_by_pil(file, where)
    except OSError as error:
        raise DataError(f"{where}: {_why_unread(error)}") from error
    _refuse_bomb(header, where)
    height, width = _size_before_turn(header, resize)
    return (n_channels, width, height) if header.is_on_its_side else (n_channels, height, width)


def as_image(value: Any, mode: str | None = None, where: str = "image") -> Tensor:
    """Turn what a data set gave as an image into a tensor (channel, height, width).

    PIL images become uint8 of the mode; arrays (height, width[, channel]) and tensors (channel,
    height, width) stay uint8 or become float32. Without a mode any number of channels will do.

    Raises:
        DataError: the value is not an image of this mode, by its type, shape, dtype or range.
    """
    pil_mode = None if mode is None else find_mode(mode)
    try:
        if isinstance(value, Image.Image):
            is_plain = pil_mode is None and value.mode in ("RGB", "L")
            return from_hwc(np.array(value if is_plain else _as_mode(value, pil_mode or "RGB")))
        if isinstance(value, np.ndarray):
            image = _from_array(value)
        elif isinstance(value, Tensor):
            image = value[None] if value.dim() == 2 else value
        else:
            raise DataError(f"a {type(value).__name__}; give a PIL image, an array or a tensor")
        _check_shape(image, pil_mode, type(value).__name__)
        return _checked_pixels(image)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def find_mode(mode: str) -> str:
    """Return PIL's name of a mode.

    Raises:
        DataError: there is no such mode; the error names the nearest.
    """
    if mode not in MODES:
        raise DataError(f"there is no image mode {mode!r}{nearest(str(mode), MODES)} (RGB or grey)")
    return MODES[mode]


def check_resize(resize: Any) -> None:
    """Make sure that a `resize` can be done."""
    sides = resize if isinstance(resize, list | tuple) else [resize, resize]
    is_size = len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    if resize is not None and not is_size:
        raise DataError(f"resize is {resize!r}; give the shorter side in pixels or [height, width]")


def _decode_with_pil(data: bytes, pil_mode: str, resize: Resize, where: str) -> Tensor:
    with _open_with_pil(io.BytesIO(data), where) as file:
        header = Header(file.height, file.width, _orientation_of(file))
        _refuse_bomb(header, where)
        height, width = _size_before_turn(header, resize)
        drafted = None
        if file.format in ("JPEG", "MPO"):
            drafted = file.draft(pil_mode, (2 * width, 2 * height))
        try:
            file.load()
            image = _as_mode(file, pil_mode)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        except Exception as error:  # PIL's readers raise a dozen kinds
            raise DataError(f"{where}: cut short or damaged: {error}") from error
        if image.size != (width, height):
            box = drafted[1] if drafted else None  # in pixels of the draft, of which one may be cut
            image = image.resize((width, height), Image.Resampling.BILINEAR, box)
        return _turned(from_hwc(np.array(image)), header.orientation)


def _open_with_pil(file: BinaryIO, where: str) -> Image.Image:
    try:
        return Image.open(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{where}: {error}") from error
    except Exception as error:
        file.seek(0)
        raise DataError(f"{where}: {_why_no_image(file.read(12))}") from error


def _why_no_image(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start.startswith((b"\xff\xd8", b"\x89PNG")):
        return "cut short or damaged: not even its size can be read"
    return f"no image that PIL can read: it begins with {start!r}"


def _header_by_pil(file: BinaryIO, where: str) -> Header:
    file.seek(0)
    with _open_with_pil(file, where) as image:
        return Header(image.height, image.width, _orientation_of(image))


def _orientation_of(image: Image.Image) -> int:
    if image.format == "TIFF":  # PIL turns it by itself
        return 1
    try:
        return orientation_in(Image.Image.getexif(image))  # that of a PNG would decode it
    except Exception:  # damaged in one of many ways: as if there were none
        return 1


def _refuse_bomb(header: Header, where: str) -> None:
    """Refuse an image of more pixels than PIL holds safe."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and header.height * header.width > limit:
        text = f"{header.width} x {header.height} pixels may be a decompression bomb"
        raise DataError(f"{where}: {text}; if not, raise PIL.Image.MAX_IMAGE_PIXELS, now {limit}")


def _size_before_turn(header: Header, resize: Resize) -> tuple[int, int]:
    """Return height and width after resizing, before the image is turned."""
    height, width = header.height, header.width
    if resize is None:
        return height, width
    if isinstance(resize, int):
        shorter = min(height, width)
        return height * resize // shorter, width * resize // shorter
    height, width = reversed(resize) if header.is_on_its_side else resize
    return height, width


def _turned(image: Tensor, orientation: int) -> Tensor:
    image = image.mT if orientation >= 5 else image
    return image.flip(FLIPS[orientation]) if orientation in FLIPS else image


def _as_mode(image: Image.Image, pil_mode: str) -> Image.Image:
    """Convert PIL's image to RGB or L of 8 bits."""
    if image.mode == "F":
        raise DataError("pixels in floating point; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which PIL may hold in 32
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DataError("pixels of 32 bits; save it with 8 or 16")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA") and image.has_transparency_data:
        image = image.convert("RGBA")
    return image.convert(pil_mode)


def _as_numbers(image: Image.Image) -> Image.Image:
    """Return an image of the numbers that the pixels of a mask are, of 8 bits."""
    if image.mode in ("L", "P"):
        return Image.fromarray(np.array(image))
    if image.mode == "1" or image.mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        if values.min() < 0 or values.max() > 255:
            raise DataError(f"numbers up to {values.max()}; a mask has 8 bits, 0 to 255")
        return Image.fromarray(values.astype(np.uint8))
    text = f"an image of mode {image.mode}, but class numbers are expected (grey or a palette)"
    raise DataError(f"{text}; say by `colors` which class each colour stands for")


def _from_array(value: np.ndarray[Any, Any]) -> Tensor:
    """Turn an array (height, width[, channel]) into a tensor (channel, height, width)."""
    if value.dtype == np.uint16:
        value = (value >> 8).astype(np.uint8)
    if value.dtype.kind not in "uif" or value.ndim not in (2, 3):
        raise DataError(f"an array {value.shape} of {value.dtype}; give (height, width[, channel])")
    if value.ndim == 3 and value.shape[0] in (1, 3) and value.shape[2] not in (1, 2, 3, 4):
        raise DataError(
            f"an array {value.shape}: (height, width, channel) is expected; transpose it"
        )
    return from_hwc(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))


def _check_shape(image: Tensor, pil_mode: str | None, kind: str) -> None:
    shape = tuple(image.shape)
    if image.dim() != 3 or image.numel() == 0:
        raise DataError(f"a {kind} {shape}; an image has (channel, height, width), none of them 0")
    wanted = (1, 3) if pil_mode is None else (len(pil_mode),)
    if shape[0] not in wanted and shape[2] in (1, 3):
        raise DataError(f"a {kind} {shape}: (channel, height, width) is expected; permute(2, 0, 1)")
    if pil_mode is not None and shape[0] not in wanted:
        mode = "grey" if pil_mode == "L" else pil_mode
        raise DataError(f"{shape[0]} channels, but mode {mode} has {wanted[0]}")


def _checked_pixels(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise DataError(f"pixels of {image.dtype}; give uint8, or floats from 0 to 1")
    low, high = torch.aminmax(image)
    if not torch.isfinite(low) or not torch.isfinite(high):
        raise DataError("pixels that are NaN or infinite")
    if low >= 0 and high > FLOAT_WHITE:
        raise DataError(f"floats from {low:.4g} to {high:.4g}; divide by 255, or give uint8")
    return image.float()


def _read(path: Path, where: str) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise DataError(f"{where}: {_why_unread(error)}") from error


def _why_unread(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"


def _name(source: bytes | Path) -> str:
    return "image" if isinstance(source, bytes) else str(source)
