"""Joined data sets, and parts of one, offer what those they are made of offer."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from counted import growth
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, default_collate

from base.data.reading import find_get_batch
from base.datasets.composed import ConcatenatedDataset, SubsetDataset
from base.datasets.image_files import ImageFolderDataset
from base.datasets.in_memory import InMemoryDataset, SyntheticDataset
from base.errors import DataError
from base.names.construction import build


def arrays(n: int, seed: int, shape: tuple[int, ...] = (1, 2, 2), n_classes: int = 3):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(256, (n, *shape), generator=generator).to(torch.uint8)
    labels = torch.randint(n_classes, (n,), generator=generator)
    return InMemoryDataset(inputs, labels, n_classes)


@pytest.fixture
def folder(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "dog/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pixels = np.full((3, 4, 3), int(name[4]), np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


class Own(Dataset):
    """A data set of a user's own, with nothing but what torch asks for."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor(index), index % 2


def test_joined_data_sets_are_those_of_torch():
    parts = [arrays(3, 0), arrays(5, 1), arrays(2, 2)]
    dataset, expected = ConcatenatedDataset(parts), ConcatDataset(parts)
    assert len(dataset) == 10
    for index in range(10):
        assert all(torch.equal(*pair) for pair in zip(dataset[index], expected[index], strict=True))
        assert dataset.targets[index] == expected[index][1]
    indices = torch.tensor([9, 0, 4, 4, 2, 7])
    batch = find_get_batch(dataset)(indices)
    wanted = default_collate([expected[index] for index in indices.tolist()])
    assert all(torch.equal(*pair) for pair in zip(batch, wanted, strict=True))
    assert dataset.ids == [f"{n}:{i}" for n, size in enumerate((3, 5, 2)) for i in range(size)]
    assert dataset.place(9) == "InMemoryDataset: sample 1"
    assert len(pickle.loads(pickle.dumps(dataset)).get_batch(indices)[0]) == 6


def test_a_part_is_that_of_torch():
    whole = arrays(6, 0)
    args = {"dataset": whole, "indices": [4, 0, 3]}
    dataset, expected = SubsetDataset(**args), Subset(whole, [4, 0, 3])
    assert all(torch.equal(dataset[i][0], expected[i][0]) for i in range(3))
    assert torch.equal(dataset.targets, whole.targets[[4, 0, 3]])
    assert dataset.ids == ["4", "0", "3"]
    batch = find_get_batch(dataset)(torch.tensor([2, 1]))
    assert torch.equal(batch[0], whole.images[[3, 0]])
    assert SubsetDataset(whole, first=2).ids == ["0", "1"]


@pytest.mark.parametrize(
    "chosen", [range(4), range(0), range(2, 5), range(1, 6, 2), range(5, -1, -1), range(7, 0, -3)]
)
def test_a_range_selects_what_its_list_does(chosen):
    whole = arrays(6, 0)

    def outcome(indices):
        try:
            return SubsetDataset(whole, indices).ids
        except DataError as error:
            return str(error)

    assert outcome(chosen) == outcome(list(chosen))


def test_images_keep_what_image_files_offer(folder):
    whole = ImageFolderDataset(str(folder))
    (folder / "ids.txt").write_text("dog/3.png\n\ncat/1.png\n")
    part = SubsetDataset(whole, ids=str(folder / "ids.txt"))
    joined = ConcatenatedDataset([part, SubsetDataset(whole, [1])])
    for dataset, ids in ((part, ["dog/3.png", "cat/1.png"]), (joined, [*part.ids, "cat/2.png"])):
        assert dataset.ids == ids
        assert dataset.files == [f"{folder}/{name}" for name in ids]
        assert dataset.classes == ["cat", "dog"]
        assert dataset.image(0).unique().tolist() == [3]
        assert dataset.image_shape(1) == (3, 3, 4)
        assert dataset.place(1) == f"{folder}/cat/1.png"
        assert not hasattr(dataset, "get_batch")
    prints = {each.fingerprint() for each in (whole, part, joined, SubsetDataset(whole, [0]))}
    assert len(prints) == 4
    again = SubsetDataset(ImageFolderDataset(str(folder)), ids=str(folder / "ids.txt"))
    assert again.fingerprint() == part.fingerprint()


def test_unknown_ids_take_time_in_proportion_to_their_lines(tmp_path):
    file = tmp_path / "ids.txt"

    def choose(n_samples):
        file.write_text("".join(f"{index}?\n" for index in range(n_samples)))
        with pytest.raises(DataError, match=r"there is no id '0\?'; did you mean '0'") as raised:
            SubsetDataset(arrays(n_samples, 0), ids=str(file))
        assert str(raised.value).count("\n") < 12

    assert growth(choose, 400) < 2.2


def test_own_data_sets_are_joined_with_what_they_have():
    dataset = ConcatenatedDataset([Own(), Own()])
    assert dataset[6] == (torch.tensor(2), 0)
    assert not any(hasattr(dataset, name) for name in ("targets", "ids", "get_batch", "place"))
    mixed = ConcatenatedDataset([arrays(2, 0), arrays(2, 0, (1, 3, 3))])
    assert not hasattr(mixed, "get_batch")  # images of two sizes


