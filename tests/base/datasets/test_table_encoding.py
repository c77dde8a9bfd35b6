"""Codes, fills and statistics of a table come from its training part and serve all other data."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from base.data.splits import divide
from base.datasets.composed import ConcatenatedDataset, SubsetDataset
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.table_encoding import TargetScale
from base.datasets.tables import CsvDataset, tables_of
from base.errors import DataError

KINDS = ["ant", "bee", "cat", ""]


def rows(n: int, seed: int = 0) -> list[list]:
    """Make rows (kind, size, age, price): sizes near a billion, some ages and kinds missing."""
    random = np.random.default_rng(seed)
    kinds = random.integers(4, size=n)
    sizes = 1e9 + random.integers(100, size=n)
    ages = random.gamma(2, 10, size=n).round(2)
    prices = (50 + 3 * kinds + (sizes - 1e9) / 10 + random.normal(size=n)).round(2)
    return [
        [KINDS[kind], int(size), "" if number % 7 == 3 else age, price]
        for number, (kind, size, age, price) in enumerate(
            zip(kinds, sizes, ages, prices, strict=True)
        )
    ]


def save(path: Path, table: list[list], names: str = "kind,size,age,price") -> str:
    path.write_text("\n".join([names, *(",".join(map(str, row)) for row in table)]))
    return str(path)


ARGS = {"target": "price", "task": "regression", "categories": "auto", "missing": "median"}


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "train.csv", rows(60))


def by_sklearn(table: list[list], trained_on, others: list[list]):
    """Return the inputs and targets of other rows as scikit-learn makes them."""
    array = np.array([[k, s, np.nan if a == "" else a, p] for k, s, a, p in table], dtype=object)
    other = np.array([[k, s, np.nan if a == "" else a, p] for k, s, a, p in others], dtype=object)
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    # scikit-learn has columns for the values of the training part alone
    kinds = OneHotEncoder(sparse_output=False, handle_unknown="ignore", categories=[sorted(KINDS)])
    inputs = make_column_transformer((kinds, [0]), (numbers, [1, 2]))
    inputs.fit(array[trained_on])
    targets = StandardScaler().fit(array[trained_on, 3:].astype(float))
    return inputs.transform(other), targets.transform(other[:, 3:].astype(float))


@pytest.mark.parametrize("split", [0.3, {"folds": 4, "fold": 2}, 20])
@pytest.mark.parametrize("seed", [0, 5])
def test_all_parts_are_as_scikit_learn_makes_them_of_the_training_part(file, tmp_path, split, seed):
    test_file = save(tmp_path / "test.csv", rows(25, seed=1))
    args = {
        "dataset": CsvDataset(file, **ARGS),
        "test_dataset": CsvDataset(test_file, **ARGS),
        "batch_size": 60,
        "split": split,
        "normalize": "auto",
    }
    trained_on, held_out = (part.numpy() for part in divide(split, 60, seed))
    loaders = {
        "train": (DatasetLoader(**args, shuffle=False), rows(60), trained_on),
        "valid": (DatasetLoader(**args, shuffle=False), rows(60), held_out),
        "test": (DatasetLoader(**args, training=False), rows(25, seed=1), np.arange(25)),
    }
    for name, (loader, table, indices) in loaders.items():
        loader.set_seed(seed)
        part = loader.split_validation() if name == "valid" else loader
        inputs, targets = next(part.batches(0, 1))
        chosen = [table[index] for index in indices]
        expected = by_sklearn(rows(60), trained_on, chosen)
        np.testing.assert_allclose(inputs, expected[0], atol=2e-6, err_msg=name)
        np.testing.assert_allclose(targets, expected[1], atol=2e-6, err_msg=name)
        assert inputs.dtype == targets.dtype == torch.float32
        prices = part.target_scale.undo(targets)
        np.testing.assert_allclose(prices[:, 0], [row[3] for row in chosen], rtol=1e-6)


def test_targets_of_a_data_set_stay_in_their_own_unit(file):
    dataset = CsvDataset(file, **ARGS)
    loader = DatasetLoader(dataset, 60, normalize="auto")
    assert dataset.targets[:, 0].tolist() == pytest.approx([row[3] for row in rows(60)])
    assert next(loader.batches(0, 1))[1].mean() == pytest.approx(0, abs=1e-6)
    loader = DatasetLoader(CsvDataset(file, **ARGS), 60, normalize="inputs", shuffle=False)
    inputs, targets = next(loader.batches(0, 1))
    assert targets[:, 0].tolist() == pytest.approx([row[3] for row in rows(60)])
    assert inputs[:, 4:].std(dim=0, correction=0).tolist() == pytest.approx([1, 1])
    assert loader.target_scale is None


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_classes_and_labels_are_never_standardised(tmp_path, task):
    table = [[row[1], int(row[3] > 60), int(row[3] > 55)] for row in rows(30)]
    file = save(tmp_path / "t.csv", table, "size,dear,fair")
    target = ["dear", "fair"] if task == "multilabel" else "dear"
    dataset = CsvDataset(file, target, inputs="size", task=task)
    loader = DatasetLoader(dataset, 30, normalize="auto", shuffle=False)
    inputs, targets = next(loader.batches(0, 1))
    assert torch.equal(targets, dataset.targets)
    assert inputs.mean() == pytest.approx(0, abs=1e-6)
    assert loader.target_scale is None


def test_values_that_no_training_sample_has_are_unknown(tmp_path):
    file = save(tmp_path / "t.csv", [["a", 1], ["b", 2], ["c", 3], ["a", 4]], "kind,y")
    test_file = save(tmp_path / "test.csv", [["d", 1], ["c", 2], ["", 2], ["b", 3]], "kind,y")
    args = {"target": "y", "categories": "kind", "task": "regression", "missing": 0}
    for encode in ("one_hot", "codes"):
        dataset = CsvDataset(file, **args, encode=encode)
        split = SubsetDataset(dataset, indices=[0, 1, 2, 3])
        loader = DatasetLoader(
            split,
            4,
            split=1,
            shuffle=False,
            test_dataset=CsvDataset(test_file, **args, encode=encode),
        )
        held_out = int(loader.split_validation()._indices)
        is_lone = held_out in (1, 2)  # b or c: then no training sample has it
        codes = torch.tensor([1, 2, 3, 1])
        codes[held_out] = 0 if is_lone else 1
        tested = torch.tensor([0, 3 * (held_out != 2), 0, 2 * (held_out != 1)])
        one_hot = torch.eye(4)[:, 1:]  # unknown, code 0, is 0 in all columns
        found = dataset.tensors_given
        other = loader._tested.tensors_given
        if encode == "codes":
            assert found[1][:, 0].tolist() == codes.tolist()
            assert other[1][:, 0].tolist() == tested.tolist()
            assert found[0].shape == (4, 0)
            assert len(next(loader.batches(0, 1))) == 3
        else:
            assert torch.equal(found[0], one_hot[codes])
            assert torch.equal(other[0], one_hot[tested])


def test_the_number_of_inputs_is_the_same_for_all_splits(file):
    shapes = set()
    for fold in range(5):
        loader = DatasetLoader(CsvDataset(file, **ARGS), 4, split={"folds": 5, "fold": fold})
        shapes.add(next(loader.batches(0, 1))[0].shape)
    assert shapes == {(4, 6)}
    assert loader.input_text == "6 numbers: kind=(missing), kind=ant, kind=bee, kind=cat, size, age"


@pytest.mark.parametrize("encode", ["one_hot", "codes"])
def test_a_record_makes_the_same_of_other_data(file, tmp_path, encode):
    train = CsvDataset(file, **ARGS, encode=encode)
    loader = DatasetLoader(train, 10, split=0.5, normalize="auto")
    record = json.loads(json.dumps(train.record(), allow_nan=False))
    swapped = save(tmp_path / "swapped.csv", [row[::-1] for row in rows(60)], "price,age,size,kind")
    other = CsvDataset(swapped, **ARGS, encode=encode)
    assert not torch.equal(other.images, train.images)
    other.use_record(record)
    pairs = zip(other.tensors_given, train.tensors_given, strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert other.record() == train.record()
    assert other.target_scale.mean == loader.target_scale.mean

    dataset = CsvDataset(file, **ARGS, encode=encode)
    again = DatasetLoader(dataset, 10, split=0.5, normalize="auto")
    dataset.use_record(record)
    again.set_seed(7)  # another split, but the record's statistics
    assert dataset.record() == record


def test_data_that_lie_on_a_device_follow_a_new_encoding(file):
    dataset = CsvDataset(file, **ARGS)
    dataset.placed = dataset.placed_on(torch.device("cpu"))
    read = dataset.placed.get_batch
    before = read(torch.arange(60))
    DatasetLoader(dataset, 60, normalize="auto")
    after = read(torch.arange(60))
    assert not torch.equal(before[0], after[0])
    assert all(map(torch.equal, after, dataset.get_batch(torch.arange(60))))


def test_a_record_of_other_columns_is_refused(file, tmp_path):
    record = CsvDataset(file, **ARGS).record()
    fewer = save(tmp_path / "fewer.csv", [row[1:] for row in rows(9)], "size,height,price")
    cases = [
        (CsvDataset(fewer, **ARGS),
         "input columns differ from those of the training data: without kind, age and with height"),
        (CsvDataset(file, **ARGS, encode="codes"), "encode is codes, but one_hot for the training"),
        (CsvDataset(file, "age", inputs=["kind", "size"], categories="kind", task="regression",
                    missing={"kind": "none", "age": "drop"}),
         "input columns differ from those of the training data: without age"),
        (CsvDataset(file, "price", missing="mean", categories=["kind", "age"], task="regression"),
         "categorical columns differ from those of the training data: with age"),
    ]  # fmt: skip
    for dataset, message in cases:
        with pytest.raises(DataError, match=message):
            dataset.use_record(record)
    with pytest.raises(DataError, match="the record of a table has"):
        cases[0][0].use_record({"table": {"inputs": []}})


def test_what_training_cannot_fill_in_is_told(tmp_path):
    train = save(tmp_path / "train.csv", [[1, 2], [3, 4]], "a,y")
    other = save(tmp_path / "other.csv", [[1, 2], ["", 4]], "a,y")
    record = CsvDataset(train, "y").record()
    with pytest.raises(DataError, match=r"other.csv:3:a: missing value, for which the training"):
        CsvDataset(other, "y", missing="mean").use_record(record)


def test_unknown_values_are_counted_once(tmp_path, caplog):
    file = save(tmp_path / "t.csv", [["a", 1], ["b", 2], ["a", 3]], "kind,y")
    other = save(tmp_path / "o.csv", [["A", 1], ["b", 2], ["A", 3], ["c", 3]], "kind,y")
    args = {"target": "y", "categories": "kind"}
    loader = DatasetLoader(
        CsvDataset(file, **args, classes=4), 2, test_dataset=CsvDataset(other, **args, classes=4)
    )
    loader.set_seed(3)
    expected = f"{other}: 3 of 4 rows have kind 'A', 'c', unknown in training"
    assert [record.message for record in caplog.records] == [expected]


@pytest.mark.parametrize(
    ("missing", "filled"),
    [("mean", 3.0), ("median", 2.0), (-1, -1.0), ({"a": "mean"}, 3.0), ({"*": 0.5}, 0.5)],
)
def test_missing_numbers_are_filled_in(tmp_path, missing, filled):
    file = save(tmp_path / "t.csv", [[1, 0], ["", 0], [2, 0], ["nan", 1], [6, 1]], "a,y")
    dataset = CsvDataset(file, "y", missing=missing)
    assert dataset.images[:, 0].tolist() == [1, filled, 2, filled, 6]
    assert dataset.encoding.fills == {"a": filled}


def test_rows_are_dropped_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "kindling")
    file = save(tmp_path / "t.csv", [["x", 1, 0], ["", 2, 0], ["y", "", 1]], "k,a,y")
    dataset = CsvDataset(file, "y", categories="k", missing="drop")
    assert (len(dataset), dataset.encoding.categories) == (1, {"k": ["x"]})
    assert "dropped 2 of 3 rows with missing values (k 1, a 1)" in caplog.text
    dataset = CsvDataset(file, "y", categories="k", missing={"k": "none", "a": "drop"})
    assert (len(dataset), dataset.encoding.categories) == (2, {"k": ["none", "x"]})
    file = save(tmp_path / "t.csv", [["", 1], ["", 2]], "a,y")
    with pytest.raises(DataError, match="no row is left"):
        CsvDataset(file, "y", missing="drop")
    with pytest.raises(DataError, match="no training sample has a value, so there is no mean"):
        CsvDataset(file, "y", missing="mean")


def test_a_sample_without_labels_is_not_dropped(tmp_path):
    file = save(tmp_path / "t.csv", [[1, "a|b"], [2, ""], ["", "a"]], "x,y")
    dataset = CsvDataset(file, "y", task="multilabel", separator="|", missing="drop")
    assert dataset.targets.tolist() == [[1, 1], [0, 0]]
    assert dataset.images.tolist() == [[1], [2]]


def test_columns_named_by_a_number_are_found(tmp_path):
    file = save(tmp_path / "t.csv", [[1, 2, 0], ["", 3, 1]], "2019,2020,y")
    dataset = CsvDataset(file, "y", inputs=[2019, 2020], missing={2019: "mean"})
    assert dataset.images.tolist() == [[1, 2], [1, 3]]
    for argument in ("inputs", "ignore", "categories", "dates", "target"):
        with pytest.raises(DataError, match=f"{argument}: expected a column or a list of them"):
            CsvDataset(file, **{"target": "y", argument: {"a": 1}})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"missing": "mena"}, r"missing: one of error, .*, not 'mena'; did you mean 'mean'"),
        ({"missing": {"a": "mode"}}, r"missing.a: one of error, .* not 'mode'"),
        ({"missing": {"k": "mean"}},
         "missing.k: categories do not support mean: use error, drop or a value"),
        ({"missing": {"y": 0}}, "missing.y: targets cannot be filled in: use error or drop, not 0"),
        ({"missing": {"b": 0}}, r"missing: no column 'b'"),
        ({"missing": True}, "missing: one of"),
        ({"missing": 1e39}, "missing: one of"),
        ({"inputs": ["k", "k"]}, "inputs names 'k' twice"),
        *(({"inputs": "a", "categories": categories, "encode": "codes"},
           "encode: codes: no column is in `categories`") for categories in ([], "auto")),
    ],
)  # fmt: skip
def test_what_no_encoding_can_be_is_told(tmp_path, args, message):
    file = save(tmp_path / "t.csv", [["x", 1, 0]], "k,a,y")
    with pytest.raises(DataError, match=message):
        CsvDataset(file, "y", **{"categories": "k", **args})


def test_categories_auto_takes_text_and_never_numbers_with_a_slip(tmp_path):
    table = [["x", 1, "True", "2024-01-01", 0], ["y", 2, "False", "2024-01-02", 1]]
    file = save(tmp_path / "t.csv", table, "k,a,b,d,y")
    dataset = CsvDataset(file, "y", categories="auto", dates="d")
    assert list(dataset.encoding.categories) == ["k"]
    assert dataset.images.tolist() == [[1, 0, 1, 1, 19723], [0, 1, 2, 0, 19724]]
    file = save(tmp_path / "t.csv", [[1, 0], ["2O", 1]], "a,y")
    with pytest.raises(DataError, match=r"t.csv:3:a: expected a number, found '2O'"):
        CsvDataset(file, "y", categories="auto")
    file = save(tmp_path / "t.csv", [[f"n{i}", 0] for i in range(30)], "a,y")
    with pytest.raises(DataError, match="30 distinct texts in 30 rows are too many for categories"):
        CsvDataset(file, "y", categories="auto")
    assert CsvDataset(file, "y", categories="a").images.shape == (30, 30)


def test_categories_that_are_numbers_sort_so_and_are_one_as_floats(tmp_path):
    file = save(tmp_path / "t.csv", [[10, 0], [2, 0], [1, 1], ["01", 1]], "k,y")
    dataset = CsvDataset(file, "y", categories="k", encode="codes")
    assert dataset.encoding.categories == {"k": ["01", "1", "2", "10"]}
    floats = CsvDataset(
        save(tmp_path / "f.csv", [["10.0", 0], ["2.0", 1]], "k,y"),
        "y",
        categories="k",
        encode="codes",
    )
    floats.use_record(dataset.record())
    assert floats.tensors_given[1].tolist() == [[4], [3]]


def test_constants_become_zero_and_small_differences_stay(tmp_path):
    table = [[0.1, 1e9 + n % 3, n] for n in range(9)]
    file = save(tmp_path / "t.csv", table, "a,b,y")
    dataset = CsvDataset(file, "y", task="regression")
    DatasetLoader(dataset, 9, normalize="auto")
    assert dataset.images[:, 0].tolist() == [0] * 9
    spread = (2 / 3) ** 0.5
    expected = [(n % 3 - 1) / spread for n in range(9)]
    assert dataset.images[:, 1].tolist() == pytest.approx(expected)


def test_joined_tables_share_their_codes_and_statistics(tmp_path):
    one = save(tmp_path / "one.csv", [["b", 1, 5], ["a", 2, 6]], "k,x,y")
    two = save(tmp_path / "two.csv", [["c", 3, 7], ["a", 6, 10]], "k,x,y")
    args = {"target": "y", "task": "regression", "categories": "k"}
    joined = ConcatenatedDataset([CsvDataset(one, **args), CsvDataset(two, **args)])
    assert joined.get_batch(torch.arange(4))[0].tolist() == [
        [0, 1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [1, 0, 0, 6],
    ]  # fmt: skip
    part = SubsetDataset(joined, indices=[3, 0, 2])
    loader = DatasetLoader(part, 3, shuffle=False, normalize="auto")
    inputs, targets = next(loader.batches(0, 1))
    x = np.array([6.0, 1, 3])
    assert inputs[:, 3].tolist() == pytest.approx(((x - x.mean()) / x.std()).tolist())
    assert loader.target_scale.undo(targets)[:, 0].tolist() == pytest.approx([10, 5, 7])
    one_record, other_record = [table.record() for table in tables_of(part)]
    assert one_record == other_record
    assert one_record["table"]["categories"] == {"k": ["a", "b", "c"]}
    other = ConcatenatedDataset([CsvDataset(two, **args), CsvDataset(one, **args)])
    for table in tables_of(other):
        table.use_record(one_record)
    assert torch.equal(other.get_batch(torch.tensor([1, 2, 0]))[0], inputs)


def test_a_scale_is_undone_for_one_and_for_several_targets():
    one = TargetScale([100.0], [10.0])
    for shape in ((4, 1), (4,), (4, 3), ()):
        assert torch.equal(one.undo(torch.ones(shape)), torch.full(shape, 110.0))
    assert one.undo(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    two = TargetScale([100.0, 0.0], [10.0, 2.0])
    assert two.undo(torch.ones(1, 2)).tolist() == [[110, 2]]
    for shape in ((4, 3), (2,), (4,)):
        with pytest.raises(DataError, match="2 standardised targets, but predictions"):
            two.undo(torch.ones(shape))
