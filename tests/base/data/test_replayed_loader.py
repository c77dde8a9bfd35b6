"""Positions for loaders that know none, drawn in streams apart from the trainer's."""

import copy
import itertools
import random
import time

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler

from base.base_data_loader import BaseDataLoader
from base.data.replayed_loader import ReplayedLoader, as_batches
from base.errors import DataError
from base.system.seeding import seed_everything


class Noisy(Dataset):
    """Sample i is i and a random number from torch's stream: an augmented data set in small."""

    def __len__(self):
        return 22

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()).item()], dtype=torch.float64)


class Stream(IterableDataset):
    """Ten samples in a random order, and no length."""

    def __iter__(self):
        return iter(torch.randperm(10).tolist())


class Plain:
    """A loader as people write them: no torch in it; draws from python's and numpy's streams."""

    batch_size = 2
    vocabulary = ("a", "b")

    def __init__(self, n_batches=5, length=5):
        self.n_batches, self.length = n_batches, length

    def __len__(self):
        return self.length

    def __iter__(self):
        for number in range(self.n_batches):
            yield number, random.random(), float(np.random.random())

    def split_validation(self):
        return None


class OwnLoop(BaseDataLoader):
    """A subclass that changes the batches as they come."""

    def __iter__(self):
        for batch in super().__iter__():
            yield -batch


def shuffled(workers, **options):
    return DataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=workers, **options)


KINDS = {
    "torch, no workers": lambda: shuffled(0),
    "torch, two workers": lambda: shuffled(2),
    "torch, persistent workers": lambda: shuffled(1, persistent_workers=True),
    "torch, own generator": lambda: shuffled(0, generator=torch.Generator().manual_seed(5)),
    "plain object": Plain,
    "stream": lambda: DataLoader(Stream(), batch_size=4),
    "own loop": lambda: OwnLoop(Noisy(), 4, True, 0.0, 0),
    "distributed sampler": lambda: DataLoader(
        Noisy(), batch_size=4, sampler=DistributedSampler(Noisy(), num_replicas=2, rank=1)
    ),
}


