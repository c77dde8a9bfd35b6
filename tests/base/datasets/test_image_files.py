"""Data sets of image files: what they hold, and what is said of those that are wrong."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from base.datasets.image_files import ImageFiles, ImageFolderDataset, ImageListDataset
from base.errors import ConfigError, DataError
from base.names.construction import build


def save(path: Path, seed: int = 0, size: tuple[int, int] = (7, 5)) -> np.ndarray:
    """Save an image of noise, (height, width, 3), without loss."""
    pixels = np.random.RandomState(seed).randint(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes: two images in dog (one in a folder of its own), one in cat, one in Bär."""
    for seed, name in enumerate(["dog/b.png", "dog/more/a.PNG", "cat/1 2.png", "Bär/写真.png"]):
        save(tmp_path / "set" / name, seed)
    return tmp_path / "set"


def write(folder: Path, text: str, **options) -> str:
    (folder / "list.txt").write_bytes(text.encode(**options))
    return str(folder / "list.txt")


def lines_of(error: pytest.ExceptionInfo, folder: Path) -> list[str]:
    return str(error.value).replace(f"{folder}/", "").split("\n")


def test_a_folder_of_classes_is_read(folder):
    dataset = build("dataset", {"type": "ImageFolderDataset", "args": {"root": str(folder)}})
    assert isinstance(dataset, ImageFolderDataset)
    assert dataset.classes == ["Bär", "cat", "dog"]
    assert dataset.ids == ["Bär/写真.png", "cat/1 2.png", "dog/b.png", "dog/more/a.PNG"]
    assert dataset.targets.tolist() == [0, 1, 2, 2]
    assert dataset.targets.dtype == torch.int64
    assert len(dataset) == 4
    for index, seed in enumerate([3, 2, 0, 1]):
        image, target = dataset[index]
        expected = np.random.RandomState(seed).randint(0, 256, (7, 5, 3), dtype=np.uint8)
        assert torch.equal(image, torch.from_numpy(expected).movedim(-1, 0))
        assert torch.equal(image, dataset.image(index))
        assert target == dataset.targets[index]
        assert dataset.image_shape(index) == (3, 7, 5)
        assert dataset.place(index) == f"{folder}/{dataset.ids[index]}"


def test_mode_and_size_are_as_asked(folder):
    args = {"root": str(folder), "mode": "grey", "resize": [4, 6]}
    dataset = build("dataset", {"type": "ImageFolderDataset", "args": args})
    assert dataset[0][0].shape == (1, 4, 6)
    assert dataset.image_shape(0) == (1, 4, 6)


def test_hidden_and_other_files_are_left_out(folder):
    for name in (".git/x.png", "dog/.thumbs/x.png", "dog/.x.png", "dog/x.txt.png"):
        save(folder / name)
    (folder / "dog/x.txt.png").rename(folder / "dog/x.txt")
    (folder / "README").write_text("")
    assert len(ImageFolderDataset(str(folder))) == 4
    with pytest.raises(DataError, match="an empty class folder"):
        ImageFolderDataset(str(folder), extensions=[".jpg"])
    for extensions in (["png"], "png"):
        assert len(ImageFolderDataset(str(folder), extensions=extensions)) == 4


def test_all_that_is_wrong_in_a_folder_is_told(folder):
    (folder / "fox").mkdir()
    (folder / "owl/deep").mkdir(parents=True)
    save(folder / "stray.png")
    with pytest.raises(DataError) as error:
        ImageFolderDataset(str(folder))
    found = lines_of(error, folder)
    assert found[0] == "stray.png: an image beside the class folders"
    assert [line.split(" (")[0] for line in found[1:]] == [
        "fox: an empty class folder",
        "owl: an empty class folder",
    ]


def test_a_folder_that_is_missing_or_flat_is_told(tmp_path):
    with pytest.raises(DataError, match=r"none: no such folder; the current folder is "):
        ImageFolderDataset(str(tmp_path / "none"))
    with pytest.raises(DataError, match="no class folders"):
        ImageFolderDataset(str(tmp_path))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_is_read(folder, newline, mark):
    lines = ["# made by hand", "", "dog/b.png\tdog", "'cat/1 2.png'  cat  # asleep"]
    lines += ["   ", '"Bär/写真.png" Bär', f"{folder}/dog/more/a.PNG dog"]
    list_file = write(folder, mark + newline.join(lines))
    dataset = build("dataset", {"type": "ImageListDataset", "args": {"list_file": list_file}})
    assert isinstance(dataset, ImageListDataset)
    assert dataset.ids == ["dog/b.png", "cat/1 2.png", "Bär/写真.png", f"{folder}/dog/more/a.PNG"]
    assert dataset.classes == ["Bär", "cat", "dog"]
    assert dataset.targets.tolist() == [2, 1, 0, 2]
    assert [dataset.place(i).split(": ")[0] for i in range(4)] == [
        f"{list_file}:{line}" for line in (3, 4, 6, 7)
    ]
    assert torch.equal(dataset[3][0], ImageFolderDataset(str(folder))[3][0])


