"""A segmentation data set: a folder of images and a folder of masks with the same names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from base.data.threads import read_each
from base.datasets.image_files import ImageFiles, image_suffixes, images_under, log_skipped
from base.datasets.images import decode_mask, image_shape
from base.datasets.labels import Classes, class_names, raise_problems
from base.errors import DataError, Problem
from base.system.cores import usable_cores
from logger.files import read_file

Colors = Sequence[Sequence[int]]
NO_CLASS = 255  # the decoder's value for ignored pixels


class MaskFolderDataset(ImageFiles):
    """Images in one folder, and masks of the same names in another.

    A mask is a lossless image, usually PNG, whose pixels are class numbers: grey levels or palette
    indices. Targets are int64 (height, width). Folders may contain subfolders.

    Args:
        root: the folder that contains `images` and `masks`.
        classes: the class names in the order of their numbers, or the number of classes.
        ignore_index: the value of pixels without a class, often 255. The loss ignores it too.
        colors: for colour masks, the [red, green, blue] of each class.
        mode, resize: as for `ImageFolderDataset`. Masks are resized by nearest neighbour.

    Raises:
        DataError: an image or a mask has no counterpart, or their sizes differ. All are listed.
    """

    def __init__(
        self,
        root: str,
        classes: Classes,
        images: str = "images",
        masks: str = "masks",
        ignore_index: int | None = None,
        colors: Colors | None = None,
        mode: str = "RGB",
        resize: int | Sequence[int] | None = None,
    ) -> None:
        names = class_names(classes)
        if names is None:
            raise DataError("MaskFolderDataset: classes: give the class names, or their number")
        folders = Path(root, images), Path(root, masks)
        pairs = _pairs(*folders)
        super().__init__(
            folders[0], [image for image, _ in pairs], torch.empty(0), names, mode, resize
        )
        del self.targets  # read with the images
        self.ignore_index = ignore_index
        self.mask_files = MaskFiles(
            folders[1], [mask for _, mask in pairs], len(names), ignore_index, colors, resize
        )
        self._refuse_unequal()

    def target(self, index: int) -> Tensor:
        """Return the class of each pixel: int64 (height, width)."""
        return self.classes_in(self.mask_files.image(index))

    def classes_in(self, mask: Tensor) -> Tensor:
        """Convert a decoded mask of `mask_files` to classes, int64 (height, width)."""
        values = mask[0].long()
        if self.ignore_index is None:
            return values
        return values.masked_fill_(values == NO_CLASS, self.ignore_index)

    def target_hash(self, index: int) -> int:
        """Return a hash of a mask file, to compare on resume; 0 if it cannot be read."""
        try:
            file = self.mask_files.encoded(index)
            content = file if isinstance(file, bytes) else read_file(file)
        except OSError:  # reported or skipped when the sample is read
            return 0
        digest = hashlib.blake2b(content, digest_size=8).digest()
        return int.from_bytes(digest, "big", signed=True)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image(index), self.target(index)

    def refuse_missing(self) -> None:
        """Do nothing: the files were found a moment ago."""

    def _refuse_unequal(self) -> None:
        """Check by their headers that images and masks have equal sizes."""

        def sizes(index: int) -> list[tuple[int, ...]]:
            try:
                files = (self.encoded(index), self.mask_files.encoded(index))
                return [image_shape(file, "L")[1:] for file in files]
            except DataError:  # reported or skipped when the sample is read
                return []

        found = read_each(sizes, range(len(self)), usable_cores(), "reading the sizes of masks")
        problems = [
            Problem(self.mask_files.place(index), f"{each[1][1]}x{each[1][0]} pixels, {text}")
            for index, each in enumerate(found)
            if each and each[0] != each[1]
            for text in [f"but {self.place(index)} has {each[0][1]}x{each[0][0]}"]
        ]
        raise_problems(problems)


class MaskFiles(ImageFiles):
    """The masks of a `MaskFolderDataset`, as single-channel images."""

    def __init__(
        self,
        root: Path,
        ids: Sequence[str],
        n_classes: int,
        ignore_index: int | None,
        colors: Colors | None,
        resize: int | Sequence[int] | None,
    ) -> None:
        self.n_classes, self.ignore_index = n_classes, ignore_index
        if ignore_index is not None and not (-(2**15) < ignore_index < 2**15):
            raise DataError(f"ignore_index: a number such as 255 or -100, not {ignore_index!r}")
        if n_classes > NO_CLASS:
            raise DataError(f"classes: at most {NO_CLASS} in a mask of 8 bits, not {n_classes}")
        self.colors = None if colors is None else _checked_colors(colors, n_classes)
        super().__init__(root, ids, torch.empty(0), None, "L", resize)
        del self.targets

    def refuse_missing(self) -> None:
        """Do nothing: the files were found a moment ago."""

    def image(self, index: int) -> Tensor:
        """Decode a mask: uint8 (1, height, width), 255 for pixels without a class.

        Raises:
            DataError: it contains numbers or colours that are not classes.
        """
        where = self.place(index)
        values = decode_mask(
            self.encoded(index), self.resize, as_rgb=self.colors is not None, where=where
        )
        if self.colors is not None:
            return self._classes_of(values, where)[None]
        is_ignored = values.int() == (-1 if self.ignore_index is None else self.ignore_index)
        wrong = values[(values >= self.n_classes) & ~is_ignored].unique().tolist()
        if wrong:
            text = f"{', '.join(map(str, wrong[:5]))}{', ...' * (len(wrong) > 5)}"
            text = f"it contains {text}, but classes are 0 to {self.n_classes - 1}"
            if self.ignore_index is None:
                text += "; if one of them marks pixels without a class, set ignore_index to it"
            raise DataError(f"{where}: {text}")
        return values.masked_fill(is_ignored, NO_CLASS)

    def fingerprint(self) -> str:
        """Return a hash of the files and of the decoding settings."""
        settings = (self.n_classes, self.ignore_index, self.colors)
        return f"{super().fingerprint()[:24]}{_digest(repr(settings))}"

    def _classes_of(self, image: Tensor, where: str) -> Tensor:
        """Return the class of each pixel of a colour image."""
        codes = _codes(image)
        known = _codes(torch.tensor(self.colors, dtype=torch.uint8).T[:, :, None])[:, 0]
        order = known.argsort()
        places = torch.searchsorted(known[order], codes).clamp_(max=len(known) - 1)
        classes = order[places]
        is_strange = known[classes] != codes
        if is_strange.any() and self.ignore_index is None:
            code = int(codes[is_strange][0])
            color = [code >> 16, code >> 8 & 255, code & 255]
            text = f"the colour {color} does not belong to a class; list it in `colors`"
            raise DataError(f"{where}: {text}, or set ignore_index for colours that are not listed")
        return classes.masked_fill(is_strange, NO_CLASS).to(torch.uint8)


def _pairs(images: Path, masks: Path) -> list[tuple[str, str]]:
    """Return the image and mask of each name, relative to their folders."""
    found: list[dict[str, str]] = []
    problems, endings = [], tuple(sorted(image_suffixes()))
    for folder, kind in ((images, "images"), (masks, "masks")):
        if not folder.is_dir():
            text = f"no such folder of {kind}; the current folder is {Path.cwd()}"
            raise DataError(f"{folder}: {text}")
        files, others = images_under(str(folder), "", endings)
        log_skipped(str(folder), others)
        by_name: dict[str, str] = {}
        for file in files:
            first = by_name.setdefault(str(Path(file).with_suffix("")), file)
            if first != file:
                text = f"{first} has the same name, by which masks are found"
                problems.append(Problem(f"{folder}/{file}", text))
        found.append(by_name)
    of_images, of_masks = found
    for name in sorted(of_images.keys() - of_masks.keys()):
        problems.append(Problem(f"{images}/{of_images[name]}", f"no mask: {masks}/{name}.png"))
    for name in sorted(of_masks.keys() - of_images.keys()):
        problems.append(Problem(f"{masks}/{of_masks[name]}", f"no image of this name in {images}"))
    raise_problems(problems)
    if not of_images:
        raise DataError(f"{images}: no images")
    return [(of_images[name], of_masks[name]) for name in sorted(of_images)]


def _checked_colors(colors: Colors, n_classes: int) -> list[list[int]]:
    rows = [list(each) for each in colors]
    are_colors = all(len(row) == 3 and all(x in range(256) for x in row) for row in rows)
    if not are_colors or len(rows) != n_classes:
        raise DataError(f"colors: [red, green, blue] of each of {n_classes} classes, not {colors}")
    if len({tuple(row) for row in rows}) < n_classes:
        raise DataError(f"colors: two classes have the same colour, {colors}")
    return rows


def _codes(image: Tensor) -> Tensor:
    """Encode each colour as a single number: (3, height, width) -> (height, width)."""
    red, green, blue = image.to(torch.int32).unbind()
    return (red << 16) + (green << 8) + blue


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
