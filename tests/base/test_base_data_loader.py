"""Order, position, split, random streams and workers of the data loader."""

import itertools
import os
import pickle
import random
import signal
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from base.base_data_loader import BaseDataLoader
from base.data.batch import DEFAULT_RULES
from base.data.reading import BatchReader
from base.data.workers import _DEATHS
from base.errors import DataError
from base.system.seeding import derive_seed, seed_everything
from base.system.torch_compat import WorkerDied

WORKERS = (0, 1, 2)


class Noisy(Dataset):
    """Sample i is i and a random number from each stream: an augmented data set in small."""

    def __init__(self, n_samples=22):
        self.n_samples = n_samples

    def __len__(self):
        return self.n_samples

    def __getitem__(self, index):
        streams = torch.rand(()).item(), float(np.random.random()), random.random()
        return torch.tensor([index, *streams], dtype=torch.float64)


class Broken(Noisy):
    def __getitem__(self, index):
        if index == 13:
            raise KeyError("no pixels")
        return super().__getitem__(index)


class Counted(Noisy):
    """Counts, in this process, what is read."""

    n_read = 0

    def __getitem__(self, index):
        self.n_read += 1
        return super().__getitem__(index)


class Stuck(Noisy):
    """Sample 9 takes for ever."""

    def __getitem__(self, index):
        if index == 9:
            time.sleep(1000)
        return super().__getitem__(index)


class Ordered(Noisy):
    """Reads the odd samples first, each half shuffled."""

    def shuffled_order(self, indices, generator):
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        return torch.cat([shuffled[shuffled % 2 == 1], shuffled[shuffled % 2 == 0]])


class InMemory(Noisy):
    """Read by the batch."""

    def get_batch(self, indices):
        return indices * 10


def make(dataset=None, batch_size=4, shuffle=True, split=0.0, workers=0, **options):
    dataset = Noisy() if dataset is None else dataset
    loader = BaseDataLoader(dataset, batch_size, shuffle, split, workers, **options)
    loader.set_seed(options.get("seed", 11))
    return loader


def ids(batches):
    """The samples' numbers, batch by batch."""
    return [[int(value) for value in batch[:, 0]] for batch in batches]


def same(batches, others):
    return all(torch.equal(a, b) for a, b in zip(batches, others, strict=True))


OTHERS = set()  # processes of earlier tests, such as multiprocessing's resource tracker


@pytest.fixture(autouse=True)
def _others():
    OTHERS.clear()
    OTHERS.update(psutil.Process().children())


def children():
    return [each for each in psutil.Process().children() if each not in OTHERS]


def n_children():
    return len(children())


# Order and position


def test_an_epoch_reads_every_sample_once_with_the_short_batch_last():
    batches = ids(make())
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]
    assert sorted(itertools.chain(*batches)) == list(range(22))
    assert list(itertools.chain(*batches)) != list(range(22))


def test_the_order_is_the_permutation_of_seed_and_epoch():
    generator = torch.Generator().manual_seed(derive_seed(11, "order", 2))
    expected = torch.randperm(22, generator=generator).tolist()
    assert list(itertools.chain(*ids(make().batches(12, 6)))) == expected


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("dataset", [Noisy(), Ordered()], ids=["plain", "with an order to choose"])
def test_any_start_gives_what_the_whole_gives_from_there(dataset, workers):
    whole = list(make(dataset).batches(0, 15))
    assert ids(whole[:6]) != ids(whole[6:12])
    loader = make(dataset, workers=workers)
    for first, count in ((0, 15), (1, 3), (5, 2), (6, 6), (11, 4), (14, 1), (3, 0)):
        assert same(list(loader.batches(first, count)), whole[first : first + count])
    loader.close()


def test_a_data_set_may_choose_the_order_of_what_it_trains_on():
    loader = make(Ordered(), split=0.2)
    order = list(itertools.chain(*ids(loader.batches(0, len(loader)))))
    kept = set(range(22)) - set(itertools.chain(*ids(loader.split_validation())))
    generator = torch.Generator().manual_seed(derive_seed(11, "order", 0))
    expected = Ordered().shuffled_order(torch.tensor(sorted(kept)), generator)
    assert order == expected.tolist()


