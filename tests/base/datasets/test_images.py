"""Images are decoded as PIL decodes them, whatever the decoder; what is no image is refused."""

import io
import itertools
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from base.datasets import images as images_module
from base.datasets.image_files import ImageFolderDataset
from base.datasets.images import (
    DECODERS,
    as_image,
    decode_image,
    decoder_name,
    image_shape,
    jpeg_decoder,
    use_decoder,
)
from base.datasets.pipeline import Pipeline, TransformedDataset
from base.errors import DataError

MODULES = {"simplejpeg": "simplejpeg", "opencv": "cv2"}


@pytest.fixture(params=sorted(DECODERS))
def decoder(request, monkeypatch):
    """Each decoder that is installed, in its turn, as the fastest."""
    pytest.importorskip(MODULES.get(request.param, "torch"))
    decode = DECODERS[request.param]()
    successes = []

    def counted(data, mode):
        image = decode(data, mode)
        successes.append(1)
        return image

    monkeypatch.setattr(images_module, "jpeg_decoder", lambda: counted)
    return successes


@pytest.fixture
def chosen():
    yield
    use_decoder(None)


def test_a_recorded_decoder_is_kept_by_workers_too(chosen, tmp_path):
    """A faster one may have been installed since the run began."""
    for number in range(2):
        (tmp_path / f"class{number}").mkdir()
        (tmp_path / f"class{number}" / "a.jpg").write_bytes(encoded(natural(9, 8)))
    assert decoder_name() in DECODERS
    use_decoder("PIL")
    dataset = TransformedDataset(ImageFolderDataset(str(tmp_path)), Pipeline())
    assert dataset.record()["decoder"] == "PIL"
    sent = pickle.dumps(dataset)
    use_decoder("torchvision")
    pickle.loads(sent).get_random_batch(torch.arange(2), 0, 0)
    assert decoder_name() == "PIL"


def test_a_recorded_decoder_that_is_missing_is_reported(chosen, caplog):
    use_decoder("gone")
    assert decoder_name() != "gone"
    assert "decoded by gone, which is not installed, and now by" in caplog.text
    assert jpeg_decoder()(encoded(natural(9, 8)), "RGB").shape == (3, 9, 8)


def natural(height: int, width: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    """Noise at several scales, as photographs have it: (height, width, channel), uint8."""
    random = np.random.RandomState(seed)
    total = np.zeros((height, width, channels))
    for scale in (1, 4, 16, 64):
        size = (max(2, width // scale), max(2, height // scale))
        noise = random.randint(0, 256, (size[1], size[0], channels), dtype=np.uint8)
        planes = [Image.fromarray(noise[..., c]).resize((width, height)) for c in range(channels)]
        total += np.stack(planes, -1) * scale**0.5
    total -= total.min()
    return (total * 255 / total.max()).astype(np.uint8)


def encoded(pixels: np.ndarray, format: str = "JPEG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.squeeze())
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def by_pil(data: bytes, mode: str = "RGB") -> torch.Tensor:
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert(mode)))
    return pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, 0)


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == torch.uint8
    return (a.int() - b.int()).abs()


@pytest.mark.parametrize("quality", [5, 75, 90, 100])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_jpeg_is_decoded_as_pil_does(decoder, quality, subsampling):
    for (height, width), progressive in itertools.product(
        [(1, 1), (7, 9), (33, 50), (97, 64)], [False, True]
    ):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        data = encoded(natural(height, width), **options)
        assert difference(decode_image(data), by_pil(data)).max() <= 1
    assert len(decoder) == 8


def test_a_grey_jpeg_is_decoded_as_pil_does(decoder):
    data = encoded(natural(33, 50, channels=1))
    assert difference(decode_image(data, "grey"), by_pil(data, "L")).max() <= 1
    assert difference(decode_image(data), by_pil(data)).max() <= 1
    assert len(decoder) == 2


def test_grey_of_a_colour_jpeg_is_the_brightness_in_the_file(decoder):
    data = encoded(natural(97, 64), quality=90)
    image = Image.open(io.BytesIO(data))
    image.draft("L", image.size)
    grey = decode_image(data, "grey")
    assert difference(grey, torch.from_numpy(np.array(image))[None]).max() <= 1
    assert difference(grey, by_pil(data, "L")).max() <= 2
    assert len(decoder) == 1


@pytest.mark.parametrize("mode", ["RGB", "grey"])
def test_an_image_is_turned_as_its_exif_data_say_by_every_path(decoder, mode):
    for orientation, format in itertools.product(range(1, 9), ["JPEG", "PNG", "TIFF", "WEBP"]):
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(natural(20, 31), format, exif=exif, **options)
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        expected = torch.from_numpy(np.array(upright.convert("RGB"))).movedim(-1, 0)
        image = decode_image(data, mode)
        if mode == "RGB":
            assert difference(image, expected).max() <= 1
        assert image.shape[1:] == expected.shape[1:]
        assert image_shape(data, mode) == tuple(image.shape)
        for resize in (10, [12, 9]):
            resized = decode_image(data, mode, resize)
            size = (12, 9) if resize != 10 else (10, 15) if orientation < 5 else (15, 10)
            assert tuple(resized.shape) == (len(image), *size) == image_shape(data, mode, resize)
    assert len(decoder) == 8 * 3


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("resize", [17, 80, [20, 60], [90, 30]])
def test_resizing_is_that_of_pil(decoder, format, resize):
    data = encoded(natural(61, 64), format)
    height, width = resize if isinstance(resize, list) else (resize, resize * 64 // 61)
    expected = Image.open(io.BytesIO(data)).resize((width, height), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(expected)).movedim(-1, 0)
    assert difference(decode_image(data, "RGB", resize), expected).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(400, 512), (403, 517), (1601, 1207)])
