"""Tables give what their columns hold, and name file, line and column of what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from base.batch_reader import find_get_batch
from base.errors import DataError
from base.names import build
from data_loader.tables import CsvDataset, ImageCsvDataset

FLOWERS = """length, width,kind,seeds
1.5,2,rose,3
-1e-1,"0",iris,4

7,8,rose,5
"""


@pytest.fixture
def write(tmp_path: Path):
    def to_file(text: str) -> str:
        (tmp_path / "t.csv").write_bytes(text.encode())
        return str(tmp_path / "t.csv")

    return to_file


def faults(error: pytest.ExceptionInfo) -> list[str]:
    return [f"t.csv{line.partition('t.csv')[2]}" for line in str(error.value).split("\n")]


@pytest.mark.parametrize("text", [FLOWERS, "\ufeff" + FLOWERS.replace("\n", "\r\n")])
def test_numbers_and_classes_are_read(write, text):
    args = {"file": write(text), "target": "kind", "inputs": ["width", "length"]}
    dataset = build("dataset", {"type": "CsvDataset", "args": args})
    assert dataset.images.tolist() == [[2, 1.5], [0, pytest.approx(-0.1)], [8, 7]]
    assert dataset.images.dtype == torch.float32
    assert dataset.targets.tolist() == [1, 0, 1]
    assert dataset.classes == ["iris", "rose"]
    assert dataset.place(2).endswith("t.csv:5")
    assert dataset.ids == ["0", "1", "2"]
    batch = find_get_batch(dataset)(torch.tensor([2, 0]))
    expected = default_collate([dataset[2], dataset[0]])
    assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_all_other_columns_are_inputs_unless_chosen(write):
    dataset = CsvDataset(write("a,b,c\n1,2,0\n3,4,1"), "c")
    assert dataset.images.tolist() == [[1, 2], [3, 4]]
    assert CsvDataset(write("a;b;c\n1;2;0\n3;4;1"), "c", "b", delimiter=";").images.tolist() == [
        [2],
        [4],
    ]


def test_regression_targets_are_rows_of_floats(write):
    for target in ("seeds", ["seeds"]):
        dataset = CsvDataset(write(FLOWERS), target, "length", task="regression")
        assert dataset.targets.tolist() == [[3], [4], [5]]
        assert dataset.targets.dtype == torch.float32
    dataset = CsvDataset(write(FLOWERS), ["width", "seeds"], "length", task="regression")
    assert dataset.targets.tolist() == [[2, 3], [0, 4], [8, 5]]
    assert not hasattr(dataset, "classes")


def test_several_labels_stand_in_columns_or_in_one(write):
    columns = write("x,cat,dog\n1,0,1\n2,1,1\n3,0,0")
    dataset = CsvDataset(columns, ["cat", "dog"], task="multilabel")
    assert dataset.targets.tolist() == [[0, 1], [1, 1], [0, 0]]
    assert dataset.classes == ["cat", "dog"]
    joined = write("x,tags\n1,dog\n2,cat| dog\n3,")
    same = CsvDataset(joined, "tags", task="multilabel", separator="|")
    assert torch.equal(same.targets, dataset.targets)
    assert same.classes == dataset.classes
    assert same.targets.dtype == torch.float32
    more = CsvDataset(
        joined, "tags", task="multilabel", separator="|", classes=["ox", "dog", "cat"]
    )
    assert more.targets.tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"target": "knd"}, ["t.csv: target: there is no column 'knd'; did you mean 'kind'?"]),
        (
            {"target": "zz", "inputs": ["lenght", "width"]},
            [
                "t.csv: inputs: there is no column 'lenght'; did you mean 'length'?",
                "t.csv: target: there is no column 'zz' (length, width, kind, seeds)",
            ],
        ),
        ({"target": "seeds"}, [f"t.csv:{n}:kind: expected a number, found '{k}'"
                               for n, k in ((2, "rose"), (3, "iris"), (5, "rose"))]),
        ({"target": "kind", "inputs": "seeds", "classes": ["rose", "irish"]},
         ["t.csv:3:kind: unknown class 'iris'; did you mean 'irish'?"]),
        ({"target": "seeds", "inputs": "width", "classes": 5},
         ["t.csv:5:seeds: class 5 is out of range, 0 to 4"]),
        ({"target": ["width", "seeds"], "inputs": "length", "task": "multilabel"},
         ["t.csv:2:width: expected 0 or 1, found '2'", "t.csv:2:seeds: expected 0 or 1, found '3'",
          "t.csv:3:seeds: expected 0 or 1, found '4'", "t.csv:5:width: expected 0 or 1, found '8'",
          "t.csv:5:seeds: expected 0 or 1, found '5'"]),
        ({"target": ["kind", "seeds"], "inputs": "width"},
         [f"t.csv:{n}:kind: expected a class number (of several columns), found '{k}'"
          for n, k in ((2, "rose"), (3, "iris"), (5, "rose"))]),
        ({"target": [], "inputs": "width"}, ["t.csv: target names no column"]),
        ({"target": "kind", "inputs": []}, ["t.csv: inputs names no column"]),
        ({"target": "kind", "inputs": "width", "separator": "|"},
         ["t.csv: separator is for multilabel, with one target column"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_at_once(write, args, expected):
    with pytest.raises(DataError) as error:
        CsvDataset(write(FLOWERS), **args)
    assert faults(error) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1\n1,2\n1,2,3",
         ["t.csv:2: 1 fields, but 2 columns", "t.csv:4: 3 fields, but 2 columns"]),
        ("a,b\n", ["t.csv: no rows below the column names"]),
        ("", ["t.csv: no rows below the column names"]),
        ("a,b,a\n1,2,3", ["t.csv: two columns are named 'a'"]),
        ("a,b\n1,nan\n,0", ["t.csv:3:a: expected a number, found ''"]),
        ('a,b\n1,"0\n2,0', ["t.csv:3: unexpected end of data"]),
    ],
)  # fmt: skip
def test_a_table_of_a_wrong_form_is_told(write, text, expected):
    with pytest.raises(DataError) as error:
        CsvDataset(write(text), "b")
    assert faults(error) == expected


def test_a_label_that_is_left_out_is_told(write):
    with pytest.raises(DataError) as error:
        CsvDataset(write("a,b\n1,x\n2,\n"), "b")
    assert faults(error) == ["t.csv:3:b: no label"]


@pytest.mark.parametrize("value", ["nan", "inf", "1,5", "0x10"])
def test_a_regression_target_is_a_finite_number(write, value):
    with pytest.raises(DataError) as error:
        CsvDataset(write(f"a;b\n1;{value}"), "b", task="regression", delimiter=";")
    assert faults(error) == [f"t.csv:2:b: expected a number, found {value!r}"]


def test_a_delimiter_is_one_character(write):
    for delimiter in ("", "::", None, 3):
        with pytest.raises(DataError, match="give one character"):
            CsvDataset(write("a,b"), "b", delimiter=delimiter)


def test_a_column_of_paths_gives_images(write, tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (4, 5, 3), dtype=np.uint8)
    (tmp_path / "im").mkdir()
    for name in ("a b", "ü"):
        Image.fromarray(pixels).save(tmp_path / f"im/{name}.png")
    file = write("path,age\nim/a b.png,30\nim/ü.png,4.5")
    args = {"file": file, "image": "path", "target": "age", "task": "regression", "resize": [2, 2]}
    dataset = build("dataset", {"type": "ImageCsvDataset", "args": args})
    assert dataset.targets.tolist() == [[30], [4.5]]
    assert dataset[1][0].shape == (3, 2, 2) == dataset.image_shape(1)
    assert dataset.ids == ["im/a b.png", "im/ü.png"]
    assert dataset.place(1) == f"{file}:3: im/ü.png"
    assert find_get_batch(dataset) is None
    with pytest.raises(DataError) as error:
        ImageCsvDataset(write("path,age\nim/c.png,30\nim/a b.png,1\n\nim/a b.png,2"), "path", "age")
    assert faults(error) == ["t.csv:5: im/a b.png: listed already at " + f"{file}:3: im/a b.png"]
    with pytest.raises(DataError) as error:
        ImageCsvDataset(write("path,age\nim/c.png,30\nim/a b.png,1"), "path", "age")
    assert faults(error) == ["t.csv:2: im/c.png: no such file"]