@pytest.mark.parametrize("dataset", [Noisy(), Ordered()], ids=["plain", "with an order to choose"])
def test_without_shuffle_the_order_is_that_of_the_data_set(dataset):
    loader = make(dataset, shuffle=False)
    assert list(itertools.chain(*ids(loader.batches(6, 6)))) == list(range(22))


def test_a_start_in_the_middle_reads_nothing_before_it():
    dataset = Counted()
    next(make(dataset).batches(1_000_003, 1))
    assert dataset.n_read == 4


def test_epochs_differ_in_order_and_in_augmentation():
    loader = make()
    first, second = list(loader), list(loader)
    assert ids(first) != ids(second)
    rows = [{int(r[0]): r[1:].tolist() for batch in e for r in batch} for e in (first, second)]
    assert all(rows[0][index] != rows[1][index] for index in range(22))


def test_looping_over_the_loader_gives_epoch_after_epoch():
    loader, other = make(), make()
    looped = [*loader, *loader]
    assert same(looped, list(other.batches(0, 12)))
    loader.set_epoch(1)
    assert same(list(loader), looped[6:])


def test_drop_last_leaves_the_short_batch_out():
    loader = make(drop_last=True)
    assert [len(batch) for batch in loader] == [4] * len(loader) == [4] * 5
    assert same(
        list(make(drop_last=True).batches(7, 2)), list(make(drop_last=True).batches(5, 4))[2:]
    )


def test_a_batch_may_be_larger_than_the_data_set():
    assert [len(batch) for batch in make(batch_size=100)] == [22]


# Random streams


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    by_index = {int(row[0]): row for batch in make().batches(0, 6) for row in batch}
    for options in ({"batch_size": 7}, {"shuffle": False}, {"batch_size": 1, "workers": 1}):
        loader = make(**options)
        assert all(torch.equal(row, by_index[int(row[0])]) for b in loader for row in b)
        loader.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Noisy(), InMemory()], ids=["one by one", "by the batch"])
def test_loading_leaves_the_trainers_streams_alone(workers, dataset):
    def draw():  # the last two keep a second number for the next call
        return torch.rand(()).item(), np.random.standard_normal(), random.gauss(0, 1)

    seed_everything(3)
    expected = [draw() for _ in range(6)]
    seed_everything(3)
    loader = make(dataset, split=0.2, workers=workers)
    valid = loader.split_validation()
    drawn = [draw() for _ in loader.batches(0, 3)] + [draw() for _ in valid]
    drawn += [draw() for _ in loader.batches(3, 1)]
    loader.close(), valid.close()
    assert drawn == expected[: len(drawn)]


@pytest.mark.parametrize("workers", WORKERS)
def test_a_random_collate_is_the_same_with_any_number_of_workers(workers):
    loader = make(workers=workers, collate_fn=collate_with_noise)
    assert same(list(loader), list(make(collate_fn=collate_with_noise)))
    loader.close()


def collate_with_noise(samples):
    return default_collate(samples) + torch.rand(())


def test_another_seed_gives_another_order_and_split():
    first, second = make(split=0.5), make(split=0.5)
    second.set_seed(12)
    assert ids(first) != ids(second)
    assert ids(first.split_validation()) != ids(second.split_validation())


def test_a_seed_given_to_the_loader_stays():
    loader = make(split=0.5, seed=5)
    before = ids(loader.batches(0, 3)), ids(loader.split_validation())
    loader.set_seed(6)
    assert (ids(loader.batches(0, 3)), ids(loader.split_validation())) == before


# Split


@pytest.mark.parametrize(("split", "n_valid"), [(0.25, 5), (7, 7), (1, 1), (21, 21), (0.5, 11)])
def test_the_two_parts_are_disjoint_and_cover_everything(split, n_valid):
    loader = make(split=split)
    train, valid = (
        set(itertools.chain(*ids(part))) for part in (loader, loader.split_validation())
    )
    assert not train & valid
    assert train | valid == set(range(22))
    assert len(valid) == loader.split_validation().n_samples == n_valid
    assert len(train) == loader.n_samples == len(loader.sampler) == 22 - n_valid
    assert len(loader.valid_sampler) == n_valid