def plain(batch):
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def read(loader, first, count, seed=3):
    """What a fresh process would read."""
    replayed = as_batches(loader, seed)
    batches = [plain(batch) for batch in replayed.batches(first, count)]
    replayed.close()
    return batches


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_at_any_batch_gives_what_the_whole_gives_from_there(kind):
    make = KINDS[kind]
    whole = read(make(), 0, 14)
    assert len({str(batch) for batch in whole}) > 10
    for first in (1, 9):
        seed_everything(first)  # what the trainer has drawn by then does not matter
        assert read(make(), first, 4) == whole[first : first + 4]
    assert read(make(), 0, 2, seed=4) != whole[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_piece_by_piece_gives_the_same_as_in_one_go(kind):
    make = KINDS[kind]
    replayed = as_batches(make(), 3)
    pieces = [replayed.batches(0, 4), replayed.batches(4, 1), replayed.batches(5, 9)]
    assert [plain(b) for b in itertools.chain(*pieces)] == read(make(), 0, 14)
    assert [plain(b) for b in replayed.batches(2, 3)] == read(make(), 2, 3)
    replayed.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainers_streams_do_not_notice(kind):
    def draw():  # the last two keep a second number for the next call
        return torch.rand(()).item(), np.random.standard_normal(), random.gauss(0, 1)

    seed_everything(3)
    expected = [draw() for _ in range(8)]
    seed_everything(3)
    replayed = as_batches(KINDS[kind](), 3)
    assert [draw() for _ in replayed.batches(2, 8)] == expected
    replayed.close()


def test_a_pass_of_a_known_length_reads_everything_once_in_an_order_of_its_own():
    rows = np.concatenate(read(shuffled(2), 0, 12))
    first, second = rows[:22, 0].tolist(), rows[22:, 0].tolist()
    assert sorted(first) == sorted(second) == list(range(22))
    assert first != second
    assert set(rows[:22, 1]).isdisjoint(rows[22:, 1])


def test_going_on_does_not_draw_anything_twice():
    drawn = []

    class Counted(Plain):
        def __iter__(self):
            for batch in super().__iter__():
                drawn.append(batch[0])
                yield batch

    replayed = as_batches(Counted(), 3)
    list(replayed.batches(0, 3)), list(replayed.batches(3, 1))
    assert drawn == [0, 1, 2, 3]


def test_what_knows_positions_is_left_as_it_is():
    loader = BaseDataLoader(Noisy(), 4, True, 0.0, 0)
    assert as_batches(loader, 3) is loader
    assert not loader.replays
    replayed = as_batches(Plain(), 3)
    assert as_batches(replayed, 3) is replayed
    assert replayed.replays


def test_a_wrapped_loader_still_shows_its_own_attributes():
    replayed = as_batches(Plain(), 3)
    assert (len(replayed), replayed.batch_size, replayed.vocabulary) == (5, 2, ("a", "b"))
    assert replayed.split_validation() is None
    assert copy.copy(replayed).vocabulary == ("a", "b")
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = replayed.nothing_such
    assert [b[0] for b in replayed] == [0, 1, 2, 3, 4]


def test_its_validation_loader_is_wrapped_too():
    class Split(Plain):
        def split_validation(self):
            return shuffled(0)

    valid = as_batches(Split(), 3).split_validation()
    assert isinstance(valid, ReplayedLoader)
    first = [plain(b) for b in valid.batches(0, len(valid))]
    assert first == [plain(b) for b in valid.batches(0, len(valid))]
    own_loop = OwnLoop(Noisy(), 4, True, 0.5, 0)
    assert isinstance(as_batches(own_loop, 3).split_validation(), ReplayedLoader)


@pytest.mark.parametrize(
    "loader",
    [itertools.repeat(1), DataLoader(Stream()), (i for i in [1])],
    ids=lambda x: type(x).__name__,
)
def test_a_loader_without_a_length_has_none_here_either(loader):
    replayed = as_batches(loader, 3)
    with pytest.raises(TypeError, match=f"{type(loader).__name__} has no length"):
        len(replayed)


def test_a_generator_that_is_used_up_is_reported():
    replayed = as_batches((i for i in [1, 2]), 3)
    with pytest.raises(DataError, match="generator ended after 0 batches"):
        list(replayed.batches(0, 3))


def test_a_wrong_length_is_reported_if_too_long_and_cut_if_too_short():
    assert [b[0] for b in as_batches(Plain(5, length=3), 0).batches(0, 6)] == [0, 1, 2, 0, 1, 2]
    with pytest.raises(DataError, match="Plain ended after 5 batches, though its length is 7"):
        list(as_batches(Plain(5, length=7), 0).batches(0, 7))


class Identities(Sampler):
    """Gives two of three samples, as a sampler of identities does that says it gives all."""

    def __len__(self):
        return 12

    def __iter__(self):
        return iter(random.sample(range(12), 8))


class OwnIterator(Plain):
    """Is its own iterator, and begins again at each `iter`, as loaders of 2018 do."""

    def __iter__(self):
        self.number = 0
        self.order = np.random.permutation(self.n_batches)
        return self

    def __next__(self):
        self.number += 1
        if self.number > self.n_batches:
            raise StopIteration
        return int(self.order[self.number - 1])


def test_a_loader_that_is_its_own_iterator_gives_each_batch_once():
    whole = list(as_batches(OwnIterator(), 3).batches(0, 10))
    assert sorted(whole[:5]) == sorted(whole[5:]) == [0, 1, 2, 3, 4]
    assert whole[:5] != whole[5:]
    assert list(as_batches(OwnIterator(), 3).batches(7, 3)) == whole[7:]


def test_a_pass_whose_sampler_gives_fewer_than_it_says_is_filled_up(caplog):
    def batches(first, count):
        loader = DataLoader(range(12), batch_size=2, sampler=Identities(), drop_last=True)
        return [batch.tolist() for batch in as_batches(loader, 3).batches(first, count)]

    caplog.set_level("INFO", "kindling")
    whole = batches(0, 12)  # two passes of six
    assert len(whole) == 12
    assert caplog.text.count("ended after 4 of the 6 batches") == 1
    for start in (0, 4, 6, 10):  # four batches of a pass, and the two that fill it
        part = whole[start : start + (4 if start in (0, 6) else 2)]
        samples = [sample for batch in part for sample in batch]
        assert len(set(samples)) == len(samples)
    assert whole[4:6] != whole[0:2]
    for first in (3, 4, 5, 6, 11):
        assert batches(first, 12 - first) == whole[first:]


def test_what_is_no_loader_or_empty_is_refused():
    with pytest.raises(DataError, match="int is not a data loader"):
        as_batches(3, 0)
    with pytest.raises(DataError, match="list is empty"):
        as_batches([], 0)


def test_close_stops_the_workers():
    replayed = as_batches(shuffled(2), 3)
    before = set(psutil.Process().children())
    next(replayed.batches(0, 6))
    assert len(set(psutil.Process().children()) - before) == 2
    replayed.close()
    assert not set(psutil.Process().children()) - before


@pytest.mark.fault("F15")
def test_a_killed_worker_of_a_users_loader_is_told_when_a_batch_is_asked_for():
    loader = as_batches(DataLoader(Noisy(), 2, num_workers=1), 0)
    before = set(psutil.Process().children())
    batches = loader.batches(0, 100)
    next(batches), next(batches)
    (worker,) = set(psutil.Process().children()) - before
    worker.kill()
    psutil.wait_procs([worker], timeout=5)
    for _ in range(1000):
        time.sleep(0)  # the signal arrives between two instructions; it raises nothing here
    with pytest.raises(DataError, match=r"reading by DataLoader: DataLoader worker .* killed"):
        list(batches)
    loader.close()
