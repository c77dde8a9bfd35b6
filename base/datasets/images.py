"""Decodes image files, and converts users' images, to tensors (channel, height, width).

JPEG files are read by the fastest decoder installed; a run keeps that of its beginning when it is
resumed, tested, or predicts.
"""

from __future__ import annotations

import functools
import io
import logging
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

log = logging.getLogger("kindling")

Decoder = Callable[[bytes, str], Tensor]  # a file's bytes, "RGB" or "L" -> uint8 (c, h, w)


class Header(NamedTuple):
    """The size of an image as stored in its file, and its EXIF orientation."""

    height: int
    width: int
    orientation: int = 1

    @property
    def is_on_its_side(self) -> bool:
        return self.orientation >= 5


def read_header(file: BinaryIO) -> Header | None:
    """Read the header of a common JPEG: 8 bits, one or three channels; return None for others."""
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
    """Return the orientation, 1 to 8, in PIL's EXIF data; 1 if absent."""
    orientation = exif.get(0x0112, 1)
    return orientation if orientation in range(1, 9) else 1


def _orientation_in(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return orientation_in(exif)
    except Exception:  # damaged data count as absent
        return 1


class _Choice:
    """The decoder of JPEG files in this process, which every data set and cache uses."""

    name: str | None = None  # None: the fastest installed


def use_decoder(name: str | None) -> None:
    """Decode JPEG files in this process by a named decoder, as the run in use did when it trained.

    Otherwise a package that was installed since would change pixels by a level, unseen. A decoder
    that is not installed is replaced by the fastest one, with a warning.
    """
    if name is not None and name != _Choice.name and _installed(name) is None:
        text = f"JPEG files were decoded by {name}, which is not installed, and now by"
        log.warning(f"{text} {_fastest()}: pixels may differ by a level of 255")
    _Choice.name = name


def decoder_name() -> str:
    """Return the name of the decoder of JPEG files."""
    name = _Choice.name
    return _fastest() if name is None or _installed(name) is None else name


def jpeg_decoder() -> Decoder:
    """Return the decoder of JPEG files. All of them release the GIL."""
    decoder = _installed(decoder_name())
    assert decoder is not None
    return decoder


@functools.cache
def _fastest() -> str:
    return next(name for name in DECODERS if _installed(name) is not None)  # PIL is always there


@functools.cache
def _installed(name: str) -> Decoder | None:
    try:
        return DECODERS[name]() if name in DECODERS else None
    except ImportError:
        return None


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
    from torchvision.io import ImageReadMode  # takes seconds, and registers the operator

    if not hasattr(torch.ops.image, "decode_jpeg"):
        raise ImportError("this torchvision decodes no images")
    modes = {"RGB": ImageReadMode.RGB.value, "L": ImageReadMode.GRAY.value}

    def decode(data: bytes, mode: str) -> Tensor:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        # The public function warns at each call that it will move to another package.
        image: Tensor = torch.ops.image.decode_jpeg(content, modes[mode], False)
        return image

    return decode


def _pil() -> Decoder:
    def decode(data: bytes, mode: str) -> Tensor:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(mode, image.size)
            return from_hwc(np.array(image.convert(mode)))

    return decode


DECODERS = {  # fastest first
    "simplejpeg": _simplejpeg,
    "opencv": _opencv,
    "torchvision": _torchvision,
    "PIL": _pil,
}


def from_hwc(pixels: Any) -> Tensor:
    """Convert an array (height, width[, channel]) to a tensor (channel, height, width)."""
    image = torch.from_numpy(pixels)
    return image[None] if image.dim() == 2 else image.permute(2, 0, 1)


MODES = {"RGB": "RGB", "grey": "L", "gray": "L", "L": "L"}  # name in a config -> PIL's name
FLIPS = {2: (-1,), 3: (-1, -2), 4: (-2,), 6: (-1,), 7: (-1, -2), 8: (-2,)}  # by EXIF orientation
FLOAT_WHITE = 16  # a larger maximum means that floats are not from 0 to 1

Resize = int | Sequence[int] | None


def decode_image(
    source: bytes | Path, mode: str = "RGB", resize: Resize = None, *, where: str = ""
) -> Tensor:
    """Decode an image file, or its bytes: uint8 (channel, height, width).

    JPEG files are read by the fastest decoder installed (simplejpeg, opencv, torchvision). Other
    formats, and unusual or damaged JPEG files, are read by PIL. Decoders agree within one level
    of 255. A JPEG of at least four times the requested size is decoded by PIL at a reduced scale
    of at least twice that size: resizing would remove the lost detail anyway.

    Args:
        mode: RGB or grey.
        resize: the shorter side in pixels, or [height, width]; antialiased.
        where: the location for error messages; by default the path.

    Raises:
        DataError: the file does not exist, is not an image, or is truncated.
    """
    pil_mode, where = find_mode(mode), where or _name(source)
    data = source if isinstance(source, bytes) else _read(source, where)
    header = read_header(io.BytesIO(data))
    is_whole = data.rstrip(b"\0").endswith(b"\xff\xd9")  # opencv does not report truncation
    if header is None or not is_whole:
        return _decode_with_pil(data, pil_mode, resize, where)
    _refuse_bomb(header, where)
    height, width = _size_before_turn(header, resize)
    if header.height >= 4 * height and header.width >= 4 * width:
        return _decode_with_pil(data, pil_mode, resize, where)
    try:
        image = jpeg_decoder()(data, pil_mode)
    except Exception:  # decoders raise various errors; PIL decides
        return _decode_with_pil(data, pil_mode, resize, where)
    if image.shape[-2:] != (height, width):
        image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    return _turned(image, header.orientation)


def decode_mask(
    source: bytes | Path, resize: Resize = None, *, as_rgb: bool = False, where: str = ""
) -> Tensor:
    """Decode a mask of class numbers or colours: uint8 (1 or 3, height, width).

    Pixel values are grey levels or palette indices. Resizing uses the nearest neighbour.

    Args:
        resize: as for the image of the mask.
        as_rgb: whether to return colours, if they represent classes.

    Raises:
        DataError: the mask cannot be read, or its pixels are not 8-bit numbers.
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
        except Exception as error:  # PIL's readers raise many types
            raise DataError(f"{where}: truncated or damaged: {error}") from error
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.NEAREST)
        return _turned(from_hwc(np.array(image)), header.orientation)


def image_shape(
    source: bytes | Path, mode: str = "RGB", resize: Resize = None, *, where: str = ""
) -> tuple[int, int, int]:
    """Return the shape of `decode_image`'s result, read from the header."""
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
    """Convert a data set's image to a tensor (channel, height, width).

    PIL images are converted to the mode, as uint8. Arrays (height, width[, channel]) and tensors
    (channel, height, width) stay uint8 or become float32. Without a mode, any number of channels
    is valid.

    Raises:
        DataError: the type, shape, dtype or range of the value is not that of such an image.
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
        DataError: the mode does not exist.
    """
    if mode not in MODES:
        raise DataError(f"no image mode {mode!r}{nearest(str(mode), MODES)} (RGB or grey)")
    return MODES[mode]


def check_resize(resize: Any) -> None:
    """Check that a `resize` argument is valid."""
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
        except Exception as error:  # PIL's readers raise many types
            raise DataError(f"{where}: truncated or damaged: {error}") from error
        if image.size != (width, height):
            box = drafted[1] if drafted else None  # in pixels of the draft, which may be cropped
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
        return "truncated or damaged: its size cannot be read"
    return f"not an image that PIL can read: it starts with {start!r}"


def _header_by_pil(file: BinaryIO, where: str) -> Header:
    file.seek(0)
    with _open_with_pil(file, where) as image:
        return Header(image.height, image.width, _orientation_of(image))


def _orientation_of(image: Image.Image) -> int:
    if image.format == "TIFF":  # PIL rotates it itself
        return 1
    try:
        return orientation_in(Image.Image.getexif(image))  # a PNG's own method would decode it
    except Exception:  # damaged data count as absent
        return 1


def _refuse_bomb(header: Header, where: str) -> None:
    """Raise if an image has more pixels than PIL considers safe."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and header.height * header.width > limit:
        text = f"{header.width} x {header.height} pixels may be a decompression bomb"
        raise DataError(f"{where}: {text}; if not, raise PIL.Image.MAX_IMAGE_PIXELS, now {limit}")


def _size_before_turn(header: Header, resize: Resize) -> tuple[int, int]:
    """Return the height and width after resizing, before the orientation is applied."""
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
    """Convert a PIL image to 8-bit RGB or L."""
    if image.mode == "F":
        raise DataError("floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which PIL may store in 32
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise DataError("32-bit pixels; save it with 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA") and image.has_transparency_data:
        image = image.convert("RGBA")
    return image.convert(pil_mode)


def _as_numbers(image: Image.Image) -> Image.Image:
    """Return the 8-bit class numbers of a mask as an image."""
    if image.mode in ("L", "P"):
        return Image.fromarray(np.array(image))
    if image.mode == "1" or image.mode.startswith("I"):
        values = np.array(image).astype(np.int64)
        if values.min() < 0 or values.max() > 255:
            raise DataError(f"numbers up to {values.max()}; a mask has 8 bits, 0 to 255")
        return Image.fromarray(values.astype(np.uint8))
    text = f"an image of mode {image.mode}, but class numbers are expected (grey or a palette)"
    raise DataError(f"{text}; map colours to classes with `colors`")


def _from_array(value: np.ndarray[Any, Any]) -> Tensor:
    """Convert an array (height, width[, channel]) to a tensor (channel, height, width)."""
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
        raise DataError("NaN or infinite pixels")
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