def test_a_fraction_is_rounded_down_without_floating_point_slips():
    assert make(Noisy(100), split=0.29).split_validation().n_samples == 29


def test_a_seed_set_after_the_split_changes_both_parts_together():
    loader = make(split=0.5)
    valid = loader.split_validation()
    loader.set_seed(99)
    train_ids, valid_ids = (set(itertools.chain(*ids(part))) for part in (loader, valid))
    assert not train_ids & valid_ids
    assert train_ids | valid_ids == set(range(22))
    assert loader.split_validation() is valid


def test_validation_is_the_same_each_time():
    valid = make(split=0.5).split_validation()
    first = list(valid.batches(0, len(valid)))
    assert same(first, list(valid.batches(0, len(valid))))
    assert same(first, list(valid))
    assert same(first, list(valid.batches(4 * len(valid), len(valid))))
    assert valid.split_validation() is None


def test_validation_reads_its_own_data_set_where_one_is_given():
    loader = make(split=0.5, valid_dataset=InMemory())
    trained = {index for batch in ids(loader) for index in batch}
    assert [v // 10 for v in torch.cat(list(loader.split_validation())).tolist()] == sorted(
        set(range(22)) - trained
    )


@pytest.mark.parametrize("split", [0, 0.0, None])
def test_no_split_means_no_validation(split):
    loader = make(split=split)
    assert loader.split_validation() is None
    assert loader.valid_sampler is None