def test_a_list_may_lie_elsewhere(folder, tmp_path):
    list_file = write(tmp_path, "dog/b.png 0\ndog/more/a.PNG 1")
    assert len(ImageListDataset(list_file, root=str(folder))) == 2
    assert len(ImageListDataset(list_file, str(folder), classes=["x", "y"])) == 2
    with pytest.raises(DataError, match=r"list.txt:1: dog/b.png: no such file"):
        ImageListDataset(list_file)


def test_labels_are_numbers_names_or_names_in_a_given_order(folder):
    numbers = write(folder, "dog/b.png 2\ndog/more/a.PNG 0")
    assert ImageListDataset(numbers).targets.tolist() == [2, 0]
    assert ImageListDataset(numbers).classes == ["0", "1", "2"]
    assert ImageListDataset(numbers, classes=["a", "b", "c"]).targets.tolist() == [2, 0]
    assert ImageListDataset(numbers, classes=5).classes == ["0", "1", "2", "3", "4"]
    assert ImageListDataset(numbers, classes=[2, 0]).targets.tolist() == [0, 1]
    names = write(folder, "dog/b.png x\ndog/more/a.PNG y")
    assert ImageListDataset(names, classes=["z", "y", "x"]).targets.tolist() == [2, 1]


def test_label_columns_can_be_chosen(folder):
    list_file = write(folder, "dog/b.png 2 7 0.5\ndog/more/a.PNG 0 9 -1e3")
    assert ImageListDataset(list_file, label=1).targets.tolist() == [2, 0]
    assert ImageListDataset(list_file, label=[2, 1]).targets.tolist() == [[7, 2], [9, 0]]
    dataset = ImageListDataset(list_file, label=[3], task="regression")
    assert dataset.targets.tolist() == [[0.5], [-1000]]
    assert dataset.targets.dtype == torch.float32
    assert not hasattr(dataset, "classes")
    with pytest.raises(DataError, match=r"list.txt:1: 3 labels, but `label` names column 4"):
        ImageListDataset(list_file, label=4)
    for label in (0, [], [1.5], "first"):
        with pytest.raises(DataError, match="give a column after the path"):
            ImageListDataset(list_file, label=label)


def test_lines_of_a_wrong_form_are_told_together(folder):
    list_file = write(folder, "dog/b.png\ncat/1 2.png 0\n'dog/b.png 0\n'a'b 0\ndog/b.png 0")
    with pytest.raises(DataError) as error:
        ImageListDataset(list_file)
    assert lines_of(error, folder) == [
        "list.txt:1: no label; a line is a path and a label, separated by a space",
        "list.txt:2: 2 labels; quote paths with spaces, or choose one with `label`",
        "list.txt:3: a quote that is not closed, or not followed by a space: 'dog/b.png",
        "list.txt:4: a quote that is not closed, or not followed by a space: 'a'b",
    ]


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (["a", "1", "b"], None, "list.txt:2: '1' is a number among names; `classes` may list all"),
        (["2", "1", "b"], None, "list.txt:3: 'b' is a name among numbers; `classes` may list all"),
        (["a", "dog", "do"], ["a", "dog"], "list.txt:3: unknown class 'do'; did you mean 'dog'?"),
        (["0", "2", "1"], ["cat", "dog"], "list.txt:2: class 2 is out of range, 0 to 1"),
        (["0", "-1", "1"], None, "list.txt:2: class -1 is out of range, 0 to 1"),
        (["0", "1", "1"], 1, None),
        (["0", "9000000", "1"], None, "list.txt:2: class 9000000 is out of range, 0 to 999999"),
        (["0.5", "0", "1"], 2, "list.txt:1: unknown class '0.5'"),
    ],
)  # fmt: skip
def test_a_wrong_label_is_told(folder, labels, classes, message):
    paths = ["dog/b.png", "dog/more/a.PNG", "Bär/写真.png"]
    pairs = zip(paths, labels, strict=True)
    list_file = write(folder, "\n".join(f"{path} {label}" for path, label in pairs))
    with pytest.raises(DataError) as error:
        ImageListDataset(list_file, classes=classes)
    expected = [f"list.txt:{n}: class 1 is out of range, 0 to 0" for n in (2, 3)]
    assert lines_of(error, folder) == ([message] if message else expected)


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        ("dog/b.png x", {"classes": ["x", "y", "x"]}, "classes names 'x' twice"),
        ("dog/b.png x", {"classes": []}, "classes is empty"),
        ("dog/b.png x", {"classes": "xyz"}, "classes is 'xyz'; give a list of names"),
        ("dog/b.png x", {"task": "regresion"}, "no task 'regresion'; did you mean 'regression'"),
        (None, {}, r"list.txt: no such file; the current folder is"),
        ("# nothing\n", {}, r"list.txt: no images are listed"),
        ("dog/é.png 1", {}, r"list.txt: cannot be read as UTF-8 text"),
    ],
)
def test_a_list_or_an_argument_that_cannot_be_meant_is_told(folder, content, args, message):
    if content is not None:
        write(folder, content, encoding="latin-1")
    with pytest.raises(DataError, match=message):
        ImageListDataset(str(folder / "list.txt"), **args)


