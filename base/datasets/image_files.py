"""Data sets of image files: a folder per class, or a list of paths with labels.

A file counts as an image if the installed Pillow can decode its suffix.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from PIL import Image, ImageFile
from torch import Tensor
from torch.utils.data import Dataset

from base.datasets.images import (
    check_resize,
    decode_image,
    decoder_name,
    find_mode,
    image_shape,
)
from base.datasets.labels import Classes, raise_problems, read_targets
from base.errors import DataError, Problem
from logger.files import read_file

# Pillow identifies MPEG without decoding it, and decoding EPS needs Ghostscript.
NO_PIXELS = frozenset(("MPEG", "EPS"))


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Return the lower-case suffixes of decodable images: ``.jpg``, ``.avif``, ..."""
    by_suffix = Image.registered_extensions()
    return frozenset(suffix.lower() for suffix, name in by_suffix.items() if _is_decoded(name))


def suffix_of(content: Image.Image) -> str:
    """Return the usual suffix for the format of an opened image."""
    if content.format in ("JPEG", "MPO"):
        return ".jpg"
    names = [s for s, name in Image.registered_extensions().items() if name == content.format]
    usual = f".{(content.format or '').lower()}"
    return usual if usual in names else names[0]


def may_hold_jpegs(names: Iterable[str]) -> bool:
    """Return whether some may be JPEG files, whose pixels depend on the decoder, by suffix."""
    others, split = _suffixes_of_other_formats(), os.path.splitext  # ten times as fast as Path
    return any(split(name)[1].lower() not in others for name in names)


@functools.cache
def _suffixes_of_other_formats() -> frozenset[str]:
    by_suffix = Image.registered_extensions()
    return frozenset(s.lower() for s, name in by_suffix.items() if name not in ("JPEG", "MPO"))


def count_suffixes(files: Iterable[str]) -> str:
    """Return the number of files per suffix, most frequent first: ``10 .txt, 2 .xml``."""
    counts = Counter(PurePath(file).suffix.lower() or "without a suffix" for file in files)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{n} {suffix}" for suffix, n in ordered)


def _is_decoded(name: str) -> bool:
    """Return whether Pillow decodes a format. Its stubs for scientific formats only identify it."""
    if name == "MPO":  # several JPEGs in a file, which the JPEG decoder opens
        return True
    if name not in Image.OPEN or name in NO_PIXELS:
        return False
    opens = Image.OPEN[name][0]
    return not (isinstance(opens, type) and issubclass(opens, ImageFile.StubImageFile))


log = logging.getLogger("kindling")

FIELD = re.compile(r'"([^"]*)"(?!\S)|\'([^\']*)\'(?!\S)|(\S+)')


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Images that are read from files, each with its target.

    Args:
        root: the folder that the paths of the images, `ids`, are relative to.
        targets: one per image.
        mode: RGB or grey.
        resize: the shorter side in pixels, or [height, width]; by default images keep their size.
        source, lines: the file that lists the images, and the line of each, for error messages.

    Raises:
        DataError: files are missing or listed twice. The message names all of them.
    """

    def __init__(
        self,
        root: Path | str,
        ids: Sequence[str],
        targets: Tensor,
        classes: list[str] | None = None,
        mode: str = "RGB",
        resize: int | Sequence[int] | None = None,
        *,
        source: Path | str = "",
        lines: Sequence[int] | None = None,
    ) -> None:
        find_mode(mode)
        check_resize(resize)
        self.root, self.ids, self.targets = str(root), list(ids), targets
        self.mode, self.resize = mode, resize
        self.source, self.lines = str(source), None if lines is None else torch.tensor(lines)
        if classes is not None:
            self.classes = classes
        if not self.ids:
            raise DataError(f"{self.source or self.root}: no images are listed")
        self._refuse_repeats()
        self.refuse_missing()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image(index), self.targets[index]

    def image(self, index: int) -> Tensor:
        """Decode an image: uint8 (channel, height, width)."""
        source, where = self.encoded(index), self.place(index)
        return decode_image(source, self.mode, self.resize, where=where)

    def image_shape(self, index: int) -> tuple[int, int, int]:
        """Return the shape of an image, read from its header."""
        source, where = self.encoded(index), self.place(index)
        return image_shape(source, self.mode, self.resize, where=where)

    def encoded(self, index: int) -> Path | bytes:
        """Yours to override: return the path of an image file, or its bytes."""
        return Path(self._path(index))

    def place(self, index: int) -> str:
        """Return the location of an image in its list, and its path."""
        if self.lines is None:
            return self._path(index)
        return f"{self.source}:{int(self.lines[index])}: {self.ids[index]}"

    @property
    def files(self) -> list[str]:
        """The path of each image."""
        return list(map(self._path, range(len(self))))

    def fingerprint(self) -> str:
        """Return a hash of the files' paths, sizes and times, and of the decoding settings."""
        settings: tuple[Any, ...] = (self.mode, self.resize)
        if may_hold_jpegs(self.ids):
            settings += (decoder_name(),)
        state = hashlib.blake2b(repr(settings).encode(), digest_size=16)
        for index, name in enumerate(self.ids):
            facts = self.facts(index)
            state.update(f"{name}\0{facts}\0".encode(errors="surrogateescape"))
        return state.hexdigest()

    def facts(self, index: int) -> tuple[int, int]:
        """Return the size of an image file in bytes and its modification time in nanoseconds."""
        facts = os.stat(self._path(index))  # noqa: PTH116 -- ten times as fast as Path
        return facts.st_size, facts.st_mtime_ns

    def refuse_missing(self) -> None:
        """Check that all files exist, by listing each folder once and opening no file."""
        found: dict[str, set[str]] = {}
        problems = []
        for index in range(len(self)):
            folder, name = os.path.split(self._path(index))
            if folder not in found:
                found[folder] = _files_in(folder)
            if name not in found[folder]:
                problems.append(Problem(self.place(index), "no such file"))
        raise_problems(problems)

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self.ids[index])  # noqa: PTH118 -- as above

    def _refuse_repeats(self) -> None:
        first: dict[str, int] = {}
        problems = []
        for index, path in enumerate(real_paths(self.files)):
            if first.setdefault(path, index) != index:
                text = f"already listed at {self.place(first[path])}"
                problems.append(Problem(self.place(index), text))
        raise_problems(problems)


