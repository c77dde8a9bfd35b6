"""Folders of images and masks: pairs by name, numbers checked, caches and parts keep pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from base.data.fingerprint import samples_of
from base.datasets.composed import ConcatenatedDataset, SubsetDataset
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.mask_folder import MaskFolderDataset
from base.datasets.transforms import RandomFlip
from base.errors import DataError
from base.names.construction import build
from base.run.data_changes import changed_hashes

CLASSES = ["sky", "tree", "road"]
N = 6


def numbers(seed: int, height: int = 12, width: int = 9) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 3, (height, width)).astype(np.uint8)


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six pairs, one in a folder of its own; an image is 80 times its mask in all channels."""
    for seed in range(N):
        name = "deep/5" if seed == 5 else str(seed)
        mask = numbers(seed)
        save(tmp_path / f"masks/{name}.png", Image.fromarray(mask))
        save(tmp_path / f"images/{name}.png", Image.fromarray(np.stack([mask * 80] * 3, 2)))
    return tmp_path


def test_each_image_has_the_mask_of_its_name(root):
    section = {"type": "MaskFolderDataset", "args": {"root": str(root), "classes": CLASSES}}
    dataset = build("dataset", section)
    assert isinstance(dataset, MaskFolderDataset)
    assert dataset.classes == CLASSES
    assert dataset.ids == [*(f"{n}.png" for n in range(5)), "deep/5.png"]
    for seed in range(N):
        image, mask = dataset[seed]
        assert mask.dtype == torch.int64
        assert torch.equal(mask, torch.from_numpy(numbers(seed)).long())
        assert torch.equal(image, (mask * 80).to(torch.uint8).expand(3, -1, -1))


def palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values).convert("P")
    image.putdata(values.flatten().tolist())
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    return image


