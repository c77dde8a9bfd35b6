"""Batches of data in memory are read several at a time, and equal those read one by one."""

import gc
import weakref

import pytest
import torch
from torchvision import transforms as tv

from base.base_data_loader import BaseDataLoader
from base.datasets import pipeline as pipeline_module
from base.datasets.in_memory import InMemoryDataset
from base.datasets.mixing import MixUp
from base.datasets.pipeline import Pipeline, TransformedDataset
from base.datasets.transforms import KeyedTransform, RandomCutout, RandomFlip, RandomShift
from base.errors import DataError

N = 45  # a last batch of 5, at a batch size of 8
IMAGES = torch.randint(0, 256, (N, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator())
ROWS = torch.rand(N, 7, generator=torch.Generator())
LABELS = torch.arange(N) % 4
CHANGES = {
    "none": [],
    "shift, flip": [RandomShift(2), RandomFlip()],
    "cutout, flip": [RandomCutout(4), RandomFlip(dim=-2)],
    "torchvision": [
        tv.RandomCrop(10, padding=2),
        tv.RandomHorizontalFlip(),
        tv.ToTensor(),
        tv.Normalize([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
    ],
    "resized": [tv.CenterCrop(8), tv.Resize(6, antialias=True), RandomFlip()],
    "mixed": [RandomFlip(), MixUp(4)],
}


class OfTheBatch(KeyedTransform):
    """A user's own transform, which does not keep to the rule: it depends on the batch."""

    keeps_places = True

    def batch(self, images, draws):
        return images.flip(0)


def dataset(changes, images=IMAGES, labels=LABELS):
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.3, 0.2, 0.1]} if images is IMAGES else {}
    return TransformedDataset(InMemoryDataset(images, labels), Pipeline(changes, **statistics))


def loader(changes, images=IMAGES, **more):
    return BaseDataLoader(dataset(changes, images), 8, True, 0, 0, seed=3, **more)


def assert_equal(batches, others):
    assert len(batches) == len(others) > 0
    for one, other in zip(batches, others, strict=True):
        for part, other_part in zip(one, other, strict=True):
            assert torch.equal(part, other_part)
            assert part.stride() == other_part.stride()
            assert part.dtype == other_part.dtype


def one_by_one(data, monkeypatch, first, count):
    """Read the batches with `get_random_batch` alone, as workers do."""
    with monkeypatch.context() as patch:
        patch.setattr(TransformedDataset, "n_together", lambda *_: 1)
        patch.delattr(TransformedDataset, "get_random_batches")
        return list(data.batches(first, count))


@pytest.fixture
def sizes(monkeypatch):
    """Returns how many batches each call reads together."""
    found, real = [], TransformedDataset.get_random_batches

    def counted(self, parts, seed, epoch):
        found.append(len(parts))
        return real(self, parts, seed, epoch)

    monkeypatch.setattr(TransformedDataset, "get_random_batches", counted)
    return found


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("changes", CHANGES)
def test_images_equal_those_of_batches_read_one_by_one(changes, layout, sizes, monkeypatch):
    images = IMAGES.contiguous(memory_format=layout)
    data = BaseDataLoader(dataset(CHANGES[changes], images), 8, True, 0, 0, seed=3)
    together = list(data.batches(0, 15))
    assert sizes == [6, 6, 3]  # epochs of 6 batches
    assert_equal(together, one_by_one(data, monkeypatch, 0, 15))


@pytest.mark.parametrize("first", [1, 4, 5, 6])
def test_an_epoch_does_not_depend_on_where_reading_starts(first):
    data = loader(CHANGES["shift, flip"])
    assert_equal(list(data.batches(first, 12 - first)), list(data.batches(0, 12))[first:])


@pytest.mark.parametrize(
    "options",
    [
        {"sampling": "balanced"},  # draws samples again, with other changes
        {"drop_last": True},
        {"sampler": torch.utils.data.SequentialSampler(range(N))},
    ],
    ids=["balanced", "drop_last", "sampler"],
)
def test_every_order_gives_the_same_batches(options, monkeypatch):
    data = loader(CHANGES["shift, flip"], **options)
    n_batches = 2 * len(data)
    assert_equal(list(data.batches(0, n_batches)), one_by_one(data, monkeypatch, 0, n_batches))


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_ranks_read_their_samples_of_each_batch(rank, monkeypatch):
    data = loader(CHANGES["shift, flip"])
    whole = list(data.batches(0, 6))
    data.shard(rank, 3)
    own = []
    for batch in data.batches(0, 6):
        own.append(batch)
        assert data.n_own == len(batch[1])
    assert_equal(
        own, [[part[list(range(rank, len(part), 3))] for part in batch] for batch in whole]
    )


def test_rows_of_floats_equal_those_read_one_by_one(sizes, monkeypatch):
    data = loader([], ROWS)
    together = list(data.batches(0, 6))
    assert sizes == [6]
    assert_equal(together, one_by_one(data, monkeypatch, 0, 6))


def test_a_batch_has_memory_of_its_own():
    """Saving one batch does not save those it was read with, and each is aligned as if alone."""
    for batch in loader(CHANGES["shift, flip"]).batches(0, 6):
        for part in batch:
            assert part.untyped_storage().nbytes() == part.nbytes
            assert part.data_ptr() % 64 == 0


def test_large_batches_are_read_one_at_a_time(sizes, monkeypatch):
    monkeypatch.setattr(pipeline_module, "TOGETHER_BYTES", 3 * 8 * IMAGES[0].nbytes + 1)
    assert len(list(loader([RandomFlip()]).batches(0, 6))) == 6
    assert sizes == [3, 3]
    sizes.clear()
    monkeypatch.setattr(pipeline_module, "TOGETHER_BYTES", 2 * 8 * IMAGES[0].nbytes - 1)
    assert len(list(loader([RandomFlip()]).batches(0, 6))) == 6
    assert sizes == []


@pytest.mark.parametrize(
    "changes", [[OfTheBatch()], [RandomFlip(), lambda image: image + 1]], ids=["own", "single"]
)
def test_a_transform_of_yours_receives_the_images_of_one_batch(changes, sizes):
    list(loader(changes).batches(0, 6))
    assert sizes == []


def test_methods_that_a_subclass_overrides_are_called(sizes):
    class Own(TransformedDataset):
        def get_random_batch(self, indices, seed, epoch):
            return [indices]

    data = BaseDataLoader(Own(InMemoryDataset(IMAGES, LABELS), Pipeline()), 8, False, 0, 0)
    assert torch.cat([batch[0] for batch in data.batches(0, 6)]).tolist() == list(range(N))
    assert sizes == []


def test_an_error_names_the_batch_it_is_in():
    """The batches before it are still given, as if all were read one by one."""
    data = loader([RandomFlip()])
    data.dataset.pipeline.normalise([0.5, 0.5], [1.0, 1.0])
    with pytest.raises(DataError, match=r"2 numbers of mean or std, but images have 3 channels"):
        next(data.batches(0, 6))
    data = loader([tv.RandomCrop(99)])
    with pytest.raises(DataError, match=r"cannot read samples \[.*: RandomCrop of 99x99"):
        next(data.batches(0, 6))


def test_batches_before_an_error_are_given(monkeypatch):
    real, calls = Pipeline.as_input, []

    def fails_once(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise MemoryError
        return real(self, images)

    data = loader([RandomFlip()])
    expected = list(data.batches(0, 6))
    monkeypatch.setattr(Pipeline, "as_input", fails_once)
    assert_equal(list(data.batches(0, 6)), expected)  # the third is read again by itself
    assert calls == [8, 8, 8, 8, 8, 8, 5]


class WithMask(InMemoryDataset):
    """A user's data set with an item more, which moves with the image."""

    def get_batch(self, indices):
        return [*super().get_batch(indices), self.images[indices, 0].long()]


def test_a_source_that_reads_in_its_own_way_gives_one_batch_at_a_time(sizes):
    source = WithMask(IMAGES, LABELS)
    data = TransformedDataset(source, Pipeline([tv.RandomHorizontalFlip(1.0)]))
    for images, _, masks in BaseDataLoader(data, 8, False, 0, 0).batches(0, 6):
        assert torch.equal((images[:, 0] * 255).round().long(), masks)
    assert sizes == []


class Wrapped:
    """A wrapper that passes on all but what it changes."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __len__(self):
        return len(self.inner)

    def get_random_batch(self, indices, seed, epoch):
        images, targets = self.inner.get_random_batch(indices, seed, epoch)
        return [images, targets + 100]


def test_a_wrapper_is_asked_for_each_batch(sizes):
    data = BaseDataLoader(Wrapped(dataset([RandomFlip()])), 8, False, 0, 0)
    assert all(batch[1].min() >= 100 for batch in data.batches(0, 6))
    assert sizes == []


def test_images_count_as_large_as_transforms_make_them(sizes, monkeypatch):
    """Between the transforms too: a group must not take many times the memory of a batch."""
    monkeypatch.setattr(pipeline_module, "TOGETHER_BYTES", 6 * 8 * IMAGES[0].nbytes)
    enlarged = [tv.Resize((24, 20), antialias=True), tv.CenterCrop(4)]
    assert len(list(loader(enlarged).batches(0, 6))) == 6
    assert sizes == []
    assert len(list(loader([tv.CenterCrop(4)]).batches(0, 6))) == 6
    assert sizes == [6]


def test_an_error_has_no_other_error_as_its_context():
    data = loader([tv.RandomCrop(99)])
    with pytest.raises(DataError) as told:
        next(data.batches(0, 6))
    chain, error = [], told.value
    while error is not None:
        chain.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    assert chain == ["DataError", "ValueError"]


def test_the_images_of_a_failed_group_are_freed(monkeypatch):
    """While the batches that it held are read one by one."""
    alive, real = weakref.WeakSet(), Pipeline.changed

    def changed(self, images, *args):
        result = real(self, images, *args)
        alive.add(result)
        return result

    calls = []

    def fails_once(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise MemoryError
        return as_input(self, images)

    as_input = Pipeline.as_input
    monkeypatch.setattr(Pipeline, "changed", changed)
    monkeypatch.setattr(Pipeline, "as_input", fails_once)
    for number, _ in enumerate(loader([RandomFlip()]).batches(0, 6)):
        if number > 2:
            gc.collect()
            assert not alive
