"""Which files hold images, by their suffixes: those that the installed Pillow can decode."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from PIL import Image, ImageFile

# Pillow identifies MPEG without decoding it, and EPS is a drawing, which needs Ghostscript.
NO_PIXELS = frozenset(("MPEG", "EPS"))


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of images that can be decoded, lower-case: ``.jpg``, ``.avif``, ..."""
    by_suffix = Image.registered_extensions()
    return frozenset(suffix.lower() for suffix, name in by_suffix.items() if _is_decoded(name))


def suffix_of(content: Image.Image) -> str:
    """Return the usual suffix of the format that an opened image has."""
    if content.format in ("JPEG", "MPO"):
        return ".jpg"
    names = [s for s, name in Image.registered_extensions().items() if name == content.format]
    usual = f".{(content.format or '').lower()}"
    return usual if usual in names else names[0]


def count_suffixes(files: Iterable[str]) -> str:
    """Count files by suffix, the most frequent first: ``10 .txt, 2 .xml``."""
    counts = Counter(PurePath(file).suffix.lower() or "without a suffix" for file in files)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {suffix}" for suffix, n in ordered)


def _is_decoded(name: str) -> bool:
    """Return whether Pillow decodes a format; its stubs for scientific formats only identify it."""
    if name == "MPO":  # several JPEGs in a file, which the decoder of JPEG opens
        return True
    if name not in Image.OPEN or name in NO_PIXELS:
        return False
    opens = Image.OPEN[name][0]
    return not (isinstance(opens, type) and issubclass(opens, ImageFile.StubImageFile))
