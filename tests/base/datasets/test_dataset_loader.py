"""One loader for any data set: what a config says of cache, split, statistics and transforms."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from base.datasets.composed import ConcatenatedDataset
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.image_files import ImageFolderDataset
from base.datasets.in_memory import InMemoryDataset, SyntheticDataset
from base.datasets.shards.reader import ShardDataset
from base.datasets.shards.writer import main as write_shards
from base.datasets.transforms import RandomCutout, RandomFlip, RandomShift
from base.errors import DataError
from tests.base.toy import assert_resumes

PIXELS = torch.randint(0, 256, (60, 3, 8, 6), dtype=torch.uint8)
CLASSES = torch.arange(60) % 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same images as PNG files, in a folder for each class."""
    for index, (pixels, number) in enumerate(zip(PIXELS, CLASSES.tolist(), strict=True)):
        path = tmp_path / "images" / f"class{number}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "images"


def in_memory() -> InMemoryDataset:
    return InMemoryDataset(PIXELS, CLASSES)


def all_of(loader: DatasetLoader, epoch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(loader.batches(epoch * len(loader), len(loader)))
    return torch.cat([images for images, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_auto_normalises_by_the_training_part_in_validation_too(folder, tmp_path, cache):
    loader = DatasetLoader(
        ImageFolderDataset(str(folder)), 16, split=0.25, normalize="auto",
        cache=cache, cache_dir=str(tmp_path / "cache"), num_workers=2,
    )  # fmt: skip
    paths = [folder / name for name in loader.dataset.ids]
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]) / 255
    trained = pixels[loader._indices.numpy()]
    mean, std = trained.mean((0, 1, 2)), trained.std((0, 1, 2))
    images, _ = all_of(loader)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    held_out = loader.split_validation()
    expected = (pixels[held_out._indices.numpy()] - mean) / std
    found = all_of(held_out)[0].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_statistics_are_kept_and_made_anew_when_a_file_changes(folder, tmp_path, monkeypatch):
    read = Counter()
    image = ImageFolderDataset.image
    monkeypatch.setattr(
        ImageFolderDataset, "image", lambda self, i: read.update([i]) or image(self, i)
    )

    def mean() -> float:
        read.clear()
        dataset = ImageFolderDataset(str(folder))
        loader = DatasetLoader(dataset, 60, normalize="auto", cache_dir=str(tmp_path / "cache"))
        next(loader.batches(0, 1))
        return float(loader._pipelines[0].mean[0])

    first = mean()
    assert set(read.values()) == {2}, "once for the statistics, once for the batch"
    assert mean() == first
    assert set(read.values()) == {1}, "the statistics were kept"
    Image.new("RGB", (6, 8), "white").save(folder / "class0" / "000.png")
    assert mean() > first


@pytest.mark.parametrize("transforms", [[], [RandomShift(1), RandomFlip()]])
def test_caches_threads_and_memory_give_the_same_batches(folder, tmp_path, transforms):
    def batches(dataset, **more):
        loader = DatasetLoader(
            dataset, 16, transforms=transforms, split={"valid": 0.2, "stratify": True},
            cache_dir=str(tmp_path / "cache"), **more,
        )  # fmt: skip
        return [*all_of(loader, 3), *all_of(loader.split_validation())]

    dataset = ImageFolderDataset(str(folder))
    expected = batches(dataset, num_workers=0)
    arrays = torch.stack([dataset.image(i) for i in range(60)])
    for found in (
        batches(dataset, num_workers=2),
        batches(dataset, cache="memory"),
        batches(dataset, cache="disk", num_workers=2),
        batches(InMemoryDataset(arrays, dataset.targets)),
    ):
        assert all(map(torch.equal, found, expected))


def test_validation_and_test_data_of_their_own(folder):
    other = SyntheticDataset(12, (3, 8, 6), 3)
    loader = DatasetLoader(in_memory(), 16, valid_dataset=other, test_dataset=other)
    assert loader.n_samples == 60
    images, labels = all_of(loader.split_validation())
    assert torch.equal(images, other.images.float() * (1 / 255))
    assert torch.equal(labels, other.targets)
    tested = DatasetLoader(
        in_memory(), 16, test_dataset=other, training=False, shuffle=True, sampling="balanced"
    )
    assert torch.equal(all_of(tested)[1], other.targets)
    assert tested.split_validation() is None


@pytest.mark.parametrize(
    ("argument", "part"), [("valid_dataset", "validation"), ("test_dataset", "test")]
)
def test_the_same_files_must_not_train_and_validate_or_test(folder, argument, part):
    one, other = (ImageFolderDataset(str(folder)) for _ in range(2))
    with pytest.raises(DataError, match=f"60 files are both training and {part} data: .*000"):
        DatasetLoader(one, 16, **{argument: other})


def test_classes_must_be_numbered_alike(folder, tmp_path):
    other = tmp_path / "other" / "class1"
    other.mkdir(parents=True)
    Image.new("RGB", (6, 8)).save(other / "x.png")
    with pytest.raises(DataError, match="differ in their classes: class0, class2"):
        DatasetLoader(
            ImageFolderDataset(str(folder)), 16, valid_dataset=ImageFolderDataset(str(other.parent))
        )


def test_a_sample_that_is_drawn_again_is_changed_in_another_way():
    images = torch.arange(8 * 5 * 5, dtype=torch.uint8).view(8, 1, 5, 5)
    dataset = InMemoryDataset(images, torch.tensor([0] * 7 + [1]))
    loader = DatasetLoader(dataset, 8, sampling="balanced", transforms=[RandomShift(2)])
    changed, labels = all_of(loader)
    rare = changed[labels == 1]
    assert len(rare) > 2
    assert len({tuple(image.flatten().tolist()) for image in rare}) > 1


class Mine(Dataset):
    """A user's own: whatever an image may be."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.make(PIXELS[index]), index


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: x.permute(1, 2, 0), "channel"),
        (lambda x: x.numpy(), "channel"),
        (lambda x: x.float(), "255"),
        (lambda x: "text", "str"),
    ],
)
def test_an_image_in_another_form_is_told_with_its_sample(make, message):
    loader = DatasetLoader(Mine(make), 4, num_workers=0, mode="RGB", shuffle=False)
    with pytest.raises(DataError, match=f"sample 0.*{message}"):
        next(loader.batches(0, 1))


@pytest.mark.parametrize("n_workers", [0, 2])
def test_pil_arrays_and_tensors_of_a_users_data_set_are_the_same(n_workers):
    forms = [
        lambda x: x,
        lambda x: x.permute(1, 2, 0).numpy(),
        lambda x: Image.fromarray(x.permute(1, 2, 0).numpy()),
        lambda x: x.permute(1, 2, 0).numpy()[:, ::-1][:, ::-1],
    ]
    loaders = [DatasetLoader(Mine(make), 4, num_workers=0, shuffle=False) for make in forms]
    for loader in loaders:
        assert torch.equal(next(loader.batches(0, 1))[0], PIXELS[:4].float() * (1 / 255))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cache": "memroy"}, "cache: one of none, memory, disk, not 'memroy'; did you mean"),
        ({"normalize": "imagnet"}, "normalize: auto, imagenet"),
        ({"normalize": {"mean": [0.5], "std": [0]}}, "std must be above 0"),
        ({"normalize": {"mean": "x", "std": 1}}, "mean and std are numbers"),
        ({"split": 0.1, "valid_dataset": SyntheticDataset(4)}, "give `split` or a `valid_dataset`"),
        ({"training": False}, "no test data"),
        ({"split": {"folds": 3, "fold": 3}}, "split.fold: a number from 0 to 2, not 3"),
        ({"num_workers": "many"}, "num_workers: a whole number or 'auto'"),
        ({"split": "abc"}, "split: a share or number of samples, .* not 'abc'"),
        ({"split": [1]}, r"split: a share or number of samples, .* not \[1\]"),
        ({"split": {"valid": "x"}}, "split: a share or number of samples, .* not 'x'"),
        ({"split": {"valid": 0.1, "stratify": "maybe"}}, "split.stratify: true or false"),
        ({"normalize": {"mean": [], "std": []}}, "mean and std are numbers"),
        ({"normalize": {"mean": [float("nan")], "std": [1]}}, "mean and std are numbers"),
        ({"normalize": {"mean": [0.5], "std": [float("inf")]}}, "mean and std are numbers"),
        ({"transforms": 3}, "transforms: a list, not 3"),
        ({"transforms": "RandomFlip"}, "transforms: a list, not 'RandomFlip'"),
        ({"transforms": RandomFlip()}, "transforms: a list, not .*RandomFlip"),
        ({"transforms": [object()]}, "transforms: object is not callable"),
        ({"mode": "RBG"}, "no image mode 'RBG'; did you mean 'RGB'"),
        ({"mode": "grey"}, "mode: InMemoryDataset .* itself"),
        ({"valid_dataset": 3}, "valid_dataset: expected .* found a value of type int"),
        ({"valid_dataset": "abc"}, "valid_dataset: expected .* found a value of type str"),
        ({"test_dataset": 3}, "test_dataset: expected .* found a value of type int"),
    ],
)
def test_what_cannot_be_done_is_told(more, message):
    with pytest.raises(DataError, match=message):
        DatasetLoader(in_memory(), 16, **more)


def test_imagenets_statistics_go_by_their_name():
    images = all_of(DatasetLoader(in_memory(), 16, shuffle=False, normalize="imagenet"))[0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (PIXELS.permute(0, 2, 3, 1) / 255 - mean) / std
    torch.testing.assert_close(images.permute(0, 2, 3, 1), expected)


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_a_run_that_was_cut_in_mid_epoch_ends_with_the_same_bits(folder, tmp_path, cache):
    text = f"""
name: files
seed: 3
model: {{type: MLP, args: {{n_inputs: 144, hidden: [6], n_outputs: 3}}}}
data_loader:
  type: DatasetLoader
  args:
    dataset: {{type: ImageFolderDataset, args: {{root: "{folder}"}}}}
    batch_size: 12
    split: {{folds: 5, fold: 1, stratify: true}}
    sampling: balanced
    transforms: [{{type: RandomShift, args: {{pixels: 2}}}}, RandomFlip]
    normalize: auto
    cache: {cache}
    cache_dir: "{tmp_path / "cache"}"
    num_workers: 2
optimizer: {{type: SGD, args: {{lr: 0.1}}}}
loss: cross_entropy
trainer: {{epochs: 2, tensorboard: false, progress: false, verbosity: 0}}
"""
    assert_resumes(tmp_path, text=text)


def test_a_data_set_must_have_a_length_and_samples():
    class Endless:
        def __getitem__(self, index):
            return PIXELS[0], 0

    with pytest.raises(DataError, match="Endless has no length"):
        DatasetLoader(Endless(), 4)
    with pytest.raises(DataError, match="InMemoryDataset is empty"):
        DatasetLoader(InMemoryDataset(PIXELS[:0], CLASSES[:0]), 4)


@pytest.mark.parametrize("numbers", [[0.5, 0.5], [0.5] * 3])
def test_mean_and_std_fit_the_channels(numbers):
    grey = InMemoryDataset(PIXELS[:, :1], CLASSES)
    loader = DatasetLoader(grey, 16, normalize={"mean": numbers, "std": numbers})
    with pytest.raises(DataError, match=rf"normalize: {len(numbers)} numbers .* 1 channel"):
        next(loader.batches(0, 1))


@pytest.mark.parametrize("transform", [RandomFlip(), RandomShift(1), RandomCutout(1)])
def test_a_transform_of_images_refuses_rows_of_a_table(transform):
    rows = InMemoryDataset(torch.rand(8, 2), torch.arange(8))
    loader = DatasetLoader(rows, 8, transforms=[transform])
    with pytest.raises(DataError, match=rf"{type(transform).__name__} supports images .*\(8, 2\)"):
        next(loader.batches(0, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomShift(-1), "RandomShift: pixels"),
        (lambda: RandomCutout(0), "RandomCutout: pixels"),
        (lambda: RandomFlip(2), "RandomFlip: p"),
        (lambda: RandomFlip(dim=0), "RandomFlip: dim"),
    ],
)
def test_a_transform_refuses_what_it_cannot_do(make, message):
    with pytest.raises(DataError, match=message):
        make()


@pytest.mark.parametrize("n_workers", [0, 2])
def test_unequal_images_are_told_with_their_samples(folder, n_workers):
    Image.new("RGB", (9, 9)).save(folder / "class0" / "003.png")
    loader = DatasetLoader(ImageFolderDataset(str(folder)), 4, False, num_workers=n_workers)
    with pytest.raises(DataError, match=r"sample 1 is \(3, 9, 9\), sample 0 \(3, 8, 6\).*Resize"):
        next(loader.batches(0, 1))


class Wrong:
    """A transform that gives something else than an image of the same batch."""

    def __init__(self, result):
        self.result = result

    def __call__(self, image):
        return self.result


class WrongBatch(Wrong):
    def batch(self, images, draws):
        return self.result


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Wrong(None), "the result of Wrong: a NoneType"),
        (Wrong((1, 2)), "the result of Wrong: a tuple"),
        (WrongBatch(None), "WrongBatch .* returned a NoneType"),
        (WrongBatch(PIXELS[:2]), r"WrongBatch .* returned \(2, 3, 8, 6\)"),
    ],
)
def test_a_transform_that_gives_something_else_is_named(transform, message):
    loader = DatasetLoader(in_memory(), 16, transforms=[transform], num_workers=0)
    with pytest.raises(DataError, match=message):
        next(loader.batches(0, 1))


def test_links_do_not_hide_that_files_train_and_validate(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    for file in folder.glob("*/*"):
        link = tmp_path / "links" / file.parent.name / f"as_{file.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    for name in ("linked", "links"):
        other = ImageFolderDataset(str(tmp_path / name))
        with pytest.raises(DataError, match="60 files are both training and validation data"):
            DatasetLoader(ImageFolderDataset(str(folder)), 16, valid_dataset=other)


def test_the_same_shards_must_not_train_and_validate(folder, tmp_path):
    assert write_shards(["write", str(folder), str(tmp_path / "all"), "--count", "25"]) == 0
    one, other = (ShardDataset(str(tmp_path / name)) for name in ("all-*.tar", "all-000001.tar"))
    with pytest.raises(DataError, match=r"25 files are both .*: all-000001.tar: 000025.png is all"):
        DatasetLoader(one, 16, valid_dataset=other)


def test_a_file_in_two_joined_data_sets_is_not_split(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)

    def joined():
        return ConcatenatedDataset([ImageFolderDataset(str(tmp_path)) for _ in range(2)])

    with pytest.raises(DataError, match=r"a/0\.png: this file is in two of the joined data sets"):
        DatasetLoader(joined(), 2, split=0.5)
    assert len(DatasetLoader(joined(), 2)) == 3


@pytest.mark.parametrize("shape", [(4,), (4, 4), (4, 7), (4, 4, 4)])
def test_auto_normalises_channels_of_any_shape(shape):
    x = torch.randn(30, *shape) * torch.arange(1, 5).view(4, *[1] * (len(shape) - 1)) + 3
    dataset = InMemoryDataset(x, torch.zeros(30))
    images, _ = all_of(DatasetLoader(dataset, 30, shuffle=False, normalize="auto"))
    others = [0, *range(2, x.dim())]
    mean, std = x.mean(others, keepdim=True), x.std(others, correction=0, keepdim=True)
    assert torch.allclose(images, (x - mean) / std, atol=1e-5)


class OwnImages(Dataset):
    """Whole samples, as torchvision's sets give them: no `image`, no `get_batch`."""

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 60

    def __getitem__(self, index):
        torch.rand(3)  # as a data set that draws
        pixels = PIXELS[index]
        if self.kind == "pil":
            return Image.fromarray(pixels.permute(1, 2, 0).numpy()), int(CLASSES[index])
        return (pixels / 255 if self.kind == "floats" else pixels), int(CLASSES[index])


@pytest.mark.parametrize("kind", ["pil", "bytes", "floats"])
def test_auto_normalises_a_data_set_of_your_own(kind):
    loader = DatasetLoader(OwnImages(kind), 16, split=0.25, normalize="auto", num_workers=0)
    loader.set_seed(3)
    before = torch.get_rng_state()
    loader._compute_statistics()
    assert torch.equal(torch.get_rng_state(), before)
    trained = PIXELS[loader.sample_indices()].double() / 255
    mean, std = trained.mean((0, 2, 3)), trained.std((0, 2, 3), correction=0)
    assert torch.allclose(torch.tensor(loader.record()["mean"]).double(), mean, atol=1e-6)
    assert torch.allclose(torch.tensor(loader.record()["std"]).double(), std, atol=1e-6)


def test_constants_and_large_numbers_with_small_differences_are_normalised():
    x = torch.stack([torch.full((300,), 0.1), 1e9 + torch.arange(300) % 3 * 64.0], dim=1)
    loader = DatasetLoader(InMemoryDataset(x, torch.zeros(300)), 300, normalize="auto")
    next(loader.batches(0, 1))
    mean, std = loader._pipelines[0].mean.double(), loader._pipelines[0].std.double()
    expected = x.double()
    assert std.tolist() == pytest.approx([1, float(expected[:, 1].std(correction=0))])
    assert mean.tolist() == pytest.approx(expected.mean(0).tolist(), rel=1e-7)


def test_single_numbers_have_no_columns_to_normalise():
    data = InMemoryDataset(torch.rand(8), torch.arange(8) % 2)
    loader = DatasetLoader(data, 4, normalize="auto", num_workers=0)
    with pytest.raises(DataError, match=r"without columns or channels: give .* shape \(N, 1"):
        next(loader.batches(0, 1))
