"""Images in an LMDB database are those that were written, in each process."""

import io
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from base.datasets.images import decode_image
from base.datasets.lmdb_images import LmdbImageDataset
from base.errors import DataError
from base.names.construction import build

FILES = []
for seed in range(5):
    file = io.BytesIO()
    noise = np.random.RandomState(seed).randint(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    FILES.append(file.getvalue())


@pytest.fixture
def list_file(tmp_path: Path) -> str:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as env, env.begin(write=True) as txn:
        for number, content in enumerate(FILES):
            txn.put(f"img/{number}".encode(), content)
    lines = "".join(f"img/{number} {number % 2}\n" for number in range(5))
    (tmp_path / "list.txt").write_text(lines)
    return str(tmp_path / "list.txt")


def open_database(list_file: str, **args) -> LmdbImageDataset:
    args = {"path": str(Path(list_file).parent / "db"), "list_file": list_file, **args}
    return build("dataset", {"type": "LmdbImageDataset", "args": args})


def test_images_are_those_that_were_written(list_file):
    dataset = open_database(list_file)
    other = open_database(list_file, mode="grey")  # a second one on the same database
    assert dataset.targets.tolist() == [0, 1, 0, 1, 0]
    for index, content in enumerate(FILES):
        assert torch.equal(dataset[index][0], decode_image(content))
        assert dataset.image_shape(index) == (3, 9, 8)
    assert other.image(0).shape == (1, 9, 8)
    assert dataset.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_open_the_database_themselves(list_file, start):
    dataset = open_database(list_file)
    dataset[0]
    context = multiprocessing.get_context(start)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=context)
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, torch.stack([decode_image(content) for content in FILES]))


def test_keys_that_are_missing_are_named(list_file):
    with Path(list_file).open("a") as file:
        file.write("img/7 0\n")
    with pytest.raises(DataError, match=r"list.txt:6: img/7: .*db has no such key"):
        open_database(list_file)


def test_a_database_that_is_missing_or_damaged_is_told(list_file, tmp_path):
    with pytest.raises(DataError, match="none: not a readable LMDB database"):
        open_database(list_file, path=str(tmp_path / "none"))
    (tmp_path / "none").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="none: not a readable LMDB database"):
        open_database(list_file, path=str(tmp_path / "none"))


def test_without_lmdb_its_name_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdb", None)
    (tmp_path / "list.txt").write_text("a 0")
    with pytest.raises(DataError, match="pip install lmdb"):
        LmdbImageDataset(str(tmp_path / "other"), str(tmp_path / "list.txt"))
