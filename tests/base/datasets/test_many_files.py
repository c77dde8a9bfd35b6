"""Finding the files of a folder takes one listing of each folder, and no look at a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from base.datasets.image_files import ImageFolderDataset, files_under, images_under
from base.errors import DataError


def walked(root: Path, name: str, endings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return what `os.walk` finds."""
    found = [
        (Path(folder) / file).relative_to(root).as_posix()
        for folder, _, files in os.walk(root / name, followlinks=True)
        for file in files
        if not any(part.startswith(".") for part in (Path(folder) / file).relative_to(root).parts)
    ]
    images = {file for file in found if file.lower().endswith(endings)}
    return sorted(images), sorted(set(found) - images)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for file in ("cat/b.png", "cat/a.PNG", "cat/deep/er/c.png", "cat/note.txt", "cat/.d.png",
                 "cat/.hidden/e.png", "dog/f.png"):  # fmt: skip
        path = tmp_path / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


@pytest.mark.parametrize("name", ["cat", "dog", "", "none"])
def test_the_files_are_those_that_a_walk_finds(root, name):
    (root / "dog" / "linked").symlink_to(root / "cat" / "deep", target_is_directory=True)
    (root / "dog" / "circle").symlink_to("circle")
    (root / "dog" / "broken.png").symlink_to("nothing.png")
    assert images_under(str(root), name, (".png",)) == walked(root, name, (".png",))
    assert files_under(str(root), name)[1] == (name in ("dog", ""))


def test_no_file_of_a_folder_is_looked_up(root, monkeypatch):
    for number in range(300):
        (root / "dog" / f"{number}.png").touch()
    looked = []
    for name in ("stat", "lstat"):
        call = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *given, call=call, **more: looked.append(given) or call(*given, **more)
        )
    dataset = ImageFolderDataset(str(root))
    assert len(dataset) == 304
    assert len(looked) < 30


@pytest.mark.parametrize("link", ["dog/same.png", "twin"])
def test_a_file_that_a_link_leads_to_twice_is_refused(root, link):
    target = root / "cat" / "b.png" if link.endswith("png") else root / "cat"
    (root / link).symlink_to(target, target_is_directory=target.is_dir())
    with pytest.raises(DataError, match="already listed at"):
        ImageFolderDataset(str(root))
