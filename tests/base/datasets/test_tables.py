"""Tables give what their columns hold, and name file, line and column of what is wrong."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from base.config import load_config
from base.data.reading import find_get_batch
from base.datasets.tables import CsvDataset, ImageCsvDataset
from base.errors import DataError
from base.names.construction import build

TABLE = """
name: table
model: {type: MLP}
data_loader: {type: DatasetLoader, args: {dataset: {type: CsvDataset}}}
optimizer: SGD
loss: mse_loss
trainer: {epochs: 1}
"""
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


def refusal(file: str, target, **args) -> list[str]:
    with pytest.raises(DataError) as error:
        CsvDataset(file, target, **args)
    return faults(error)


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


@pytest.mark.parametrize(
    ("text", "args", "expected"),
    [
        ("a,b,c\n1,2,0\n3,4,1", {}, [[1, 2], [3, 4]]),
        ("a;b;c\n1;2;0\n3;4;1", {"inputs": "b", "delimiter": ";"}, [[2], [4]]),
        (",a,c\nx,1,3\ny,4,6", {"inputs": "a"}, [[1], [4]]),
        (",a,b,c\nx,1,2,3\ny,4,5,6", {"ignore": ["", "b"]}, [[1], [4]]),
    ],
)
def test_all_other_columns_are_inputs_unless_chosen_or_ignored(write, text, args, expected):
    assert CsvDataset(write(text), "c", **args).images.tolist() == expected


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
        ({"target": "knd"}, ["t.csv: target: no column 'knd'; did you mean 'kind'?"]),
        (
            {"target": "zz", "inputs": ["lenght", "width"]},
            [
                "t.csv: inputs: no column 'lenght'; did you mean 'length'?",
                "t.csv: target: no column 'zz' (length, width, kind, seeds)",
            ],
        ),
        ({"target": "seeds"},
         ["t.csv:2:kind: expected a number, found 'rose'; for text, `categories: [kind]`, or leave "
          "it out: `ignore: [kind]`"]),
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
         ["t.csv: separator requires task multilabel and a single target column"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_at_once(write, args, expected):
    assert refusal(write(FLOWERS), **args) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1\n1,2\n1,2,3",
         ["t.csv:2: 1 fields, but 2 columns", "t.csv:4: 3 fields, but 2 columns"]),
        ("a,b\n", ["t.csv: no rows below the column names"]),
        ("", ["t.csv: no rows below the column names"]),
        ("a,b,a\n1,2,3", ["t.csv: two columns are named 'a'"]),
        ("a,b\n1,nan\n,0",
         ["t.csv:3:a: missing value; `missing` can fill it in or drop the row",
          "t.csv:3:b: '0' is a number among names; `classes` may list all"]),
        ('a,b\n1,"0\n2,0', ["t.csv:3: unexpected end of data"]),
        ("a,b\n1,x\n2,\n", ["t.csv:3:b: no label"]),
        ("a,b\n0,1\n0,1.0\n0,2.0",
         ["t.csv:3:b: '1' and '1.0' are the same number: write it in one way"]),
        ("a,b\n1,2\n#a word\n#3,4",
         ["t.csv:4: '#3': put a space after the # of a comment, or quotes around a value"]),
    ],
)  # fmt: skip
def test_a_table_of_a_wrong_form_is_told(write, text, expected):
    assert refusal(write(text), "b") == expected


@pytest.mark.parametrize("value", ["inf", "infinity", "1,5", "0x10", "1_0", "\u0661", "1 000"])
def test_a_regression_target_is_a_finite_number(write, value):
    found = refusal(write(f"a;b\n1;{value}"), "b", task="regression", delimiter=";")
    assert found == [f"t.csv:2:b: expected a number, found {value!r}"]


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
    assert faults(error) == ["t.csv:5: im/a b.png: already listed at " + f"{file}:3: im/a b.png"]
    with pytest.raises(DataError) as error:
        ImageCsvDataset(write("path,age\nim/c.png,30\nim/a b.png,1"), "path", "age")
    assert faults(error) == ["t.csv:2: im/c.png: no such file"]


@pytest.mark.parametrize("text", ["", "nan", "NaN", "NA", "?"])
def test_a_missing_target_is_told_or_its_row_dropped(write, text):
    file = write(f"a,b\n1,2\n3,{text}\n5,6")
    shown = f" ({text})" if text else ""
    expected = [f"t.csv:3:b: no target{shown}; `missing: drop` leaves such rows out"]
    assert refusal(file, "b", task="regression", missing="mean") == expected
    dataset = CsvDataset(file, "b", task="regression", missing={"b": "drop"})
    assert dataset.targets.tolist() == [[2], [6]]
    assert dataset.place(1).endswith(":4")


@pytest.mark.parametrize("value", ["1e39", "-3.5e38", "1e400"])
@pytest.mark.parametrize("line", ["{},1", "1,{}"])
def test_a_number_beyond_float32_is_told_with_its_line(write, value, line):
    found = refusal(write(f"a,b\n1,2\n{line.format(value)}"), "b", task="regression")
    place = f"t.csv:3:{'ab'[line.index('{') > 0]}"
    assert found == [f"{place}: {value} overflows float32, whose maximum is 3.4e+38"]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        ("10.0 2.0 1.0", ["1.0", "2.0", "10.0"], [2, 1, 0]),
        ("1e1 -1 2", ["-1", "2", "1e1"], [2, 0, 1]),
        ("-1.5 -10.5 .5", ["-10.5", "-1.5", ".5"], [1, 0, 2]),
        ("+10 +9 +9", ["+9", "+10"], [1, 0, 0]),
        ("10 2 1", [str(n) for n in range(11)], [10, 2, 1]),
        ("10.0 2.0 b", ["10.0", "2.0", "b"], [0, 1, 2]),
        ("v10 v2 v1", ["v1", "v10", "v2"], [1, 2, 0]),
        ("1_0 2_0 nan", ["1_0", "2_0", "nan"], [0, 1, 2]),
    ],
)
def test_labels_that_are_numbers_sort_as_numbers(write, labels, classes, numbers):
    rows = "\n".join(f"0,{label}" for label in labels.split())
    dataset = CsvDataset(write(f"a,b\n{rows}"), "b")
    assert dataset.classes == classes
    assert dataset.targets.tolist() == numbers
    joined = CsvDataset(write(f"a,b\n{rows}"), "b", task="multilabel", separator="|", inputs="a")
    occurring = [each for each in classes if each in labels.split()]
    assert joined.classes == occurring
    assert joined.targets.argmax(1).tolist() == [occurring.index(x) for x in labels.split()]


def test_a_name_among_numbers_is_a_slip(write):
    with pytest.raises(DataError, match="is a name among numbers"):
        CsvDataset(write("a,b\n0,1\n0,2.5\n0,2"), "b")


def test_columns_of_zero_and_one_may_be_floats_or_booleans(write):
    text = "a,b,c\n1,1.0,True\n2,0.0,False\n3,0,TRUE"
    dataset = CsvDataset(write(text), ["b", "c"], task="multilabel")
    assert dataset.targets.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_comments_are_skipped_but_not_values(write):
    text = (
        '# made by hand, twice\na,b,c\n##\n1,2,x\n# 7,8,y\n"#f00",5,"y\n# no comment"\n#\n3,4,z\n'
    )
    dataset = CsvDataset(write(text), "c", categories="a")
    assert dataset.classes == ["x", "y\n# no comment", "z"]
    assert [dataset.place(i)[-2:] for i in range(3)] == [":4", ":6", ":9"]
    assert dataset.encoding.categories == {"a": ["#f00", "1", "3"]}


@pytest.mark.parametrize(
    ("text", "args", "message"),
    [
        (",a,b\n0,1,2\n1,3,4", {},
         "t.csv: column 1 has no name; it looks like pandas' index: write the file with "
         '`index=False`, or exclude it: `ignore: [""]`'),
        ("a,b,\n0,1,\n1,3,", {},
         "t.csv: column 3 has no name; a delimiter at the end of a line starts one more column, or "
         'exclude it: `ignore: [""]`'),
        ("Unnamed: 0,a,b\n0,1,2", {},
         "t.csv: column 1 is named 'Unnamed: 0'; it looks like pandas' index: write the file with "
         "`index=False`, or exclude it: `ignore: [Unnamed: 0]`"),
        ("1,2\n3,4", {},
         "t.csv:1: expected column names in the first line, found only numbers"),
        ("# a,b\n1,2\n3,4", {},
         "t.csv:2: expected column names in the first line, found only numbers: are "
         "they in the comment '# a,b'?"),
        ("a;b\n1;2", {},
         "t.csv: no column 'b', and the first line holds ';': `delimiter: \";\"`, or "
         "--set 'data_loader.args.dataset.args.delimiter=\";\"'"),
        ("a,b\n1,2", {"inputs": ["a", "b"]},
         "t.csv: target 'b' is also an input: the model would see the target"),
        ("a,b\n1,2", {"ignore": "c"}, "t.csv: ignore: no column 'c' (a, b)"),
        ("a,b\n1,2", {"categories": "b"}, "t.csv: categories: 'b' is not an input"),
        ("a,b\n1,2", {"categories": "a", "dates": "a"},
         "t.csv: 'a' is in both categories and dates"),
        ("a,b\n2024-03-31,2", {},
         "t.csv:2:a: expected a number, found '2024-03-31'; a date: `dates` lists such columns"),
        ("a,b\n31.3.2024,2", {"dates": "a"},
         "t.csv:2:a: expected a date such as 2024-03-31 or 2024-03-31T18:30, found '31.3.2024'"),
        ('a,b\n"1,5",2', {},
         "t.csv:2:a: expected a number, found '1,5'; a decimal comma: `decimal: \",\"`"),
        ("a;b\n1.500;2\n1,5;2", {"delimiter": ";", "decimal": ","},
         "t.csv:2:a: expected a number, found '1.500'"),
        ("a,b\nTrue,2\n1,2", {}, "t.csv:2:a: expected a number, found 'True'"),
        ("a,b\n1,2\n1_0,3", {}, "t.csv:3:a: expected a number, found '1_0'"),
        ("a,b\n1,2\ninfinity,3", {}, "t.csv:3:a: expected a number, found 'infinity'"),
        ("a,b\n1,2\nNaN,3", {},
         "t.csv:3:a: missing value (NaN); `missing` can fill it in or drop the row"),
    ],
)  # fmt: skip
def test_a_table_that_can_hardly_be_meant_is_told(write, text, args, message):
    assert refusal(write(text), "b", task="regression", **args) == [message]


def test_tables_of_other_countries_and_programs_are_read(write):
    text = 'a;when;yes;c\n1,5;2024-01-02;True;3,25\n-1e-1;2024-01-02T12:00;;"4"\n'
    dataset = CsvDataset(
        write(text), "c", task="regression", delimiter=";", decimal=",", dates="when",
        missing={"yes": 0.5},
    )  # fmt: skip
    assert dataset.targets.tolist() == [[3.25], [4]]
    # 19,724 days: `date -d 2024-01-02 +%s` divided by 86,400
    assert dataset.images.tolist() == [[1.5, 19724, 1], [pytest.approx(-0.1), 19724.5, 0.5]]


def test_ids_that_float32_rounds_are_told(write, caplog):
    CsvDataset(write("a,b\n16777216,1\n16777217,1\n16777219,2"), "b")
    assert [record.message.partition("t.csv")[2] for record in caplog.records] == [
        ":3:a: 16777217 is 16777216 in float32 (2 such values); remove ids from the inputs"
    ]


@pytest.mark.parametrize(("delimiter", "text"), [(";", '";"'), ("\t", '"\\t"'), ("|", '"|"')])
def test_another_delimiter_is_suggested_in_one_line(write, delimiter, text):
    lines = ["name,area,price", *[f"n{k},1.5,{k}" for k in range(20)]]
    for decimal in (".", ","):  # with a decimal comma, lines have more fields than the header
        file = write("\n".join(lines).replace(",", delimiter).replace(".", decimal))
        found = refusal(file, ["price", "area"], task="regression")
        assert len(found) == 1
        option = f"--set 'data_loader.args.dataset.args.delimiter={text}'"
        assert f"holds {delimiter!r}: `delimiter: {text}`, or {option}" in found[0]
        assert load_config(None, [shlex.split(option)[1]], text=TABLE)["data_loader"]["args"][
            "dataset"
        ]["args"] == {"delimiter": delimiter}
    dataset = CsvDataset(file, "price", task="regression", delimiter=delimiter, decimal=",",
                         ignore="name")  # fmt: skip
    assert len(dataset) == 20


def test_a_delimiter_within_a_name_is_none(write):
    found = refusal(write("a|b,c\n1,2,3"), "c")
    assert found == ["t.csv:2: 3 fields, but 2 columns"]


def test_many_faults_of_a_kind_share_a_line_so_that_all_kinds_are_seen(write):
    rows = [[str(k), str(k * 1.5), str(100 + k)] for k in range(40)]
    for k in range(3, 19):
        rows[k][1] = ""
    for k in range(20, 32):
        rows[k][0] = f"x{k}"
    rows[33][0] = ""
    for k in (1, 5, 9, 13, 17):
        rows[k][2] = "NaN" if k == 1 else ""
    rows[2][2] = "cheap"
    file = write("\n".join(map(",".join, [["rooms", "Fläche (m²)", "price"], *rows])))
    assert refusal(file, "price", task="regression") == [
        "t.csv:rooms: 12 rows, the first in lines 22, 23, 24: expected a number, found 'x20'",
        "t.csv:35:rooms: missing value; `missing` can fill it in or drop the row",
        "t.csv:Fläche (m²): 16 rows, the first in lines 5, 6, 7: missing value; `missing` can fill "
        "it in or drop the row",
        "t.csv:price: 5 rows, the first in lines 3, 7, 11: no target (NaN); `missing: drop` leaves "
        "such rows out",
        "t.csv:4:price: expected a number, found 'cheap'",
    ]


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ("größe,b\n1,2\n".encode("latin-1"),
         "save it as UTF-8 (it looks like Latin-1 / Windows-1252)"),
        ("a,b\n1,2\n".encode("utf-16"), "save it as UTF-8 (it looks like UTF-16)"),
        (b"PK\x03\x04\xff\xfe\x00",
         "it looks like a spreadsheet or an archive; export it as text, in UTF-8"),
        (b"\x89\x00\x01", "it looks like a binary file"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_utf_8_says_how_to_save_it(tmp_path, data, remedy):
    (tmp_path / "t.csv").write_bytes(data)
    (found,) = refusal(str(tmp_path / "t.csv"), "b")
    assert found.startswith("t.csv: cannot be read as UTF-8 text (byte 0x")
    assert found.endswith(f" in line 1): {remedy}")