def test_missing_files_are_all_named_at_the_start(folder):
    gone = [f"cat/{number}.png 0" for number in range(13)]
    list_file = write(folder, "\n".join(["dog/b.png 0", *gone, "none/x.png 0", "dog 0"]))
    with pytest.raises(DataError) as error:
        ImageListDataset(list_file)
    found = lines_of(error, folder)
    assert found[0] == "list.txt:2: cat/0.png: no such file"
    assert found[9] == "list.txt:11: cat/9.png: no such file"
    assert found[10:] == ["... and 5 more"]


def test_a_file_listed_twice_is_told_with_both_lines(folder):
    list_file = write(folder, "dog/b.png 0\n# again\n./dog/b.png 1")
    with pytest.raises(DataError) as error:
        ImageListDataset(list_file)
    text = "list.txt:3: ./dog/b.png: already listed at list.txt:1: dog/b.png"
    assert lines_of(error, folder) == [text]


def test_a_damaged_image_is_named_with_its_line(folder):
    list_file = write(folder, "dog/b.png 0\ncat/x.png 1")
    (folder / "cat/x.png").write_bytes((folder / "dog/b.png").read_bytes()[:90])
    dataset = ImageListDataset(list_file)
    with pytest.raises(DataError, match=r"list.txt:2: cat/x.png: truncated or damaged"):
        dataset[1]


@pytest.mark.parametrize("resize", [0, -3, 2.5, [3], [3, 4, 5], "12", [3, 0], True])
def test_a_size_that_is_none_is_told(folder, resize):
    with pytest.raises(DataError, match="give the shorter side in pixels or"):
        ImageFolderDataset(str(folder), resize=resize)


def test_the_fingerprint_follows_list_files_and_settings(folder):
    original = ImageFolderDataset(str(folder)).fingerprint()
    assert ImageFolderDataset(str(folder)).fingerprint() == original
    others = {
        ImageFolderDataset(str(folder), mode="grey").fingerprint(),
        ImageFolderDataset(str(folder), resize=4).fingerprint(),
    }
    os.utime(folder / "dog/b.png", ns=(1, 1))
    others.add(ImageFolderDataset(str(folder)).fingerprint())
    with (folder / "dog/b.png").open("ab") as file:
        file.write(b"x")
    os.utime(folder / "dog/b.png", ns=(1, 1))
    others.add(ImageFolderDataset(str(folder)).fingerprint())
    save(folder / "dog/c.png")
    others.add(ImageFolderDataset(str(folder)).fingerprint())
    assert len({original, *others}) == 6


def test_a_data_set_can_be_sent_to_another_process(folder):
    dataset = ImageListDataset(write(folder, "dog/b.png 0\ndog/more/a.PNG 1"))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[1][0], dataset[1][0])
    assert copy.place(1) == dataset.place(1)


def test_own_image_files_need_only_a_list(folder):
    dataset = ImageFiles(folder, ["dog/b.png"], torch.tensor([[0.5, 1]]))
    assert dataset[0][1].tolist() == [0.5, 1]
    assert dataset.place(0) == f"{folder}/dog/b.png"


