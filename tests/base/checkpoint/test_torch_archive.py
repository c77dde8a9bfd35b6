"""Files of state are torch's, without a CRC-32 of the tensors and with a sha256 instead."""

import errno
import functools
import hashlib
import io
import itertools
import os
import sys
import threading
import time
import weakref
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.serialization import config as serialization_config

from base.checkpoint import state_file
from base.checkpoint.state_file import plain_copy, read_state, write_state
from base.checkpoint.torch_archive import ID, _check_order, write_archive
from base.checkpoint.torch_file import load_torch_file
from base.errors import CheckpointError

pytestmark = pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")


def some_state():
    shared = torch.arange(600.0).view(20, 30)
    return {
        "weight": shared, "the same": shared, "transposed": shared.T, "none": torch.empty(0),
        "large": torch.randn(300, 301), "half": torch.ones(3, dtype=torch.bfloat16),
        "unsigned": torch.ones(5, dtype=torch.uint16), "sparse": torch.eye(4).to_sparse(),
        "plain": [1, 2.5, "text", None, (True, b"x".hex())],
    }  # fmt: skip


def assert_equal(found, state):
    assert found.keys() == state.keys()
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name].to_dense(), value.to_dense())
        else:
            assert found[name] == value


def written(path: Path, state) -> dict:
    return write_state(path, plain_copy(state, "state", {}))


def test_members_stand_where_torch_writes_them(tmp_path):
    state = plain_copy(some_state(), "state", {})
    write_state(tmp_path / "ours.pt", state)
    torch.save(state, tmp_path / "archive.pt")  # torch names the folder in it by the file
    with (
        zipfile.ZipFile(tmp_path / "ours.pt") as ours,
        zipfile.ZipFile(tmp_path / "archive.pt") as theirs,
        (tmp_path / "ours.pt").open("rb") as file,
        (tmp_path / "archive.pt").open("rb") as other_file,
    ):
        assert ours.namelist() == theirs.namelist()
        for one, other in zip(ours.infolist(), theirs.infolist(), strict=True):
            assert (one.header_offset, one.flag_bits) == (other.header_offset, other.flag_bits)
            if not one.filename.endswith(ID):
                assert one.file_size == other.file_size
                file.seek(one.header_offset)
                other_file.seek(one.header_offset)
                n_bytes = 128 + one.file_size  # the next header begins with "PK" after these
                content, expected = file.read(n_bytes), other_file.read(n_bytes)
                start = content.index(b"FB", 30)
                assert content[: start + one.file_size] == expected[: start + one.file_size]
            if "/data/" not in one.filename and not one.filename.endswith(ID):
                assert one.CRC == other.CRC != 0


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("computes_offsets", [False, True])
def test_torch_reads_and_maps_the_file(tmp_path, maps, computes_offsets):
    state = some_state()
    written(tmp_path / "state.pt", state)
    with serialization_config.patch("load.calculate_storage_offsets", computes_offsets):
        found = torch.load(tmp_path / "state.pt", weights_only=True, mmap=maps)
    assert_equal(found, state)
    assert found["weight"].data_ptr() == found["the same"].data_ptr()


def test_the_hash_is_that_of_the_file_and_equal_states_give_equal_bytes(tmp_path):
    state = some_state()
    facts = written(tmp_path / "a.pt", state)
    content = (tmp_path / "a.pt").read_bytes()
    assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert written(tmp_path / "b.pt", read_state(tmp_path / "a.pt", facts["sha256"])) == facts


def test_a_save_of_torch_beside_ours_keeps_its_checksums(tmp_path):
    state = {"weight": torch.randn(1 << 20)}
    buffers = [io.BytesIO() for _ in range(5)]
    thread = threading.Thread(target=lambda: [torch.save(state, each) for each in buffers])
    thread.start()
    for number in range(5):
        written(tmp_path / f"{number}.pt", state)
    thread.join()
    for buffer in buffers:
        with zipfile.ZipFile(buffer) as archive:
            assert archive.testzip() is None


def test_any_flipped_bit_of_a_file_alone_is_found_or_changes_nothing(tmp_path):
    """Without its manifest, as a file of weights that was copied out of a run."""
    state = {"weight": torch.arange(30.0), "bias": torch.ones(7), "none": torch.empty(0)}
    path = tmp_path / "state.pt"
    written(path, state)
    content = path.read_bytes()
    directory, n_refused = content.index(b"PK\1\2"), 0
    assert len(content) - directory > 500
    for place in (*range(0, directory, 13), *range(directory, len(content))):
        path.write_bytes(
            content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]
        )
        try:
            with path.open("rb") as file:
                found = load_torch_file(file, is_verified=False, allows_objects=False)
        except CheckpointError:
            n_refused += 1
        else:
            assert_equal(found, state)
    assert n_refused > 300  # readers ignore much of a directory: dates, attributes, versions


class SlowHash:
    """A sha256 that is slower than the disk; ``before`` runs before each update."""

    def __init__(self, before):
        self.before, self.hash = before, hashlib.sha256()

    def update(self, data):
        self.before()
        self.hash.update(data)

    def hexdigest(self):
        return self.hash.hexdigest()


def error_of(action) -> BaseException | None:
    """Return what an action raises in a thread; fail if it does not end."""
    errors = []

    def run():
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "the write waits forever"
    return errors[0] if errors else None


