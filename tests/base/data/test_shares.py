"""Each rank reads its share of each global batch: together they read what one process reads."""

import itertools
import random
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from base.base_data_loader import BaseDataLoader
from base.data.batch import DEFAULT_RULES, SampleCount
from base.data.cut_parts import CutLoader, sharded
from base.data.replayed_loader import as_batches
from base.data.shares import Share, fault_of_batch_size
from base.datasets.mixing import MixUp
from base.errors import DataError, TrainingError
from base.run.loaders import DeferredLoader
from base.system.seeding import seed_everything

SIZES = (1, 2, 3, 4, 7)
N_SAMPLES = 22


class Noisy(Dataset):
    """Sample i is i and a random number from each stream: an augmented data set in small."""

    targets = torch.arange(N_SAMPLES) % 3
    weight = torch.arange(N_SAMPLES, dtype=torch.float32)

    def __len__(self):
        return N_SAMPLES

    def __getitem__(self, index):
        streams = torch.rand(()).item(), float(np.random.random()), random.random()
        return torch.tensor([index, *streams], dtype=torch.float64), index % 3


class Keyed(Noisy):
    """The same, read in threads."""

    readers, uses_streams = "threads", False

    def get_random_batch(self, indices, seed, epoch):
        noise = (indices * 31 + epoch * 7 + seed) % 13
        return torch.stack([indices % N_SAMPLES, noise], 1).to(torch.float64), indices % 3


class InMemory(Noisy):
    def get_batch(self, indices):
        return torch.stack([indices, indices * 10], 1), indices % 3


class Broken(Noisy):
    def __init__(self, *bad):
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError("no pixels")
        return super().__getitem__(index)


class Counted(Noisy):
    """Notes, in this process, what is read."""

    def __init__(self):
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


class Backwards:
    """A sampler of a `BaseDataLoader`."""

    def draw(self, indices, generator):
        return indices.flip(0)


class Walk(Sampler):
    """Draws while samples are read, and remembers how often."""

    n_passes = 0

    def __len__(self):
        return N_SAMPLES

    def __iter__(self):
        self.n_passes += 1
        left = list(range(N_SAMPLES))
        while left:
            yield left.pop(int(torch.randint(len(left), ())))


class Remembered(Walk):
    def state_dict(self):
        return {"n_passes": self.n_passes}

    def load_state_dict(self, state):
        self.n_passes = state["n_passes"]


def make(dataset=None, batch_size=5, shuffle=True, split=0.0, workers=0, **options):
    loader = BaseDataLoader(dataset or Noisy(), batch_size, shuffle, split, workers, **options)
    loader.set_seed(11)
    return loader


def read(loader, first, count):
    """Return each batch as a list of rows, each as a tuple of numbers, and with its `n_own`."""
    found = []
    for batch in loader.batches(first, count):
        n_own = loader.n_own
        columns = [
            part.tolist() for part in (batch if isinstance(batch, list | tuple) else [batch])
        ]
        found.append((list(map(str, zip(*columns, strict=True))), n_own))
    if hasattr(loader, "close"):
        loader.close()
    return found


def read_whole(loader, first, count):
    found = read(loader, first, count)
    assert {n_own for _, n_own in found} <= {None}
    return [rows for rows, _ in found]


def number(row):
    """The index of a sample."""
    return int(float(row[2:].split(",")[0]))


def numbers(batches):
    return [list(map(number, rows)) for rows in batches]


def read_by(ranks, first, count, view=str):
    """Read a loader of each rank, and return a view of the batches that they make together."""
    wholes = []
    for parts in zip(*(read(loader, first, count) for loader in ranks), strict=True):
        parts = [(list(map(view, rows)), n_own) for rows, n_own in parts]
        owned = [rows[:n_own] for rows, n_own in parts]
        for rank, (rows, n_own) in enumerate(parts):
            assert n_own == len(rows) or (n_own == 0 and rows == owned[0][:1]), rank
        longest = itertools.zip_longest(*owned)
        wholes.append([row for turn in longest for row in turn if row is not None])
    return wholes