def test_a_wrong_argument_in_a_config_is_a_config_error(folder):
    with pytest.raises(ConfigError, match="ImageFolderDataset cannot be built"):
        build("dataset", {"type": "ImageFolderDataset", "args": {"rot": str(folder)}})


def test_a_link_to_an_image_of_the_set_is_a_repeat(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    (tmp_path / "images/b/3.png").symlink_to(tmp_path / "images/a/1.png")
    with pytest.raises(DataError, match=r"b/3\.png: already listed at .*a/1\.png"):
        ImageFolderDataset(str(tmp_path / "images"))
    (tmp_path / "list.txt").write_text("images/a/1.png 0\nimages/b/3.png 1\n")
    with pytest.raises(DataError, match=r"list\.txt:2: images/b/3\.png: already listed at .*:1:"):
        ImageListDataset(str(tmp_path / "list.txt"))
    (tmp_path / "images/a/1.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "images/b/3.png").unlink()
    (tmp_path / "images/b/3.png").symlink_to(tmp_path / "elsewhere.png")
    assert len(ImageFolderDataset(str(tmp_path / "images"))) == 3, "a link to elsewhere is a file"


def test_class_folders_that_are_numbers_keep_the_order_of_text(tmp_path):
    """Runs of before, and of torchvision, number them so; only lists and tables sort numbers."""
    for seed, name in enumerate(["10", "2", "1", "1.0"]):
        save(tmp_path / name / "a.png", seed)
    classes = ImageFolderDataset(str(tmp_path)).classes
    assert classes == ["1", "1.0", "10", "2"] == ImageFolder(tmp_path).classes


def test_labels_of_a_list_that_are_numbers_sort_as_numbers(folder):
    paths = ["dog/b.png", "dog/more/a.PNG", "Bär/写真.png"]
    lines = [f"{path} {label}" for path, label in zip(paths, ["10.0", "2.0", "1.0"], strict=True)]
    dataset = ImageListDataset(write(folder, "\n".join(lines)))
    assert dataset.classes == ["1.0", "2.0", "10.0"]
    assert dataset.targets.tolist() == [2, 1, 0]


def test_every_format_that_pillow_writes_and_we_decode_counts_by_its_suffix(tmp_path):
    """Each suffix is tried by decoding: what `decode_image` reads, a folder must find."""
    from base.datasets.image_files import NO_PIXELS, image_suffixes
    from base.datasets.images import decode_image

    image, decoded = Image.fromarray(np.full((16, 16, 3), 90, np.uint8)), set()
    (tmp_path / "set/a").mkdir(parents=True)
    for suffix, name in Image.registered_extensions().items():
        if name in NO_PIXELS:  # read by Ghostscript, where it is installed
            continue
        path = tmp_path / f"set/a/x{suffix.upper()}"
        mode = {"XBM": "1", "MSP": "1", "PALM": "L", "BLP": "P"}.get(name, "RGB")
        try:
            image.convert(mode).save(path, format=name)
            decode_image(path)
        except Exception:  # Pillow only reads it, or only writes it
            path.unlink(missing_ok=True)
        else:
            decoded.add(suffix)
    assert decoded >= {".jfif", ".avif", ".jp2", ".webp", ".tif", ".tga", ".png"}
    assert decoded <= image_suffixes()
    dataset = ImageFolderDataset(str(tmp_path / "set"))
    assert {Path(name).suffix for name in dataset.ids} == {suffix.upper() for suffix in decoded}
    assert not image_suffixes() & {".txt", ".json", ".cls", ".pdf", ".h5", ".mpg", ".eps", ".heic"}


def test_files_that_are_skipped_are_counted_in_one_line(folder, caplog):
    for name in ("dog/1.txt", "dog/more/2.TXT", "cat/3.xml", "cat/.hidden.txt", "cat/noted"):
        (folder / name).write_text("")
    with caplog.at_level("INFO", logger="kindling"):
        dataset = ImageFolderDataset(str(folder))
    assert len(dataset) == 4
    line = f"{folder}: 4 files are skipped: 2 .txt, 1 .xml, 1 without a suffix"
    assert [record.getMessage() for record in caplog.records] == [line]
    caplog.clear()
    (folder / "fox").mkdir()
    (folder / "fox/1.heic").write_text("")
    with pytest.raises(DataError, match=r"fox: an empty class folder \(found 1 .heic\)"):
        ImageFolderDataset(str(folder))