@pytest.fixture
def _ends_with_the_process(monkeypatch):
    """Let a hash thread that waits forever fail its test only."""
    as_daemon = functools.partial(threading.Thread, daemon=True)
    monkeypatch.setattr(state_file, "threading", SimpleNamespace(**vars(threading)))
    monkeypatch.setattr(state_file.threading, "Thread", as_daemon)


@pytest.mark.usefixtures("_ends_with_the_process")
def test_an_error_when_the_file_is_closed_ends_the_hash_thread(tmp_path, monkeypatch):
    def close(descriptor):
        os.close(descriptor)
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(state_file, "os", SimpleNamespace(**{**vars(os), "close": close}))
    n_before = threading.active_count()
    error = error_of(lambda: written(tmp_path / "state.pt", some_state()))
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    assert threading.active_count() == n_before


@pytest.mark.usefixtures("_ends_with_the_process")
def test_an_error_of_the_hash_is_raised_by_the_write(tmp_path, monkeypatch):
    def fail():
        raise MemoryError("no memory to hash")

    monkeypatch.setattr(state_file, "hashlib", SimpleNamespace(sha256=lambda: SlowHash(fail)))
    monkeypatch.setattr(state_file, "SMALL", 1)  # many writes after the error
    error = error_of(lambda: written(tmp_path / "state.pt", some_state()))
    assert isinstance(error, MemoryError)


def test_a_slow_hash_keeps_few_arrays_in_memory(tmp_path, monkeypatch):
    """Those of a GPU model are copies, which the writer makes one by one."""
    alive, counts = [], []

    def wait():
        time.sleep(0.02)
        counts.append(sum(each() is not None for each in alive))

    n_bytes = state_file.SMALL
    monkeypatch.setattr(state_file, "MOST_UNHASHED", 2 * n_bytes)
    monkeypatch.setattr(state_file, "hashlib", SimpleNamespace(sha256=lambda: SlowHash(wait)))
    expected = hashlib.sha256()
    with state_file._HashedFile(tmp_path / "state.pt") as file:
        for number in range(12):
            array = np.full(n_bytes, number, np.uint8)
            alive.append(weakref.ref(array))
            expected.update(array)
            file.write(array.data)
        assert file.sha256_so_far() == expected.hexdigest()
    assert max(counts) <= 3  # two are hashed, one waits for them


class SparseFile:
    """Leaves holes in place of large tensors, whose content is 0."""

    def __init__(self, file):
        self.file, self.n_bytes = file, 0

    def write(self, data):
        if len(data) > 1 << 20:
            self.file.seek(len(data), os.SEEK_CUR)
        else:
            self.file.write(data)
        self.n_bytes += len(data)

    def sha256_so_far(self):
        return "0" * 64


@pytest.mark.skipif(sys.platform == "win32", reason="its files have no holes")
def test_members_and_offsets_beyond_4_gib_are_read_by_torch_and_zipfile(tmp_path):
    large = torch.zeros(0, dtype=torch.uint8).set_(torch.UntypedStorage((1 << 32) + 100))
    state = {"before": torch.arange(5), "large": large, "after": torch.arange(7)}
    path = tmp_path / "state.pt"
    with path.open("wb") as file:
        write_archive(state, SparseFile(file))
    with zipfile.ZipFile(path) as archive:
        sizes = [each.file_size for each in archive.infolist() if "/data/" in each.filename]
        assert sizes == [40, (1 << 32) + 100, 56]
        assert archive.getinfo("archive/data/2").header_offset > 1 << 32
        with path.open("rb") as file:
            _check_order(file, archive.infolist())
    for computes_offsets in (False, True):
        with serialization_config.patch("load.calculate_storage_offsets", computes_offsets):
            found = torch.load(path, weights_only=True, mmap=True)
        assert torch.equal(found["after"], state["after"])
        assert torch.equal(found["before"], state["before"])
        assert found["large"].numel() == large.numel()


class AskedToBegin:
    """Stands in for `os`, and notes what the disk is asked to begin with."""

    def __init__(self):
        self.ranges = []

    def __getattr__(self, name):
        return getattr(os, name)

    def posix_fadvise(self, descriptor, begin, length, _):
        assert begin + length <= os.fstat(descriptor).st_size, "not written yet"
        self.ranges.append((begin, begin + length))


def test_the_disk_receives_a_file_while_it_is_written(tmp_path, monkeypatch):
    asked = AskedToBegin()
    monkeypatch.setattr(state_file, "os", asked)
    monkeypatch.setattr(state_file, "LARGE", 1 << 18)
    state = {"long": torch.arange(1 << 18), "short": [torch.ones(1 << 13)] * 2}
    facts = state_file.write_state(tmp_path / "state.pt", state)
    assert len(asked.ranges) > 7
    assert asked.ranges[0][0] == 0
    assert all(one[1] == other[0] for one, other in itertools.pairwise(asked.ranges))
    assert facts["bytes"] - asked.ranges[-1][1] < 1 << 18
    monkeypatch.delattr(os, "posix_fadvise", raising=False)  # as on macOS and Windows
    monkeypatch.setattr(state_file, "os", os)
    state_file.write_state(tmp_path / "plain.pt", state)
    assert (tmp_path / "plain.pt").read_bytes() == (tmp_path / "state.pt").read_bytes()
