"""The loaders that ship, and the data that ship with them."""

import gzip
import hashlib
import importlib.util
import re
import socket
import struct
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import torch

from base.datasets.public_sets import PUBLIC_SETS
from base.errors import DataError
from data_loader.data_loaders import (
    DigitsDataLoader,
    MnistDataLoader,
    SyntheticDataLoader,
    TorchvisionDataLoader,
)


def collect(loader):
    images, labels = zip(*loader.batches(0, len(loader)), strict=True)
    return torch.cat(images), torch.cat(labels)


def idx(array):
    """An IDX file's bytes, written from its definition."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def fake_sets(tmp_path):
    """Forty training and ten test images of 28 x 28 where MNIST and FashionMNIST are expected."""
    random = np.random.RandomState(0)
    arrays = {}
    for prefix, count in (("train", 40), ("t10k", 10)):
        arrays[f"{prefix}-images-idx3-ubyte"] = random.randint(0, 256, (count, 28, 28))
        arrays[f"{prefix}-labels-idx1-ubyte"] = random.randint(0, 10, count)
    for name, pack in (("MNIST", bytes), ("FashionMNIST", gzip.compress)):
        folder = tmp_path / name / "raw"
        folder.mkdir(parents=True)
        for file, array in arrays.items():
            (folder / (file if pack is bytes else f"{file}.gz")).write_bytes(pack(idx(array)))
    return tmp_path, arrays


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def scripts(project_root, monkeypatch):
    """Import a script of data/ by its name."""
    monkeypatch.syspath_prepend(project_root / "data")
    return importlib.import_module


# Files that ship


def test_they_have_the_sizes_and_hashes_that_their_page_states(project_root):
    files = [project_root / f"data/{name}" for name in ("digits.npz", "wine.csv", "wine_test.csv")]
    contents = [file.read_bytes() for file in files]
    page = (project_root / "data/digits.md").read_text() + (
        project_root / "data/wine.md"
    ).read_text()
    found = re.findall(r"([\d,]+) bytes, sha256 `(\w+)`", page)
    assert found == [(f"{len(x):,}", hashlib.sha256(x).hexdigest()) for x in contents]


def test_the_wines_are_those_of_scikit_learn(scripts, project_root):
    wines = pytest.importorskip("sklearn.datasets").load_wine()
    tables = scripts("make_wine").tables()
    found = []
    for name, content in tables.items():
        assert content == (project_root / "data" / name).read_bytes()
        found += [line.split(",") for line in content.decode().split("\n")[1:-1]]
    rows = [[*map(float, row), "ABC"[k]] for row, k in zip(wines.data, wines.target, strict=True)]
    assert sorted([*map(float, row[:-1]), row[-1]] for row in found) == sorted(rows)
    tested = [line[-1] for line in tables["wine_test.csv"].decode().split("\n")[1:-1]]
    shares = np.bincount(wines.target) * 36 / 178
    assert np.abs([tested.count(kind) for kind in "ABC"] - shares).max() < 1


# Digits


def test_the_script_makes_the_same_bytes_again(scripts, project_root):
    pytest.importorskip("sklearn")
    make_digits = scripts("make_digits")
    content = make_digits.as_npz(make_digits.load())
    assert content == (project_root / "data/digits.npz").read_bytes()


def test_the_test_split_is_stratified(project_root):
    arrays = np.load(project_root / "data/digits.npz")
    ids, labels = arrays["test_ids"], arrays["labels"]
    assert len(set(ids.tolist())) == len(ids) == 360
    shares = np.bincount(labels) * 360 / 1797
    assert np.abs(np.bincount(labels[ids]) - shares).max() < 1


def test_training_validation_and_test_digits_are_all_the_digits(project_root):
    loader = DigitsDataLoader(project_root / "data", batch_size=100)
    parts = [collect(part) for part in (loader, loader.split_validation())]
    parts.append(collect(DigitsDataLoader(project_root / "data", training=False)))
    assert [len(labels) for _, labels in parts] == [1294, 143, 360]
    got = sorted((torch.cat([images for images, _ in parts]) * 16).flatten(1).int().tolist())
    arrays = np.load(project_root / "data/digits.npz")
    assert got == sorted(arrays["images"].reshape(1797, 64).tolist())


def test_digits_are_images_from_0_to_1_with_their_labels(project_root):
    images, labels = collect(DigitsDataLoader(project_root / "data", training=False))
    arrays = np.load(project_root / "data/digits.npz")
    ids = arrays["test_ids"]
    assert images.shape == (360, 1, 8, 8)
    assert images.dtype == torch.float32
    assert torch.equal(images[:, 0], torch.from_numpy(arrays["images"][ids] / 16).float())
    assert labels.tolist() == arrays["labels"][ids].tolist()
    assert labels.dtype == torch.int64


def test_augmented_digits_change_from_epoch_to_epoch_but_not_in_validation(project_root):
    plain, augmented = (
        DigitsDataLoader(project_root / "data", shuffle=False, augment=augment)
        for augment in (False, True)
    )
    (images, labels), (shifted, same_labels) = collect(plain), collect(augmented)
    later = torch.cat([batch[0] for batch in augmented.batches(len(augmented), len(augmented))])
    assert torch.equal(labels, same_labels)
    assert not torch.equal(images, shifted)
    assert not torch.equal(later, shifted)
    assert torch.equal(shifted[:, :, 1:-1, 1:-1].amax((1, 2, 3)) > 0, labels >= 0)
    valid, same_valid = plain.split_validation(), augmented.split_validation()
    assert torch.equal(collect(valid)[0], collect(same_valid)[0])


def test_missing_digits_say_where_they_were_sought(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data/digits.npz: no such file; the current folder is"):
        DigitsDataLoader()


@pytest.mark.parametrize("content", [b"", b"PK\3\4 and no more", b"text"])
def test_damaged_digits_are_reported(tmp_path, content):
    (tmp_path / "digits.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"digits.npz: not a readable npz file"):
        DigitsDataLoader(tmp_path)


# Public sets


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("training", [True, False])
def test_idx_files_are_read_as_they_are_and_normalised(fake_sets, name, training):
    folder, arrays = fake_sets
    loader = TorchvisionDataLoader(name, folder, 7, False, 0, training=training)
    images, labels = collect(loader)
    prefix = "train" if training else "t10k"
    pixels = torch.from_numpy(arrays[f"{prefix}-images-idx3-ubyte"])[:, None] / 255
    mean, std = PUBLIC_SETS[name].mean[0], PUBLIC_SETS[name].std[0]
    torch.testing.assert_close(images, ((pixels - mean) / std).float())
    assert labels.tolist() == arrays[f"{prefix}-labels-idx1-ubyte"].tolist()


def test_in_memory_and_torchvision_give_the_same_images(fake_sets):
    folder, _ = fake_sets
    loaders = [
        TorchvisionDataLoader("MNIST", folder, 9, validation_split=0.25, in_memory=in_memory)
        for in_memory in (True, False)
    ]
    for parts in (loaders, [loader.split_validation() for loader in loaders]):
        (fast, labels), (slow, same_labels) = map(collect, parts)
        torch.testing.assert_close(fast, slow)
        assert torch.equal(labels, same_labels)


@pytest.mark.parametrize("in_memory", [True, False])
def test_augmentation_spares_validation_and_test(fake_sets, in_memory):
    folder, _ = fake_sets
    make = lambda augment, **options: TorchvisionDataLoader(  # noqa: E731
        "MNIST", folder, 40, False, augment=augment, in_memory=in_memory, **options
    )
    plain, augmented = make(False), make(True)
    assert not torch.equal(collect(plain)[0], collect(augmented)[0])
    assert torch.equal(*(collect(x.split_validation())[0] for x in (plain, augmented)))
    assert torch.equal(*(collect(make(a, training=False))[0] for a in (False, True)))


def test_the_loader_of_pytorch_template_keeps_its_arguments(fake_sets):
    folder, arrays = fake_sets
    loader = MnistDataLoader(str(folder), 16, False, 0.0, 1, True)
    assert collect(loader)[1].tolist() == arrays["train-labels-idx1-ubyte"].tolist()
    assert loader.split_validation() is None


@pytest.mark.parametrize("name", PUBLIC_SETS)
@pytest.mark.parametrize("in_memory", [True, False])
def test_offline_one_line_names_the_files_and_the_folder(tmp_path, offline, capfd, name, in_memory):
    with pytest.raises(DataError) as caught:
        TorchvisionDataLoader(name, tmp_path, in_memory=in_memory)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{name} is not in {tmp_path} and cannot be downloaded (")
    assert "no route to host" in text
    expected = ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", f"{name}/raw/"]
    if name.startswith("CIFAR"):
        expected = [f"cifar-{name[5:]}-python.tar.gz into {tmp_path}/"]
    assert all(part in text for part in expected)
    assert capfd.readouterr().out == ""
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR10", r"CIFAR10 is not in .* \(download is false\)"),
        ("FashionMnist", r"no public set 'FashionMnist'; did you mean 'FashionMNIST'\?"),
    ],
)
def test_without_download_nothing_is_fetched_and_an_unknown_set_is_named(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        TorchvisionDataLoader(name, tmp_path, download=False)


@pytest.mark.slow
def test_torchvision_is_not_imported_until_it_is_needed(project_root):
    code = "import sys, data_loader.data_loaders; sys.exit('torchvision' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=project_root, check=False).returncode == 0
    )


def test_cifar_pixels_become_channels_first(monkeypatch):
    pixels = np.random.RandomState(0).randint(0, 256, (6, 32, 32, 3), dtype=np.uint8)

    class Cifar:
        data, targets = pixels, [0, 1, 2, 3, 4, 5]

    monkeypatch.setattr("base.datasets.public_sets.open_with_torchvision", lambda *_: Cifar())
    images, labels = collect(TorchvisionDataLoader("CIFAR10", "data", 4, False, 0))
    mean, std = (torch.tensor(values) for values in PUBLIC_SETS["CIFAR10"][:2])
    expected = (torch.from_numpy(pixels) / 255 - mean) / std
    torch.testing.assert_close(images, expected.permute(0, 3, 1, 2))
    assert labels.tolist() == Cifar.targets


@pytest.mark.slow
def test_the_real_fashion_mnist_is_read_whole(project_root):
    folder = project_root / "data/FashionMNIST/raw"
    if (
        not (folder / "train-images-idx3-ubyte.gz").exists()
        and not (folder / "train-images-idx3-ubyte").exists()
    ):
        pytest.skip("FashionMNIST is not in data/; its loader would fetch it")
    images, labels = collect(
        TorchvisionDataLoader("FashionMNIST", project_root / "data", 1000, False, 0)
    )
    assert images.shape == (60000, 1, 28, 28)
    assert torch.bincount(labels).tolist() == [6000] * 10
    assert abs(images.mean()) < 1e-3
    assert abs(images.std() - 1) < 1e-3


# Synthetic images


def test_synthetic_images_need_no_file_and_come_again():
    first, again, other = (SyntheticDataLoader(64, (1, 6, 5), 3, data_seed=s) for s in (0, 0, 1))
    images, _ = collect(first)
    assert images.shape == (58, 1, 6, 5)
    assert torch.equal(images, collect(again)[0])
    assert not torch.equal(images, collect(other)[0])


def test_synthetic_images_can_be_learned():
    images, labels = collect(SyntheticDataLoader(400, (1, 8, 8), 5, validation_split=0))
    patterns = torch.stack([images[labels == label].mean(0) for label in range(5)])
    test_images, test_labels = collect(SyntheticDataLoader(200, (1, 8, 8), 5, training=False))
    nearest = torch.cdist(test_images.flatten(1), patterns.flatten(1)).argmin(1)
    assert (nearest == test_labels).float().mean() > 0.95