@pytest.mark.parametrize(
    "split", [0.01, 1.0, 1.5, -0.1, -3, 22, 23, True, float("nan"), 0.999999999]
)
def test_a_split_that_leaves_a_side_empty_is_refused(split):
    with pytest.raises(DataError, match=f"holding out {split} of 22 samples"):
        make(split=split)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": Noisy(0)}, "Noisy is empty"),
        ({"dataset": iter([1])}, "list_iterator has no length"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"workers": -1}, "num_workers must be at least 0, not -1"),
        ({"batch_size": 23, "drop_last": True}, "drop_last leaves no batch"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(DataError, match=message):
        make(**arguments)


# Whole batches


@pytest.mark.parametrize("shuffle", [True, False])
def test_tensors_in_memory_give_what_one_by_one_gives(shuffle):
    values = torch.arange(22.0).view(22, 1)
    dataset = TensorDataset(values, torch.arange(22))
    fast = make(dataset, shuffle=shuffle, split=0.2)
    slow = make(
        dataset, shuffle=shuffle, split=0.2, collate_fn=lambda samples: default_collate(samples)
    )
    for a, b in ((fast, slow), (fast.split_validation(), slow.split_validation())):
        for got, expected in zip(a.batches(3, 9), b.batches(3, 9), strict=True):
            assert type(got) is type(expected) is list
            assert all(torch.equal(x, y) for x, y in zip(got, expected, strict=True))


def test_a_subset_of_tensors_is_read_by_the_batch_too():
    loader = make(Subset(InMemory(), [3, 1, 2]), shuffle=False, workers=2)
    assert next(iter(loader)).tolist() == [30, 10, 20]
    assert n_children() == 0


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("split", [None, 0.2])
def test_a_data_set_may_change_its_indices_in_place(shuffle, split):
    class Shifted(InMemory):
        def get_batch(self, indices):
            indices += 1
            indices %= len(self)
            return super().get_batch(indices)

    loader = make(Shifted(), shuffle=shuffle, split=split)
    first = [batch.tolist() for batch in loader.batches(0, len(loader))]
    again = [batch.tolist() for batch in loader.batches(0, len(loader))]
    plain = make(InMemory(), shuffle=shuffle, split=split)
    moved = [((x + 10) % 220).tolist() for x in plain.batches(0, len(plain))]
    assert first == again == moved


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("split", [None, 0.2])
def test_indices_that_an_evaluation_reads_first_can_be_trained_on(shuffle, split):
    class Numbers(InMemory):
        def get_batch(self, indices):
            return indices

    loader = make(Numbers(), shuffle=shuffle, split=split)
    with torch.inference_mode():  # as the check before training does
        next(loader.batches(0, 1))
    table = torch.nn.Embedding(22, 2)
    for indices in loader.batches(0, len(loader)):
        table(indices).sum().backward()
    assert (table.weight.grad.sum(dim=1) > 0).sum() == loader.n_samples


def test_an_error_in_get_batch_names_the_data_set():
    class Short(InMemory):
        def get_batch(self, indices):
            raise IndexError("out of range")

    with pytest.raises(DataError, match=r"samples \[.*\] of Short: IndexError: out of range"):
        next(iter(make(Short())))


# Workers


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_sample_names_its_index_and_place(workers):
    loader = make(Broken(), shuffle=False, workers=workers)
    with pytest.raises(DataError, match="sample 13 of Broken: KeyError: 'no pixels'") as caught:
        list(loader)
    assert "test_base_data_loader.py:" in str(caught.value)
    assert "no pixels" in str(caught.value.__cause__)
    assert n_children() == 0


def test_samples_that_do_not_fit_together_are_named():
    loader = make([torch.zeros(1), torch.zeros(2)], shuffle=False)
    with pytest.raises(DataError, match=r"cannot collate samples \[0, 1\] of list: RuntimeError"):
        list(loader)


def test_workers_persist_from_epoch_to_epoch_until_closed():
    loader = make(workers=2)
    list(loader)
    workers = {child.pid for child in children()}
    list(loader)
    assert {child.pid for child in children()} == workers
    assert len(workers) == 2
    loader.close()
    assert n_children() == 0


@pytest.mark.parametrize("persistent", [True, False])
def test_a_loop_that_stops_early_leaves_no_workers_and_can_be_begun_again(persistent):
    loader = make(workers=2, persistent_workers=persistent)
    batches = loader.batches(0, 6)
    first = next(batches)
    batches.close()
    assert n_children() == 0
    assert same([first, *list(loader.batches(1, 5))], list(make()))
    loader.close()


def test_two_loops_at_once_share_nothing_without_workers():
    loader = make()
    pairs = list(zip(loader.batches(0, 6), loader.batches(3, 6), strict=True))
    assert same([a for a, _ in pairs], list(make().batches(0, 6)))
    assert same([b for _, b in pairs], list(make().batches(3, 6)))


def test_two_loops_at_once_with_workers_are_refused():
    loader = make(workers=1)
    first, second = loader.batches(0, 6), loader.batches(0, 6)
    next(first), next(second)
    with pytest.raises(DataError, match="second loop"):
        next(first)
    second.close()
    loader.close()
    assert n_children() == 0


@pytest.mark.fault("F15")
def test_a_killed_worker_ends_the_loop_with_a_clear_error():
    loader = make(Stuck(), shuffle=False, workers=1)
    batches = loader.batches(0, 6)
    next(batches)
    os.kill(children()[0].pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"reading Stuck: .* killed"):
        list(batches)
    assert n_children() == 0


@pytest.mark.fault("F15")
def test_a_death_that_is_told_while_a_lock_is_let_go_is_not_lost():
    """Python's conditions take a RuntimeError there for one of the lock's, and go on."""

    class Waiter:
        def release(self):
            children()[0].kill()
            for _ in range(500):
                time.sleep(0.01)

    loader = make(Stuck(), shuffle=False, workers=1)
    batches = loader.batches(0, 6)
    next(batches)
    condition = threading.Condition()
    condition._waiters.append(Waiter())
    with pytest.raises(WorkerDied, match="killed"), _DEATHS.raised(), condition:
        condition.notify()
    batches.close()
    loader.close()


@pytest.mark.fault("F15")
@pytest.mark.slow
def test_a_stopped_worker_ends_the_loop_after_the_timeout():
    loader = make(Noisy(1000), workers=1, timeout=2)
    batches = loader.batches(0, 200)
    next(batches), time.sleep(0.5)  # the next ones are announced, but not fetched yet
    os.kill(children()[0].pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(DataError, match="no batch for 2 s"):
        list(batches)
    assert n_children() == 0
    assert time.monotonic() - start < 5


def test_a_signal_to_the_whole_group_does_not_lose_the_workers():
    loader = make(workers=1, batch_size=1)
    batches = loader.batches(0, 22)
    next(batches)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(children()[0].pid, number)
    assert len(list(batches)) == 21
    loader.close()


def test_what_goes_to_a_worker_can_be_pickled():
    reader = pickle.loads(pickle.dumps(BatchReader(Noisy(), default_collate)))
    seed_everything(derive_seed(11, "sample", 2, 3))
    assert torch.equal(reader.__getitems__((11, 2, [3])), Noisy()[3].view(1, 4))


# Pinned memory


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Noisy(), InMemory()], ids=["one by one", "by the batch"])
def test_pinning_changes_no_batch(workers, dataset):
    loader = make(dataset, workers=workers, pin_memory=True)
    assert same(list(loader.batches(3, 5)), list(make(dataset, pin_memory=False).batches(3, 5)))
    loader.close()


