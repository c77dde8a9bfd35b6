"""Transforms keyed by sample: by the batch, one by one, in threads and processes, all alike."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from base.base_data_loader import BaseDataLoader
from base.data.random_draws import Draws
from base.datasets.in_memory import InMemoryDataset
from base.datasets.pipeline import Pipeline, TransformedDataset
from base.datasets.transforms import (
    RandomCutout,
    RandomFlip,
    RandomShift,
    batched_transform,
    crop,
)
from base.errors import DataError
from base.system.seeding import cpu_streams, derive_seed, seed_everything

IMAGES = torch.randint(0, 256, (40, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator())
LABELS = torch.arange(40)


class OneByOne(Dataset):
    """The same images as if they were decoded from files."""

    def __len__(self):
        return len(IMAGES)

    def image(self, index):
        return IMAGES[index]

    def __getitem__(self, index):
        return self.image(index), LABELS[index]


def jitter(image):
    """A user's own transform: draws from all three streams."""
    shift = torch.randint(100, ()) + np.random.randint(100) + random.randrange(100)
    return (image + shift).to(torch.uint8)


def loader(source, transforms, n_workers=0, **more):
    dataset = TransformedDataset(source, Pipeline(transforms))
    return BaseDataLoader(dataset, 8, True, 0, n_workers, seed=3, **more)


def epoch(data, first=0, count=5):
    return list(data.batches(first, count))


def assert_equal(batches, others):
    assert len(batches) == len(others) > 0
    for one, other in zip(batches, others, strict=True):
        for part, other_part in zip(one, other, strict=True):
            assert torch.equal(part, other_part)


KEYED = [RandomShift(2), RandomFlip(), RandomCutout(4)]


@pytest.mark.parametrize("transforms", [[], KEYED, [jitter], [*KEYED, jitter, RandomFlip()]])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_every_path_gives_the_same_batches(transforms, n_workers):
    expected = epoch(loader(InMemoryDataset(IMAGES, LABELS), transforms))
    assert_equal(epoch(loader(InMemoryDataset(IMAGES, LABELS), transforms, n_workers)), expected)
    assert_equal(epoch(loader(OneByOne(), transforms, n_workers)), expected)
    assert_equal(epoch(loader(OneByOne(), transforms, n_workers), 2, 3), expected[2:])


@pytest.mark.parametrize("transforms", [KEYED, [jitter]])
def test_a_batch_is_its_samples_by_themselves_and_epochs_differ(transforms):
    dataset = TransformedDataset(OneByOne(), Pipeline(transforms))
    indices = torch.tensor([3, 30, 7])
    whole = dataset.get_random_batch(indices, 1, 4)[0]
    parts = [dataset.get_random_batch(index[None], 1, 4)[0] for index in indices]
    assert torch.equal(whole, torch.cat(parts))
    for seed, number in ((1, 5), (2, 4)):
        assert not torch.equal(whole, dataset.get_random_batch(indices, seed, number)[0])


@pytest.mark.parametrize("transforms", [KEYED, [jitter]])
def test_the_trainers_streams_do_not_notice(transforms):
    seed_everything(5)
    before = cpu_streams()
    epoch(loader(InMemoryDataset(IMAGES, LABELS), transforms))
    for one, other in zip(before, cpu_streams(), strict=True):
        assert str(one) == str(other)


