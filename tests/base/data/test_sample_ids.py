"""``batch: {ids: true, weight: NAME}``: which sample is which in a batch, for all loaders."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)

from base.base_data_loader import BaseDataLoader, as_batches
from base.data.batch import (
    DEFAULT_RULES,
    count_samples,
    cut,
    ids_of,
    inputs_of,
    sample_weight_of,
    target_of,
)
from base.data.sample_items import sample_numbers
from base.datasets.composed import ConcatenatedDataset, SubsetDataset
from base.datasets.in_memory import InMemoryDataset
from base.datasets.pipeline import Pipeline, TransformedDataset
from base.datasets.tables import CsvDataset
from base.errors import ConfigError, DataError

N = 23
RULES = DEFAULT_RULES | {"ids": True, "weight": "w"}
Sample = namedtuple("Sample", "x y")


class Pairs:
    """Samples whose input is their index, in one of several forms."""

    def __init__(self, form: str = "tuple") -> None:
        self.form, self.w = form, [index / 2 for index in range(N)]

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        x, y = torch.tensor([float(index)]), index % 3
        return {"tuple": (x, y), "dict": {"x": x, "y": y}, "named": Sample(x, y), "lone": x}[
            self.form
        ]


class InMemory(TensorDataset):
    w = torch.arange(N) / 2


def inputs(batch: Any) -> Tensor:
    args, kwargs = inputs_of(batch, RULES)
    return torch.cat([*args, *kwargs.values()])[:, 0]


def assert_numbered(batches: Iterator[Any]) -> list[int]:
    """Make sure that ids and weights are those of the inputs, which tell their index."""
    seen: list[int] = []
    for batch in batches:
        ids, x = ids_of(batch, RULES), inputs(batch)
        assert ids.dtype == torch.int64
        assert ids.tolist() == x.long().tolist()
        assert sample_weight_of(batch, RULES).tolist() == (x / 2).tolist()
        seen += ids.tolist()
    return seen


DATASETS = {
    "in memory": lambda: InMemory(torch.arange(N)[:, None].float(), torch.arange(N) % 3),
    **{form: lambda form=form: Pairs(form) for form in ("tuple", "dict", "named", "lone")},
    "transformed": lambda: TransformedDataset(Numbers(), Pipeline()),
    "joined": lambda: ConcatDataset([Subset(Pairs(), range(9)), Subset(Pairs(), range(9, N))]),
}


class Numbers(InMemoryDataset):
    def __init__(self) -> None:
        super().__init__(torch.arange(N)[:, None].float(), torch.arange(N) % 3)
        self.w = torch.arange(N) / 2


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("n_workers", [0, 2])
def test_both_parts_of_a_split_have_the_ids_of_the_data_set(kind: str, n_workers: int) -> None:
    loader = BaseDataLoader(DATASETS[kind](), 6, True, 0.3, n_workers)
    loader.add_to_batches(RULES)
    valid = loader.split_validation()
    assert valid is not None
    seen = [assert_numbered(part.batches(0, len(part))) for part in (loader, valid)]
    assert sorted([*seen[0], *seen[1]]) == list(range(N))
    assert seen[1] == sorted(seen[1])
    loader.close()
    valid.close()


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("n_workers", [0, 2])
def test_torchs_loader_is_numbered_from_any_start(kind: str, n_workers: int) -> None:
    stock = DataLoader(DATASETS[kind](), 5, shuffle=True, num_workers=n_workers)
    loader = as_batches(stock, seed=1)
    loader.add_to_batches(RULES)
    whole = assert_numbered(loader.batches(0, 10))
    assert sorted(whole[:N]) == list(range(N))
    assert assert_numbered(loader.batches(7, 2)) == whole[N + 10 : N + 20]
    assert loader.n_drawn(4) == 3
    loader.close()


def test_the_ids_of_a_part_are_those_of_the_whole() -> None:
    part = Subset(Subset(Pairs(), [9, 3, 5, 7]), [1, 3])
    loaders = [
        as_batches(DataLoader(part, 2), 0),
        as_batches(DataLoader(part, batch_sampler=BatchSampler(range(2), 2, False)), 0),
        BaseDataLoader(part, 2, False, 0, 0),
    ]
    for loader in loaders:
        loader.add_to_batches(RULES)
        assert assert_numbered(loader.batches(0, 1)) == [3, 7]


def test_composed_data_sets_give_their_own_numbers() -> None:
    joined = ConcatenatedDataset([Numbers(), SubsetDataset(Numbers(), indices=[4, 2])])
    assert sample_numbers(joined, "w").tolist() == [*Numbers().w.tolist(), 2.0, 1.0]
    assert sample_numbers(joined, "v") is None
    loader = BaseDataLoader(joined, 5, True, 0.2, 0)
    loader.add_to_batches(RULES)
    for batch in loader.batches(0, len(loader)):
        expected = [id_ if id_ < N else [4, 2][id_ - N] for id_ in ids_of(batch, RULES).tolist()]
        assert inputs(batch).long().tolist() == expected
        assert (sample_weight_of(batch, RULES) * 2).tolist() == expected


def test_skipped_samples_do_not_shift_the_ids() -> None:
    class Broken(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index in (2, 7, 8):
                raise ValueError("broken")
            return super().__getitem__(index)

    for replaces, n_workers in ((True, 0), (False, 0), (True, 2)):
        loader = BaseDataLoader(Broken(), 4, True, 0, n_workers)
        loader.add_to_batches(RULES)
        bad: list[Any] = []
        loader.skip_bad_samples(bad.extend, 5, replaces)
        seen = assert_numbered(loader.batches(0, len(loader)))
        assert len(seen) == (N if replaces else N - 3)
        assert {2, 7, 8}.isdisjoint(seen)
        assert {each.sample for each in bad} == {2, 7, 8}
        loader.close()


# --- What a batch is then -------------------------------------------------------------------------


def carrying(dataset: Any, rules: Any, **args: Any) -> Any:
    loader = BaseDataLoader(dataset, 4, False, 0, 0, **args)
    loader.add_to_batches(rules)
    return next(loader.batches(0, 1))


@pytest.mark.parametrize("kind", ["in memory", "tuple", "named"])
def test_positions_keep_their_meaning(kind: str) -> None:
    batch = carrying(DATASETS[kind](), RULES)
    x, y = batch[0], batch[1]
    for rules in (
        RULES,
        RULES | {"inputs": [0], "target": 1},
        RULES | {"inputs": [-2], "target": -1},
    ):
        args, kwargs = inputs_of(batch, rules)
        assert len(args) == 1
        assert kwargs == {}
        assert args[0] is x
        assert target_of(batch, rules) is y
    assert count_samples(batch, RULES) == 4
    part = cut(batch, 1, 3, 4)
    assert ids_of(part, RULES).tolist() == [1, 2]
    assert sample_weight_of(part, RULES).tolist() == [0.5, 1.0]
    if kind == "named":
        assert batch.y is y
        assert batch.ids.tolist() == [0, 1, 2, 3]


def test_a_dict_has_them_by_name_and_the_model_does_not() -> None:
    batch = carrying(Pairs("dict"), RULES)
    assert list(batch) == ["x", "y", "ids", "sample_weight"]
    assert list(inputs_of(batch, RULES)[1]) == ["x"]
    assert target_of(batch, RULES) is batch["y"]


def test_an_item_of_the_batch_may_be_the_weight() -> None:
    triple = TensorDataset(torch.arange(8.0), torch.arange(8), torch.arange(8) / 2)
    rules = RULES | {"weight": 2}
    batch = carrying(triple, rules)
    assert len(batch) == 4
    assert sample_weight_of(batch, rules) is batch[2]
    assert target_of(batch, rules) is batch[1]
    assert inputs_of(batch, rules)[0] == [batch[0]]
    several = rules | {"target": {"label": 1}}
    assert inputs_of(batch, several)[0] == [batch[0]]

    class Weighted(Pairs):
        def __getitem__(self, index: int) -> Any:
            return {"x": torch.ones(1), "y": index, "w": index / 4}

    batch = carrying(Weighted(), RULES)  # a key comes before an attribute
    assert list(batch) == ["x", "y", "w", "ids"]
    assert sample_weight_of(batch, RULES) is batch["w"]
    assert list(inputs_of(batch, RULES)[1]) == ["x"]


def test_a_batch_of_an_object_holds_them_as_attributes() -> None:
    class Graphs:
        def __init__(self, samples: list[Any]) -> None:
            self.x, self.y = default_collate(samples)

    batch = carrying(Pairs(), RULES, collate_fn=Graphs)
    assert batch.ids.tolist() == [0, 1, 2, 3]
    assert sample_weight_of(batch, RULES).tolist() == [0, 0.5, 1, 1.5]


def test_a_collate_fn_that_loses_samples_is_told() -> None:
    def lossy(samples: list[Any]) -> Any:
        return default_collate(samples[1:])

    with pytest.raises(DataError, match=r"a batch has 3 samples, but 4 were drawn"):
        carrying(Pairs(), RULES, collate_fn=lossy)


def test_a_taken_key_is_told() -> None:
    class Taken(Pairs):
        def __getitem__(self, index: int) -> Any:
            return {"x": torch.ones(1), "y": 0, "ids": "a"}

    with pytest.raises(ConfigError, match=r"batch.ids: a batch already has an item 'ids'"):
        carrying(Taken(), RULES)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for index in range(12):
            yield torch.tensor([float(index)]), index % 3, index


def test_what_has_no_ids_says_how_to_give_them() -> None:
    class Own:
        def __iter__(self) -> Iterator[Any]:
            yield torch.ones(2, 1), torch.ones(2)

    class Looping(BaseDataLoader):
        def __iter__(self) -> Iterator[Any]:
            yield from super().__iter__()

    loaders = {
        "Stream is an IterableDataset": DataLoader(Stream(), 4),
        "Own is neither": Own(),
        "Looping overrides __iter__": Looping(Pairs(), 4, True, 0, 0),
        "in_order=False": DataLoader(Pairs(), 4, num_workers=1, in_order=False),
    }
    for text, loader in loaders.items():
        with pytest.raises(ConfigError, match=f"batch.ids: {text}.*gives_ids = True"):
            as_batches(loader, 0).add_to_batches(RULES)


def test_a_stream_may_give_its_ids_itself() -> None:
    stream = Stream()
    stream.gives_ids, stream.w = True, torch.arange(12) / 2  # type: ignore[attr-defined]
    stream.__class__.__len__ = lambda self: 12  # type: ignore[attr-defined]
    try:
        loader = as_batches(DataLoader(stream, 4), 0)
        loader.add_to_batches(RULES)
        assert assert_numbered(loader.batches(0, 3)) == list(range(12))
    finally:
        del stream.__class__.__len__  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0] * 22, r"has shape \(22,\), not one number for each of its 23 samples"),
        ([1.0, -2.0, -3.0] + [1.0] * 20, r"sample 1 has weight -2 \(and 1 more are wrong\)"),
        ([1.0] * 22 + [float("nan")], r"sample 22 has weight nan: weights are finite"),
        (["a"] * 23, r"w: "),
        (3.0, r"expected one number per sample, found a value of type float"),
    ],
)
def test_weights_that_are_none_are_told_before_anything_is_read(values: Any, text: str) -> None:
    dataset = Pairs()
    dataset.w = values
    with pytest.raises(ConfigError, match=f"batch.weight: .*{text}"):
        BaseDataLoader(dataset, 4, True, 0, 0).add_to_batches(RULES)


def test_a_name_that_nothing_has_is_told() -> None:
    with pytest.raises(ConfigError, match=r"batch.weight: Pairs has no 'v' with one number"):
        carrying(Pairs(), RULES | {"weight": "v"})
    with pytest.raises(ConfigError, match=r"its batches have 'x', 'y'"):
        carrying(Pairs("dict"), RULES | {"weight": "v"})


def test_a_column_of_a_table_may_be_the_weight(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,b,label,w\n1,2,x,0.5\n3,4,y,2\n5,6,x,0\n")
    table = CsvDataset(str(file), "label", ignore="w")
    batch = carrying(table, RULES)
    assert sample_weight_of(batch, RULES).tolist() == [0.5, 2.0, 0.0]
    with pytest.raises(ConfigError, match=r"the column 'w' is also an input: exclude it with `i"):
        carrying(CsvDataset(str(file), "label"), RULES)
    file.write_text("a,b,label,w\n1,2,x,0.5\n3,4,y,\n5,6,x,?\n")
    with pytest.raises(ConfigError, match=r"table.csv:3:w"):
        carrying(CsvDataset(str(file), "label", ignore="w"), RULES)
