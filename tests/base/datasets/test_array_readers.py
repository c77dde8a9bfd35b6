"""Data sets in memory, and the files that they are read from."""

import gzip
import struct

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from base.datasets.array_readers import read_idx, read_npz
from base.datasets.in_memory import InMemoryDataset
from base.errors import DataError

IMAGES = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).to(torch.uint8)


def test_a_batch_is_the_samples_collated():
    dataset = InMemoryDataset(IMAGES, torch.tensor([1, 0]))
    batch = dataset.get_batch(torch.tensor([1, 0, 1]))
    expected = default_collate([dataset[1], dataset[0], dataset[1]])
    assert type(batch) is type(expected)
    assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_images_and_labels_must_be_equally_many():
    with pytest.raises(DataError, match="2 inputs, but 3 targets"):
        InMemoryDataset(IMAGES, torch.zeros(3))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_give_back_what_was_written(tmp_path, shape, suffix):
    array = np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)
    content = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + array.tobytes()
    path = tmp_path / f"x-ubyte{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    assert torch.equal(read_idx(path), torch.from_numpy(array))


WHOLE = struct.pack(">HBB2I", 0, 8, 2, 2, 3) + bytes(6)


@pytest.mark.parametrize("length", range(len(WHOLE)))
def test_a_cut_idx_file_is_reported(tmp_path, length):
    path = tmp_path / "x-ubyte"
    path.write_bytes(WHOLE[:length])
    with pytest.raises(DataError, match="x-ubyte: not a whole IDX file"):
        read_idx(path)


@pytest.mark.parametrize(
    "content", [WHOLE + b"x", b"PNG" + WHOLE, b"\0\0\x0d" + WHOLE[3:], b"\0\0\x08\0"]
)
def test_what_is_no_idx_file_of_bytes_is_reported(tmp_path, content):
    path = tmp_path / "x-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match="x-ubyte: not a whole IDX file"):
        read_idx(path)


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(WHOLE)[:-9], gzip.compress(WHOLE)[:15], b""],
    ids=["no gzip", "cut at the end", "cut early", "empty"],  # a gzip file begins with the time
)
def test_a_damaged_gzip_file_is_reported(tmp_path, content):
    path = tmp_path / "x-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x-ubyte\.gz: "):
        read_idx(path)


def test_objects_in_an_npz_file_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="not a readable npz file"):
        read_npz(tmp_path / "x.npz")