def test_pixels_are_scaled_and_normalised_by_channel():
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    pipeline = Pipeline(white=120, mean=mean.tolist(), std=std.tolist())
    expected = ((IMAGES.movedim(1, -1) / 120 - mean) / std).movedim(-1, 1)
    dataset = TransformedDataset(InMemoryDataset(IMAGES, LABELS), pipeline)
    for _ in range(2):  # what is in memory stays as it is
        batch = dataset.get_random_batch(LABELS, 0, 0)[0]
        torch.testing.assert_close(batch, expected)
        batch.add_(7)


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n_channels", [1, 3, 4])
@pytest.mark.parametrize("n_numbers", [1, None])  # of mean and std; None: one per channel
def test_large_images_are_scaled_as_small_parts_of_them(layout, n_channels, n_numbers):
    generator = torch.Generator().manual_seed(0)
    shape = (5, n_channels, 260, 270)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images = images.contiguous(memory_format=layout)
    n = n_numbers or n_channels
    pipeline = Pipeline(mean=[0.1, 0.2, 0.3, 0.4][:n], std=[0.2, 0.3, 0.4, 0.5][:n])
    whole = pipeline.as_input(images)
    assert whole.is_contiguous(memory_format=layout)
    for row in range(0, 260, 20):
        part = pipeline.as_input(images[:, :, row : row + 20].contiguous())
        assert torch.equal(whole[:, :, row : row + 20], part)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", [-1, -2])
def test_large_images_are_flipped_where_the_draws_say(layout, dim):
    images = torch.randint(0, 256, (8, 3, 80, 90), dtype=torch.uint8).contiguous(
        memory_format=layout
    )
    before, draws = images.clone(), Draws.for_samples(0, 0, torch.arange(8))
    are_flipped = (draws.copy().uniform()[:, 0] < 0.5).tolist()
    flipped = RandomFlip(0.5, dim).batch(images, draws)
    assert 0 < sum(are_flipped) < 8
    assert flipped.is_contiguous(memory_format=layout)
    for image, result, is_flipped in zip(before, flipped, are_flipped, strict=True):
        assert np.array_equal(result, np.flip(image.numpy(), dim) if is_flipped else image)
    flipped.fill_(0)
    assert torch.equal(images, before)


def test_images_of_unequal_shapes_are_changed_one_by_one_and_then_stacked():
    from torchvision.transforms import v2

    class Ragged(OneByOne):
        def image(self, index):
            return IMAGES[index][:, : 6 + index % 3]

    crop = v2.RandomCrop(5)
    dataset = TransformedDataset(Ragged(), Pipeline([RandomFlip(), crop]))
    batch = dataset.get_random_batch(torch.arange(9), 0, 0)[0]
    assert batch.shape == (9, 3, 5, 5)
    single = dataset.get_random_batch(torch.tensor([7]), 0, 0)[0]
    assert torch.equal(batch[7], single[0])
    with pytest.raises(DataError, match=r"sample 1 is \(3, 7, 10\), sample 0 \(3, 6, 10\)"):
        TransformedDataset(Ragged(), Pipeline()).get_random_batch(torch.arange(9), 0, 0)


def test_a_shift_moves_every_way_and_brings_in_black():
    images = torch.zeros(400, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2] = 9
    shifted = RandomShift(2).batch(images, Draws.for_samples(0, 0, torch.arange(400)))
    places = {tuple(s[0].nonzero()[0].tolist()) for s in shifted}
    assert places == {(row, column) for row in range(5) for column in range(5)}
    assert (shifted.flatten(1).sum(1) == 9).all()


def test_a_transform_of_ours_changes_a_single_image_too():
    seed_everything(0)
    mirrored = [torch.equal(RandomFlip()(IMAGES[0]), IMAGES[0].flip(-1)) for _ in range(200)]
    assert 70 < sum(mirrored) < 130


def test_a_cutout_blacks_out_a_square_inside_the_image():
    images = torch.ones(300, 2, 9, 9)
    cut = RandomCutout(4).batch(images, Draws.for_samples(0, 0, torch.arange(300))) == 0
    assert torch.equal(cut[:, 0], cut[:, 1])
    sizes = cut[:, 0].flatten(1).sum(1)
    assert sizes.max() == 16
    assert sizes.min() == 4  # the centre in a corner
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, sizes)