def ranks_of(build, size):
    return [sharded(build(), rank, size) for rank in range(size)]


# --- BaseDataLoader -------------------------------------------------------------------------------

LOADERS = {
    "one by one": make,
    "two processes": lambda: make(workers=2),
    "two threads": lambda: make(Keyed(), workers=2),
    "in memory": lambda: make(InMemory()),
    "without the short batch": lambda: make(drop_last=True),
    "balanced": lambda: make(sampling="balanced"),
    "own sampler": lambda: make(sampler=Backwards()),
    "torch's sampler": lambda: make(sampler=WeightedRandomSampler([1.0] * N_SAMPLES, N_SAMPLES)),
    "sampler with a state": lambda: make(sampler=Remembered()),
    "in order": lambda: make(shuffle=False),
    "with validation": lambda: make(split=6),
}


def sizes_for(kind):
    """Fewer where processes have to start."""
    return (3,) if "process" in kind or "worker" in kind else SIZES


@pytest.mark.parametrize(
    ("kind", "size"), [(kind, size) for kind in LOADERS for size in sizes_for(kind)]
)
def test_ranks_read_together_what_one_process_reads(kind, size):
    build = LOADERS[kind]
    for first, count in ((0, 9), (3, 4)):  # the second begins within an epoch
        whole = read_whole(build(), first, count)
        if size == 1:
            assert read_whole(sharded(build(), 0, 1), first, count) == whole
        else:
            assert read_by(ranks_of(build, size), first, count) == whole


@pytest.mark.parametrize("size", [2, 4, 7])
@pytest.mark.parametrize("is_split_first", [True, False])
def test_validation_is_shared_too(size, is_split_first):
    def build(rank):
        loader = make(split=9)
        held_out = loader.split_validation() if is_split_first else None
        loader.shard(rank, size)
        return held_out or loader.split_validation()

    whole = make(split=9).split_validation()
    assert read_by([build(rank) for rank in range(size)], 0, 2) == read_whole(whole, 0, 2)


def test_a_share_may_be_changed_and_taken_back():
    loader = make(split=9)
    whole, held_out = read_whole(loader, 0, 3), read_whole(loader.split_validation(), 0, 2)
    loader.shard(1, 3)
    assert [n_own for _, n_own in read(loader, 0, 3)] == [2, 2, 1]
    assert [n_own for _, n_own in read(loader.split_validation(), 0, 2)] == [2, 1]
    assert (len(loader), loader.batch_size, loader.n_drawn(2)) == (3, 5, 3)
    loader.shard(0, 1)
    assert read_whole(loader, 0, 3) == whole
    assert read_whole(loader.split_validation(), 0, 2) == held_out


@pytest.mark.parametrize("kind", ["BaseDataLoader", "torch's loader"])
def test_each_sample_is_read_once_while_the_number_of_ranks_changes(kind):
    def build():
        if kind == "BaseDataLoader":
            return make()
        return as_batches(DataLoader(Noisy(), batch_size=5, shuffle=True), 11)

    read_so_far = []
    for size, first, count in ((1, 0, 1), (2, 1, 2), (4, 3, 3), (7, 6, 1), (1, 7, 3)):
        if size == 1:
            batches = numbers(read_whole(build(), first, count))
        else:
            batches = read_by(ranks_of(build, size), first, count, number)
        read_so_far += itertools.chain(*batches)
    both = read_so_far[:N_SAMPLES], read_so_far[N_SAMPLES:]
    assert [sorted(epoch) for epoch in both] == [list(range(N_SAMPLES))] * 2


def test_a_rank_without_samples_borrows_the_first_one():
    loader = make(batch_size=6)
    whole = read_whole(loader, 0, 4)
    loader.shard(5, 7)
    assert read(loader, 0, 4) == [([rows[-1]], 1) for rows in whole[:3]] + [([whole[3][0]], 0)]
    loader.shard(6, 7)
    assert read(loader, 0, 4) == [([rows[0]], 0) for rows in whole]


