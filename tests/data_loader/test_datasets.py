"""Data sets in memory, and the files that they are read from."""

import gzip
import struct

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from base.errors import DataError
from base.seeding import seed_everything
from data_loader.datasets import ArrayDataset, AugmentedDataset, read_idx, read_npz
from data_loader.transforms import Chain, RandomFlip, RandomShift

IMAGES = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).to(torch.uint8)


def test_a_batch_is_the_samples_collated():
    dataset = ArrayDataset(IMAGES, torch.tensor([1, 0]), 120, (0.1, 0.2, 0.3), (1, 2, 3))
    batch = dataset.get_batch(torch.tensor([1, 0, 1]))
    expected = default_collate([dataset[1], dataset[0], dataset[1]])
    assert type(batch) is type(expected)
    assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_pixels_are_scaled_and_normalised_by_channel():
    dataset = ArrayDataset(IMAGES, torch.tensor([1, 0]), 120, (0.1, 0.2, 0.3), (1, 2, 3))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    expected = ((IMAGES.movedim(1, -1) / 120 - mean) / std).movedim(-1, 1)
    torch.testing.assert_close(dataset.get_batch(torch.arange(2))[0], expected)


def test_reading_does_not_change_what_is_in_memory():
    images = torch.ones(2, 1, 2, 2)
    dataset = ArrayDataset(images, torch.tensor([0, 1]), 2, (0.5,))
    for _ in range(2):
        assert dataset[0][0].unique().tolist() == [0.0]
        dataset.get_batch(torch.tensor([0, 1]))[0].add_(7)
    assert images.unique().tolist() == [1.0]


def test_images_and_labels_must_be_equally_many():
    with pytest.raises(DataError, match="2 images, but 3 labels"):
        ArrayDataset(IMAGES, torch.zeros(3))


def test_a_transform_changes_the_image_before_it_is_scaled():
    arrays = ArrayDataset(IMAGES, torch.tensor([1, 0]), white=2)
    dataset = AugmentedDataset(arrays, lambda image: image.flip(-1))
    assert len(dataset) == 2
    assert torch.equal(dataset[1][0], IMAGES[1].flip(-1) / 2)
    assert dataset[1][1] == 0


def test_a_shift_moves_every_way_and_brings_in_black():
    image = torch.zeros(1, 5, 5, dtype=torch.uint8)
    image[0, 2, 2] = 9
    seed_everything(0)
    shifted = [RandomShift(2)(image) for _ in range(400)]
    places = {tuple(s[0].nonzero()[0].tolist()) for s in shifted}
    assert places == {(row, column) for row in range(5) for column in range(5)}
    assert all(s.sum() == 9 and s.shape == image.shape for s in shifted)


def test_about_half_of_the_images_are_mirrored_and_a_chain_goes_in_order():
    seed_everything(0)
    mirrored = [torch.equal(RandomFlip()(IMAGES[0]), IMAGES[0].flip(-1)) for _ in range(200)]
    assert 70 < sum(mirrored) < 130
    assert Chain([lambda x: x + 1, lambda x: x * 2])(torch.tensor(3)) == 8


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
    "content", [b"not gzip", gzip.compress(WHOLE)[:-9], gzip.compress(WHOLE)[:15], b""]
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