@pytest.mark.parametrize("name", ["crop", "padded", "reflected", "flip", "vertical"])
def test_torchvisions_transform_by_key_has_its_distribution(name):
    """Each result of the one is a result of the other, about as often."""
    from torchvision.transforms import v2

    image = torch.arange(20, dtype=torch.uint8).view(1, 4, 5)
    transform = {
        "crop": v2.RandomCrop((3, 2)),
        "padded": v2.RandomCrop((4, 5), padding=1, fill=3),
        "reflected": v2.RandomCrop((4, 5), padding=[1, 2], padding_mode="reflect"),
        "flip": v2.RandomHorizontalFlip(0.3),
        "vertical": v2.RandomVerticalFlip(),
    }[name]
    n = 3000
    seed_everything(1)
    expected = [bytes(transform(image).flatten().tolist()) for _ in range(n)]
    draws = Draws.for_samples(0, 0, torch.arange(n))
    found = batched_transform(transform).batch(image.expand(n, 1, 4, 5), draws)
    found = [bytes(each.flatten().tolist()) for each in found]
    assert set(found) == set(expected)
    for result in set(expected):
        share = expected.count(result) / n
        assert abs(found.count(result) / n - share) < 5 * (share / n) ** 0.5


def test_a_resized_crop_by_key_takes_parts_of_torchvisions_areas_and_shapes():
    from torchvision.transforms import v2

    transform = batched_transform(v2.RandomResizedCrop(4, scale=(0.2, 0.6), ratio=(0.5, 2.0)))
    seed_everything(1)
    numbers = torch.rand(1000, 10, 4).tolist()
    boxes = torch.tensor([transform._box(tries, 60, 80) for tries in numbers], dtype=torch.float64)
    theirs = torch.tensor(
        [v2.RandomResizedCrop(4, (0.2, 0.6), (0.5, 2.0)).make_params([IMAGES.new_zeros(3, 60, 80)])
         [key] for _ in range(1000) for key in ("top", "left", "height", "width")],
        dtype=torch.float64,
    ).view(1000, 4)  # fmt: skip
    for mine, other in zip(boxes.T, theirs.T, strict=True):
        spread = other.std() / 1000**0.5
        assert abs(mine.mean() - other.mean()) < 5 * spread
        assert abs(mine.std() - other.std()) < 0.1 * other.std()
    batch = transform.batch(IMAGES, Draws.for_samples(0, 0, LABELS))
    assert batch.shape == (40, 3, 4, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    "options",
    [{}, {"interpolation": 0}, {"interpolation": 3}, {"antialias": False}, {"antialias": None}],
)
def test_the_pixels_of_a_resized_crop_are_torchvisions(layout, dtype, options):
    from torchvision.transforms import v2

    images = torch.randint(0, 256, (8, 3, 61, 83), generator=torch.Generator().manual_seed(0))
    images = images.to(dtype).contiguous(memory_format=layout)
    transform = batched_transform(v2.RandomResizedCrop((20, 24), **options))
    draws = Draws.for_samples(0, 0, torch.arange(8))
    numbers = torch.tensor(draws.copy().numbers(40)).view(8, 10, 4).tolist()
    for found, image, tries in zip(transform.batch(images, draws), images, numbers, strict=True):
        box = transform._box(tries, 61, 83)
        assert torch.equal(found, v2.functional.resized_crop(image, *box, [20, 24], **options))


def test_draws_are_uniform_and_follow_from_seed_epoch_and_index():
    numbers = Draws.for_samples(1, 2, torch.arange(20000)).uniform(3)
    assert ((numbers >= 0) & (numbers < 1)).all()
    counts = torch.histc(numbers, 20, 0, 1)
    assert ((counts - 3000).abs() < 5 * 3000**0.5).all()
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.03
    steps = torch.corrcoef(torch.stack([numbers[:-1, 0], numbers[1:, 0]]))[0, 1]
    assert abs(steps) < 0.03
    again = Draws.for_samples(1, 2, [77, 5])
    first, rest = again.uniform(), again.uniform(2)
    assert torch.equal(torch.cat([first, rest], 1), numbers[[77, 5]])
    assert Draws.for_samples(1, 2, range(500)).integers(7).unique().tolist() == list(range(7))