class ImageFolderDataset(ImageFiles):
    """A folder with a subfolder of images per class, which may contain subfolders.

    Classes are numbered in the order of their names. Hidden files and files with other suffixes
    are skipped; the number of the latter is logged.

    Args:
        extensions: the suffixes of images, in any case; by default all that can be decoded.

    Raises:
        DataError: there are no class folders, a class folder has no image, or images lie beside
            the class folders.
    """

    def __init__(
        self,
        root: str,
        mode: str = "RGB",
        resize: int | Sequence[int] | None = None,
        extensions: Sequence[str] | None = None,
    ) -> None:
        endings = _endings(extensions)
        folder = Path(root)
        if not folder.is_dir():
            raise DataError(f"{root}: no such folder; the current folder is {Path.cwd()}")
        entries = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
        classes = [each.name for each in entries if each.is_dir()]
        if not classes:
            raise DataError(f"{root}: no class folders; put the images of each class into a folder")
        files = [each.name for each in entries if not each.is_dir()]
        beside = [name for name in files if name.lower().endswith(endings)]
        skipped = [name for name in files if not name.lower().endswith(endings)]
        ids = []
        self._has_links = any(each.is_symlink() for each in entries)
        problems = [
            Problem(f"{root}/{name}", "an image beside the class folders") for name in beside
        ]
        for name in classes:
            found_files, has_links = files_under(root, name)
            images, others = divided_by_suffix(found_files, endings)
            self._has_links = self._has_links or has_links
            if not images:
                found = f"found {count_suffixes(others)}" if others else "it is empty"
                hint = f"extensions: {' '.join(endings)}" if extensions is not None else found
                problems.append(Problem(f"{root}/{name}", f"an empty class folder ({hint})"))
            ids.append(images)
            skipped += others
        raise_problems(problems)
        log_skipped(root, skipped)
        numbers = torch.arange(len(classes)).repeat_interleave(torch.tensor(list(map(len, ids))))
        super().__init__(
            root, [each for names in ids for each in names], numbers, classes, mode, resize
        )

    def refuse_missing(self) -> None:
        """Do nothing: the files were just found."""

    def _refuse_repeats(self) -> None:
        """Check that no file is found twice, as only links make possible."""
        if self._has_links:
            super()._refuse_repeats()


class ImageListDataset(ImageFiles):
    """A text file with a path and a label per line: ``cats/1.jpg cat``.

    Paths are relative to the list's folder or to `root`. Quote paths that contain spaces. Lines
    may be empty, and ``#`` starts a comment. Labels are class names or numbers.

    Args:
        label: the column of the labels, counted from 1 after the path, or a list of columns,
            which gives targets (n, k). By default each line has a single label.
        task: classification, regression or multilabel.
        classes: the class names in the order of their numbers, or the number of classes.

    Raises:
        DataError: lines have a wrong format or label, or name missing files. All are listed.
    """

    def __init__(
        self,
        list_file: str,
        root: str | None = None,
        label: int | Sequence[int] | None = None,
        task: str = "classification",
        classes: Classes = None,
        mode: str = "RGB",
        resize: int | Sequence[int] | None = None,
    ) -> None:
        lines, rows = _read_list(list_file, label)

        def place(sample: int, _: int) -> str:
            return f"{list_file}:{lines[sample]}"

        targets, names = read_targets([row[1:] for row in rows], place, task, classes)
        super().__init__(
            Path(list_file).parent if root is None else root,
            [row[0] for row in rows],
            targets,
            names,
            mode,
            resize,
            source=list_file,
            lines=lines,
        )