def test_a_config_nests_them():
    part = {"type": "SyntheticDataset", "args": {"n_samples": 8, "shape": [1, 4, 4]}}
    first = {"type": "SubsetDataset", "args": {"dataset": part, "first": 3}}
    joined = {"type": "ConcatenatedDataset", "args": {"datasets": [part, first]}}
    dataset = build("dataset", joined)
    assert len(dataset) == 11
    assert torch.equal(dataset.targets[8:], dataset.targets[:3])


def test_a_choice_that_is_none_is_told(folder):
    whole = ImageFolderDataset(str(folder))
    for args in ({}, {"first": 2, "indices": [1]}):
        with pytest.raises(DataError, match="give one of indices, first and ids"):
            SubsetDataset(whole, **args)
    for args in ({"first": 0}, {"indices": []}):
        with pytest.raises(DataError, match="no samples are chosen"):
            SubsetDataset(whole, **args)
    for args, number in (({"first": 4}, 3), ({"indices": [0, -1]}, -1), ({"indices": [0.5]}, 0.5)):
        with pytest.raises(DataError, match=f"there is no sample {number}; 3 samples, counted"):
            SubsetDataset(whole, **args)
    with pytest.raises(DataError, match="an index is given twice"):
        SubsetDataset(whole, [1, 1])
    (folder / "ids.txt").write_text("dog/3.png\ncat/1.pgn\ndog/3.png\n")
    with pytest.raises(DataError) as error:
        SubsetDataset(whole, ids=str(folder / "ids.txt"))
    assert str(error.value).replace(f"{folder}/", "").split("\n") == [
        "ids.txt:2: there is no id 'cat/1.pgn'; did you mean 'cat/1.png'?",
        "ids.txt:3: 'dog/3.png' is in line 1, too",
    ]
    with pytest.raises(DataError, match="Own has no ids; choose by indices"):
        SubsetDataset(Own(), ids=str(folder / "ids.txt"))


FLOATS = InMemoryDataset(torch.zeros(2, 1), torch.zeros(2, 4))
NUMBERS = InMemoryDataset(torch.zeros(2, 1), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConcatenatedDataset([3]), "datasets: expected .*found a value of type int"),
        (lambda: ConcatenatedDataset(SyntheticDataset(4)), "datasets: a list"),
        (lambda: ConcatenatedDataset([]), "give at least one"),
        (lambda: ConcatenatedDataset([arrays(3, 0), arrays(3, 0, n_classes=2)]),
         r"classes of data set 1 are \['0', '1'\], those of data"),
        (lambda: ConcatenatedDataset([NUMBERS, FLOATS]),
         r"targets of data set 1 are torch.float32 \('n', 4\)"),
        (lambda: SubsetDataset(3, indices=[0]), "dataset: expected .*found a value of type int"),
        (lambda: SubsetDataset(SyntheticDataset(4), indices=3), "indices: a list"),
        (lambda: SubsetDataset(SyntheticDataset(4), first=-1), "no samples are chosen"),
    ],
)  # fmt: skip
def test_what_is_no_data_set_or_does_not_agree_is_told(make, message):
    with pytest.raises(DataError, match=message):
        make()


class OneAfterTheOther(Dataset):
    """Is read in one pass, as shards are: its shuffled order goes through blocks of four."""

    def __init__(self, n: int) -> None:
        self.n, self.targets = n, torch.arange(n)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int):
        return torch.zeros(1), index

    def shuffled_order(self, indices, generator):
        blocks = torch.randperm(self.n // 4 + 1, generator=generator)
        return indices[blocks[indices // 4].argsort(stable=True)]


def test_an_order_of_reading_outlives_joining_and_choosing():
    parts = [OneAfterTheOther(40), OneAfterTheOther(24)]
    joined = ConcatenatedDataset([SubsetDataset(parts[0], indices=[*range(39, 3, -1)]), parts[1]])
    wanted = torch.arange(0, 60, 2)
    order = joined.shuffled_order(wanted, torch.Generator().manual_seed(1))
    assert sorted(order.tolist()) == wanted.tolist()
    again = joined.shuffled_order(wanted, torch.Generator().manual_seed(1))
    assert torch.equal(order, again)
    assert not torch.equal(order, joined.shuffled_order(wanted, torch.Generator().manual_seed(2)))
    for number in (0, 1):  # each part is left and begun a block at a time
        blocks = [joined[index][1] // 4 for index in order.tolist() if (index >= 36) == number]
        assert sum(a != b for a, b in itertools.pairwise(blocks)) == len(set(blocks)) - 1
    sides = [index >= 36 for index in order.tolist()]
    assert sum(a != b for a, b in itertools.pairwise(sides)) > 4, "the parts mix"


def test_there_is_no_order_of_reading_where_one_part_has_none():
    parts = [OneAfterTheOther(8), InMemoryDataset(torch.zeros(8, 1), torch.arange(8))]
    assert not hasattr(ConcatenatedDataset(parts), "shuffled_order")