def test_draws_are_those_of_the_published_hash():
    """SplitMix64's finalizer, computed with Python's integers; resumed runs rely on each bit."""

    def mixed(word):
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        return word ^ word >> 31

    step, start = 0x9E3779B97F4A7C15, derive_seed(3, "sample", 4)
    draws = Draws.for_samples(3, 4, [0, 5, 2**40])
    keys = [mixed((index * step + start) % 2**64) for index in (0, 5, 2**40)]
    assert [key % 2**64 for key in draws.keys.tolist()] == keys
    numbers = torch.cat([draws.uniform(2), draws.uniform()], dim=1)
    expected = [[(mixed((k + n * step) % 2**64) >> 40) / 2**24 for n in (1, 2, 3)] for k in keys]
    assert numbers.tolist() == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(4, 5), (9, 11), (1, 1), (9, 2)])
def test_a_crop_is_the_slice_of_each_image(layout, dtype, size):
    images = torch.randint(0, 256, (12, 3, 9, 11), dtype=torch.uint8).to(dtype)
    images = images.contiguous(memory_format=layout)[2:]  # does not begin its memory
    top, left = (
        torch.randint(whole - part + 1, (10,)) for whole, part in zip((9, 11), size, strict=True)
    )
    found = crop(images, top, left, size)
    for image, result, row, column in zip(images, found, top, left, strict=True):
        assert torch.equal(result, image[:, row : row + size[0], column : column + size[1]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("dim", [-1, -2])
def test_small_images_are_flipped_where_the_draws_say(layout, dtype, dim):
    images = torch.randint(0, 256, (30, 3, 9, 11), dtype=torch.uint8).to(dtype)
    images = images.contiguous(memory_format=layout)
    draws = Draws.for_samples(0, 0, torch.arange(30))
    are_flipped = draws.copy().uniform()[:, 0] < 0.5
    flipped = RandomFlip(0.5, dim).batch(images, draws)
    assert 0 < are_flipped.sum() < 30
    assert flipped.is_contiguous(memory_format=layout)
    for image, result, is_flipped in zip(images, flipped, are_flipped, strict=True):
        assert torch.equal(result, image.flip(dim) if is_flipped else image)


def test_data_that_are_no_images_pass_through():
    rows = torch.randn(6, 4)
    dataset = TransformedDataset(TensorDataset(rows, LABELS[:6]), Pipeline())
    inputs, targets = dataset.get_random_batch(torch.tensor([5, 0]), 0, 0)
    assert torch.equal(inputs, rows[[5, 0]])
    assert targets.tolist() == [5, 0]


@pytest.mark.parametrize(
    ("transforms", "more", "is_asked"),
    [(KEYED, {}, True), ([jitter], {}, False), (KEYED, {"workers": "processes"}, False)],
)
def test_data_that_other_processes_read_are_not_put_on_a_gpu(
    monkeypatch, transforms, more, is_asked
):
    asked = []
    monkeypatch.setattr(TransformedDataset, "place_on", lambda self, device: asked.append(device))
    loader(InMemoryDataset(IMAGES, LABELS), transforms, 2, **more).place_on(torch.device("cuda"))
    assert bool(asked) == is_asked


def test_a_batch_is_not_taken_apart_where_no_target_moves(monkeypatch):
    """2 us an image and stage: on a GPU as much as the transforms of a small image."""

    def refuse(tensor):
        raise AssertionError("a batch is iterated over")

    pipeline = Pipeline([RandomShift(1), RandomFlip(), RandomCutout(2)], mean=[0.4], std=[0.2])
    expected = pipeline(IMAGES[:4], 1, 0, torch.arange(4))
    monkeypatch.setattr(torch.Tensor, "__iter__", refuse)
    assert torch.equal(pipeline(IMAGES[:4], 1, 0, torch.arange(4)), expected)