COLORS = [[0, 0, 0], [200, 0, 0], [0, 200, 0]]
FORMS = {
    "grey": (Image.fromarray, {}),
    "palette": (palette, {}),
    "16 bits": (lambda values: Image.fromarray(values.astype(np.uint16)), {}),
    "colours": (lambda values: palette(values).convert("RGB"), {"colors": COLORS}),
    "colours of a palette": (palette, {"colors": COLORS}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask_gives_its_class_numbers(root, form):
    make, args = FORMS[form]
    for seed in range(5):
        make(numbers(seed)).save(root / f"masks/{seed}.png")
    if form.startswith("colours"):
        make(numbers(5)).save(root / "masks/deep/5.png")
    dataset = MaskFolderDataset(str(root), CLASSES, **args)
    for seed in range(N):
        assert torch.equal(dataset[seed][1], torch.from_numpy(numbers(seed)).long())


@pytest.mark.parametrize("ignore_index", [255, 3, -100, 0])
def test_pixels_without_a_class_keep_the_number_that_says_so(root, ignore_index):
    mask = numbers(2)
    mask[:3] = ignore_index % 256
    if ignore_index >= 0:
        save(root / "masks/2.png", Image.fromarray(mask))
    else:
        mask = numbers(2)
    dataset = MaskFolderDataset(str(root), CLASSES, ignore_index=ignore_index)
    assert torch.equal(dataset[2][1], torch.from_numpy(mask).long())


def test_numbers_and_colours_that_are_no_classes_name_the_file(root):
    mask = numbers(2)
    mask[0, 0], mask[0, 1] = 7, 255
    save(root / "masks/2.png", Image.fromarray(mask))
    text = r"masks/2.png: it contains 7, 255, but classes are 0 to 2; if .*, set ignore_index"
    with pytest.raises(DataError, match=text):
        MaskFolderDataset(str(root), CLASSES)[2]
    with pytest.raises(DataError, match=r"masks/2.png: it contains 7, but classes are 0 to 2$"):
        MaskFolderDataset(str(root), CLASSES, ignore_index=255)[2]
    for index in range(N):
        name = "deep/5" if index == 5 else index
        save(root / f"masks/{name}.png", palette(numbers(index)).convert("RGB"))
    with pytest.raises(DataError, match=r"masks/0.png: an image of mode RGB.*`colors`"):
        MaskFolderDataset(str(root), CLASSES)[0]
    few = [[0, 0, 0], [200, 0, 0], [9, 9, 9]]
    with pytest.raises(DataError, match=r"the colour \[0, 200, 0\] does not belong to a class"):
        MaskFolderDataset(str(root), CLASSES, colors=few)[0]
    found = MaskFolderDataset(str(root), CLASSES, colors=few, ignore_index=255)[0][1]
    expected = torch.from_numpy(numbers(0)).long()
    assert torch.equal(found, torch.where(expected == 2, 255, expected))


def test_all_pairs_that_do_not_fit_are_named(root):
    (root / "masks/1.png").unlink()
    save(root / "masks/extra.png", Image.fromarray(numbers(0)))
    save(root / "images/3.jpg", Image.fromarray(numbers(0)))
    with pytest.raises(DataError) as error:
        MaskFolderDataset(str(root), CLASSES)
    lines = str(error.value).replace(f"{root}/", "").split("\n")
    assert lines == [
        "images/3.png: images/3.jpg has the same name, by which masks are found".replace(
            "images/3.jpg", "3.jpg"
        ),
        "images/1.png: no mask: masks/1.png",
        "masks/extra.png: no image of this name in images",
    ]


def test_unequal_sizes_are_named_before_training(root):
    save(root / "masks/2.png", Image.fromarray(numbers(2, 9, 12)))
    with pytest.raises(DataError, match=r"masks/2.png: 12x9 pixels, but .*images/2.png has 9x12"):
        MaskFolderDataset(str(root), CLASSES)


def test_an_image_that_is_turned_by_its_exif_data_has_the_mask_that_is_seen(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(np.stack([numbers(2) * 80] * 3, 2)).rotate(90, expand=True)
    turned.save(root / "images/2.png", exif=exif)
    image, mask = MaskFolderDataset(str(root), CLASSES)[2]
    assert torch.equal(image[0], (mask * 80).to(torch.uint8))


@pytest.mark.parametrize("resize", [6, [6, 18]])
def test_masks_are_resized_with_their_images_and_hold_no_new_numbers(root, resize):
    dataset = MaskFolderDataset(str(root), CLASSES, resize=resize, ignore_index=255)
    for index in range(N):
        image, mask = dataset[index]
        assert image.shape[-2:] == mask.shape == ((8, 6) if resize == 6 else (6, 18))
        expected = np.array(Image.fromarray(numbers(index)).resize(mask.shape[::-1], 0))
        assert torch.equal(mask, torch.from_numpy(expected).long())


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
@pytest.mark.parametrize("kind", ["whole", "subset", "two"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_and_masks_stay_together_on_every_path(root, tmp_path, cache, kind, num_workers):
    whole = MaskFolderDataset(str(root), CLASSES, ignore_index=255)
    subset = SubsetDataset(whole, indices=[5, 2, 4])
    dataset = {"whole": whole, "subset": subset}.get(kind)
    dataset = ConcatenatedDataset([subset, whole]) if dataset is None else dataset
    loader = DatasetLoader(
        dataset, 4, cache=cache, cache_dir=str(tmp_path / "cache"), num_workers=num_workers,
        transforms=[RandomFlip(), RandomFlip(dim=-2)],
    )  # fmt: skip
    loader.set_ignored(255)
    n_seen = 0
    for images, masks in loader.batches(0, len(loader)):
        assert torch.equal((images[:, 0] * 255).round().long(), masks * 80)
        n_seen += len(masks)
    loader.close()
    assert n_seen == len(dataset)


def test_a_cache_knows_other_classes_and_other_masks(root, tmp_path):
    def first_mask(**args):
        dataset = MaskFolderDataset(str(root), CLASSES, **args)
        cached = DatasetLoader(dataset, 4, False, cache="disk", cache_dir=str(tmp_path / "cache"))
        return next(cached.batches(0, 1))[1][0]

    expected = torch.from_numpy(numbers(0)).long()
    assert torch.equal(first_mask(), expected)
    assert torch.equal(first_mask(ignore_index=1), expected)
    assert torch.equal(first_mask(ignore_index=2), expected)
    save(root / "masks/0.png", Image.fromarray(numbers(77)))
    assert torch.equal(first_mask(), torch.from_numpy(numbers(77)).long())


def test_a_loss_that_ignores_another_number_is_told(root):
    loader = DatasetLoader(MaskFolderDataset(str(root), CLASSES, ignore_index=255), 4)
    text = (
        r"marks pixels without a class by 255, the loss by -100: give the loss .*ignore_index: 255"
    )
    with pytest.raises(DataError, match=text):
        loader.set_ignored(-100)
    loader.set_ignored(None)
    assert loader._pipelines[0].ignored == 255


@pytest.mark.parametrize("kind", ["plain", "cached", "joined", "part"])
def test_a_resume_notices_that_a_mask_was_edited(root, kind):
    def digests() -> tuple[dict, dict]:
        dataset = MaskFolderDataset(str(root), CLASSES)
        if kind == "joined":
            dataset = ConcatenatedDataset([dataset])
        if kind == "part":
            dataset = SubsetDataset(dataset, indices=[4, 2, 5])
        cache = "memory" if kind == "cached" else "none"
        samples = samples_of(DatasetLoader(dataset, 2, cache=cache, num_workers=0))
        texts = dict(zip(samples.names, samples.target_texts(), strict=True))
        return {"train": samples.digests}, texts

    before, texts = digests()
    assert digests() == (before, texts)
    Image.fromarray(numbers(9)).save(root / "masks/2.png")
    after, new_texts = digests()
    assert [name for name in texts if texts[name] != new_texts[name]] == ["2.png"]
    assert changed_hashes(before, after) == [("targets", "targets of the training samples differ")]


def test_images_and_masks_in_memory_are_told_in_one_line(root, caplog):
    dataset = MaskFolderDataset(str(root), CLASSES)
    n_bytes = sum(image.nbytes + mask.numel() for image, mask in dataset)  # a mask is of bytes
    with caplog.at_level("INFO", "kindling"):
        DatasetLoader(dataset, 4, cache="memory")
    (told,) = [text for text in caplog.messages if text.startswith("cache: ")]
    place = f" of {dataset.root}" if hasattr(dataset, "root") else ""
    assert told == f"cache: 6 images and masks{place} in memory ({n_bytes / 1e3:.0f} kB)"