@pytest.mark.parametrize("workers", [0, 1])
def test_ids_and_weights_go_with_the_samples(workers):
    def build():
        loader = make(workers=workers)
        loader.add_to_batches({**DEFAULT_RULES, "ids": True, "weight": "weight"})
        return loader

    assert read_by(ranks_of(build, 3), 2, 5) == read_whole(build(), 2, 5)
    for _, _, ids, weights in sharded(build(), 1, 3).batches(0, 5):
        assert torch.equal(ids.to(torch.float32), weights)


def test_each_rank_reads_only_its_samples():
    datasets = [Counted() for _ in range(4)]
    for rank, dataset in enumerate(datasets):
        read(sharded(make(dataset, batch_size=8), rank, 4), 0, 3)
    assert sorted(itertools.chain(*(each.read for each in datasets))) == list(range(N_SAMPLES))


# Bad samples


def skipping(dataset, is_training, split=0.0):
    loader = make(dataset, batch_size=4, split=split, shuffle=is_training)
    found = []
    loader.skip_bad_samples(found.extend, allowed=20, replace=is_training)
    return loader, found


@pytest.mark.parametrize("size", [2, 3, 7])
def test_in_training_each_rank_replaces_its_bad_samples(size):
    bad = (3, 8, 15)
    parts, found = [], set()
    for rank in range(size):
        loader, noted = skipping(Broken(*bad), is_training=True)
        loader.shard(rank, size)
        parts.append(read(loader, 0, 6))
        found |= {each.sample for each in noted}
    assert found == set(bad)
    assert [sum(n for _, n in turn) for turn in zip(*parts, strict=True)] == [4, 4, 4, 4, 4, 2]
    for rank, part in enumerate(parts):
        assert [n_own for _, n_own in part] == [
            len(range(rank, n, size)) for n in (4, 4, 4, 4, 4, 2)
        ]
        assert all(len(rows) == max(n_own, 1) for rows, n_own in part)


@pytest.mark.parametrize("bad", [(), (5,), (0, 1, 6, 7), (4, 5, 6, 7, 20, 21), (0, 2, 20)])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_in_evaluation_ranks_count_the_samples_that_can_be_read(size, bad):
    parts = []
    for rank in range(size):
        loader, _ = skipping(Broken(*bad), is_training=False)
        loader.shard(rank, size)
        parts.append(read(loader, 0, 6))
    assert [len(part) for part in parts] == [6] * size  # also if a whole part is bad
    owned = [row for part in parts for rows, n_own in part for row in rows[:n_own]]
    assert sorted(map(number, owned)) == sorted(set(range(N_SAMPLES)) - set(bad))
    assert all(len(rows) == max(n_own, 1) for part in parts for rows, n_own in part)


def test_an_error_of_a_sample_is_that_of_the_rank_that_reads_it():
    first, second = ranks_of(lambda: make(Broken(1), shuffle=False), 2)
    assert len(list(first.batches(0, 5))) == 5
    with pytest.raises(DataError, match="cannot read sample 1 of Broken"):
        list(second.batches(0, 5))


def test_samples_are_mixed_with_others_of_the_same_rank():
    """Each rank's part is mixed as a batch of its own: what the documentation says."""

    class Mixed(Noisy):
        readers, uses_streams = "none", False

        def get_random_batch(self, indices, seed, epoch):
            inputs = indices[:, None].to(torch.float32)
            return list(MixUp(num_classes=3)(inputs, indices % 3, seed, epoch, indices))

    (order,) = numbers(read_whole(make(), 0, 1))
    for rank in range(2):
        (batch,) = sharded(make(Mixed()), rank, 2).batches(0, 1)
        expected = Mixed().get_random_batch(torch.tensor(order[rank::2]), 11, 0)
        assert all(map(torch.equal, batch, expected))


# --- Other loaders --------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(number, torch.rand(())) for number in torch.randperm(10).tolist()])


class OwnLoop(BaseDataLoader):
    def __iter__(self):
        for inputs, target in super().__iter__():
            yield -inputs, target


