"""Words become files: folders in sorted order, patterns, and names that do not exist."""

from pathlib import Path

import pytest

from base.errors import UsageError
from base.prediction.found_files import FoundFile, find_files

ENDINGS = (".jpg", ".png")


@pytest.fixture(autouse=True)
def _there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("in/b/2.jpg", "in/b/10.PNG", "in/a ü.jpg", "in/.hidden.jpg", "in/notes.txt",
                 "texts/1.txt", "[1].jpg"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()


def test_a_folder_gives_its_images_in_sorted_order() -> None:
    found = find_files(["in"], ENDINGS)
    assert [file.path for file in found] == ["in/a ü.jpg", "in/b/10.PNG", "in/b/2.jpg"]
    assert [file.within for file in found] == ["a ü.jpg", "b/10.PNG", "b/2.jpg"]


def test_any_files_of_a_folder() -> None:
    assert len(find_files(["in"], ())) == 4


def test_words_keep_their_order_and_may_repeat() -> None:
    found = [file.path for file in find_files(["in/b/2.jpg", "in/*.jpg", Path("in/b/2.jpg")], ())]
    assert found == ["in/b/2.jpg", "in/a ü.jpg", "in/b/2.jpg"]


def test_a_pattern_finds_folders_too_and_a_literal_name_wins() -> None:
    assert [file.path for file in find_files(["i*"], ENDINGS)] == [
        "in/a ü.jpg", "in/b/10.PNG", "in/b/2.jpg",
    ]  # fmt: skip
    assert len(find_files(["**/*.jpg"], ENDINGS)) == 3
    assert find_files(["[1].jpg"], ENDINGS) == [FoundFile("[1].jpg", "[1].jpg")]


def test_a_list_stands_for_its_paths() -> None:
    found = find_files(["in/notes.txt"], ENDINGS, lambda word: ["x/1.jpg"])
    assert found == [FoundFile("x/1.jpg", "1.jpg")]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("empty", "empty: no images in this folder; it is empty"),
        ("texts", "texts: no images in this folder, only 1 .txt"),
        ("in/*.gif", r"in/\*.gif: no file matches; the current folder is"),
        ("texst", "texst: no such file or folder: .* did you mean 'texts'"),
    ],
)
def test_nothing_found_is_one_clear_line(word: str, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        find_files([word], ENDINGS)
    assert "\n" not in str(caught.value)