@pytest.mark.parametrize(
    ("given", "kind", "pins"),
    [("auto", "cpu", False), ("auto", "cuda", True), ("auto", "mps", False), (True, "cpu", True)],
)
def test_batches_are_pinned_for_a_gpu_that_is_used(given, kind, pins, monkeypatch):
    """Pinned memory starts CUDA, which a run on the CPU of a machine with a GPU does not need."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = TensorDataset(torch.zeros(4, 2), torch.zeros(4))
    loader = BaseDataLoader(data, 2, False, 0.0, 0, pin_memory=given)
    loader.add_to_batches({**DEFAULT_RULES, "ids": True})
    loader.place_on(torch.device(kind))
    assert loader.pin_memory is pins
    assert loader._items.pin_memory is pins


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [Noisy(), InMemory()], ids=["one by one", "by the batch"])
def test_batches_are_pinned_where_there_is_cuda(workers, dataset):
    loader = make(dataset, workers=workers)
    assert all(batch.is_pinned() for batch in loader)
    loader.close()


# Habits of pytorch-template


class OldLoader(BaseDataLoader):
    """Written as pytorch-template's own loaders are."""

    def __init__(self, data_dir, batch_size, shuffle=True, validation_split=0.0, num_workers=1):
        self.data_dir = data_dir
        self.dataset = TensorDataset(torch.arange(22).view(22, 1))
        super().__init__(self.dataset, batch_size, shuffle, validation_split, num_workers)


class OldSplit(OldLoader):
    """Draws its own samplers, and gives validation as pytorch-template does."""

    def _split_sampler(self, split):
        np.random.seed(0)
        order = np.random.permutation(self.n_samples)
        n_valid = int(self.n_samples * split)
        self.shuffle = False
        self.n_samples = self.n_samples - n_valid
        return SubsetRandomSampler(order[n_valid:]), SubsetRandomSampler(order[:n_valid])


class OldValidation(OldLoader):
    def split_validation(self):
        return DataLoader(sampler=self.valid_sampler, **self.init_kwargs)


class Weighted(OldLoader):
    def _split_sampler(self, split):
        return WeightedRandomSampler([0.0] * 20 + [1.0, 1.0], 30), None


@pytest.mark.parametrize("kind", [OldLoader, OldSplit, OldValidation])
def test_a_loader_written_for_pytorch_template_works(kind):
    state = np.random.get_state()[1].tolist()
    loader = kind("data", batch_size=4, validation_split=0.25)
    assert np.random.get_state()[1].tolist() == state
    train = torch.cat([batch[0] for batch in loader]).flatten().tolist()
    valid = torch.cat([batch[0] for batch in loader.split_validation()]).flatten().tolist()
    assert sorted(train + valid) == list(range(22))
    assert (loader.n_samples, len(loader.sampler), len(loader)) == (17, 17, 5)
    again = torch.cat([b[0] for b in kind("data", 4, validation_split=0.25)]).flatten().tolist()
    assert train == again != sorted(train)


def test_a_sampler_of_ones_own_is_asked_anew_for_each_epoch():
    loader = Weighted("data", batch_size=10)
    whole = [batch[0].flatten().tolist() for batch in loader.batches(0, 6)]
    assert set(itertools.chain(*whole)) == {20, 21}
    assert whole[:3] != whole[3:]
    assert [b[0].flatten().tolist() for b in loader.batches(4, 2)] == whole[4:]
