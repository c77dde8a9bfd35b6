"""A cache file of decoded pixels that is kept across runs and filled once, by a single process.

The filling process writes and locks ``.partial`` while others wait, and renames the complete file
to ``.pixels``. After a kill or Ctrl-C the next process continues the partial file. If the disk is
full or an image cannot be read, the file is removed. Caches of earlier versions of the images are
logged, not removed, as another config may use them.

A file contains, in order: the header (`_header`: format, number of images, checksum), the shapes,
a checksum of each image (0 until it is written) and, from the next multiple of 4096, the pixels.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from base.checkpoint.state_file import sync_folder
from base.data.protocols import Cacheable
from base.data.threads import read_each
from base.datasets.cache.pixels import Layout, SharedPixels, decode_each, read_layout, write_at
from base.errors import DataError
from logger.files import open_descriptor

log = logging.getLogger("kindling")

FORMAT = 2
MAGIC = b"kindling pixels\n"
N_HEADER = len(MAGIC) + 16 + 32  # bytes: magic, format and number of images, checksum
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CacheFile:
    """The cache file in `folder` of one version of a data set, named by its fingerprint."""

    layout: Layout | None = None  # once known, headers are not read again

    def __init__(self, source: Cacheable, folder: Path, n_threads: int) -> None:
        self.source, self.folder, self.n_threads = source, folder, n_threads
        self.fingerprint = fingerprint_of(source)
        origin = source.place(0).removesuffix(source.ids[0])  # the images' list or folder
        self.origin = hashlib.blake2b(origin.encode(errors="surrogateescape"), digest_size=4)
        self.path = folder / f"{self.origin.hexdigest()}-{self.fingerprint}.pixels"
        self.partial = self.path.with_suffix(".partial")

    def open(self) -> tuple[SharedPixels, Layout]:
        """Return the pixels, decoding them first if needed.

        Raises:
            DataError: the folder is not writable, the disk is full, or an image cannot be read.
        """
        try:
            while (found := self._find()) is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                with self._locked() as descriptor:
                    if not _is_at(descriptor, self.partial):
                        continue  # finished or abandoned while we waited
                    if (found := self._find()) is not None:
                        self.partial.unlink()  # finished just before we created ours
                        break
                    self._fill(descriptor)
        except OSError as error:
            advice = "name another folder for it, or use cache: memory"
            text = f"{self.folder}: no cache there: {error.strerror or error}; {advice}"
            raise DataError(text) from error
        descriptor, layout = found
        log.info(f"cache: {self.path} ({len(layout.shapes):,} images, {_megabytes(layout)})")
        return SharedPixels(descriptor, _start(len(layout.shapes))), layout

    def exists(self) -> bool:
        """Return whether the file is complete, so that `open` writes nothing."""
        found = self._find()
        if found is not None:
            os.close(found[0])
        return found is not None

    def _find(self) -> tuple[int, Layout] | None:
        """Open the complete file, if it exists."""
        try:
            descriptor = open_descriptor(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        layout = self._read_layout(descriptor)
        if layout is None:
            os.close(descriptor)
            return None
        return descriptor, layout

    def _read_layout(self, descriptor: int) -> Layout | None:
        """Read the shapes; None if the file is truncated, damaged or of another data set."""
        n = len(self.source)
        content = os.pread(descriptor, N_HEADER + 12 * n, 0)
        if len(content) < N_HEADER + 12 * n:
            return None
        shapes = np.frombuffer(content, "<i4", offset=N_HEADER).reshape(n, 3)
        if content[:N_HEADER] != self._header(shapes):
            return None
        layout = Layout(shapes)
        return layout if os.fstat(descriptor).st_size == _start(n) + layout.n_bytes else None

    def _header(self, shapes: np.ndarray) -> bytes:
        facts = MAGIC + struct.pack("<QQ", FORMAT, len(shapes))
        content = facts + self.fingerprint.encode() + shapes.tobytes()
        return facts + hashlib.blake2b(content, digest_size=32).digest()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the partial file and lock it against other processes."""
        descriptor = open_descriptor(self.partial, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info(f"cache: waiting for the process that fills {self.partial}")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:  # some network file systems have no locks
                text = f"{self.folder}: no lock here ({error.strerror})"
                log.warning(f"{text}: do not start a second run that fills this cache")
            yield descriptor
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int) -> None:
        """Write the missing images to the partial file and rename it."""
        if self.path.exists():
            log.warning(f"{self.path}: not a complete cache of this data set; it is created again")
            self.path.unlink()
        layout = self._read_layout(descriptor)
        is_new = layout is None
        if layout is None:
            try:
                layout = self.layout or read_layout(self.source, self.n_threads)
            except BaseException:
                self.partial.unlink()
                raise
        try:
            self._check_space(descriptor, layout, is_new)
            if is_new:
                self._lay_out(descriptor, layout)
            self._write_pixels(descriptor, layout)
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise self._no_space_error(descriptor, layout, error) from error
        if fingerprint_of(self.source) != self.fingerprint:
            self.partial.unlink()
            raise DataError(f"{self.folder}: images changed while they were cached; start again")
        self.partial.replace(self.path)
        sync_folder(self.folder)
        self._log_older()

    def _check_space(self, descriptor: int, layout: Layout, is_new: bool) -> None:
        there = 0 if is_new else os.fstat(descriptor).st_blocks * 512
        disk = shutil.disk_usage(self.folder)
        if disk.total and disk.free < _start(len(layout.shapes)) + layout.n_bytes - there:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _lay_out(self, descriptor: int, layout: Layout) -> None:
        """Set the size of the file, then write its header: without one it is not continued."""
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, _start(len(layout.shapes)) + layout.n_bytes)
        write_at(descriptor, layout.shapes, N_HEADER)
        write_at(descriptor, self._header(layout.shapes), 0)

    def _write_pixels(self, descriptor: int, layout: Layout) -> None:
        """Decode and write the missing images, each followed by its checksum."""
        n = len(layout.shapes)
        sums = N_HEADER + 12 * n
        n_written = self._count_written(descriptor, layout, sums)
        if n_written:
            log.info(f"cache: continuing {self.partial}: {n_written:,} of {n:,} images are there")
        decoded = decode_each(self.source, layout, n_written, self.n_threads)
        try:
            with contextlib.closing(decoded):
                for index, data in decoded:
                    write_at(descriptor, data, _start(n) + int(layout.offsets[index]))
                    write_at(descriptor, struct.pack("<I", _checksum(data)), sums + 4 * index)
        except DataError:
            self.partial.unlink()  # the repaired images will differ
            raise
        except KeyboardInterrupt:
            log.warning(f"cache: stopped; the next run continues {self.partial}")
            raise

    def _count_written(self, descriptor: int, layout: Layout, sums: int) -> int:
        """Count the leading images whose bytes match their checksums.

        After a power failure a checksum may be on disk without all of the bytes.
        """
        n = len(layout.shapes)
        expected = np.frombuffer(os.pread(descriptor, 4 * n, sums), "<u4").tolist()
        n_summed = expected.index(0) if 0 in expected else n

        def is_whole(index: int) -> bool:
            first, end = layout.offsets[index : index + 2].tolist()
            content = os.pread(descriptor, end - first, _start(n) + first)
            return bool(_checksum(content) == expected[index])

        checks = read_each(is_whole, range(n_summed), self.n_threads, "checking the cache")
        with contextlib.closing(checks):
            return next((index for index, is_good in enumerate(checks) if not is_good), n_summed)

    def _no_space_error(self, descriptor: int, layout: Layout, error: OSError) -> DataError:
        """Remove the file from the full disk and return an error with the space needed."""
        os.ftruncate(descriptor, 0)
        self.partial.unlink()
        free = f"{shutil.disk_usage(self.folder).free / 1e6:,.1f} MB are free"
        text = f"{error.strerror}: the cache needs {_megabytes(layout)}, {free}; it was removed"
        advice = "make room, name another folder, or `resize`"
        if error.errno == errno.EFBIG:
            advice = "raise the limit on the size of a file (ulimit -f), or `resize`"
        return DataError(f"{self.folder}: {text}; {advice}")

    def _log_older(self) -> None:
        """Log older caches of the same images or of other decoding settings."""
        files = sorted(self.folder.glob(f"{self.origin.hexdigest()}-*"))
        if older := [each for each in files if each != self.path]:
            size = f"{sum(each.stat().st_blocks for each in older) * 512 / 1e6:,.1f} MB"
            names = " ".join(map(str, older))
            text = "older caches of these images; unless another config uses them: rm"
            log.info(f"cache: found {size} of {text} {names}")


def fingerprint_of(source: Cacheable) -> str:
    """Return a data set's fingerprint.

    Raises:
        DataError: a file is missing.
    """
    try:
        return str(source.fingerprint())
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}, although it is listed") from error


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _start(n_images: int) -> int:
    """Return the offset of the pixels, after header, shapes and checksums."""
    return -(-(N_HEADER + 16 * n_images) // 4096) * 4096


def _checksum(data: Any) -> int:
    return zlib.crc32(data) or 1  # 0 means not written


def _megabytes(layout: Layout) -> str:
    return f"{layout.n_bytes / 1e6:,.1f} MB"