class OwnReading(BaseDataLoader):
    """A subclass that reads its data set in a way of its own."""

    def __iter__(self):
        rows = torch.arange(N_SAMPLES)[torch.randperm(N_SAMPLES)]
        yield from zip(rows.split(5), (rows % 3).split(5), strict=True)


class Plain:
    """A loader as people write them; its samples are rows of two arrays."""

    def __len__(self):
        return 4

    def __iter__(self):
        for n_samples in (5, 5, 5, 2):
            yield torch.rand(n_samples, 3), np.random.random(n_samples)


class Positioned:
    """A loader with positions of its own."""

    batch_size = 5

    def __len__(self):
        return 4

    def batches(self, first, count):
        for position in range(first, first + count):
            n_samples = 5 if position % 4 < 3 else 2
            yield torch.arange(n_samples) + 10 * position, torch.arange(n_samples)


def stock(workers=0, dataset=None, **options):
    options = {"batch_size": 5, "shuffle": True, **options}
    return as_batches(DataLoader(dataset or Noisy(), num_workers=workers, **options), 3)


def generator():
    return torch.Generator().manual_seed(1)


BATCHED = BatchSampler(Walk(), 5, False)
ORDERS = {  # torch's loaders, whose samples draw from streams that each rank has for itself
    "shuffled": stock,
    "two workers": lambda: stock(2),
    "own generator": lambda: stock(generator=generator()),
    "own generator, worker": lambda: stock(1, generator=generator()),
    "drop_last": lambda: stock(drop_last=True),
    "batch sampler": lambda: stock(
        batch_size=1, shuffle=False, batch_sampler=BatchSampler(RandomSampler(Noisy()), 5, False)
    ),
    "user's sampler": lambda: stock(shuffle=False, sampler=Walk()),
    "user's sampler, worker": lambda: stock(1, shuffle=False, sampler=Walk()),
    "user's sampler in torch's": lambda: stock(batch_size=1, shuffle=False, batch_sampler=BATCHED),
    "sampler with a state": lambda: stock(shuffle=False, sampler=Remembered()),
}


@pytest.mark.parametrize("kind", ORDERS)
def test_ranks_read_the_samples_of_torchs_loader_in_the_order_of_one_process(kind):
    build = ORDERS[kind]
    for first, count in ((0, 9), (3, 4)):
        whole = numbers(read_whole(build(), first, count))
        for size in set(sizes_for(kind)) - {1}:
            assert read_by(ranks_of(build, size), first, count, number) == whole


@pytest.mark.parametrize(
    ("build", "reads_its_own"),
    [
        (lambda dataset: stock(dataset=dataset), True),
        (lambda dataset: stock(dataset=dataset, shuffle=False, sampler=Walk()), False),
    ],
)
def test_each_rank_of_torchs_loader_reads_only_its_samples(build, reads_its_own):
    datasets = [Counted() for _ in range(3)]
    for rank, dataset in enumerate(datasets):
        read(sharded(build(dataset), rank, 3), 0, 5)
    n_read = sum(len(each.read) for each in datasets)
    assert n_read == N_SAMPLES + 1 if reads_its_own else 3 * N_SAMPLES  # one is borrowed


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_of_different_ranks_get_different_random_numbers(workers):
    noise = [
        row.partition(",")[2]
        for loader in ranks_of(lambda: stock(workers), 3)
        for rows, n_own in read(loader, 0, 10)
        for row in rows[:n_own]
    ]
    assert len(set(noise)) == 2 * N_SAMPLES


BATCHES = list(Plain())
ROWS = {
    "plain object": lambda: as_batches(Plain(), 3),
    "stream": lambda: as_batches(DataLoader(Stream(), batch_size=4), 3),
    "stream, worker": lambda: as_batches(DataLoader(Stream(), batch_size=4, num_workers=1), 3),
    "own loop": lambda: as_batches(OwnLoop(Noisy(), 5, True, 0.0, 0), 3),
    "own reading": lambda: as_batches(OwnReading(Noisy(), 5, True, 0.0, 0), 3),
    "own positions": Positioned,
    "own batches": lambda: as_batches(DataLoader(BATCHES, batch_size=None), 3),
}


