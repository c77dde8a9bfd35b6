"""Masks as PNG files: names, numbers, sizes and colours."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from base.errors import UsageError
from base.prediction.found_files import FoundFile
from base.prediction.masks import MaskFolder, palette

FILES = [FoundFile("in/a/1.jpg", "a/1.jpg"), FoundFile("in/b.x.png", "b.x.png")]
CLASSES = torch.tensor([[0, 1, 2], [2, 1, 0]])


def test_a_mask_has_class_numbers_and_colours(tmp_path: Path) -> None:
    folder = MaskFolder(tmp_path / "out", FILES)
    folder.begin(["ground", "sky", "sea"], None)
    path = folder.write(0, CLASSES, None)
    assert path == tmp_path / "out/a/1.png"
    with Image.open(path) as image:
        assert image.mode == "P"
        assert np.array(image).tolist() == CLASSES.tolist()
        colors = np.array(image.convert("RGB"))
    assert colors[0].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]  # of Pascal VOC
    assert (tmp_path / "out/classes.csv").read_text() == (
        "number,class,red,green,blue\n0,ground,0,0,0\n1,sky,128,0,0\n2,sea,0,128,0\n"
    )
    assert folder.write(1, CLASSES, None).name == "b.x.png"


def test_colours_of_the_data_set_are_kept(tmp_path: Path) -> None:
    folder = MaskFolder(tmp_path, FILES)
    folder.begin(["ground", "sky", "sea"], [[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    with Image.open(folder.write(0, CLASSES, None)) as image:
        assert np.array(image.convert("RGB"))[0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_a_mask_gets_the_size_of_its_image(tmp_path: Path) -> None:
    folder = MaskFolder(tmp_path, FILES)
    folder.begin(["ground", "sky", "sea"], None)
    with Image.open(folder.write(0, CLASSES, (4, 6))) as image:
        assert image.size == (6, 4)
        assert np.array(image)[::2, ::2].tolist() == CLASSES.tolist()


def test_colours_are_distinct() -> None:
    assert len(set(palette())) == 256
    assert palette()[15] == (192, 128, 128)  # a person, in Pascal VOC


def test_masks_that_exist_are_replaced_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").touch()
    with pytest.raises(UsageError, match=r"a/1\.png: the mask exists already; add --overwrite"):
        MaskFolder(tmp_path, FILES)
    MaskFolder(tmp_path, FILES, overwrite=True)


def test_two_images_of_a_name_are_refused(tmp_path: Path) -> None:
    twins = [FoundFile("x/1.jpg", "1.jpg"), FoundFile("y/1.png", "1.png")]
    with pytest.raises(UsageError, match=r"x/1.jpg and y/1.png would have the same mask, 1.png"):
        MaskFolder(tmp_path, twins)
