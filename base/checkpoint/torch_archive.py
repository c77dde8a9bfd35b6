"""Writes what ``torch.save`` writes, in one pass, with a sha256 in place of torch's CRC-32.

The layout is torch's: a zip archive, nothing compressed, each member aligned to 64 bytes, so that
``torch.load`` reads and maps it. torch computes a CRC-32 of each tensor and never verifies it.
Here a tensor's is 0, and the last member, ``.data/serialization_id``, holds the sha256 of the file
before it; torch only logs that member.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

import torch
from torch.serialization import _save, pickle

from base.errors import CheckpointError

FOLDER = "archive"
ALIGNMENT = 64
IN_16, IN_32 = 0xFFFF, 0xFFFFFFFF  # what is larger stands in a field of 64 bits
FLAGS = 0x800  # names are UTF-8
HAS_DESCRIPTOR = 0x8  # sizes and checksum follow the content
ID = ".data/serialization_id"


class Sink(Protocol):
    """A file that hashes what it is given."""

    n_bytes: int

    def write(self, data: Any) -> object:
        """Write bytes; arrays may be read until the next `sha256_so_far`."""

    def sha256_so_far(self) -> str:
        """Return the hash of all that was written."""


def write_archive(state: Any, file: Sink) -> None:
    """Write a state as ``torch.save`` does. Its tensors must not change meanwhile."""
    archive = _Archive(file)
    _save(state, archive, pickle, 2, False)  # torch's own protocol
    archive.write_record("version", b"3\n", 2)
    digest = file.sha256_so_far().encode()
    archive.write_record(ID, digest, len(digest))
    archive.write_directory()


def check_content(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Verify a file of `write_archive` by its sha256, or another one by its CRC-32s.

    Raises:
        CheckpointError: the content differs.
    """
    members = archive.infolist()
    if members[-1].filename.endswith(f"/{ID}") and members[-1].file_size == 64:
        _check_order(file, members)
        file.seek(0)
        digest, left = hashlib.sha256(), members[-1].header_offset
        while chunk := file.read(min(left, 1 << 20)):
            digest.update(chunk)
            left -= len(chunk)
        if archive.read(members[-1]) != digest.hexdigest().encode():
            raise CheckpointError("damaged: its sha256 differs from the one at its end")
    elif bad := archive.testzip():
        raise CheckpointError(f"damaged: the checksum of {bad} does not match")


def _check_order(file: BinaryIO, members: Sequence[zipfile.ZipInfo]) -> None:
    """Check the directory, which is not hashed: by it each member begins where one ends."""
    for member, following in itertools.pairwise(members):
        file.seek(member.header_offset)
        n_name, n_extra = struct.unpack("<26x2H", file.read(30))
        name, n_descriptor = file.read(n_name), 24 if member.extra else 16
        end = member.header_offset + 30 + n_name + n_extra + member.file_size
        end += n_descriptor if member.file_size else 0
        if name.decode() != member.filename or end != following.header_offset:
            raise CheckpointError(f"damaged: {member.filename} is not where its directory says")


class _Archive:
    """The part of torch's writer that `_save` calls."""

    def __init__(self, file: Sink) -> None:
        self.file = file
        self.directory = io.BytesIO()
        self.n_members = 0

    def write_record(self, name: str, data: Any, n_bytes: int) -> None:
        """Write a member: bytes, a str, or the storage of a tensor."""
        path, offset = f"{FOLDER}/{name}".encode(), self.file.n_bytes
        is_storage = isinstance(data, torch.UntypedStorage)
        data = data.encode() if isinstance(data, str) else data
        checksum = 0 if is_storage else zlib.crc32(data)
        sizes, extra = _in_64_bits(n_bytes, offset)
        flags = FLAGS | HAS_DESCRIPTOR if n_bytes else FLAGS

        begin = offset + 30 + len(path) + len(extra) + 4  # of the content, without padding
        padding = b"Z" * (-begin % ALIGNMENT)
        local_extra = extra + b"FB" + struct.pack("<H", len(padding)) + padding
        lengths = (len(path), len(local_extra))
        self.file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 0, flags, *[0] * 6, *lengths))
        self.file.write(path + local_extra)
        if is_storage and n_bytes:
            data = torch.empty(0, dtype=torch.uint8).set_(data).numpy().data
        if n_bytes:
            self.file.write(data)
            form = "<4sI2Q" if extra else "<4s3I"
            self.file.write(struct.pack(form, b"PK\7\b", checksum, n_bytes, n_bytes))

        facts = (0, 0, flags, 0, 0, 0, checksum, sizes, sizes, len(path), len(extra))
        entry = (b"PK\1\2", *facts, 0, 0, 0, 0, min(offset, IN_32))
        self.directory.write(struct.pack("<4s6H3I5H2I", *entry) + path + extra)
        self.n_members += 1

    def write_directory(self) -> None:
        """End the archive."""
        content, start, n = self.directory.getvalue(), self.file.n_bytes, self.n_members
        self.file.write(content)
        facts = (n, n, len(content), start)
        in_64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x31E, 45, 0, 0, *facts)
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(content), 1)
        short = (min(n, IN_16), min(n, IN_16), min(len(content), IN_32), min(start, IN_32))
        self.file.write(in_64 + locator + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *short, 0))


def _in_64_bits(n_bytes: int, offset: int) -> tuple[int, bytes]:
    """Return the size as stated in 32 bits, and the field for what is too large for these."""
    large = [n_bytes, n_bytes] if n_bytes >= IN_32 else []
    large += [offset] if offset >= IN_32 else []
    field = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
    return min(n_bytes, IN_32), field