@pytest.mark.parametrize("mode", ["RGB", "grey"])
def test_a_draft_loses_nothing_that_resizing_keeps(decoder, height, width, mode):
    data = encoded(natural(height, width), quality=90)
    drafted = decode_image(data, mode, 100)
    assert not decoder
    full = Image.open(io.BytesIO(data)).convert("L" if mode == "grey" else "RGB")
    expected = full.resize((drafted.shape[2], drafted.shape[1]), Image.Resampling.BILINEAR)
    expected = np.array(expected).reshape(*drafted.shape[1:], -1)
    error = difference(drafted, torch.from_numpy(expected).movedim(-1, 0)).float()
    assert error.mean() < 0.6
    assert error.max() <= 6


def test_an_image_less_than_four_times_as_large_is_decoded_whole(decoder):
    data = encoded(natural(399, 512))
    decode_image(data, "RGB", 100)
    assert decoder


def test_threads_decode_as_one_does():
    files = [encoded(natural(60, 70, seed), quality=90) for seed in range(8)] * 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode_image, files))
    assert all(torch.equal(a, decode_image(f)) for a, f in zip(together, files, strict=True))


GREY16 = (np.arange(12 * 10).reshape(12, 10) * 546).astype(np.uint16)
RED_BLUE = np.random.RandomState(0).randint(0, 2, (12, 10), dtype=np.uint8)


def palette_image(**options) -> bytes:
    image = Image.fromarray(RED_BLUE)
    image.putpalette([200, 10, 20, 30, 40, 250])
    return encoded(image, "PNG", **options)


def rgb_png_of_16_bits() -> tuple[bytes, np.ndarray]:
    """A PNG that PIL cannot write: (height, width, 3) of 16 bits."""
    pixels = np.random.RandomState(0).randint(0, 65536, (5, 6, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", 6, 5, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts), pixels


def colours(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array([[200, 10, 20], [30, 40, 250]], np.uint8)[pixels])


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "grey"])
def test_sixteen_bits_are_scaled_not_clipped(format, mode):
    image = decode_image(encoded(GREY16, format), mode)
    expected = torch.from_numpy((GREY16 // 256).astype(np.uint8))
    assert all(torch.equal(channel, expected) for channel in image)
    assert len(image) == (3 if mode == "RGB" else 1)


def test_sixteen_bits_of_colour_keep_their_upper_eight():
    data, pixels = rgb_png_of_16_bits()
    expected = torch.from_numpy((pixels >> 8).astype(np.uint8)).movedim(-1, 0)
    assert difference(decode_image(data), expected).max() == 0


@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"transparency": b"\x80\xff"}])
def test_a_palette_gives_its_colours_transparent_or_not(options):
    assert torch.equal(decode_image(palette_image(**options)), colours(RED_BLUE).movedim(-1, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "1", "CMYK", "YCbCr", "L"])
def test_every_mode_of_pil_becomes_rgb_or_grey(mode):
    original = Image.fromarray(natural(12, 10)).convert(mode)
    if mode in ("RGBA", "LA"):
        original.putalpha(Image.fromarray(natural(12, 10, 1)).convert("L"))
    data = encoded(original, "TIFF")
    for ours, pils in (("RGB", "RGB"), ("grey", "L")):
        assert torch.equal(decode_image(data, ours), by_pil(data, pils))


@pytest.mark.parametrize("format", ["GIF", "BMP", "WEBP", "PPM"])
def test_other_formats_are_those_of_pil(format):
    data = encoded(natural(12, 10), format)
    assert torch.equal(decode_image(data), by_pil(data))
    assert image_shape(data) == (3, 12, 10)