def real_paths(files: Iterable[str]) -> Iterator[str]:
    """Yield the path of each file with links resolved. Each folder is resolved once, for speed."""
    real_folder = functools.cache(os.path.realpath)
    for file in files:
        folder, name = os.path.split(file)
        path = os.path.join(real_folder(folder), name)  # noqa: PTH118 -- ten times as fast as Path
        yield os.path.realpath(path) if os.path.islink(path) else path  # noqa: PTH114 -- as above


def read_text(file: str) -> str:
    """Read a UTF-8 text file, with or without a byte order mark."""
    data = b""
    try:
        data = read_file(file)
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; the current folder is {Path.cwd()}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = f"cannot be read as UTF-8 text (byte {data[error.start]:#04x} in line {line})"
        raise DataError(f"{file}: {text}: {_remedy_for(data)}") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}") from error


def _remedy_for(data: bytes) -> str:
    """Return what to do with a file that is not UTF-8 text."""
    if data.startswith(b"PK"):
        return "it looks like a spreadsheet or an archive; export it as text, in UTF-8"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "save it as UTF-8 (it looks like UTF-16)"
    if b"\0" in data:
        return "it looks like a binary file"
    return "save it as UTF-8 (it looks like Latin-1 / Windows-1252)"


def _read_list(file: str, label: int | Sequence[int] | None) -> tuple[list[int], list[list[str]]]:
    """Return the line number and fields of each line: the path and the chosen labels."""
    columns = [1] if label is None else [label] if isinstance(label, int) else list(label)
    if not columns or any(type(column) is not int or column < 1 for column in columns):
        raise DataError(f"label is {label!r}; give a column after the path, counted from 1")
    lines, rows, problems = [], [], []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        fields, fault = split_fields(line)
        if len(fields) == 1 and not fault:
            fault = "no label; a line is a path and a label, separated by a space"
        elif label is None and len(fields) > 2:
            fault = f"{len(fields) - 1} labels; quote paths with spaces, or choose one with `label`"
        elif fields and len(fields) <= max(columns):
            fault = f"{len(fields) - 1} labels, but `label` names column {max(columns)}"
        if fault:
            problems.append(Problem(f"{file}:{number}", fault))
        elif fields:
            lines.append(number)
            rows.append([fields[0], *(fields[column] for column in columns)])
    raise_problems(problems)
    return lines, rows


def split_fields(line: str) -> tuple[list[str], str]:
    """Return the fields of a line, and an error message or ""."""
    if '"' not in line and "'" not in line and "#" not in line:
        return line.split(), ""
    fields: list[str] = []
    for double, single, plain in FIELD.findall(line):
        if plain.startswith("#"):
            break
        if plain.startswith(('"', "'")):
            return [], f"a quote that is not closed, or not followed by a space: {plain}"
        fields.append(double or single or plain)
    return fields, ""


def images_under(root: str, name: str, endings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the images and the other files in a folder, as sorted paths relative to the root."""
    return divided_by_suffix(files_under(root, name)[0], endings)


def divided_by_suffix(
    files: Iterable[str], endings: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """Return the files with one of the endings, and the others, both sorted."""
    parts: tuple[list[str], list[str]] = [], []
    for file in sorted(files):
        parts[not file.lower().endswith(endings)].append(file)
    return parts


def files_under(root: str, name: str) -> tuple[list[str], bool]:
    """Return the files in a folder, relative to the root, and whether there is any link.

    Hidden ones are left out. A listing gives the kind of each entry, so no file is looked up.
    """
    files: list[str] = []
    folders, has_links = [name], False
    while folders:
        within = folders.pop()
        with contextlib.suppress(OSError), os.scandir(Path(root, within)) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    has_links = has_links or entry.is_symlink()
                    path = f"{within}/{entry.name}" if within else entry.name
                    (folders if _is_folder(entry) else files).append(path)
    return files, has_links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def log_skipped(root: str, files: Sequence[str]) -> None:
    """Log the number of skipped files in a folder by suffix, if any."""
    if files:
        plural = "files are" if len(files) > 1 else "file is"
        log.info(f"{root}: {len(files)} {plural} skipped: {count_suffixes(files)}")


def _endings(extensions: Sequence[str] | None) -> tuple[str, ...]:
    """Return the suffixes of images in lower case, with a leading dot."""
    if extensions is None:
        return tuple(sorted(image_suffixes()))
    extensions = [extensions] if isinstance(extensions, str) else extensions
    return tuple(f".{each.lower().lstrip('.')}" for each in extensions)


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except OSError:
        return set()