@pytest.mark.parametrize(
    ("kind", "size"), [(kind, size) for kind in ROWS for size in sizes_for(kind) if size > 1]
)
def test_ranks_keep_their_rows_of_the_batches_of_any_other_loader(kind, size):
    build = ROWS[kind]
    for first, count in ((0, 7), (2, 3)):
        seed_everything(first)  # what the trainer has drawn does not matter
        whole = read_whole(sharded(build(), 0, 1), first, count)
        assert read_by(ranks_of(build, size), first, count) == whole


@pytest.mark.parametrize("kind", [*ROWS, "shuffled", "two workers", "sampler with a state"])
def test_whole_batches_come_back_with_a_world_of_one(kind):
    build = (ROWS | ORDERS)[kind]
    whole = read_whole(build() if kind != "own positions" else sharded(build(), 0, 1), 0, 7)
    loader = sharded(build(), 1, 3)
    assert read(loader, 0, 7)[0][1] == 2 - ("stream" in kind)
    loader.shard(0, 1)
    assert read_whole(loader, 0, 7) == whole


def test_the_rows_of_a_rank_do_not_keep_the_whole_batch():
    (batch,) = sharded(Positioned(), 0, 5).batches(0, 1)
    assert [part.untyped_storage().nbytes() for part in batch] == [8, 8]


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"x": torch.arange(4), "y": list("abcd")}, {"x": [1, 3], "y": ["b", "d"]}),
        (Pair(torch.arange(4), torch.arange(4) * 2), Pair([1, 3], [2, 6])),
        ([torch.arange(4), {"b": "name"}], [[1, 3], {"b": "name"}]),
        (torch.arange(4), [1, 3]),
    ],
)  # fmt: skip
def test_rows_are_taken_from_batches_of_any_form(batch, expected):
    (part,) = sharded(as_batches([batch], 0), 1, 2).batches(0, 1)
    assert str(part).replace("tensor(", "").replace(")", "") == str(expected).replace(")", "")


def test_the_ids_of_a_batch_are_divided_with_it():
    for build in (stock, lambda: as_batches(DataLoader(Noisy(), 5, sampler=Walk()), 3)):
        for rank in range(3):
            loader = build()
            loader.add_to_batches({**DEFAULT_RULES, "ids": True, "weight": "weight"})
            for inputs, _, ids, weights in sharded(loader, rank, 3).batches(0, 5):
                assert inputs[:, 0].tolist() == ids.tolist() == weights.tolist()
                assert len(ids) == max(loader.n_own, 1)


def test_validation_of_a_wrapped_loader_is_shared_too():
    for is_split_first in (True, False):
        parts = []
        for rank in range(3):
            loader = as_batches(OwnLoop(Noisy(), 5, True, 9, 0), 3)
            held_out = loader.split_validation() if is_split_first else None
            loader.shard(rank, 3)
            parts.append(held_out or loader.split_validation())
        whole = as_batches(OwnLoop(Noisy(), 5, True, 9, 0), 3).split_validation()
        assert read_by(parts, 0, 2) == read_whole(whole, 0, 2)


# What cannot be shared