def test_a_jpeg_of_cmyk_is_left_to_pil(decoder):
    data = encoded(Image.fromarray(natural(12, 10)).convert("CMYK"))
    assert torch.equal(decode_image(data), by_pil(data))
    assert not decoder
    assert image_shape(data, "grey") == (1, 12, 10)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_turn_nothing(decoder):
    data = encoded(natural(12, 10), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\xff\xff")
    assert difference(decode_image(data), by_pil(encoded(natural(12, 10)))).max() <= 1
    assert decoder


JPEG = encoded(natural(64, 64), quality=90)
PNG = encoded(natural(64, 64), "PNG")


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
@pytest.mark.parametrize("resize", [None, 8])
def test_a_cut_file_is_an_error_never_half_an_image(decoder, tmp_path, data, resize):
    path = tmp_path / "cut.jpg"
    for length in [*range(0, 40), *range(40, len(data) - 40, 211)]:
        path.write_bytes(data[:length])
        text = "truncated" if length > 3 else "(truncated|not an image|an empty)"
        with pytest.raises(DataError, match=rf"cut\.jpg: {text}"):
            decode_image(path, resize=resize)


def test_a_jpeg_without_the_end_of_its_pixels_is_an_error(decoder):
    with pytest.raises(DataError, match="image: truncated or damaged"):
        decode_image(JPEG[: len(JPEG) // 2] + b"\xff\xd9"[:1])


def test_what_is_no_image_is_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.jpg: no such file"):
        decode_image(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=r"x\.jpg: no such file"):
        image_shape(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_text("<html>not found</html>")
    for read in (decode_image, image_shape):
        with pytest.raises(DataError, match=r"x\.jpg: not an image .* starts with b'<html>not fo'"):
            read(tmp_path / "x.jpg")
        with pytest.raises(DataError, match="cannot be read: a folder, not a file"):
            read(tmp_path)
        with pytest.raises(DataError, match=r"train.txt:3: not an image"):
            read(b"what", where="train.txt:3")


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_decompression_bomb_is_refused(monkeypatch, format):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    for side in (6, 9):  # above the limit, and above twice the limit
        data = encoded(natural(side, side), format)
        for read in (decode_image, image_shape):
            with pytest.raises(DataError, match=r"image: .*decompression bomb"):
                read(data)


def test_pixels_of_other_numbers_are_refused():
    with pytest.raises(DataError, match="image: floating-point pixels"):
        decode_image(encoded(np.zeros((3, 4), np.float32), "TIFF"))
    with pytest.raises(DataError, match="image: 32-bit pixels"):
        decode_image(encoded(np.full((3, 4), 1 << 20, np.int32), "TIFF"))


def test_a_mode_is_checked_with_its_nearest_name():
    with pytest.raises(DataError, match=r"no image mode 'gry'; did you mean 'gr.y'\? \(RGB or"):
        decode_image(JPEG, "gry")
    with pytest.raises(DataError, match="no image mode 'rgb'; did you mean 'RGB'"):
        image_shape(JPEG, "rgb")


PIXELS = natural(5, 7)
CHW = torch.from_numpy(PIXELS).movedim(-1, 0)


@pytest.mark.parametrize(
    "value",
    [
        Image.fromarray(PIXELS),
        Image.fromarray(PIXELS).convert("RGBA"),
        PIXELS,
        np.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1],  # negative strides
        PIXELS.astype(np.uint16) * 257,
        PIXELS.astype(">u2") * 257,
        CHW,
    ],
    ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}",
)
def test_what_a_data_set_gives_becomes_the_same_image(value):
    image = as_image(value, "RGB")
    assert torch.equal(image, CHW)
    assert image.dtype == torch.uint8


def test_floats_stay_floats_and_grey_gets_its_channel():
    image = as_image((PIXELS / 255).astype(np.float64), "RGB")
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, CHW / 255)
    for grey in (PIXELS[..., 0], PIXELS[..., :1], CHW[0], CHW[:1], Image.fromarray(PIXELS[..., 0])):
        assert torch.equal(as_image(grey, "grey"), CHW[:1])
        assert torch.equal(as_image(grey), CHW[:1])
    assert as_image(torch.randn(5, 30, 30)).shape == (5, 30, 30)  # any channels, normalised


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (CHW.movedim(0, -1), r"a Tensor \(5, 7, 3\): \(channel, height, width\) is expected"),
        (PIXELS.transpose(2, 0, 1), r"\(3, 5, 7\): \(height, width, channel\) is expected"),
        (CHW.float(), "floats from 0 to 255; divide by 255"),
        (PIXELS[..., 0], "1 channels, but mode RGB has 3"),
        (torch.zeros(4, 5, 7), "4 channels, but mode RGB has 3"),
        (CHW.long(), "pixels of torch.int64; give uint8"),
        (PIXELS > 3, "an array .* of bool"),
        (np.array([["a"]]), "an array .* of <U1"),
        (torch.zeros(3, 0, 7), r"\(3, 0, 7\); an image has .*, none of them 0"),
        (np.zeros((0, 7, 3)), r"none of them 0"),
        (torch.zeros(1, 3, 5, 7), r"a Tensor \(1, 3, 5, 7\); an image has"),
        (np.zeros((1, 5, 7, 3)), r"an array \(1, 5, 7, 3\)"),
        (CHW / torch.zeros(1), "NaN or infinite pixels"),
        ("a.jpg", "a str; give a PIL image"),
        (None, "a NoneType; give a PIL image"),
    ],
)
def test_a_mistake_in_what_a_data_set_gives_is_told(value, message):
    with pytest.raises(DataError, match=f"Mine, sample 3: .*{message}"):
        as_image(value, "RGB", "Mine, sample 3")


def test_a_path_may_be_of_any_script(tmp_path: Path):
    path = tmp_path / "Größe 写真.png"
    path.write_bytes(PNG)
    assert torch.equal(decode_image(path), decode_image(PNG))