class Graph:
    def to(self, device):
        return self


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([torch.zeros(7, 4, 2), torch.arange(4)], r"list: a batch that holds \(7, 4, 2\) cannot"),
        ([torch.zeros(4, 2), Graph(), torch.arange(4)], "list: a Graph cannot be cut"),
        ([nn.utils.rnn.pack_sequence([torch.ones(2)] * 4), torch.arange(4)], "PackedSequence"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_told_with_what_to_do(batch, message):
    with pytest.raises(TrainingError, match=rf"{message}.*torch's DataLoader.*shard\(rank, size\)"):
        list(sharded(as_batches([batch], 0), 0, 2).batches(0, 1))


def test_a_number_that_counts_the_samples_cannot_be_cut():
    rules = {**DEFAULT_RULES, "size": "n"}
    loader = as_batches([{"x": torch.zeros(4), "n": 4}], 0, rules)
    with pytest.raises(TrainingError, match="2 of the 4 samples of a batch were cut, but 4 are"):
        list(sharded(loader, 0, 2).batches(0, 1))


def test_a_sampler_that_divides_the_samples_too_is_refused():
    sampler = DistributedSampler(Noisy(), num_replicas=2, rank=1)
    for loader in (
        stock(shuffle=False, sampler=sampler),
        stock(batch_size=1, shuffle=False, batch_sampler=BatchSampler(sampler, 5, False)),
    ):
        with pytest.raises(
            DataError, match=r"DataLoader: its DistributedSampler divides.*batch_size"
        ):
            loader.shard(0, 2)
        loader.shard(0, 1)
    stock(shuffle=False, sampler=DistributedSampler(Noisy(), num_replicas=1, rank=0)).shard(0, 2)


def test_batches_in_any_order_are_refused():
    loader = stock(2, in_order=False)
    with pytest.raises(DataError, match="in_order=False"):
        loader.shard(0, 2)
    loader.shard(0, 1)


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_the_world_lacks_is_refused(rank, size):
    for loader in (make(), stock(), CutLoader(Positioned(), DEFAULT_RULES)):
        with pytest.raises(DataError, match=f"rank {rank} of {size}"):
            loader.shard(rank, size)


# Loaders that share by themselves


class Graphs:
    """Batches that cannot be cut: the loader reads its part itself."""

    n_own = None

    def __init__(self):
        self.share = Share()

    def shard(self, rank, size):
        self.share = Share.of_rank(rank, size)

    def __len__(self):
        return 2

    def __iter__(self):
        for n_samples in (5, 2):
            self.n_own = self.share.count_own(n_samples)
            graph = Graph()
            graph.nodes = self.share.of(list(range(n_samples)))
            yield graph


def test_a_loader_may_read_its_part_itself():
    loader = sharded(as_batches(Graphs(), 0), 1, 4)
    assert [(graph.nodes, loader.n_own) for graph in loader.batches(0, 2)] == [([1], 1), ([1], 1)]
    loader.shard(2, 4)
    assert [(graph.nodes, loader.n_own) for graph in loader.batches(0, 2)] == [([2], 1), ([0], 0)]


def test_a_loader_built_later_is_shared_then():
    for build in (make, Positioned):
        loader = DeferredLoader(build, None)
        loader.shard(1, 2)
        assert loader.n_own is None
        assert [n_own for _, n_own in read(loader, 0, 2)] == [2, 2]
        loader.shard(0, 2)
        assert [n_own for _, n_own in read(loader, 0, 2)] == [3, 3]


# --- Counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 4), (3, 4), (6, 7)])
def test_the_samples_of_a_part_are_counted_although_time_comes_first(rank, size):
    def time_first(samples):
        return torch.zeros(9, len(samples), 3), torch.zeros(9, len(samples), dtype=torch.int64)

    loader = sharded(make(collate_fn=time_first, batch_size=6), rank, size)
    count = SampleCount(DEFAULT_RULES, loader)
    by_size = SampleCount(DEFAULT_RULES, loader)  # without positions: by the batch_size
    for position, batch in enumerate(loader.batches(0, 4)):
        n_own = len(range(rank, 6 if position < 3 else 4, size))
        assert count(batch, position) == by_size(batch) == batch[0].shape[1] == max(n_own, 1)


def test_a_batch_smaller_than_the_world_is_told():
    assert fault_of_batch_size(make(batch_size=4), 4) == ""
    text = fault_of_batch_size(make(batch_size=3), 4)
    assert text.startswith("the batch_size is 3, but 4 processes share each batch, so that 1 of")
    assert "set it to 4 or more" in text
    batched = BatchSampler(RandomSampler(Noisy()), 3, False)
    loader = stock(batch_size=1, shuffle=False, batch_sampler=batched)
    assert fault_of_batch_size(loader, 3) == ""
    assert "batch_size is 3" in fault_of_batch_size(loader, 4)
    assert fault_of_batch_size(as_batches(Plain(), 0), 9) == ""  # not known
